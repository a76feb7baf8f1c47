"""The parsers of input files and of traces, tried by Atheris: inputs follow the branches that they reach.

`python -m loadtests.fuzz.parsers PARSER ...` is the process that Atheris runs in, which ends with it. `try_parser`
starts it, and says what came of it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, Literal

from loadtests.fuzz.corpus import WORDS, list_inputs, list_traces
from loadtests.fuzz.report import Fault, Findings

Parser = Literal["jsonl", "traces"]
INPUT_LIMIT_S: Final = 5
"""Of a single input; what takes longer does more than look at each byte some times."""
LONGEST_BYTES: Final = 1 << 15
_END_LIMIT_S: Final = 60
_STATISTICS: Final = re.compile(r"^stat::(\w+):\s+(\d+)", re.MULTILINE)


def try_parser(parser: Parser, inputs: int, seed: int) -> Findings:
    """Runs Atheris in a process of its own. It stops at the first fault."""
    findings = Findings()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, content in enumerate(list_inputs() if parser == "jsonl" else list_traces()):
            (corpus / f"{number:03}").write_bytes(content)
        words = [f'"{word}"' for word in WORDS]
        (folder / "words").write_text("\n".join(words), encoding="ascii")
        options: dict[str, object] = {
            "seed": seed or 1,
            "runs": inputs,
            "max_len": LONGEST_BYTES,
            "timeout": INPUT_LIMIT_S,
        }
        options |= {"dict": folder / "words", "artifact_prefix": f"{folder}/", "print_final_stats": 1, "len_control": 0}
        command = [sys.executable, "-m", "loadtests.fuzz.parsers", parser, str(corpus)]
        command += [f"-{option}={value}" for option, value in options.items()]
        began_s = time.monotonic()
        ran = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_END_LIMIT_S + inputs, check=False
        )
        figures = {one: int(number) for one, number in _STATISTICS.findall(ran.stderr)}
        findings.inputs = figures.get("number_of_executed_units", 0)
        findings.outcomes["taken or refused as documented"] = findings.inputs
        findings.slowest_s = float(figures.get("slowest_unit_time_sec", 0))
        if ran.returncode:
            found = sorted([*folder.glob("crash-*"), *folder.glob("timeout-*"), *folder.glob("slow-*")])
            content = found[0].read_bytes() if found else b""
            kind = "stuck" if any(one.name.startswith("timeout") for one in found) else "error that is not documented"
            findings.blame(Fault.of(kind, content, ran.stdout[-1_500:] + ran.stderr[-1_500:]))
        elif findings.inputs < inputs:
            took_s = time.monotonic() - began_s
            findings.blame(Fault.of("ended early", b"", f"after {took_s:.0f} s: {ran.stderr[-1_500:]}"))
    return findings


def main(arguments: list[str]) -> None:
    """Runs Atheris, and ends the process."""
    import atheris

    parser, *options = arguments
    # Only what is imported within is followed.
    with atheris.instrument_imports(include=["conserve.jobs", "conserve.simulator.traces"]):
        from loadtests.fuzz.parser_checks import CHECKS
    atheris.Setup([sys.argv[0], *options], CHECKS[parser])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
