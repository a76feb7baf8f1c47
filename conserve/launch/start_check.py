"""What would keep a stack from coming up on this machine, found before anything of it is started."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from conserve.config import Settings
from conserve.launch.diagnosis.finding import Finding
from conserve.launch.diagnosis.machine import check_memory, check_processors, check_state_folder, find_gpus
from conserve.launch.diagnosis.services import check_model
from conserve.launch.diagnosis.software import check_python, check_ray, check_vllm
from conserve.launch.record import StackError


def check_folder(settings: Settings) -> None:
    """Sees that the state folder can be used, before a first file is written there.

    Raises:
        StackError: it cannot.
    """
    _refuse(list(check_state_folder(settings)))


def check_start(settings: Settings, on_progress: Callable[[str], None]) -> None:
    """Looks at what `conserve doctor` looks at, as far as a start on this machine needs it.

    Raises:
        StackError: something is missing or wrong; the message has all of it, and what to do.
    """
    found = list(_look(settings))
    _refuse(found)
    for finding in found:
        if finding.state == "warning":
            on_progress(f"{finding.what}: {finding.found}; {finding.mend}")


def _look(settings: Settings) -> Iterator[Finding]:
    gpus = find_gpus()
    yield from check_python()
    yield from check_vllm(settings, len(gpus))
    yield from check_ray()
    yield from check_processors(settings, gpus)
    yield from check_memory(settings, gpus)
    yield from check_model(settings)


def _refuse(found: list[Finding]) -> None:
    problems = [f"{one.what}: {one.found}. What to do: {one.mend}." for one in found if one.state == "problem"]
    if problems:
        raise StackError("\n".join(problems))
