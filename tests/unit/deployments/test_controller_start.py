from __future__ import annotations

import subprocess
import sys

HEAVY = ("vllm", "torch", "ray.llm")


def test_the_controller_starts_without_the_imports_of_the_engine() -> None:
    code = f"import sys, deployments.controller; print([one for one in {HEAVY} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
