"""Where the program `conserve` begins."""

from __future__ import annotations

from conserve.models import compiled_dir
from conserve.simulator.compiled import use_compiled


def main() -> None:
    """Runs the command line, with compiled modules where there are any."""
    use_compiled(compiled_dir())
    # Not before: its modules import what is to be compiled.
    from conserve.cli.main import app

    app()
