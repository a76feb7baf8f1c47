from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from conserve.cli.main import app
from conserve.cli.reference import make_page

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == make_page(), "run `python -m conserve.cli.reference > docs/cli.md`"


WITHOUT_JSON = {
    "batch results",  # writes the lines of JSON that are in the file
    "bench engine",  # becomes another program, which writes its reports as JSON files
    "bench front",
}


def list_commands() -> list[tuple[str, Any]]:
    """All commands and groups by their names."""
    commands = list(typer.main.get_command(app).commands.items())  # type: ignore[attr-defined]
    for name, command in commands:
        commands += [(f"{name} {each}", one) for each, one in getattr(command, "commands", {}).items()]
    return commands


def test_every_command_speaks_json() -> None:
    commands = {name: command for name, command in list_commands() if not hasattr(command, "commands")}
    without = {name for name, one in commands.items() if not any("--json" in option.opts for option in one.params)}
    assert without == WITHOUT_JSON


def test_every_command_and_option_explains_itself() -> None:
    for name, command in list_commands():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help or parameter.name in ("seed", "max_num_batched_tokens", "replicas"), (name, parameter)
