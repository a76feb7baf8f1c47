"""`conserve profile`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from conserve.cli.console import JsonOption, err, fail, out, say_progress, show_json, show_table
from conserve.cli.stack_commands import DEFAULT_CONFIG
from conserve.config import EngineSettings, Settings, SettingsError
from conserve.launch.serve_config import read_serve_config
from conserve.models import ModelError, profiles_dir, resolve_model
from conserve.policy.latency import LatencyProfile

# Feature of the model, what one unit of the table is, and how many of the feature's units that is.
_COSTS = (
    ("iteration", "an iteration", 1),
    ("prefill_tokens", "a prompt token", 1),
    ("prefill_sequences", "a prompt", 1),
    ("prefill_attention", "1,000,000 pairs of a prompt token and one before it", 1_000_000),
    ("decode_sequences", "a decoding sequence", 1),
    ("decode_context", "1,000 tokens of context of decoding sequences", 1_000),
)


def profile(
    config: Annotated[
        Path,
        typer.Option(
            "--config", "--file", "-f", envvar="CONSERVE_CONFIG", help="A Ray Serve configuration with our application."
        ),
    ] = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Measures how long the engine's iterations take, for its scheduler to start with. Needs the machine for itself."""
    try:
        settings = read_serve_config(config).settings
    except SettingsError as error:
        raise fail(str(error), 2) from None
    try:
        model = resolve_model(settings.model.source)
    except ModelError as error:
        raise fail(str(error)) from None
    # vLLM takes 20 s to import, for which the other commands need not wait. Its log would tear the progress bar.
    say_progress("Starting the engine; this takes about a minute.")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from conserve.engine.profiler import make_profile

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("starting", total=None)

        def report(share: float) -> None:
            progress.update(task, description="measuring iterations", total=1.0, completed=share)

        try:
            path, stored = make_profile(model, _as_replica(settings), profiles_dir(), report)
        except (RuntimeError, ValueError, OSError) as error:
            raise fail(str(error)) from None
    if as_json:
        show_json({"path": str(path), **stored.model_dump(mode="json")})
        return
    show_table(_cost_table(stored.profile))
    found = stored.profile
    out.print(
        f"Error on iterations not seen before: median {found.error_median:.1%}, p95 {found.error_p95:.1%} "
        f"(the last {found.error_samples})"
    )
    out.print(f"Hardware: {stored.key.hardware}", markup=False, soft_wrap=True)
    out.print(f"Stored: {path}", markup=False, soft_wrap=True)


def _as_replica(settings: Settings) -> EngineSettings:
    """The engine with the cores that one replica of several on a node gets."""
    engine = settings.engine
    cores = psutil.Process().cpu_affinity() or []
    if engine.cpu_threads_bind != "auto" or settings.replicas == 1:
        return engine
    share = cores[: max(1, len(cores) // settings.replicas)]
    return engine.model_copy(update={"cpu_threads_bind": ",".join(map(str, share))})


def _cost_table(found: LatencyProfile) -> Table:
    table = Table("what", title="Cost in an iteration", title_justify="left")
    table.add_column("ms", justify="right")
    for feature, what, units in _COSTS:
        table.add_row(what, f"{found.coefficients_ms[feature] * units:,.3f}")
    return table
