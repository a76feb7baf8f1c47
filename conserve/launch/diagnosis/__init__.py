"""What is missing or misconfigured on this machine, and how to mend it (`conserve doctor`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from conserve.launch.diagnosis.finding import Finding, State
from conserve.launch.diagnosis.machine import (
    check_memory,
    check_processors,
    check_shared_memory,
    check_state_folder,
    check_switched_off,
    find_gpus,
)
from conserve.launch.diagnosis.services import check_config, check_model, check_redis, check_stack
from conserve.launch.diagnosis.software import check_python, check_ray, check_vllm

__all__ = ["Finding", "State", "diagnose"]


def diagnose(config_path: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Looks at one thing after the other; changes nothing. Without a configuration, at the machine only.

    Args:
        config_path: A `serve_config.yaml`.
        environ: The environment, with `CONSERVE_...` settings.
    """
    yield from check_python()
    gpus = find_gpus()
    config, finding = check_config(config_path, environ)
    settings = config.settings if config is not None else None
    yield from check_vllm(settings, len(gpus))
    yield from check_ray()
    yield finding
    yield from check_switched_off(environ)
    yield from check_processors(settings, gpus)
    yield from check_memory(settings, gpus)
    yield from check_shared_memory()
    if config is None:
        return
    yield from check_state_folder(config.settings)
    yield from check_model(config.settings)
    yield from check_redis(config.settings)
    yield from check_stack(config, environ)
