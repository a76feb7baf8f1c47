"""The stack of one machine: embedded Redis, Ray and the Serve application, up and down.

What was started is written down in the state folder before it is started, so that `down` finds it whatever happened.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml
from filelock import FileLock, Timeout

from conserve.config import EMBEDDED_REDIS
from conserve.jobs import embedded
from conserve.jobs.errors import UnsuitableServerError
from conserve.jobs.preflight import check_server
from conserve.launch.deployed_config import check_tls, make_content, name_certificate
from conserve.launch.health import ask_health
from conserve.launch.paths import ray_temp_dir
from conserve.launch.ports import is_free
from conserve.launch.private_file import write_private
from conserve.launch.processes import STACK_ID_VARIABLE, find_processes
from conserve.launch.ray_head import start_ray_head, wait_for_ray_head
from conserve.launch.record import StackError, StackRecord, read_record, record_path, remove_record, write_record
from conserve.launch.serve_api import ApplicationStatus, ServeApi, ServeApiError, ServeUnreachableError
from conserve.launch.serve_config import IMPORT_PATH, ServeConfig, drop_settings, read_serve_config
from conserve.launch.serve_proxy import find_grpc_environment
from conserve.launch.start_check import check_folder, check_start
from conserve.launch.teardown import (
    POLL_PERIOD_S,
    Progress,
    end_all_processes,
    stop_application,
    stop_redis,
    take_down,
)
from conserve.launch.watch import watch_stack

START_TIMEOUT_S = 900.0
"""Until the application runs: a large model takes minutes to load."""


@dataclass(frozen=True)
class RunningStack:
    """A stack that answers. `grpc_address` is None where it has no gRPC services."""

    base_url: str
    dashboard_url: str
    log_dir: Path
    grpc_address: str | None


@dataclass
class _Started:
    """What one call of `up` has started.

    `record` is what it wrote, `application` is set while it may be on a cluster that is not ours and was not before.
    """

    record: StackRecord | None = None
    application: bool = False
    redis: bool = False


class LocalStack:
    """The stack that a configuration describes.

    Args:
        config_path: a `serve_config.yaml`.
        state_dir: where it keeps its state; the configuration's `state_dir` by default.
        environ: environment of what is started, `CONSERVE_...` settings among it; this process's own by default.
        http_port: HTTP port; the configuration's by default.
        grpc_port: gRPC port; the configuration's by default.
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
        grpc_port: int | None = None,
        ray_dashboard_url: str | None = None,
    ) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        if state_dir is not None:
            self._environ["CONSERVE_STATE_DIR"] = str(state_dir.absolute())
        config = read_serve_config(config_path, self._environ)
        self._config: ServeConfig = config.listening_on(http_port, grpc_port)
        self._state_dir = config.settings.state_dir
        self._ray_dashboard_url = ray_dashboard_url
        self._started = _Started()

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
            StackError, RayHeadError, ServeApiError, EmbeddedServerError, OSError: it does not come up. Call `undo`
                then, or `down`.
        """
        check_folder(self._config.settings)
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _hold(self._state_dir):
            self._started = _Started()
            running = self._find_running(on_progress)
            cluster_url = running.dashboard_url if running is not None else self._ray_dashboard_url
            is_foreign = cluster_url is not None and (running is None or not running.owns_ray)
            check_tls(self._config, self._environ, running, is_foreign=is_foreign)
            is_deployed = is_foreign and self._look_around(ServeApi(str(cluster_url), self._environ), running)
            keeps_running = is_deployed if is_foreign else running is not None
            if running is None and not is_foreign:
                check_start(self._config.settings, on_progress)
            self._start_redis(on_progress, keep=keeps_running)
            self._check_redis(on_progress)
            record = running or (self._use_ray() if is_foreign else self._start_ray(on_progress))
            if is_foreign and (running is None or not is_deployed):
                self._started.record = record
            self._point_to(record)
            return self._deploy(record, on_progress, is_new=is_foreign and not is_deployed)

    def undo(self, on_progress: Progress = lambda line: None) -> bool:
        """Stops what the last `up` of this object has started, and nothing that ran before; for a failed `up`.

        Returns:
            True when there was something to stop.

        Raises:
            StackError, EmbeddedServerError: something is left; `down` may be called later.
        """
        record, was_redis_started = self._started.record, self._started.redis
        if record is not None:
            if record.owns_ray or self._started.application:
                stop_application(self._state_dir, record, on_progress, self._environ)
            remove_record(self._state_dir)
        if was_redis_started:
            stop_redis(self._state_dir, on_progress)
        self._started = _Started()
        return record is not None or was_redis_started

    def watch(self) -> None:
        """Stays while the stack runs; returns once somebody has taken it down.

        Raises:
            StackError: it is lost; call `down`.
        """
        watch_stack(self._state_dir, self._environ)

    def down(self, on_progress: Progress = lambda line: None) -> bool:
        """Stops everything that `up` started, the embedded Redis included. Harmless when nothing runs.

        On a Ray cluster that is not ours the application is removed if it is the only one.

        Returns:
            True when there was something to stop.

        Raises:
            StackError, EmbeddedServerError: something is left, and stays on record.
        """
        return take_down(self._state_dir, on_progress, self._environ)

    def _find_running(self, on_progress: Progress) -> StackRecord | None:
        """The record of a stack to deploy to again. What is left of one that cannot be used is ended."""
        existing = read_record(self._state_dir)
        if existing is None:
            return None
        is_usable = not existing.owns_ray or self._is_usable(existing)
        if is_usable:
            self._refuse_other_address(existing)
            on_progress("Ray: already running")
            return existing
        # Leftovers are this call's from here on, Redis included: nobody else would end them.
        self._started.record = existing
        self._started.redis = embedded.is_running(self._state_dir)
        if find_processes(existing.stack_id):
            on_progress("Ray: ending what an earlier start has left")
            end_all_processes(existing.stack_id)
        remove_record(self._state_dir)
        self._started.record = None
        return None

    def _is_usable(self, record: StackRecord) -> bool:
        if record.dashboard_url is None or not find_processes(record.stack_id):
            return False
        try:
            ServeApi(record.dashboard_url, self._environ).read_applications()
        except ServeUnreachableError:
            return False
        return True

    def _refuse_other_address(self, existing: StackRecord) -> None:
        wanted, used = self._ray_dashboard_url, str(existing.dashboard_url)
        if wanted is None and existing.owns_ray:
            return
        if wanted is None or wanted.rstrip("/") != used.rstrip("/"):
            raise StackError(
                f"The stack of {self._state_dir} is on Ray at {used} already. Take it down first (`conserve down`), "
                f"name that address, or choose another `state_dir`. Its record: {record_path(self._state_dir)}"
            )

    def _look_around(self, api: ServeApi, running: StackRecord | None) -> bool:
        """True when our application is on a cluster that is not ours; a deployment replaces all that are there."""
        name = self._config.application
        found = api.read_applications()
        is_ours = name in found and (
            found[name].import_path == IMPORT_PATH or (running is not None and running.application == name)
        )
        others = sorted(found.keys() - ({name} if is_ours else set()))
        if others:
            raise StackError(
                f"Ray at {api.dashboard_url} runs other applications ({', '.join(others)}), which this deployment "
                "would replace. Deploy with `serve deploy` a configuration that names all of them."
            )
        return is_ours

    def _start_redis(self, on_progress: Progress, *, keep: bool) -> None:
        if self._config.settings.jobs.redis_url != EMBEDDED_REDIS:
            return
        on_progress("Redis: starting the embedded server")
        # An application that goes on needs its Redis, whoever started it.
        if not keep and not embedded.is_running(self._state_dir):
            self._started.redis = True
        embedded.ensure_running(self._state_dir)

    def _check_redis(self, on_progress: Progress) -> None:
        try:
            trouble = check_server(self._config.settings)
        except UnsuitableServerError as error:
            raise StackError(str(error)) from None
        if trouble is not None:
            on_progress(f"Redis: not reached from here, so batches may have to wait: {trouble}")

    def _use_ray(self) -> StackRecord:
        return self._make_record(dashboard_url=self._ray_dashboard_url, owns_ray=False)

    def _make_record(self, *, dashboard_url: str | None = None, owns_ray: bool = True) -> StackRecord:
        return StackRecord(
            stack_id=uuid.uuid4().hex,
            application=self._config.application,
            base_url=self._base_url,
            dashboard_url=dashboard_url,
            owns_ray=owns_ray,
            finish_requests_s=self._config.settings.http.finish_requests_s,
            tls_certificate=name_certificate(self._config),
        )

    def _start_ray(self, on_progress: Progress) -> StackRecord:
        host, choices = self._config.http_host, {"http_options.port": "--port", "grpc_options.port": "--grpc-port"}
        for (setting, option), port in zip(
            choices.items(), (self._config.http_port, self._config.grpc_port), strict=True
        ):
            if port is not None and not is_free(port, host):
                raise StackError(
                    f"Port {port} of {host} is taken by another program. "
                    f"Choose another one: `{setting}` in the configuration, or {option}."
                )
        on_progress("Ray: starting a head on this machine")
        record = self._make_record()
        self._started.record = record
        write_record(self._state_dir, record)
        # The settings stand in what is deployed. As variables of Ray they would win over every later deployment.
        environ = {
            **find_grpc_environment(host),
            **drop_settings(self._environ),
            **({} if self._config.tls is None else self._config.tls.to_environment()),
            STACK_ID_VARIABLE: record.stack_id,
        }
        pid = start_ray_head(self._state_dir, environ)
        head = wait_for_ray_head(pid, self._state_dir, environ)
        self._started.record = record.model_copy(update={"dashboard_url": head.dashboard_url})
        on_progress(f"Ray: dashboard at {head.dashboard_url}")
        return self._started.record

    @property
    def _host(self) -> str:
        return self._config.http_host if self._config.http_host != "0.0.0.0" else "127.0.0.1"  # noqa: S104 - a comparison

    @property
    def _base_url(self) -> str:
        return f"{'http' if self._config.tls is None else 'https'}://{self._host}:{self._config.http_port}"

    @property
    def _grpc_address(self) -> str | None:
        return None if self._config.grpc_port is None else f"{self._host}:{self._config.grpc_port}"

    def _point_to(self, record: StackRecord) -> None:
        changes = {
            "base_url": self._base_url,
            "application": self._config.application,
            "finish_requests_s": self._config.settings.http.finish_requests_s,
        }
        record = record.model_copy(update=changes)
        write_record(self._state_dir, record)

    def _deploy(self, record: StackRecord, on_progress: Progress, *, is_new: bool) -> RunningStack:
        dashboard_url = str(record.dashboard_url)
        api = ServeApi(dashboard_url, self._environ)
        content = make_content(self._config, self._environ, record, self._state_dir, on_progress)
        write_private(self._state_dir / "serve_config.yaml", yaml.safe_dump(content, sort_keys=False))
        on_progress("Ray Serve: deploying the application")
        self._started.application = is_new
        try:
            api.deploy(content)
        except ServeUnreachableError:  # it may have been accepted
            raise
        except ServeApiError:
            self._started.application = False
            raise
        self._wait_until_running(api, on_progress)
        self._wait_until_healthy(self._base_url)
        return RunningStack(self._base_url, dashboard_url, self.log_dir, self._grpc_address)

    def _wait_until_running(self, api: ServeApi, on_progress: Progress) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        said = ""
        while time.monotonic() < deadline_s:
            status = api.read_applications().get(self._config.application)
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
                response = ask_health(base_url, None if self._config.tls is None else self._config.tls.certificate)
                if response.status_code == httpx.codes.OK:
                    return
                last = f"status {response.status_code}"
            except httpx.HTTPError as error:
                last = str(error)
            time.sleep(POLL_PERIOD_S)
        raise StackError(f"The application runs, but {base_url}/health does not say so: {last}. Logs: {self.log_dir}")


@contextmanager
def _hold(state_dir: Path) -> Iterator[None]:
    """Keeps a second `up` out: it would take what the first one starts for leftovers."""
    try:
        with FileLock(state_dir / "up.lock", timeout=0):
            yield
    except Timeout:
        raise StackError(f"Another process is bringing the stack of {state_dir} up") from None


def _describe(status: ApplicationStatus) -> str:
    waiting = sorted(name for name, state in status.deployments.items() if state != "HEALTHY")
    return f"Ray Serve: {status.status.lower()}" + (f", waiting for {', '.join(waiting)}" if waiting else "")


def _reason(status: ApplicationStatus) -> str:
    lines = [line.strip() for line in status.message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return (errors or lines or ["no reason given"])[-1]
