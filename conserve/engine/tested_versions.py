"""Which versions of vLLM our scheduler was tested with; to be known without importing vLLM, which takes 20 s."""

from __future__ import annotations

TESTED_VERSIONS = ("0.32",)


def find_version_problem(version: str) -> str | None:
    """What to say of a version that was not tested, and the way out; None of one that was."""
    if version.startswith(tuple(f"{tested}." for tested in TESTED_VERSIONS)):
        return None
    tested = ", ".join(f"{tested}.x" for tested in TESTED_VERSIONS)
    return (
        f"vLLM {version} is installed, and ConServe's scheduler is tested with {tested}: install one of those, "
        "or set `engine.mode: stock` to use vLLM's own scheduler, without the objectives of online requests"
    )
