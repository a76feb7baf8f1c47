"""The routes of files and batches on a free port, without Ray."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager

import uvicorn
from fastapi import FastAPI

from conserve.config import Settings
from conserve.jobs.connection import connect
from conserve.jobs.files import FileStore
from conserve.jobs.service import JobService
from deployments.batch_routes import build_batch_router
from deployments.errors import install_error_handlers
from tests.integration.bench import MODEL, TIMEOUT_S


def build_app(settings: Settings | None = None) -> FastAPI:
    """The routes as the application has them; without settings they are there to be described only."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        assert settings is not None
        redis = await connect(settings)
        try:
            app.state.service = JobService(redis, FileStore(settings.files_url), settings, [MODEL])
            yield
        finally:
            await redis.aclose()

    app = FastAPI(title="ConServe", lifespan=lifespan)
    app.include_router(build_batch_router(lambda: app.state.service))
    install_error_handlers(app)
    return app


@contextmanager
def serve_routes(settings: Settings) -> Iterator[str]:
    """Gives the URL at which they are served, until the block ends."""
    with serve_app(build_app(settings)) as url:
        yield url


@contextmanager
def serve_app(app: FastAPI) -> Iterator[str]:
    """Gives the URL at which an application is served, by a thread with a loop of its own, until the block ends."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until = time.monotonic() + TIMEOUT_S
            while not server.started:
                assert time.monotonic() < until, "the routes did not come up"
                assert thread.is_alive()
                time.sleep(0.02)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
