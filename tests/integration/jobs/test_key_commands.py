"""`conserve keys`, and what `conserve up` says of keys, on an embedded Redis that the commands start themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from conserve.cli.key_notes import note_on_keys
from conserve.cli.main import app
from conserve.jobs import embedded
from conserve.launch.serve_config import IMPORT_PATH, read_serve_config


class Desk:
    """The commands, with a configuration of their own."""

    def __init__(self, folder: Path) -> None:
        self.state_dir = folder / "state"
        self.config = folder / "serve_config.yaml"
        self.write()

    def write(self, host: str = "127.0.0.1", **args: Any) -> None:
        application = {"import_path": IMPORT_PATH, "args": {"state_dir": str(self.state_dir), **args}}
        self.config.write_text(yaml.safe_dump({"http_options": {"host": host}, "applications": [application]}))

    def run(self, *args: str, status: int = 0) -> Result:
        result = CliRunner().invoke(app, ["keys", *args, "--file", str(self.config)])
        assert result.exit_code == status, result.output
        return result

    def note(self) -> str | None:
        return note_on_keys(read_serve_config(self.config, {}))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    assert not embedded.is_running(desk.state_dir)


def test_a_key_is_made_shown_and_revoked(desk: Desk) -> None:
    limits = ["--requests-per-minute", "600", "--tokens-per-minute", "200000"]
    made = desk.run("create", "ci", "--tenant", "research", "--scope", "online", "--expires", "30d", *limits)
    key = made.stdout.strip()
    assert key.startswith("sk-conserve-")
    assert "not shown again" in made.stderr
    (record,) = json.loads(desk.run("list", "--json").stdout)
    created = record.pop("created_at")
    assert record == {
        "name": "ci",
        "begins": key[:17],
        "tenant": "research",
        "scopes": ["online"],
        "expires_at": created + 30 * 86_400,
        "requests_per_minute": 600,
        "tokens_per_minute": 200_000,
    }
    for part in ("ci", key[:17], "research", "online", "200,000"):
        assert part in desk.run("list").stdout
    assert key not in desk.run("list").output
    assert "there is a key `ci`" in desk.run("create", "ci", status=1).stderr
    gone = desk.run("revoke", "ci", "nobody", status=1)
    assert (gone.stdout.strip(), "no key nobody" in gone.stderr) == ("Revoked: ci", True)
    assert json.loads(desk.run("list", "--json").stdout) == []
    again = json.loads(desk.run("create", "ci", "--json").stdout)
    assert (again["scopes"], again["tenant"], again["expires_at"]) == (["offline", "online"], "default", None)
    assert again["key"] not in ("", key)
    assert json.loads(desk.run("revoke", "ci", "--json").stdout) == {"revoked": ["ci"], "unknown": []}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["Ci"], "'Ci' is no name for a key"),
        (["ci", "--tenant", "a b"], "'a b' is no name for a tenant"),
        (["ci", "--expires", "soon"], "--expires: must be minutes, hours or days"),
        (["ci", "--scope", "all"], "'all' is not one of 'online'"),
        (["ci", "--requests-per-minute", "0"], "--requests-per-minute"),
    ],
)
def test_what_is_wrong_is_named(desk: Desk, args: list[str], said: str) -> None:
    assert said in " ".join(desk.run("create", *args, status=2).stderr.replace("│", " ").split())


def test_redis_that_is_away_is_named_without_its_password(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSERVE_JOBS__REDIS_URL", f"unix://:hush@{desk.state_dir}/nobody.sock")
    said = desk.run("list", status=1).stderr
    assert "nobody.sock cannot be used" in said
    assert "jobs.redis_url" in said
    assert "hush" not in said


def test_it_is_said_who_gets_in_without_a_key(desk: Desk) -> None:
    desk.write(http={"keys": "none"})
    assert "something in front has to check" in str(desk.note())
    desk.write(tenants={"a": {"api_keys": ["sk-a"]}})
    assert desk.note() is None
    desk.write()
    assert "only this machine gets in" in str(desk.note())
    desk.write(http={"keys": "required"})
    assert "nobody gets in" in str(desk.note())
    desk.write("0.0.0.0")
    assert "nobody gets in" in str(desk.note())
    desk.run("create", "ci")
    assert desk.note() is None
    desk.run("revoke", "ci")
    desk.write()
    assert "nobody gets in" in str(desk.note())
