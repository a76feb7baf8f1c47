"""Teaches a fresh engine's latency model with designed requests, and stores what it has learnt."""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from conserve.config import EngineSettings
from conserve.engine.direct import DirectEngine, DirectEngineConfig
from conserve.engine.options import Objective
from conserve.engine.page import Knobs
from conserve.engine.profile_store import StoredProfile

ROUNDS = 3
LIMIT_S = 80.0
"""All rounds take no longer than this: what is known by then is stored."""
DECODE_STEPS = 10
SHORT_CONTEXT = 16
DEFAULT_MODEL_LEN = 2048
STORE_TIMEOUT_S = 20.0
_POLL_S = 0.05
_TOKEN_IDS = range(100, 1000)
"""Every vocabulary has these; random prompts find nothing in the prefix cache."""


class ProfileError(RuntimeError):
    """Nothing was measured or stored. The message says why."""


@dataclass(frozen=True)
class Burst:
    """Requests that make iterations of one kind.

    Attributes:
        streams: Requests that decode together, with `context` tokens of prompt each.
        prompts: Lengths of prompts that arrive together once all of the streams decode.
    """

    streams: int = 0
    context: int = SHORT_CONTEXT
    prompts: tuple[int, ...] = ()


def design_round(max_num_seqs: int, max_num_batched_tokens: int, max_context: int, seed: int) -> list[Burst]:
    """Bursts from the smallest to the largest iterations of an engine, in random order.

    Decodes of 1 to `max_num_seqs` sequences, prompts of 8 tokens to a full iteration, contexts up to `max_context`, and
    mixtures of these drawn at random by `seed`.
    """
    generator = random.Random(seed)  # noqa: S311 - a design of measurements
    streams = _ladder(1, max_num_seqs)
    lengths = [length for length in _ladder(8, max_num_batched_tokens) if length <= max_context]
    # Long contexts cost their prefill first.
    burst_tokens = max(2048, 2 * max_num_batched_tokens)
    bursts = [Burst(streams=count) for count in streams]
    bursts += [Burst(prompts=(length,)) for length in lengths]
    bursts += [Burst(streams=count, context=min(max_context, burst_tokens // count)) for count in streams]
    for count in [*streams, *streams]:
        longest = min(max_context, burst_tokens // (2 * count))
        context = generator.randint(min(SHORT_CONTEXT, longest), longest)
        arrivals = min(generator.choice((1, 1, 2, 4)), max(1, max_num_seqs - count))
        prompts = tuple(_draw_length(generator, lengths[-1]) for _ in range(arrivals))
        bursts.append(Burst(streams=count, context=context, prompts=prompts))
    generator.shuffle(bursts)
    return bursts


class Driven(Protocol):
    """What `drive` needs of an engine."""

    def generate(self, prompt_token_ids: Sequence[int], max_tokens: int, *, online: bool) -> AsyncGenerator[int, None]:
        """As of `DirectEngine`."""


async def drive(engine: Driven, bursts: Sequence[Burst], limit_s: float, report: Callable[[float], None]) -> None:
    """Runs bursts one after the other, until the last one or until the time is up.

    Args:
        engine: Its objectives should be infinite, so that no request waits for another.
        bursts: What to run.
        limit_s: Requests still running then are cancelled.
        report: Told the share that is done after each burst.

    Raises:
        ProfileError: a request failed.
    """
    generator = random.Random(0)  # noqa: S311 - token ids
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    try:
        async with asyncio.timeout(limit_s):
            for done, burst in enumerate(bursts, 1):
                await _run_burst(engine, burst, generator)
                report(max(done / len(bursts), (loop.time() - begun_s) / limit_s))
    except TimeoutError:
        report(1.0)
    except ExceptionGroup as failures:
        raise _name_failure(failures) from failures


async def fetch_profile(engine: DirectEngine, folder: Path) -> Path:
    """Makes the engine store its profile in its profile folder, which must have none yet, and returns the file.

    Raises:
        ProfileError: no file appeared.
    """
    engine.set_knobs(Knobs(save_profile=1.0))
    # The scheduler looks at its knobs in a step, and makes one only with a request.
    try:
        async with asyncio.timeout(STORE_TIMEOUT_S):
            await _run_request(engine, [_TOKEN_IDS[0]], 2)
    # Whatever an engine fails with: it is for the user to read, in one line.
    except Exception as error:
        raise _name_failure(error) from error
    for _ in range(math.ceil(STORE_TIMEOUT_S / _POLL_S)):
        if path := _find_profile(folder):
            return path
        await asyncio.sleep(_POLL_S)
    iterations = engine.counters().iterations
    raise ProfileError(f"the engine has stored no profile after {iterations:.0f} iterations; its log says why")


def make_profile(
    model: str, settings: EngineSettings, folder: Path, report: Callable[[float], None]
) -> tuple[Path, StoredProfile]:
    """Starts an engine, learns how long its iterations take, and stores the profile in `folder`.

    Takes as long as the start of the engine and `LIMIT_S` more. An earlier profile of such an engine is replaced.

    Args:
        model: Folder or Hugging Face id.
        settings: Of the engine.
        folder: Of the stored profiles; it is made if there is none.
        report: Told the share of the measurements that is done.

    Returns:
        The file and what is in it.

    Raises:
        ProfileError: the engine has stored no profile.
        ValueError: a setting is wrong.
        RuntimeError: the engine did not start.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    objective = Objective(ttft_slo_ms=math.inf, tbt_slo_ms=math.inf)
    # The engine starts from nothing because its own profile folder is empty.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as own:
        config = DirectEngineConfig(model, settings.model_copy(update={"mode": "conserve"}), objective, Path(own))
        path = asyncio.run(_measure(config, Path(own), report))
        stored = StoredProfile.model_validate_json(path.read_bytes())
        return path.replace(folder / path.name), stored


async def _measure(config: DirectEngineConfig, folder: Path, report: Callable[[float], None]) -> Path:
    engine = await DirectEngine.start(config)
    try:
        report(0.0)
        await drive(engine, _design(config.engine), LIMIT_S, report)
        return await fetch_profile(engine, folder)
    finally:
        await engine.close()


def _name_failure(error: Exception) -> ProfileError:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return ProfileError(f"the engine failed: {type(error).__name__}: {error}")


def _design(settings: EngineSettings) -> list[Burst]:
    max_context = (settings.max_model_len or DEFAULT_MODEL_LEN) - DECODE_STEPS - 1
    return [
        burst
        for seed in range(ROUNDS)
        for burst in design_round(settings.max_num_seqs, settings.max_num_batched_tokens, max_context, seed)
    ]


def _ladder(first: int, last: int) -> list[int]:
    """Doubles from `first` up to and including `last`."""
    steps = range(max(0, math.ceil(math.log2(max(last, 1) / first))))
    return [first << step for step in steps] + [last]


def _draw_length(generator: random.Random, longest: int) -> int:
    """Small lengths are as likely as large ones: uniform in the logarithm."""
    return round(math.exp(generator.uniform(math.log(min(8, longest)), math.log(longest))))


def _find_profile(folder: Path) -> Path | None:
    return next(folder.glob("*.json"), None)


async def _run_burst(engine: Driven, burst: Burst, generator: random.Random) -> None:
    decoding = [asyncio.Event() for _ in range(burst.streams)]
    async with asyncio.TaskGroup() as group:
        for event in decoding:
            prompt = generator.choices(_TOKEN_IDS, k=burst.context)
            group.create_task(_run_request(engine, prompt, DECODE_STEPS, event))
        for event in decoding:
            await event.wait()
        for length in burst.prompts:
            group.create_task(_run_request(engine, generator.choices(_TOKEN_IDS, k=length), 1))


async def _run_request(
    engine: Driven, prompt: Sequence[int], max_tokens: int, first_token: asyncio.Event | None = None
) -> None:
    async with aclosing(engine.generate(prompt, max_tokens, online=True)) as outputs:
        async for _ in outputs:
            if first_token is not None:
                first_token.set()
