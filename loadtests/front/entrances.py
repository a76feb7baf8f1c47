"""Chats over HTTP and the same over gRPC, by turns: two entrances of one application. All else hits both alike."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import grpc

from loadtests.chat_record import ChatRecord
from loadtests.front.calls import Calls
from loadtests.front.grpc_chat import make_grpc_chat, stream_grpc_chat
from loadtests.front.streamed_chat import make_chat, stream_chat
from loadtests.front.turns import BURST_OUTPUT_TOKENS, PROMPT_WORDS, TTFT_OUTPUT_TOKENS, TurnsError
from loadtests.front.wording import Wording

HTTP: Final = "http"
GRPC: Final = "grpc"
WARM_UP_CHATS: Final = 2
"""Of each entrance: the first chat makes the channel."""
WARM_UP_ROUNDS: Final = 1

Send = Callable[[str, int], ChatRecord]
"""Sends a chat with this text, for so many tokens of output, and returns what happened to it."""


@dataclass
class EntranceRecords:
    """What came of the chats of one entrance: those sent one at a time, and those of each round sent at once.

    Attributes:
        single: One record a chat.
        rounds: One list of records a round.
    """

    single: list[ChatRecord] = field(default_factory=list)
    rounds: list[list[ChatRecord]] = field(default_factory=list)


@contextlib.contextmanager
def open_entrances(base_url: str, grpc_address: str, model: str) -> Iterator[dict[str, Send]]:
    """Both entrances of an application; each chat over HTTP has a connection, those over gRPC share a channel."""
    calls = Calls(base_url)
    with grpc.insecure_channel(grpc_address) as channel:

        def send_http(text: str, output_tokens: int) -> ChatRecord:
            return stream_chat(calls, make_chat(model, text, output_tokens))

        def send_grpc(text: str, output_tokens: int) -> ChatRecord:
            return stream_grpc_chat(channel, make_grpc_chat(model, text, output_tokens), time.monotonic())

        yield {HTTP: send_http, GRPC: send_grpc}


def measure_entrances(
    entrances: Mapping[str, Send], turns: int, rounds: int, requests_at_once: int, seed: int = 3
) -> dict[str, EntranceRecords]:
    """A chat over each in turn, then rounds of chats at once over each in turn; who comes first alternates.

    The chats are as long at both, with other words, since what one entrance has sent is in the prefix cache of both.
    The first ones do not count.

    Args:
        entrances: By name.
        turns: Chats of each, one at a time.
        rounds: Of each.
        requests_at_once: Chats of a round.
        seed: Of the words.

    Raises:
        TurnsError: a chat failed.
    """
    wording = Wording(seed)
    found = {name: EntranceRecords() for name in entrances}
    names = list(entrances)

    def send(name: str, text: str, output_tokens: int) -> ChatRecord:
        record = entrances[name](text, output_tokens)
        if record.error is not None or record.ttft_ms is None:
            raise TurnsError(f"a chat over {name} failed: {record.error or 'no content came'}")
        return record

    for turn in range(-WARM_UP_CHATS, turns):
        for name in names if turn % 2 else names[::-1]:
            record = send(name, wording.write(PROMPT_WORDS), TTFT_OUTPUT_TOKENS)
            if turn >= 0:
                found[name].single.append(record)
    with ThreadPoolExecutor(requests_at_once) as pool:
        for round_ in range(-WARM_UP_ROUNDS, rounds):
            for name in names if round_ % 2 else names[::-1]:
                texts = [wording.write(PROMPT_WORDS) for _ in range(requests_at_once)]
                records = list(pool.map(lambda text, to=name: send(to, text, BURST_OUTPUT_TOKENS), texts))
                if round_ >= 0:
                    found[name].rounds.append(records)
    return found
