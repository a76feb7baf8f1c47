"""The stack of one machine: embedded Redis, Ray and the Serve application, up and down.

What was started is written down in the state folder before it is started, so that `down` finds it whatever happened.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml
from pydantic import BaseModel, ValidationError

from conserve.config import EMBEDDED_REDIS
from conserve.jobs import embedded
from conserve.launch.ports import is_free
from conserve.launch.processes import STACK_ID_VARIABLE, end_processes, find_processes
from conserve.launch.ray_head import ray_temp_dir, start_ray_head, wait_for_ray_head
from conserve.launch.serve_api import ApplicationStatus, ServeApi, ServeApiError
from conserve.launch.serve_config import ServeConfig, read_serve_config

START_TIMEOUT_S = 900.0
"""Until the application runs: a large model takes minutes to load."""
DRAIN_TIMEOUT_S = 25.0
"""Until the replicas have left: a little more than their graceful shutdown takes."""
POLL_PERIOD_S = 0.5

Progress = Callable[[str], None]


class StackError(RuntimeError):
    """The stack did not come up. The message says why, and where to look."""


class StackRecord(BaseModel):
    """What was started, as it stands in the state folder."""

    stack_id: str
    application: str
    base_url: str
    dashboard_url: str | None = None
    owns_ray: bool = True


@dataclass(frozen=True)
class RunningStack:
    """A stack that answers."""

    base_url: str
    dashboard_url: str
    log_dir: Path


class LocalStack:
    """The stack that a configuration describes.

    Args:
        config_path: a `serve_config.yaml`.
        state_dir: where it keeps its state; the configuration's `state_dir` by default.
        environ: environment of what is started, `CONSERVE_...` settings among it; this process's own by default.
        http_port: HTTP port; the configuration's by default.
        ray_dashboard_url: a running Ray cluster to use; by default one is started.

    Raises:
        SettingsError: the configuration is wrong.
    """

    def __init__(
        self,
        config_path: Path,
        state_dir: Path | None = None,
        environ: Mapping[str, str] | None = None,
        *,
        http_port: int | None = None,
        ray_dashboard_url: str | None = None,
    ) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        if state_dir is not None:
            self._environ["CONSERVE_STATE_DIR"] = str(state_dir.absolute())
        config = read_serve_config(config_path, self._environ)
        self._config: ServeConfig = config if http_port is None else config.listening_on(http_port)
        self._state_dir = config.settings.state_dir
        self._ray_dashboard_url = ray_dashboard_url

    @property
    def config(self) -> ServeConfig:
        """The resolved configuration."""
        return self._config

    @property
    def log_dir(self) -> Path:
        """Where Ray writes the logs of everything it runs."""
        return ray_temp_dir(self._state_dir) / "session_latest" / "logs"

    def up(self, on_progress: Progress = lambda line: None) -> RunningStack:
        """Starts what is not running yet and waits until the application answers.

        Raises:
            StackError, RayHeadError, ServeApiError, EmbeddedServerError: it does not come up. Call `down` then.
        """
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._config.settings.jobs.redis_url == EMBEDDED_REDIS:
            on_progress("Redis: starting the embedded server")
            embedded.ensure_running(self._state_dir)
        record, head_url = self._find_or_start_ray(on_progress)
        api = ServeApi(head_url, self._environ)
        resolved = self._state_dir / "serve_config.yaml"
        resolved.write_text(yaml.safe_dump(self._config.content, sort_keys=False), encoding="utf-8")
        on_progress("Ray Serve: deploying the application")
        api.deploy(self._config.content)
        self._wait_until_running(api, on_progress)
        self._wait_until_healthy(record.base_url)
        return RunningStack(record.base_url, head_url, self.log_dir)

    def down(self, on_progress: Progress = lambda line: None) -> bool:
        """Stops everything that `up` started, the embedded Redis included. Harmless when nothing runs.

        Returns:
            True when there was something to stop.
        """
        return take_down(self._state_dir, on_progress, self._environ)

    def _find_or_start_ray(self, on_progress: Progress) -> tuple[StackRecord, str]:
        host = self._config.http_host if self._config.http_host != "0.0.0.0" else "127.0.0.1"  # noqa: S104 - a comparison
        base_url = f"http://{host}:{self._config.http_port}"
        existing = read_record(self._state_dir)
        if existing is not None and existing.dashboard_url and find_processes(existing.stack_id):
            on_progress("Ray: already running")
            record = existing.model_copy(update={"base_url": base_url})
            _write_record(self._state_dir, record)
            return record, existing.dashboard_url
        record = StackRecord(
            stack_id=uuid.uuid4().hex,
            application=self._config.application,
            base_url=base_url,
            dashboard_url=self._ray_dashboard_url,
            owns_ray=self._ray_dashboard_url is None,
        )
        _write_record(self._state_dir, record)
        if self._ray_dashboard_url is not None:
            return record, self._ray_dashboard_url
        if not is_free(self._config.http_port, self._config.http_host):
            _record_path(self._state_dir).unlink()
            raise StackError(
                f"Port {self._config.http_port} of {self._config.http_host} is taken by another program. "
                "Choose another one: `http_options.port` in the configuration, or --port."
            )
        on_progress("Ray: starting a head on this machine")
        environ = {**self._environ, STACK_ID_VARIABLE: record.stack_id}
        pid = start_ray_head(self._state_dir, environ)
        head = wait_for_ray_head(pid, self._state_dir, environ)
        record = record.model_copy(update={"dashboard_url": head.dashboard_url})
        _write_record(self._state_dir, record)
        on_progress(f"Ray: dashboard at {head.dashboard_url}")
        return record, head.dashboard_url

    def _wait_until_running(self, api: ServeApi, on_progress: Progress) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        said = ""
        while time.monotonic() < deadline_s:
            status = api.read_application(self._config.application)
            if status is not None:
                if status.status == "RUNNING":
                    return
                if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                    raise StackError(f"The application did not start: {_reason(status)}\nLogs: {self.log_dir}/serve")
                line = _describe(status)
                if line != said:
                    on_progress(line)
                    said = line
            time.sleep(POLL_PERIOD_S)
        raise StackError(f"The application is not running after {START_TIMEOUT_S:g} s. Logs: {self.log_dir}/serve")

    def _wait_until_healthy(self, base_url: str) -> None:
        deadline_s = time.monotonic() + 60
        last = "no answer"
        while time.monotonic() < deadline_s:
            try:
                response = httpx.get(f"{base_url}/health", timeout=5)
                if response.status_code == httpx.codes.OK:
                    return
                last = f"status {response.status_code}"
            except httpx.HTTPError as error:
                last = str(error)
            time.sleep(POLL_PERIOD_S)
        raise StackError(f"The application runs, but {base_url}/health does not say so: {last}. Logs: {self.log_dir}")


def take_down(
    state_dir: Path, on_progress: Progress = lambda line: None, environ: Mapping[str, str] | None = None
) -> bool:
    """Stops what a stack with this state folder has started. See `LocalStack.down`."""
    record = read_record(state_dir)
    if record is not None:
        if record.dashboard_url and (not record.owns_ray or find_processes(record.stack_id)):
            on_progress("Ray Serve: letting the replicas finish")
            _drain(record, os.environ if environ is None else environ)
        if record.owns_ray:
            on_progress("Ray: stopping")
            end_processes(record.stack_id)
        _record_path(state_dir).unlink(missing_ok=True)
    had_redis = embedded.is_running(state_dir)
    if had_redis:
        on_progress("Redis: stopping")
        embedded.stop(state_dir)
    return record is not None or had_redis


def read_record(state_dir: Path) -> StackRecord | None:
    """What was started with this state folder, None when nothing was."""
    try:
        return StackRecord.model_validate_json(_record_path(state_dir).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def _drain(record: StackRecord, environ: Mapping[str, str]) -> None:
    if record.dashboard_url is None:
        return
    api = ServeApi(record.dashboard_url, environ)
    deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
    try:
        api.delete_all()
        while time.monotonic() < deadline_s and api.read_application(record.application) is not None:
            time.sleep(POLL_PERIOD_S)
    except ServeApiError:  # Ray is gone already or hangs: its processes are ended next
        return


def _write_record(state_dir: Path, record: StackRecord) -> None:
    path = _record_path(state_dir)
    partial = path.with_suffix(".partial")
    partial.write_text(record.model_dump_json(indent=2), encoding="utf-8")
    partial.replace(path)


def _record_path(state_dir: Path) -> Path:
    return state_dir / "stack.json"


def _describe(status: ApplicationStatus) -> str:
    waiting = sorted(name for name, state in status.deployments.items() if state != "HEALTHY")
    return f"Ray Serve: {status.status.lower()}" + (f", waiting for {', '.join(waiting)}" if waiting else "")


def _reason(status: ApplicationStatus) -> str:
    lines = [line.strip() for line in status.message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return (errors or lines or ["no reason given"])[-1]
