"""How fast the simulator is: replicas that serve an hour of chats beside an endless backlog of batch work.

Without options several clusters are simulated, one after the other, each in a process of its own; with options one.
Modules that `conserve compile` has compiled are used, unless the first option is `--interpreted`:

python -m loadtests.simulator_speed
python -m loadtests.simulator_speed --replicas 64 --trace FILE
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from conserve.models import compiled_dir
from conserve.simulator.compiled import use_compiled

_H100: Final = ("--profile", "h100/llama-3.1-8b")
CLUSTERS: Final = (
    ("--replicas", "64", "--profile", "a100-40g/llama-2-7b"),
    ("--replicas", "64", *_H100, "--rate", "1"),
    ("--replicas", "64", *_H100),
    ("--replicas", "1000", *_H100, "--rate", "0.3"),
)
HEADER: Final = (
    "| replicas | online requests/s each | requests | decisions | processor time | bound | peak memory | code |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulates, and prints how long it took."""
    arguments = sys.argv[1:] if arguments is None else arguments
    interpreted = arguments[:1] == ["--interpreted"]
    options = arguments[1:] if interpreted else arguments
    if options:
        code = "compiled" if not interpreted and use_compiled(compiled_dir()) else "interpreted"
        # Not before: it imports what is to be compiled.
        from loadtests.simulated_hour import measure

        row = measure(options)
        print(f"{HEADER}\n{row} {code} |", flush=True)
        return 0
    print(HEADER, flush=True)
    for cluster in CLUSTERS:
        # Peak memory is that of a process.
        command = [sys.executable, "-m", __spec__.name, *arguments, *cluster]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            return done.returncode
        print(done.stdout.splitlines()[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
