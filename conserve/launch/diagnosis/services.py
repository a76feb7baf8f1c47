"""What the stack meets when it starts: its configuration, ports, Redis, and the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from conserve.config import Settings, SettingsError
from conserve.config.redis_url import describe_server
from conserve.jobs.connection import OLDEST_VERSION, is_new_enough
from conserve.jobs.keys import OLDER_SCHEMAS
from conserve.jobs.survey import RedisAwayError, survey_server
from conserve.launch.diagnosis.finding import Finding, fine, problem, warning
from conserve.launch.health import ask_health
from conserve.launch.ports import is_free
from conserve.launch.processes import find_processes
from conserve.launch.ray_head import DEFAULT_DASHBOARD_PORT
from conserve.launch.record import StackError, StackRecord, read_record
from conserve.launch.serve_api import ServeApi, ServeApiError
from conserve.launch.serve_config import ServeConfig, read_serve_config
from conserve.models import DEFAULT_MODEL, ModelError, default_model_folder, find_default_model_damage, resolve_model


def check_config(path: Path, environ: Mapping[str, str]) -> tuple[ServeConfig | None, Finding]:
    """The configuration, if it is one."""
    try:
        config = read_serve_config(path, environ)
    except SettingsError as error:
        found = "; ".join(str(error).splitlines())
        return None, problem(
            "Configuration", found, "name another one with --file, or mend it (`conserve config check`)"
        )
    return config, fine("Configuration", f"{path}, application {config.application}")


def check_stack(config: ServeConfig, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether a stack is up, or could come up: its port is free."""
    try:
        record = read_record(config.settings.state_dir)
    except (StackError, OSError) as error:
        yield problem("Stack", str(error), "see there")
        return
    if record is not None and (not record.owns_ray or find_processes(record.stack_id)):
        yield from _check_running(record, environ)
        return
    address = f"{config.http_host}:{config.http_port}"
    if is_free(config.http_port, config.http_host):
        yield fine("HTTP port", f"{address} is free; no stack is up")
    else:
        mend = "stop the program that has it, or choose another one: `http_options.port`, `conserve up --port`"
        yield problem("HTTP port", f"{address} is taken by another program", mend)
    if not is_free(DEFAULT_DASHBOARD_PORT):
        yield fine("Dashboard port", f"{DEFAULT_DASHBOARD_PORT} is taken; Ray's dashboard gets another one")


def check_redis(settings: Settings) -> Iterator[Finding]:
    """Whether the queue's server answers and keeps what it is given."""
    where = describe_server(settings.jobs.redis_url)
    try:
        found = survey_server(settings)
    except RedisAwayError as error:
        mend = "start it, or set `jobs.redis_url`; chats are served without it, batches are not"
        yield problem("Redis", f"{where} does not answer: {error}", mend)
        return
    if found is None:
        yield fine("Redis", "embedded, starts with the stack")
        return
    said = f"{where}, version {found.version}"
    oldest = ".".join(map(str, OLDEST_VERSION))
    if not is_new_enough(found.version):
        yield problem("Redis", said, f"{oldest} or later is needed, or any Valkey")
    elif found.is_cluster:
        yield problem("Redis", f"{said}, a node of a cluster", "use a server with cluster mode off")
    elif found.found_schema not in (None, found.wanted_schema):
        schemas = f"it holds batches of schema {found.found_schema}, and {found.wanted_schema} is needed"
        if found.found_schema in OLDER_SCHEMAS:
            mend = "take the older version down; this one takes them over when it starts"
            yield warning("Redis", f"{said}: {schemas}", mend)
            return
        yield problem("Redis", f"{said}: {schemas}", "use the matching version, or another `jobs.namespace`")
    elif not found.has_append_only_file:
        yield warning(
            "Redis", f"{said}, without an append-only file", "set `appendonly yes`, or batches are lost with it"
        )
    elif found.max_memory_bytes and found.eviction_policy != "noeviction":
        yield warning("Redis", f"{said}, drops keys ({found.eviction_policy})", "set `maxmemory-policy noeviction`")
    else:
        yield fine("Redis", f"{said}, append-only file on")


def check_model(settings: Settings) -> Iterator[Finding]:
    """Whether the model is there; nothing is unpacked or fetched."""
    source = settings.model.source
    if source == DEFAULT_MODEL:
        damage = find_default_model_damage()
        if damage is None:
            yield fine("Model", str(default_model_folder()))
        else:
            yield warning(
                "Model", f"{default_model_folder()}: {damage}", "run `make setup`, or wait longer at the start"
            )
        return
    try:
        found = resolve_model(source)
    except ModelError as error:
        yield problem("Model", str(error), "set `model.source`")
        return
    is_folder = Path(found).is_absolute()
    yield fine("Model", found if is_folder else f"{found}, fetched from the Hugging Face hub unless it is in its cache")


def _check_running(record: StackRecord, environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        answer = ask_health(record.base_url, Path(record.tls_certificate) if record.tls_certificate else None)
        said = "answers" if answer.is_success else f"is not ready (HTTP {answer.status_code})"
    except (httpx.HTTPError, OSError) as error:
        answer, said = None, f"does not answer: {error}"
    if answer is not None and answer.is_success:
        yield fine("Stack", f"up, {record.base_url} answers")
    else:
        mend = "wait while it starts, look into Ray's logs, or take it down (`conserve down`)"
        yield warning("Stack", f"up, but {record.base_url} {said}", mend)
    if record.dashboard_url is None:
        return
    try:
        applications = ServeApi(record.dashboard_url, environ).read_applications()
    except ServeApiError as error:
        yield problem("Ray Serve", str(error), "take the stack down and up again")
        return
    status = applications.get(record.application)
    if status is None:
        yield problem("Ray Serve", f"does not run {record.application}", "deploy it (`conserve up`)")
        return
    unwell = ", ".join(f"{name} is {state}" for name, state in status.deployments.items() if state != "HEALTHY")
    if status.status == "RUNNING" and not unwell:
        yield fine("Ray Serve", f"{record.application} is RUNNING, {len(status.deployments)} deployments are healthy")
    else:
        yield warning(
            "Ray Serve", f"{record.application} is {status.status}; {unwell or status.message}", "see its logs"
        )
