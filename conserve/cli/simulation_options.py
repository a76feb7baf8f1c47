"""Options that `conserve simulate` and `conserve plan` have in common."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Final

import typer

from conserve.cli.console import err, fail
from conserve.simulator.roofline import GpuProfile, ProfileError, find_profile
from conserve.simulator.traces import TraceError, TraceRequest, read_trace

MOST_SHOWN: Final = 20
"""Lines of a trace that cannot be used are counted, and so many of them shown."""

ProfileOption = Annotated[
    str, typer.Option("--profile", help="GPU/model, such as h100/llama-3.1-8b.", metavar="GPU/MODEL")
]
MeasuredOption = Annotated[
    Path | None,
    typer.Option("--measured", help="A file of `conserve profile`, in place of the datasheet's costs.", metavar="FILE"),
]


def read_profile(name: str, measured: Path | None) -> GpuProfile:
    """The profile of these options; ends the program if there is none."""
    try:
        return find_profile(name, measured)
    except ProfileError as error:
        field = "--measured" if measured is not None and str(error).startswith(str(measured)) else "--profile"
        raise fail(f"{field}: {error}", 2) from None


def read_requests(trace: Path) -> list[TraceRequest]:
    """The requests of a trace; lines that cannot be used are shown. Ends the program if none can."""
    problems: list[str] = []
    try:
        requests = read_trace(trace, problems)
    except TraceError as error:
        for problem in problems[:MOST_SHOWN]:
            err.print(problem, style="yellow", markup=False, soft_wrap=True)
        raise fail(f"--trace: {error}", 2) from None
    except OSError as error:
        raise fail(f"--trace: {trace} cannot be read: {error.strerror or error}", 2) from None
    for problem in problems[:MOST_SHOWN]:
        err.print(problem, style="yellow", markup=False, soft_wrap=True)
    if problems:
        left = len(problems) - MOST_SHOWN
        more = f", {left:,} of them not shown" if left > 0 else ""
        err.print(f"{trace}: {len(problems):,} lines left out{more}", style="yellow", markup=False, soft_wrap=True)
    return requests


def split_names(option: str, text: str, known: Collection[str]) -> list[str]:
    """Names with commas between them, or `all`; ends the program if one is not known."""
    if text == "all":
        return [*known]
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise fail(f"{option}: {', '.join(unknown) or 'nothing'} is none of: {', '.join(known)}", 2)
    return list(dict.fromkeys(names))
