"""The methods of the gRPC front on a gRPC server without Serve, called as its replicas do behind HAProxy."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from ray.serve.grpc_util import RayServegRPCContext

from deployments.grpc_front.methods import GrpcMethods
from deployments.protos import conserve_pb2_grpc as stubs


class _Servicer:
    def __init__(self, front: GrpcMethods) -> None:
        self._front = front

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._front, name)
        if inspect.isasyncgenfunction(method):

            async def stream(request: Message, context: Any) -> AsyncIterator[Message]:
                own = RayServegRPCContext(context)
                async for message in method(request, grpc_context=own):
                    yield message
                own._set_on_grpc_context(context)

            return stream

        async def answer(request: Message, context: Any) -> Message:
            own = RayServegRPCContext(context)
            message: Message = await method(request, grpc_context=own)
            own._set_on_grpc_context(context)
            return message

        return answer


@asynccontextmanager
async def serve_on_port(front: GrpcMethods) -> AsyncIterator[int]:
    """The port of a server that runs meanwhile."""
    server = grpc.aio.server()
    servicer = _Servicer(front)
    stubs.add_GenerationServiceServicer_to_server(servicer, server)
    stubs.add_BatchServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@asynccontextmanager
async def serve_methods(front: GrpcMethods) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server that runs meanwhile."""
    async with serve_on_port(front) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
