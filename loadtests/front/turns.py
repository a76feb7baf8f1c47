"""Two servers measured by turns, with the same requests: so that whatever else the machine does hits both alike.

None is asked while the processes of the other are still busy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from loadtests.chat_record import ChatRecord
from loadtests.front.calls import Calls
from loadtests.front.cost import Interval
from loadtests.front.direct import Ask
from loadtests.front.streamed_chat import make_chat, stream_chat
from loadtests.front.wording import Wording

PROMPT_WORDS: Final = 100
TTFT_OUTPUT_TOKENS: Final = 8
BURST_OUTPUT_TOKENS: Final = 48
BLOCK_CHATS: Final = 5
WARM_UP_CHATS: Final = 2
"""The first chats of a block find the processor's caches full of the other server's data."""
QUIET_S: Final = 1.3
"""Between two servers: vLLM's processes spin for a second after their last step, and take a core from the next one."""
RESAMPLES: Final = 2_000


class TurnsError(RuntimeError):
    """A request failed, so that nothing can be compared; the message says which and why."""


@dataclass(frozen=True)
class Server:
    """One of the two."""

    name: str
    calls: Calls
    model: str
    slo_class: str | None = None


@dataclass(frozen=True)
class Burst:
    """What came of chats that were sent at once: output tokens/s, and the gaps between tokens in ms."""

    tokens_per_s: float
    tbt_ms: list[float]


def measure_ttft(
    servers: Sequence[Server], turns: int, direct: Ask | None = None, seed: int = 1
) -> tuple[dict[str, list[ChatRecord]], list[float]]:
    """One chat at a time: a few to one server, as many with the same prompts to the next; who comes first alternates.

    `direct` is asked as often, with other prompts: the second value is its times in ms.

    Args:
        servers: Who is asked.
        turns: Chats of each that count, at least; whole blocks are measured.
        direct: Asks a replica itself.
        seed: Of the prompts.

    Raises:
        TurnsError: a chat failed.
        DirectError: one of `direct` did.
    """
    wording = Wording(seed)
    records: dict[str, list[ChatRecord]] = {server.name: [] for server in servers}
    direct_ms: list[float] = []
    for block in range(math.ceil(turns / BLOCK_CHATS)):
        texts = [wording.write(PROMPT_WORDS) for _ in range(WARM_UP_CHATS + BLOCK_CHATS)]
        for server in servers if block % 2 else servers[::-1]:
            time.sleep(QUIET_S)
            found = [_chat(server, text, TTFT_OUTPUT_TOKENS) for text in texts]
            records[server.name] += found[WARM_UP_CHATS:]
        if direct is not None:
            time.sleep(QUIET_S)
            others = [wording.write(PROMPT_WORDS) for _ in texts]
            times_ms = [direct(make_chat(servers[0].model, other, TTFT_OUTPUT_TOKENS)) for other in others]
            direct_ms += times_ms[WARM_UP_CHATS:]
    return records, direct_ms


def measure_throughput(
    servers: Sequence[Server],
    rounds: int,
    requests_at_once: int,
    seed: int = 2,
) -> dict[str, list[Burst]]:
    """What comes of each round, in which so many chats are sent at once, by each server in turn.

    Before the first one there is one that does not count.

    Raises:
        TurnsError: a chat failed.
    """
    wording = Wording(seed)
    bursts: dict[str, list[Burst]] = {server.name: [] for server in servers}
    with ThreadPoolExecutor(requests_at_once) as pool:
        for round_ in range(-1, rounds):
            texts = [wording.write(PROMPT_WORDS) for _ in range(requests_at_once)]
            for server in servers if round_ % 2 else servers[::-1]:
                time.sleep(QUIET_S)
                began_s = time.monotonic()
                records = list(pool.map(lambda text, to=server: _chat(to, text, BURST_OUTPUT_TOKENS), texts))
                tokens = sum(record.output_tokens or len(record.content_s) for record in records)
                if round_ < 0:
                    continue
                rate = tokens / (max(record.ended_s for record in records) - began_s)
                bursts[server.name].append(Burst(rate, [gap for record in records for gap in record.tbt_ms]))
    return bursts


def median_difference(above: Sequence[float], below: Sequence[float], seed: int = 0) -> Interval:
    """The difference of two medians, of samples taken in pairs, with a bootstrap interval over pairs."""
    high, low = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    chosen = np.random.default_rng(seed).integers(0, len(high), (RESAMPLES, len(high)))
    differences = np.median(high[chosen], axis=1) - np.median(low[chosen], axis=1)
    bounds = np.percentile(differences, [2.5, 97.5])
    return Interval(value=float(np.median(high) - np.median(low)), low=float(bounds[0]), high=float(bounds[1]))


def ratio_of_rounds(above: Sequence[float], below: Sequence[float]) -> Interval:
    """The ratios round by round: their median, lowest and highest."""
    ratios = np.asarray(above, dtype=float) / np.asarray(below, dtype=float)
    return Interval(value=float(np.median(ratios)), low=float(ratios.min()), high=float(ratios.max()))


def _chat(server: Server, text: str, output_tokens: int) -> ChatRecord:
    body = make_chat(server.model, text, output_tokens)
    if server.slo_class is not None:
        body["slo_class"] = server.slo_class
    record = stream_chat(server.calls, body)
    if record.error is not None or record.ttft_ms is None:
        raise TurnsError(f"{server.name}: a chat failed: {record.error or 'no content came'}")
    return record
