"""Processors, memory, shared memory and disk: whether the engine has what it will take."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from conserve.config import Settings
from conserve.engine.host_memory import count_available_bytes
from conserve.launch.diagnosis.finding import Finding, fine, problem, warning
from conserve.launch.ray_head import OBJECT_STORE_BYTES

GIB = 2**30
CPU_REPLICA_GIB, GPU_REPLICA_GIB = 2.0, 8.0
"""Of a CPU replica with the default model, beside its KV cache (measured: 3 GB in all with one of 1 GiB); of a GPU
replica's processes (docs/deployment.md)."""
RAY_GIB = 1.4
LEAST_SHARE = 0.5
"""So much of the memory that is needed by that rough count has to be there: with less, processes are killed."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at only
LEAST_DISK_BYTES = 2 * GIB
_PROBE_TIMEOUT_S = 20.0


def find_gpus() -> list[str]:
    """Names and memory of the GPUs that `nvidia-smi` shows; empty where it is not there or does not answer."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]


def check_processors(settings: Settings | None, gpus: list[str]) -> Iterator[Finding]:
    """Whether there are GPUs, and cores enough."""
    cores = len(psutil.Process().cpu_affinity() or [])
    wanted = settings.engine.device if settings is not None else "auto"
    needed = settings.engine.tensor_parallel_size * settings.replicas if settings is not None else 1
    if wanted == "gpu" and not gpus:
        yield problem("GPU", "none, and `engine.device` is `gpu`", "look at `nvidia-smi`, or set `engine.device: cpu`")
    elif gpus and wanted != "cpu" and len(gpus) < needed:
        found = f"{len(gpus)}, and replicas times engine.tensor_parallel_size are {needed}"
        yield problem("GPU", found, "set less of either, or use a Ray cluster of several machines")
    else:
        yield fine("GPU", "; ".join(gpus) if gpus else "none: the engine runs on the CPU")
    if cores < 2:
        yield warning("CPU", f"{cores} core", "two at least: beside the engine run Ray, the front and the proxy")
    else:
        yield fine("CPU", f"{cores} cores")


def check_memory(settings: Settings | None, gpus: list[str]) -> Iterator[Finding]:
    """Whether what is free suffices for the replicas, roughly."""
    free_gib = count_available_bytes() / GIB
    needed_gib = RAY_GIB
    if settings is not None:
        is_on_gpu = bool(gpus) and settings.engine.device != "cpu"
        replica_gib = GPU_REPLICA_GIB if is_on_gpu else CPU_REPLICA_GIB + settings.engine.kv_cache_gib
        needed_gib += settings.replicas * replica_gib
    found = f"{free_gib:.1f} GiB available, about {needed_gib:.1f} are needed"
    mend = "stop other programs, or set less `replicas` or `engine.kv_cache_gib`"
    if free_gib < LEAST_SHARE * needed_gib:
        yield problem("Memory", found, mend)
    elif free_gib < needed_gib:
        yield warning("Memory", found, mend)
    else:
        yield fine("Memory", found)


def check_shared_memory(folder: Path = SHARED_MEMORY) -> Iterator[Finding]:
    """Whether Ray's object store has a place in memory; containers have 64 MiB there by default."""
    mend = "mount it with 1 GiB or more: `--shm-size` of Docker, a memory `emptyDir` of Kubernetes"
    if not os.access(folder, os.W_OK):
        yield problem("Shared memory", f"{folder} cannot be written", mend)
        return
    free_bytes = shutil.disk_usage(folder).free
    found = f"{free_bytes / GIB:.1f} GiB free in {folder}"
    if free_bytes < OBJECT_STORE_BYTES:
        yield warning("Shared memory", f"{found}: Ray puts its objects on the disk, which is slow", mend)
    else:
        yield fine("Shared memory", found)


def check_state_folder(settings: Settings) -> Iterator[Finding]:
    """Whether the state folder can be made and written, is this user's, and has room."""
    folder = settings.state_dir
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield problem("State folder", f"{folder}: {there} cannot be written", "set `state_dir` to a folder of yours")
        return
    if folder == there and folder.stat().st_uid == os.getuid() and folder.stat().st_mode & 0o077:
        yield warning(
            "State folder",
            f"other users may enter {folder}, where prompts and answers are",
            f"run `chmod 700 {folder}`",
        )
        return
    free_bytes = shutil.disk_usage(there).free
    found = f"{folder}{'' if folder == there else ' (is made at the start)'}, {free_bytes / GIB:.1f} GiB free"
    if free_bytes < LEAST_DISK_BYTES:
        yield warning("State folder", found, "make room: the queue and, by default, all files of batches go there")
    else:
        yield fine("State folder", found)


def check_switched_off(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the environment takes away what the engine needs."""
    if environ.get("CUDA_VISIBLE_DEVICES") == "" and shutil.which("nvidia-smi"):
        yield warning("GPU", "CUDA_VISIBLE_DEVICES is empty, which hides all of them", "unset it")
