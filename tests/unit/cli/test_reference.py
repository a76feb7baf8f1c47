from __future__ import annotations

from pathlib import Path

import typer

from conserve.cli.main import app
from conserve.cli.reference import make_page

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == make_page(), "run `python -m conserve.cli.reference > docs/cli.md`"


def test_every_command_and_option_explains_itself() -> None:
    commands = list(typer.main.get_command(app).commands.items())  # type: ignore[attr-defined]
    for name, command in commands:
        assert command.help, name
        for parameter in command.params:
            assert parameter.help or parameter.name in ("seed", "max_num_batched_tokens", "replicas"), (name, parameter)
        commands += [(f"{name} {each}", one) for each, one in getattr(command, "commands", {}).items()]
