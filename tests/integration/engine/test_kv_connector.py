"""A KV connector of the user's own keeps working, and changes no token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from conserve.engine.direct import DirectEngine
from tests.integration.engine.async_cpu import AsyncCpuExecutor
from tests.integration.engine.calls import LONG, Outputs, run_together, subtract
from tests.integration.engine.engines import make_settings, start_engine

CALLS = LONG[:24]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sync", "async", "sync, among several"])
async def engine(
    request: pytest.FixtureRequest, stock: Outputs, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DirectEngine]:
    """Ours with a connector, with both kinds of scheduling, and with vLLM's connector of several."""
    connector: dict[str, Any] = {
        "kv_connector": "FolderConnector",
        "kv_connector_module_path": "tests.integration.engine.folder_connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"folder": str(tmp_path_factory.mktemp("kv"))},
    }
    if request.param == "sync, among several":
        several = {"connectors": [connector]}
        connector = {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": several,
        }
    extra: dict[str, Any] = {"distributed_executor_backend": AsyncCpuExecutor} if request.param == "async" else {}
    async with start_engine(tiny_llama, make_settings("conserve", kv_transfer_config=connector, **extra)) as engine:
        yield engine


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_connector_has_saved_is_loaded(engine: DirectEngine, stock: Outputs) -> None:
    expected = [stock[call] for call in CALLS]
    before = engine.counters()
    assert await run_together(engine, CALLS, bursts=3) == expected
    first = subtract(engine.counters(), before)
    await engine.reset_prefix_cache()
    between = engine.counters()
    assert await run_together(engine, CALLS, bursts=3) == expected
    second = subtract(engine.counters(), between)
    assert second.offline_prefill_tokens < first.offline_prefill_tokens / 2
    assert first.offline_preemptions > 0
    assert second.offline_preemptions > 0
