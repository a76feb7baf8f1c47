"""A head of Ray that keeps its state in Redis, as the user that cluster/redis has for it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from conserve.launch.ports import find_free_ports
from tests.integration.redis_server import PASSWORDS, run_as, running_server

CODE = """
import ray

ray.init(
    address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
    _redis_username="ray", _redis_password={password!r}, _temp_dir={folder!r},
)

@ray.remote
class Kept:
    def answer(self):
        return 1

kept = Kept.options(name="kept", lifetime="detached", namespace="x").remote()
print(ray.get(kept.answer.remote()))
ray.shutdown()
"""


def test_ray_s_head_works_as_its_user(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ru-", dir="/tmp") as folder:  # Sockets of Ray lie below.
        run_head(tmp_path, folder)


def run_head(tmp_path: Path, folder: str) -> None:
    (port,) = find_free_ports(1)
    with running_server("valkey", tmp_path / "server", port) as server:
        environ = {**os.environ, "RAY_REDIS_ADDRESS": f"127.0.0.1:{port}", "RAY_external_storage_namespace": "acl"}
        environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
        code = CODE.format(password=PASSWORDS["ray"], folder=folder)
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.stdout.strip().endswith("1"), done.stderr[-2000:]
        counts = run_as(server, "ray", "INFO", "commandstats")
    rejected = {name: each["rejected_calls"] for name, each in counts.items() if each["rejected_calls"]}  # type: ignore[attr-defined]
    assert rejected == {}
    assert counts["cmdstat_hset"]["calls"] > 0  # type: ignore[index] # redis' stubs
