"""Real engines for the tests."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from conserve.config import EngineSettings
from conserve.engine.direct import DirectEngine, DirectEngineConfig
from conserve.engine.options import Objective
from tests.integration.engine.tiny_llama import MAX_LENGTH

SEQUENCES = 8
BLOCKS = 64
BLOCK_TOKENS = 32
"""The smallest KV block of the CPU build."""


@asynccontextmanager
async def start_engine(model: str | Path, settings: EngineSettings) -> AsyncIterator[DirectEngine]:
    """An engine without objectives and without a profile."""
    objective = Objective(ttft_slo_ms=math.inf, tbt_slo_ms=math.inf)
    with patch.dict(os.environ):  # vLLM sets variables for its processes, which others must not see
        # Threads would wait for each other in each layer of a tiny model, long where another process has a core.
        os.environ["OMP_NUM_THREADS"] = "1"
        engine = await DirectEngine.start(DirectEngineConfig(str(model), settings, objective))
    try:
        yield engine
    finally:
        await engine.close()


def make_settings(
    mode: Literal["conserve", "stock"], max_num_seqs: int = SEQUENCES, **extra_args: Any
) -> EngineSettings:
    """For the tiny model: few sequences, and KV blocks for half of them when all are as long as they may be."""
    common = {"skip_tokenizer_init": True, "block_size": BLOCK_TOKENS, "num_gpu_blocks_override": BLOCKS}
    return EngineSettings(
        mode=mode,
        dtype="float32",
        max_model_len=MAX_LENGTH,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=128,
        cpu_threads_bind="nobind",
        extra_args=common | extra_args,
    )
