"""The page docs/cli.md, made from the commands themselves: `python -m conserve.cli.reference > docs/cli.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

HEAD = """# The command line

`conserve COMMAND --help` says the same at a terminal. This page is made from the commands:
`python -m conserve.cli.reference > docs/cli.md`.

Results go to standard output, progress and errors to standard error. Where standard output is no terminal there are no
colours, frames or bars, and a table has one whole line for each row. With `--json` a command writes JSON alone.

| exit status | |
| --- | --- |
| 0 | done; the batch that was watched is completed |
| 1 | it failed, and one line on standard error says why; a watched batch ended otherwise; `doctor` found a problem |
| 2 | an option, an argument, a setting or a file that it names is wrong; nothing was done |
| 130 | interrupted with Ctrl-C, which `top` takes for its end; `up` has taken down what it had started |

| variable | |
| --- | --- |
| `CONSERVE_URL` | where the application listens, in place of `--url` |
| `CONSERVE_CONFIG` | the configuration, in place of `--file` |
| `OPENAI_API_KEY` | an API key, where [they are needed](tenants.md#keys) |
| `CONSERVE_...` | settings, as in [settings](settings.md) |
| `NO_COLOR` | no colours |

`conserve --install-completion` teaches your shell (bash, zsh, fish, PowerShell) commands, options and the ids of
batches, for which it asks the application.
"""


def make_page() -> str:
    """The whole page."""
    from conserve.cli.main import app

    root = typer.main.get_command(app)
    return HEAD + "".join(f"\n{section}" for section in _list_sections(root, "conserve"))


def _list_sections(group: Any, name: str) -> Iterator[str]:
    for each, command in group.commands.items():
        path = f"{name} {each}"
        if hasattr(command, "commands"):
            yield f"## {path}\n{_join(command.help)}\n"
            yield from _list_sections(command, path)
        else:
            yield _describe(command, path, "##" if name == "conserve" else "###")


def _describe(command: Any, path: str, mark: str) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    words = [path, *(_name_argument(one) for one in arguments), *(["[OPTIONS]"] if options else [])]
    if command.context_settings.get("allow_extra_args"):
        words.append("[OPTIONS]")
    lines = [f"{mark} {path}", "```text", " ".join(words), "```", _join(command.help)]
    if arguments or options:
        lines += ["", "| | |", "| --- | --- |"]
        lines += [f"| `{_name_argument(one)}` | {_join(one.help)} |" for one in arguments]
        lines += [f"| {_name_option(one)} | {_explain(one)} |" for one in options]
    return "\n".join(lines) + "\n"


def _name_argument(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _name_option(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))


def _explain(option: Any) -> str:
    said = [_join(option.help)] if option.help else []
    least, most = option.min, option.max
    if least is not None and most is not None:
        said.append(f"{least:g} to {most:g}.")
    elif least is not None:
        said.append(f"{least:g} at least.")
    default = option.default
    if default is not None and default is not False and not callable(default):
        said.append(f"By default `{default}`.")
    elif option.required:
        said.append("Has to be given.")
    return " ".join(said)


def _join(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(make_page())
