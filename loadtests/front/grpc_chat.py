"""One chat streamed over gRPC, timed as it is read, as `streamed_chat` does over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import grpc

from deployments.protos import conserve_pb2 as pb
from deployments.protos.conserve_pb2_grpc import GenerationServiceStub
from loadtests.chat_record import ChatRecord


@dataclass
class PieceReading:
    """What came of a stream so far."""

    content_s: list[float] = field(default_factory=list)
    usage: pb.Usage | None = None
    is_finished: bool = False

    def read(self, pieces: Iterable[pb.GenerateStreamResponse], clock: Callable[[], float]) -> None:
        """Takes pieces until the last one. Raises `grpc.RpcError`: the call failed."""
        for piece in pieces:
            came_s = clock()
            for choice in piece.choices:
                if choice.text:
                    self.content_s.append(came_s)
                self.is_finished |= bool(choice.finish_reason)
            if piece.HasField("usage"):
                self.usage = piece.usage


def make_grpc_chat(model: str, text: str, output_tokens: int, *, exact: bool = True) -> pb.GenerateStreamRequest:
    """The same as `streamed_chat.make_chat`."""
    sampling = pb.Sampling(max_tokens=output_tokens, temperature=0)
    if exact:
        sampling.ignore_eos = True
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content=text)])
    return pb.GenerateStreamRequest(model=model, chat=chat, sampling=sampling)


def stream_grpc_chat(
    channel: grpc.Channel,
    request: pb.GenerateStreamRequest,
    intended_s: float,
    *,
    timeout_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> ChatRecord:
    """Sends a chat now, and returns what happened to it; whatever goes wrong is in the record.

    Args:
        channel: To the server.
        request: As of `make_grpc_chat`.
        intended_s: When it was meant to be sent, by `clock`.
        timeout_s: From now to the end of the answer.
        clock: Seconds, monotonic.
    """
    sent_s = clock()
    reading = PieceReading()
    error = None
    try:
        reading.read(GenerationServiceStub(channel).GenerateStream(request, timeout=timeout_s), clock)
        if not reading.is_finished:
            error = "the stream ended before the answer did"
    except grpc.RpcError as problem:
        error = f"{problem.code().name}: {problem.details()}"
    return ChatRecord(
        intended_s=intended_s,
        sent_s=sent_s,
        content_s=tuple(reading.content_s),
        ended_s=clock(),
        prompt_tokens=reading.usage.prompt_tokens if reading.usage else None,
        output_tokens=reading.usage.completion_tokens if reading.usage else None,
        error=error,
    )
