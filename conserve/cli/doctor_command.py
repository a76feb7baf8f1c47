"""`conserve doctor` and `conserve config check`."""

from __future__ import annotations

import os
from typing import Final

import typer
from rich.markup import escape

from conserve.cli.console import JsonOption, err, fail, out, show_json
from conserve.cli.stack_commands import DEFAULT_CONFIG, ConfigOption
from conserve.config import ENV_NOT_SETTINGS, ENV_PREFIX, ENV_TEST_PREFIX, SettingsError
from conserve.launch.diagnosis import Finding, State, diagnose
from conserve.launch.serve_config import read_serve_config

config_app = typer.Typer(help="The configuration.", no_args_is_help=True)

_MARKS: Final[dict[State, str]] = {
    "fine": "[green]fine   [/]",
    "warning": "[yellow]warning[/]",
    "problem": "[bold red]problem[/]",
}


def doctor(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Says what is missing or misconfigured on this machine, and how to mend it. Exit status 1 with a problem."""
    found: list[Finding] = []
    with err.status("Looking"):
        for finding in diagnose(config, os.environ):
            found.append(finding)
            if not as_json:
                _show(finding)
    if as_json:
        show_json([finding.model_dump() for finding in found])
    problems = sum(finding.state == "problem" for finding in found)
    warnings = sum(finding.state == "warning" for finding in found)
    if not as_json:
        out.print(f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}.")
    if problems:
        raise typer.Exit(1)


@config_app.callback()
def group() -> None:
    """The configuration."""


@config_app.command()
def check(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Checks a configuration with the settings of the environment; with --json it shows all of them, as resolved."""
    try:
        found = read_serve_config(config)
    except SettingsError as error:
        raise fail(str(error), 2) from None
    if as_json:
        show_json(found.content)
        return
    settings = found.settings
    out.print(f"{config}: fine", markup=False, soft_wrap=True)
    out.print(
        f"{settings.replicas} x {settings.model.served_name} ({settings.engine.mode}), "
        f"on {found.http_host}:{found.http_port}, state in {settings.state_dir}",
        markup=False,
        soft_wrap=True,
    )
    for name in sorted(os.environ):
        if name.startswith(ENV_PREFIX) and name not in ENV_NOT_SETTINGS and not name.startswith(ENV_TEST_PREFIX):
            out.print(f"overridden by {name}", markup=False, soft_wrap=True)


def _show(finding: Finding) -> None:
    out.print(f"{_MARKS[finding.state]} {finding.what}: {escape(finding.found)}", soft_wrap=True)
    if finding.mend is not None:
        out.print(f"        {escape(finding.mend)}", soft_wrap=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
