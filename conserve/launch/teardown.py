"""Takes a stack down: all of a Ray that is ours, of another's cluster nothing but our application."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from conserve.jobs import embedded
from conserve.launch.processes import end_processes, find_processes
from conserve.launch.record import StackError, StackRecord, read_record, record_path, remove_record
from conserve.launch.serve_api import ServeApi, ServeApiError
from conserve.launch.serve_proxy import remove_proxy_dir

DRAIN_EXTRA_S = 5.0
"""So much longer than the requests of replicas may take is waited for the replicas."""
POLL_PERIOD_S = 0.5
CREDENTIAL_FILE = "redis.password"
"""In the state folder of a Ray of our own, while it runs: the password that was in the URL of Redis."""
_END_ROUNDS = 3

Progress = Callable[[str], None]


def take_down(
    state_dir: Path, on_progress: Progress = lambda line: None, environ: Mapping[str, str] | None = None
) -> bool:
    """Stops what a stack with this state folder has started. See `LocalStack.down`."""
    record = read_record(state_dir)
    if record is not None:
        stop_application(state_dir, record, on_progress, os.environ if environ is None else environ)
    return stop_redis(state_dir, on_progress) or record is not None


def stop_application(state_dir: Path, record: StackRecord, on_progress: Progress, environ: Mapping[str, str]) -> None:
    """Stops what a record names and removes the record; it stays when something is left.

    Raises:
        StackError: a process does not end, or the application cannot be removed from a cluster that is not ours.
    """
    if record.owns_ray:
        if record.dashboard_url and find_processes(record.stack_id):
            on_progress("Ray Serve: letting the replicas finish")
            _drain(ServeApi(record.dashboard_url, environ), record)
        on_progress("Ray: stopping")
        end_all_processes(record.stack_id)
        remove_proxy_dir(state_dir)
        (state_dir / CREDENTIAL_FILE).unlink(missing_ok=True)
    elif record.dashboard_url:
        on_progress(f"Ray Serve: removing the application from {record.dashboard_url}")
        _remove_application(state_dir, record, record.dashboard_url, environ)
    remove_record(state_dir)


def stop_redis(state_dir: Path, on_progress: Progress) -> bool:
    """Stops the embedded Redis of a state folder; True when one ran.

    Raises:
        EmbeddedServerError: it does not end.
    """
    if not embedded.is_running(state_dir):
        return False
    on_progress("Redis: stopping")
    embedded.stop(state_dir)
    return True


def end_all_processes(stack_id: str) -> None:
    """Ends the processes of a stack, and those that they start meanwhile.

    Raises:
        StackError: some are left.
    """
    for _ in range(_END_ROUNDS):
        end_processes(stack_id)
        left = find_processes(stack_id)
        if not left:
            return
    raise StackError(f"These processes do not end: {', '.join(str(process.pid) for process in left)}")


def _drain(api: ServeApi, record: StackRecord) -> None:
    deadline_s = time.monotonic() + record.finish_requests_s + DRAIN_EXTRA_S
    try:
        api.delete_all()
        while time.monotonic() < deadline_s and record.application in api.read_applications():
            time.sleep(POLL_PERIOD_S)
    except ServeApiError:  # Ray is gone already or hangs: its processes are ended next
        return


def _remove_application(state_dir: Path, record: StackRecord, dashboard_url: str, environ: Mapping[str, str]) -> None:
    # Serve's REST API has no call that removes one application: DELETE shuts all of Serve down (Ray 2.60).
    api = ServeApi(dashboard_url, environ)
    try:
        names = api.read_applications().keys()
        others = sorted(names - {record.application})
        if others and record.application in names:
            raise StackError(
                f"Ray at {dashboard_url} runs other applications as well ({', '.join(others)}), and only all of them "
                "can be shut down at once. Deploy with `serve deploy` a configuration that names only those that "
                f"stay; then call this again. {record.application} goes on until then."
            )
        if record.application not in names:
            return
        api.delete_all()
    except ServeApiError as error:
        raise StackError(
            f"{record.application} was not removed: {error}\n"
            f"If that cluster is gone for ever, delete {record_path(state_dir)}."
        ) from error
    _wait_until_removed(api, record, dashboard_url)


def _wait_until_removed(api: ServeApi, record: StackRecord, dashboard_url: str) -> None:
    timeout_s = record.finish_requests_s + DRAIN_EXTRA_S
    deadline_s = time.monotonic() + timeout_s
    reason = "it is still shutting down"
    while time.monotonic() < deadline_s:
        try:
            if record.application not in api.read_applications():
                return
        except ServeApiError as error:  # the controller ends in between, and a call to it then fails
            reason = str(error)
        time.sleep(POLL_PERIOD_S)
    raise StackError(f"{record.application} on Ray at {dashboard_url} is not gone after {timeout_s:g} s: {reason}")
