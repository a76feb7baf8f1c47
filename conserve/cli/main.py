"""`conserve`: brings a stack up and down, measures and simulates engines, chats with one, and submits batches to it."""

from __future__ import annotations

import typer

from conserve.cli import (
    batch_commands,
    bench_command,
    chat_command,
    compile_command,
    doctor_command,
    grafana_commands,
    key_commands,
    plan_command,
    profile_command,
    simulate_command,
    stack_commands,
    top_command,
)
from conserve.telemetry.logs import configure_program_logs

app = typer.Typer(
    help="Serves interactive LLM requests and runs batches in the idle capacity of the same engines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("up")(stack_commands.up)
app.command("status")(stack_commands.status)
app.command("down")(stack_commands.down)
app.command("top")(top_command.top)
app.command("doctor")(doctor_command.doctor)
app.command("chat")(chat_command.chat)
app.command("profile")(profile_command.profile)
app.command("simulate")(simulate_command.simulate)
app.command("compile")(compile_command.compile_simulator)
app.command("plan")(plan_command.plan)
app.add_typer(batch_commands.app, name="batch")
app.add_typer(bench_command.app, name="bench")
app.add_typer(doctor_command.config_app, name="config")
app.add_typer(grafana_commands.app, name="grafana")
app.add_typer(key_commands.app, name="keys")


@app.callback()
def prepare() -> None:
    """Runs before every command."""
    configure_program_logs()
