"""A batch of embeddings on a model that is served for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import MODEL, Application


def test_a_batch_of_embeddings_has_those_of_online_requests(tmp_path: Path) -> None:
    application = Application(tmp_path)
    texts = [f"text number {number}" for number in range(5)]
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": MODEL, "input": text},
        }
        for number, text in enumerate(texts)
    ]
    try:
        application.up(CONSERVE_MODEL__TASK="embed", CONSERVE_ENGINE__MODE="stock")
        client = application.client()
        batch = application.wait_for(application.submit(lines, "/v1/embeddings").id)
        assert batch.status == "completed", batch
        assert batch.usage is not None
        assert batch.usage.input_tokens > 0
        assert batch.usage.output_tokens == 0
        assert batch.output_file_id is not None
        found = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        online = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    finally:
        application.stack.down(print)
    assert [line["custom_id"] for line in found] == [line["custom_id"] for line in lines]
    for line, expected in zip(found, online.data, strict=True):
        embedding = line["response"]["body"]["data"][0]["embedding"]
        assert embedding == pytest.approx(expected.embedding, abs=1e-4)
