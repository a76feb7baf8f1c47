"""The front: chat, completions, models, batches, files, health and status over HTTP, and the methods of gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.jobs.api_keys import Scope
from conserve.jobs.batch import BatchEndpoint
from conserve.jobs.errors import ApiError
from conserve.jobs.files import FileStore
from conserve.jobs.flex import FlexService
from conserve.jobs.key_ring import KeyRing
from conserve.jobs.link import OUTAGES, RedisClient, keep_connected
from conserve.jobs.queue import JobQueue
from conserve.jobs.service import JobService
from conserve.jobs.tenants import find_tenants
from conserve.jobs.validation import make_rules
from conserve.launch.ports import is_loopback
from conserve.policy.refused_field import RefusedField
from conserve.telemetry.logs import configure_service_logs
from conserve.telemetry.online_metrics import FRONT_RETRIES, FRONT_TTFT
from deployments.console.feed import ConsoleFeed, Sources
from deployments.errors import RETRY_AFTER_S
from deployments.flex_routes import answer_flex, is_flex
from deployments.grpc_front.methods import GrpcMethods
from deployments.online_metrics import class_of
from deployments.online_trace import begin_front, carry_on, follow_answer
from deployments.overload import raise_overload
from deployments.pulse import listen
from deployments.ray_cluster import find_cluster
from deployments.ray_compat import ModelCard, ModelList
from deployments.ray_metrics import RayRecorder
from deployments.readiness import ReadinessProbe
from deployments.replica_loss import AnswerBroken, ask_again, lost_event
from deployments.request_bodies import ChatBody, CompletionBody, EmbeddingBody
from deployments.serve_compat import find_http_host, find_serve_replica, is_told_to_stop
from deployments.status import Status, build_status
from deployments.tenancy import admit, guess_model_tokens
from deployments.tracing import start_tracing, stop_tracing

log = structlog.get_logger(__name__)

STOP_TIMEOUT_S = 5.0

ENDPOINTS: dict[str, Callable[[FastAPI], Any]] = {
    "models": lambda app: app.get("/v1/models"),
    "model_data": lambda app: app.get("/v1/models/{model:path}"),
    "chat": lambda app: app.post("/v1/chat/completions"),
    "completions": lambda app: app.post("/v1/completions"),
    "embeddings": lambda app: app.post("/v1/embeddings"),
    "health": lambda app: app.get("/health"),
    "status": lambda app: app.get("/conserve/v1/status"),
}
"""Routes of the front, besides those of files and batches: method of `ConServeIngress` -> route."""


class ConServeIngress(GrpcMethods, OpenAiIngress):
    """Routes online requests to the replicas and offline ones to the queue.

    Args:
        llm_deployments: the replicas of each model, by the name clients send.
        model_cards: what `/v1/models` says of each.
        settings: ConServe's settings, with the Redis URL resolved.
        controller: kept so that Serve starts the controller with the application; no request passes through it.
        spot: kept so that Serve starts these replicas; no request passes to them.
    """

    def __init__(
        self,
        llm_deployments: dict[str, DeploymentHandle[Any]],
        model_cards: dict[str, Any],
        settings: Settings,
        controller: DeploymentHandle[Any],
        spot: DeploymentHandle[Any] | None = None,
    ) -> None:
        configure_service_logs()
        start_tracing(settings)
        super().__init__(llm_deployments, model_cards)
        self._models = list(llm_deployments)
        self._settings = settings
        self._recorder = RayRecorder()
        self._recorder.add(FRONT_RETRIES, 0)
        host = find_http_host()
        self._ring = KeyRing.following(settings, listens_on_loopback=host is not None and is_loopback(host))
        self._tenants = find_tenants(settings, self._ring)
        if not self._tenants.needs_keys:
            log.warning("no API key is needed here", http_host=host, keys=settings.http.keys)
        self._rules = make_rules(settings.requests)
        self._open = 0
        self._probe = ReadinessProbe(llm_deployments.values())
        self._jobs: JobService | None = None
        self._flex: FlexService | None = None
        self._queue: JobQueue | None = None
        self._board: CapacityBoard | None = None
        serve_replica = find_serve_replica()
        self._console = ConsoleFeed(
            self._find_sources,
            settings,
            self._tenants,
            lambda: serve_replica is not None and is_told_to_stop(serve_replica),
        )
        loop = asyncio.get_running_loop()
        self._link = loop.create_task(keep_connected(settings, self._offer_jobs))
        self._key_link = loop.create_task(keep_connected(settings, self._follow_keys))

    @property
    def console(self) -> ConsoleFeed:
        """What the pages of the console are told."""
        return self._console

    @property
    def only_model(self) -> str | None:
        """The model of requests that name none, where a single one is served."""
        return self._models[0] if len(self._models) == 1 else None

    @property
    def jobs(self) -> JobService:
        """The offline queue.

        Raises:
            ApiError: 503, Redis is away.
        """
        if self._jobs is None:
            raise _no_queue()
        return self._jobs

    @property
    def flex(self) -> FlexService:
        """The offline queue, for requests that wait for it.

        Raises:
            ApiError: 503, Redis is away.
        """
        if self._flex is None:
            raise _no_queue()
        return self._flex

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """Answers a chat: by a replica at once, or on harvested capacity if it asks for that tier."""
        if is_flex(body):
            return await answer_flex(self.flex, BatchEndpoint.CHAT_COMPLETIONS, request)
        await self._admit(body, request)
        answer: Response = await super().chat(body, request)
        return answer

    async def completions(self, body: CompletionBody, request: Request) -> Response:
        """Answers a completion: by a replica at once, or on harvested capacity if it asks for that tier."""
        if is_flex(body):
            return await answer_flex(self.flex, BatchEndpoint.COMPLETIONS, request)
        await self._admit(body, request)
        answer: Response = await super().completions(body, request)
        return answer

    async def embeddings(self, body: EmbeddingBody, request: Request) -> Response:
        """Answers with embeddings, where the model can."""
        await self._admit(body, request)
        answer: Response = await super().embeddings(body, request)
        return answer

    async def models(self, request: Request) -> ModelList:
        """The models that are served."""
        self._admit_to_models(request)
        found: ModelList = await super().models()
        return found

    async def model_data(self, model: str, request: Request) -> ModelCard:
        """One of these models."""
        self._admit_to_models(request)
        found: ModelCard = await super().model_data(model)
        return found

    async def _get_response(
        self, *, body: Any, call_method: str, raw_request: Request | None = None
    ) -> AsyncGenerator[Any, None]:
        with self._take_place():
            async with aclosing(self._answer(body, call_method, raw_request)) as responses:
                async for response in responses:
                    yield response

    @contextmanager
    def _take_place(self) -> Iterator[None]:
        most = self._settings.http.max_open_requests
        if self._open >= most:
            message = f"{most} online requests are open at this front, which is the limit; try again later."
            raise ApiError(
                429, message, error_type="rate_limit_error", code="too_many_requests", retry_after_s=RETRY_AFTER_S
            )
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def _answer(self, body: Any, call_method: str, raw_request: Request | None) -> AsyncGenerator[Any, None]:
        began_s = time.monotonic()
        span = begin_front(call_method, body, raw_request, self._settings.slo)
        traced_request = carry_on(raw_request, span)

        limits = self._settings.http

        def send() -> AsyncGenerator[Any, None]:
            answer: AsyncGenerator[Any, None] = super(ConServeIngress, self)._get_response(
                body=body, call_method=call_method, raw_request=traced_request
            )
            return answer

        def ask() -> AsyncGenerator[Any, None]:
            return raise_overload(listen(send, limits.replica_silence_s, limits.replica_wait_s))

        def count_retry() -> None:
            self._recorder.add(FRONT_RETRIES, 1)
            span.note("replica lost")

        has_begun = False
        async with aclosing(follow_answer(span, body, began_s, ask_again(ask, count_retry))) as responses:
            try:
                async for response in responses:
                    if not has_begun:
                        has_begun = True
                        self._note_first(body, time.monotonic() - began_s)
                    yield response
            except AnswerBroken:
                yield lost_event()

    def _note_first(self, body: Any, ttft_s: float) -> None:
        if getattr(body, "stream", False):
            self._recorder.observe(FRONT_TTFT, ttft_s, class_of(body, self._settings.slo))

    async def health(self) -> JSONResponse:
        """200 when a replica can answer, 503 when none can."""
        if await self._probe.is_ready():
            return JSONResponse({"status": "ok"})
        raise ApiError(
            503, "No replica is ready.", error_type="server_error", code="not_ready", retry_after_s=RETRY_AFTER_S
        )

    async def status(self, request: Request) -> Status:
        """Replicas with their harvest windows, and the caller's batches that have not ended; an admin's are all."""
        caller = admit(self._tenants, request, None)
        board, queue = self._board, self._queue
        if board is None or queue is None:
            raise _no_queue()
        try:
            reports, batches = await board.read_reports(), await queue.active_summaries()
            controller = await queue.leader()
        except OUTAGES:
            raise _no_queue() from None
        seen = None if caller.is_admin else caller.tenant
        return build_status(reports, batches, seen, controller=controller, cluster=find_cluster())

    def _find_sources(self) -> Sources | None:
        board, queue = self._board, self._queue
        return None if board is None or queue is None else Sources(board, queue)

    async def _check_rules(self, request: Request) -> None:
        """Checks the JSON as it was sent, of which the parsed request says what it understands; flex does so itself.

        Raises:
            ApiError: 400, the field that is not allowed.
        """
        body = await request.json()
        try:
            self._rules.check(body)
        except RefusedField as error:
            raise ApiError(400, str(error), param=error.param, code="not_allowed") from None

    async def _admit(self, body: Any, request: Request) -> None:
        if self._settings.http.keys_for_online:
            tokens = await guess_model_tokens(body, request) if self._tenants.needs_keys else 0
            admit(self._tenants, request, Scope.ONLINE, tokens)
        await self._check_rules(request)

    def _admit_to_models(self, request: Request) -> None:
        if self._settings.http.keys_for_online:
            admit(self._tenants, request, None)

    async def __del__(self) -> None:
        links = [self._link, self._key_link]
        for link in links:
            link.cancel()
        await asyncio.wait(links, timeout=STOP_TIMEOUT_S)
        await stop_tracing()

    async def _follow_keys(self, redis: RedisClient) -> None:
        await self._ring.follow(redis, self._settings.jobs.namespace)

    async def _offer_jobs(self, redis: RedisClient) -> None:
        settings = self._settings
        self._queue = JobQueue(redis, settings)
        self._board = CapacityBoard(redis, settings.jobs.namespace, settings.harvest.allotment_ttl_ms)
        store = FileStore(settings.files_url)
        self._jobs = JobService(redis, store, settings, self._models, self._tenants)
        self._flex = FlexService(redis, store, settings, self._models, self._tenants)
        try:
            await self._flex.run()
        finally:
            self._jobs = self._flex = self._queue = self._board = None


def find_console() -> ConsoleFeed:
    """What the pages are told that are open at the ingress replica that this code runs in."""
    ingress: ConServeIngress = serve.get_replica_context().servable_object
    return ingress.console


def find_jobs() -> JobService:
    """The offline queue of the ingress replica that this code runs in.

    Raises:
        ApiError: 503, Redis is away.
    """
    ingress: ConServeIngress = serve.get_replica_context().servable_object
    return ingress.jobs


def _no_queue() -> ApiError:
    return ApiError(
        503,
        "The offline queue is not available at the moment; online requests are not affected.",
        error_type="server_error",
        code="queue_unavailable",
        retry_after_s=5,
    )
