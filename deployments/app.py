"""The Serve application: where `conserve up`, `serve run` and `serve deploy serve_config.yaml` start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.deployment import Application
from ray.serve.llm import build_llm_deployment
from ray.serve.llm.ingress import make_fastapi_ingress

from conserve.config import EMBEDDED_REDIS, Settings, SettingsError, load_settings
from conserve.jobs import embedded
from conserve.jobs.service import JobService
from deployments.batch_routes import build_batch_router
from deployments.console.feed import ConsoleFeed
from deployments.console.routes import build_console_router
from deployments.controller import ConServeController
from deployments.errors import install_error_handlers
from deployments.http_limits import RequestLimits
from deployments.ingress import ENDPOINTS, ConServeIngress, find_console, find_jobs
from deployments.llm_config import build_llm_config
from deployments.ray_compat import to_model_metadata

INGRESS_ONGOING_REQUESTS = 10_000
"""The limit that clients feel is the replicas' (`http.max_queued_requests`), not the front's."""


def build_app(args: dict[str, Any]) -> Application:
    """Builds the application from the `args` block of `serve_config.yaml`.

    Raises:
        SettingsError: a setting is unknown or wrong.
        ValueError: the model's folder does not exist.
        RuntimeError: our scheduler was not tested with this vLLM.
    """
    settings = load_settings(args)
    resolved = settings.with_redis_url(resolve_redis_url(settings))
    llm_config = build_llm_config(settings)
    name = settings.model.served_name

    controller = serve.deployment(
        ConServeController,
        name="Controller",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=10,
    ).bind(settings, resolved.jobs.redis_url, [name])
    own = {"settings": resolved}
    replicas = build_llm_deployment(llm_config, name_prefix="", bind_kwargs=own)
    spot = None
    if settings.spot.max_replicas > 0:
        spot = build_llm_deployment(build_llm_config(settings, spot=True), name_prefix="", bind_kwargs=own)
    return (
        serve.deployment(
            make_fastapi_ingress(ConServeIngress, endpoint_map=ENDPOINTS, app=build_fastapi_app(settings)),
            name="Ingress",
            num_replicas=settings.http.fronts,
            max_ongoing_requests=INGRESS_ONGOING_REQUESTS,
            ray_actor_options={"num_cpus": 0},
        )
    ).bind(
        llm_deployments={name: replicas},
        model_cards={name: to_model_metadata(name, llm_config)},
        settings=resolved,
        controller=controller,
        spot=spot,
    )


def build_fastapi_app(
    settings: Settings,
    find_jobs: Callable[[], JobService] = find_jobs,
    find_console: Callable[[], ConsoleFeed] = find_console,
) -> FastAPI:
    """The HTTP application that the ingress's routes are added to.

    Args:
        settings: ConServe's.
        find_jobs: Finds the offline queue, at each request.
        find_console: Finds what pages of the console are told, at each stream.
    """
    app = FastAPI(title="ConServe", docs_url="/docs", redoc_url=None)
    app.add_middleware(RequestLimits, settings=settings.http)
    install_error_handlers(app)
    app.include_router(build_batch_router(find_jobs))
    app.include_router(build_console_router(find_console))
    return app


def resolve_redis_url(settings: Settings) -> str:
    """The Redis URL that every process of the application uses; starts the embedded server if that is to be used.

    Raises:
        SettingsError: the embedded server cannot serve this cluster, which has several nodes.
    """
    if settings.jobs.redis_url != EMBEDDED_REDIS:
        return settings.jobs.redis_url
    nodes = [node for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []
    if len(nodes) > 1:
        raise SettingsError(
            f"jobs.redis_url: `{EMBEDDED_REDIS}` serves one node only, and the cluster has {len(nodes)}; "
            "give a redis:// URL that all of them reach"
        )
    return embedded.ensure_running(settings.state_dir)
