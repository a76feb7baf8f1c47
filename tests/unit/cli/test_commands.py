"""The command line against a small fake application, and against nothing."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from conserve.cli import console
from conserve.cli.main import app
from conserve.launch.record import StackError
from conserve.launch.serve_config import read_serve_config
from conserve.launch.stack import RunningStack
from tests.unit.cli.conftest import BATCH


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    monkeypatch.setattr("conserve.cli.main.configure_program_logs", lambda: None)
    monkeypatch.setattr("conserve.client.retries.FIRST_PAUSE_S", 0.0)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_config(folder: Path, **args: Any) -> Path:
    path = folder / "serve_config.yaml"
    ours = {"name": "conserve", "import_path": "deployments.app:build_app", "args": args}
    path.write_text(yaml.safe_dump({"applications": [ours]}), encoding="utf-8")
    return path


def assert_one_line(result: Result, part: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    assert part in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_up_with_a_wrong_setting_names_it(tmp_path: Path) -> None:
    config = write_config(tmp_path, jobs={"max_attempts": 0}, state_dir=str(tmp_path / "state"))
    assert_one_line(run("up", "-f", config), "jobs.max_attempts", 2)
    assert not (tmp_path / "state").exists()


def test_down_with_nothing_up(tmp_path: Path) -> None:
    result = run("down", "-f", write_config(tmp_path, state_dir=str(tmp_path / "state")))
    assert result.exit_code == 0, result.output
    assert result.stdout == "Nothing was up.\n"


def test_down_that_fails_is_one_line(tmp_path: Path, silent_url: str) -> None:
    state = tmp_path / "state"
    state.mkdir()
    record = {"stack_id": "x", "application": "conserve", "base_url": "http://b", "dashboard_url": silent_url}
    (state / "stack.json").write_text(json.dumps(record | {"owns_ray": False}))
    result = run("down", "-f", write_config(tmp_path, state_dir=str(state)))
    assert result.exit_code == 1
    assert "error: conserve was not removed" in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert (state / "stack.json").exists()


@pytest.mark.parametrize(
    "command",
    [("status",), ("chat", "hello"), ("batch", "status", "batch_1"), ("batch", "cancel", "batch_1")],
    ids=lambda command: " ".join(command),
)
def test_nothing_listening_is_one_line(
    command: tuple[str, ...], silent_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *arguments: 0.0)
    assert_one_line(run(*command, "--url", silent_url), f"nothing answers at {silent_url}")


@pytest.mark.parametrize("url", ["nowhere", "ftp://host", "http://:9"])
@pytest.mark.parametrize("command", [("status",), ("chat", "hello")], ids=" ".join)
def test_an_address_that_is_none_is_one_line(command: tuple[str, ...], url: str) -> None:
    assert_one_line(run(*command, "--url", url), f"--url: must be an http:// or https:// address (it is '{url}')", 2)


def test_status_while_serve_s_proxy_answers_for_itself(application: Any) -> None:
    text = "Path '/conserve/v1/status' not found.\nPing http://.../-/routes [for] routes."
    application.answers["GET", "/conserve/v1/status"] = (404, text)
    assert_one_line(run("status", "--url", application.base_url), "[for] routes. (HTTP 404)")


def test_status_of_another_program_is_refused(application: Any) -> None:
    application.answers["GET", "/conserve/v1/status"] = (200, "hello")
    assert_one_line(run("status", "--url", application.base_url), "is not ConServe")


def test_status_shows_replicas_and_batches(application: Any) -> None:
    replica = {"replica_id": "r1", "model": "m", "state": "open", "alone": True, "window": 3, "kv_usage": 0.25}
    replica |= {"offline_running": 2, "online_running": 1, "online_waiting": 0}
    batch = {"id": "batch_1", "status": "in_progress", "total": 9, "completed": 4, "failed": 0, "ready": 3, "leased": 2}
    batch |= {"paused": True}
    application.answers["GET", "/health"] = (200, {})
    application.answers["GET", "/conserve/v1/status"] = (200, {"replicas": [replica], "batches": [batch]})
    result = run("status", "--url", application.base_url)
    assert result.exit_code == 0, result.output
    assert "open (alone)" in result.stdout
    assert "25%" in result.stdout
    assert "in_progress (paused)" in result.stdout
    assert "another cluster" not in result.stdout


def test_status_says_that_another_controller_is_at_work(application: Any) -> None:
    application.answers["GET", "/health"] = (200, {})
    found = {"replicas": [], "batches": [], "controller": "session_2", "controller_elsewhere": True}
    application.answers["GET", "/conserve/v1/status"] = (200, found)
    result = run("status", "--url", application.base_url)
    assert result.exit_code == 0, result.output
    assert "session_2" in result.stdout
    assert "jobs.namespace" in result.stdout


def test_submit_uploads_and_prints_the_id(application: Any, tmp_path: Path) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"custom_id": "a"}\n')
    result = run("batch", "submit", lines, "--metadata", "owner=me", "--url", application.base_url)
    assert result.exit_code == 0, result.output
    assert result.stdout == "batch_1\n"
    (_, _, upload), (_, _, created) = application.calls
    assert b'{"custom_id": "a"}' in upload
    assert json.loads(created)["input_file_id"] == "file-in"
    assert json.loads(created)["metadata"] == {"owner": "me"}


def test_submit_refuses_metadata_without_a_value(tmp_path: Path, silent_url: str) -> None:
    lines = tmp_path / "in.jsonl"
    lines.touch()
    assert_one_line(run("batch", "submit", lines, "--metadata", "[x]", "--url", silent_url), "'[x]'", 2)


def test_a_refusal_is_shown_as_it_is(application: Any, tmp_path: Path) -> None:
    application.answers["POST", "/v1/batches"] = (400, {"error": {"message": "no [such] endpoint"}})
    lines = tmp_path / "in.jsonl"
    lines.write_text("{}\n")
    result = run("batch", "submit", lines, "--url", application.base_url)
    assert_one_line(result, "no [such] endpoint (HTTP 400)")


def test_batch_status_and_cancel(application: Any) -> None:
    shown = run("batch", "status", "batch_1", "--url", application.base_url)
    assert shown.stdout == "batch_1: completed, 2 completed, 0 failed of 2\n"
    cancelled = run("batch", "cancel", "batch_1", "--url", application.base_url)
    assert cancelled.stdout.startswith("batch_1: cancelling")
    assert application.calls[-1][:2] == ("POST", "/v1/batches/batch_1/cancel")


def test_batch_status_says_why_it_does_not_get_on(application: Any) -> None:
    batch = BATCH | {"status": "finalizing", "delayed_because": "The file storage is not available: [x] No space left."}
    application.answers["GET", "/v1/batches/batch_1"] = (200, batch)
    result = run("batch", "status", "batch_1", "--url", application.base_url)
    assert "does not get on: The file storage is not available: [x] No space left." in result.stdout, result.output


def test_submit_with_all_that_goes_beyond(application: Any, tmp_path: Path) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text("{}\n")
    options = ("--window", "90m", "--priority", "-5", "--keep-output", "7d")
    result = run("batch", "submit", lines, *options, "--url", application.base_url)
    assert result.exit_code == 0, result.output
    created = json.loads(application.calls[-1][2])
    assert (created["completion_window"], created["priority"]) == ("90m", -5)
    assert created["output_expires_after"] == {"anchor": "created_at", "seconds": 604_800}


@pytest.mark.parametrize("wrong", ["31d", "59m", "soon"])
def test_submit_refuses_a_time_that_files_are_not_kept_for(tmp_path: Path, silent_url: str, wrong: str) -> None:
    lines = tmp_path / "in.jsonl"
    lines.touch()
    result = run("batch", "submit", lines, "--keep-output", wrong, "--url", silent_url)
    assert_one_line(result, f"--keep-output: must be 1h to 30d (it is '{wrong}')", 2)


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (("pause", "batch_1"), "/v1/batches/batch_1/pause", None),
        (("resume", "batch_1"), "/v1/batches/batch_1/resume", None),
        (("priority", "batch_1", "-5"), "/v1/batches/batch_1", {"priority": -5}),
    ],
)
def test_what_openai_s_client_has_no_method_for(
    application: Any, arguments: tuple[str, ...], path: str, body: dict[str, int] | None
) -> None:
    application.answers["POST", path] = (200, BATCH | {"status": "in_progress", "paused_at": 7})
    result = run("batch", *arguments, "--url", application.base_url)
    assert result.stdout == "batch_1: in_progress (paused), 2 completed, 0 failed of 2\n", result.output
    assert (json.loads(application.calls[-1][2]) if application.calls[-1][2] else None) == body


@pytest.mark.parametrize(("end_at", "late"), [(90_000, False), (200_000, True)])
def test_status_says_when_a_batch_will_end(application: Any, end_at: int, late: bool) -> None:
    batch = BATCH | {"status": "in_progress", "expires_at": 100_000, "predicted_end_at": end_at}
    application.answers["GET", "/v1/batches/batch_1"] = (200, batch)
    result = run("batch", "status", "batch_1", "--url", application.base_url)
    assert "will end about 1970-01-0" in result.stdout, result.output
    assert ("too late" in result.stdout) == late


def test_status_says_that_a_window_was_too_short(application: Any) -> None:
    batch = BATCH | {"admission": "window_too_short", "earliest_completion_window": "4h"}
    application.answers["GET", "/v1/batches/batch_1"] = (200, batch)
    result = run("batch", "status", "batch_1", "--url", application.base_url)
    assert "the earliest was 4h" in result.stdout, result.output
    assert "will end" not in result.stdout


@pytest.mark.parametrize("backed_by", ["forecast", "floor", None])
def test_status_says_that_a_window_is_a_forecast_only(application: Any, backed_by: str | None) -> None:
    batch = BATCH | {"admission": "fits", "deadline_backed_by": backed_by}
    application.answers["GET", "/v1/batches/batch_1"] = (200, batch)
    result = run("batch", "status", "batch_1", "--url", application.base_url)
    assert ("a forecast only" in result.stdout) == (backed_by == "forecast"), result.output


def test_list_shows_batches(application: Any) -> None:
    page = {"object": "list", "data": [BATCH], "first_id": "batch_1", "last_id": "batch_1", "has_more": False}
    application.answers["GET", "/v1/batches?limit=5"] = (200, page)
    result = run("batch", "list", "--limit", "5", "--url", application.base_url)
    assert result.exit_code == 0, result.output
    assert "batch_1" in result.stdout
    assert "completed" in result.stdout


FIRST, SECOND = '{"custom_id": "a"}\n', '{"custom_id": "b"}\n'
RESULTS = "/v1/batches/batch_1/results?after={}&follow=true"


def test_results_are_followed_over_connections_that_break(application: Any, tmp_path: Path) -> None:
    # The first stream ends in the middle of a line, as it does when its connection breaks.
    application.answers["GET", RESULTS.format(0)] = (200, FIRST + "\n" + SECOND[:5])
    application.answers["GET", RESULTS.format(1)] = (200, SECOND)
    result = run("batch", "results", "batch_1", "--follow", "--url", application.base_url)
    assert (result.exit_code, result.stdout) == (0, FIRST + SECOND)
    output = tmp_path / "out.jsonl"
    result = run("batch", "results", "batch_1", "-f", "-o", output, "--url", application.base_url)
    assert result.exit_code == 0, result.output
    assert output.read_text() == FIRST + SECOND


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [(200, FIRST, "end after 1 of 2 lines"), (503, {"error": {"message": "away"}}, "away (HTTP 503)")],
)
def test_following_gives_up_after_a_while(application: Any, status: int, content: Any, said: str) -> None:
    application.answers["GET", RESULTS.format(0)] = (status, content)
    application.answers["GET", RESULTS.format(1)] = (status, "")
    result = run("batch", "results", "batch_1", "--follow", "--url", application.base_url)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len([path for _, path, _ in application.calls if "results" in path]) == 8


def test_following_what_is_refused_is_one_line(application: Any) -> None:
    application.answers["GET", RESULTS.format(0)] = (410, {"error": {"message": "not [kept]"}})
    result = run("batch", "results", "batch_1", "--follow", "--url", application.base_url)
    assert_one_line(result, "not [kept] (HTTP 410)")
    assert_one_line(run("batch", "results", "batch_1", "--follow", "--errors"), "--errors: not with --follow", 2)


def test_results_go_to_standard_output_or_a_file(application: Any, tmp_path: Path) -> None:
    assert run("batch", "results", "batch_1", "--url", application.base_url).stdout == '{"custom_id": "a"}\n'
    output = tmp_path / "out.jsonl"
    result = run("batch", "results", "batch_1", "-o", output, "--url", application.base_url)
    assert result.exit_code == 0, result.output
    assert output.read_text() == '{"custom_id": "a"}\n'


def test_results_that_cannot_be_written_or_are_not_there(application: Any, tmp_path: Path) -> None:
    output = tmp_path / "none" / "x"
    result = run("batch", "results", "batch_1", "-o", output, "--url", application.base_url)
    assert_one_line(result, f"--output: {output} cannot be written: No such file or directory")
    result = run("batch", "results", "batch_1", "--errors", "--url", application.base_url)
    assert_one_line(result, "batch_1 has no error file: no line went there")


def test_an_error_in_the_middle_of_a_chat_is_one_line(application: Any) -> None:
    application.answers["POST", "/v1/chat/completions"] = (200, 'data: {"error": {"message": "engine died"}}\n\n')
    assert_one_line(run("chat", "hello", "--model", "m", "--url", application.base_url), "engine died")
    begun = json.dumps({"choices": [{"index": 0, "delta": {"content": "Once"}}]})
    application.answers["POST", "/v1/chat/completions"] = (
        200,
        f'data: {begun}\n\ndata: {{"error": {{"message": "engine died"}}}}\n\n',
    )
    result = run("chat", "hello", "--model", "m", "--url", application.base_url)
    assert (result.exit_code, result.stdout) == (1, "Once\n")


def test_a_watch_that_is_left_says_that_the_batch_goes_on(application: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("conserve.client.blocking_client.Job.wait", interrupt)
    result = run("batch", "watch", "batch_1", "--url", application.base_url)
    assert result.exit_code == 130
    assert "the batch goes on: conserve batch watch batch_1" in result.stderr


class FakeStack:
    """Fails to come up as told."""

    error: BaseException = KeyboardInterrupt()
    undo_error: Exception | None = None
    undone = 0

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def up(self, on_progress: object) -> None:
        raise type(self).error

    def undo(self, on_progress: object) -> None:
        type(self).undone += 1
        if type(self).undo_error is not None:
            raise type(self).undo_error


@pytest.mark.parametrize(
    ("error", "undo_error", "code", "said"),
    [
        (KeyboardInterrupt(), None, 130, "Interrupted"),
        (StackError("no [luck]"), None, 1, "error: no [luck]"),
        (OSError("no disk"), StackError("left over"), 1, "left over"),
    ],
)
def test_up_that_fails_undoes_what_it_started(
    error: BaseException, undo_error: Exception | None, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeStack, "error", error)
    monkeypatch.setattr(FakeStack, "undo_error", undo_error)
    monkeypatch.setattr(FakeStack, "undone", 0)
    monkeypatch.setattr("conserve.cli.stack_commands.LocalStack", FakeStack)
    result = run("up")
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert FakeStack.undone == 1


class StackThatStays:
    """Is up, and is watched until something ends that."""

    end: BaseException | None = None
    down_error: Exception | None = None
    downs = 0

    def __init__(self, config: Path, **options: object) -> None:
        self.config = read_serve_config(config, {})

    def up(self, on_progress: object) -> RunningStack:
        return RunningStack("http://127.0.0.1:8000", "http://127.0.0.1:8265", Path("logs"), "127.0.0.1:9000")

    def watch(self) -> None:
        if type(self).end is not None:
            raise type(self).end

    def down(self, on_progress: object) -> bool:
        type(self).downs += 1
        if type(self).down_error is not None:
            raise type(self).down_error
        return True


@pytest.mark.parametrize(
    ("end", "down_error", "code", "said", "downs"),
    [
        (KeyboardInterrupt(), None, 0, "Asked to stop", 1),
        (StackError("Ray has ended"), None, 1, "error: Ray has ended", 1),
        (StackError("Ray has ended"), StackError("left over"), 1, "Ray has ended; and then: left over", 1),
        (KeyboardInterrupt(), OSError("no disk"), 1, "error: no disk", 1),
        (None, None, 0, "by another command", 0),
    ],
)
def test_up_that_blocks_takes_the_stack_down_in_the_end(
    end: BaseException | None,
    down_error: Exception | None,
    code: int,
    said: str,
    downs: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(StackThatStays, "end", end)
    monkeypatch.setattr(StackThatStays, "down_error", down_error)
    monkeypatch.setattr(StackThatStays, "downs", 0)
    monkeypatch.setattr("conserve.cli.stack_commands.LocalStack", StackThatStays)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        result = run("up", "--block")
        assert manager.recv(100) == b"READY=1"
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert StackThatStays.downs == downs
