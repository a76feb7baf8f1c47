from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.engine.calls import LONG, SHORT, TWINS, Outputs, run
from tests.integration.engine.engines import BLOCKS, make_settings, start_engine
from tests.integration.engine.tiny_llama import save_tiny_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    save_tiny_llama(folder)
    return folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stock(tiny_llama: Path) -> Outputs:
    """What stock vLLM makes of each request, with room for all and without a prefix cache."""
    settings = make_settings("stock", max_num_seqs=32, enable_prefix_caching=False, num_gpu_blocks_override=20 * BLOCKS)
    calls = [*SHORT, *LONG, *TWINS]
    async with start_engine(tiny_llama, settings) as engine:
        outputs = await asyncio.gather(*(run(engine, replace(call, online=True)) for call in calls))
    return dict(zip(calls, outputs, strict=True))
