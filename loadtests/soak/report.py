"""What is written of a soak, and which quantities of it grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pydantic import BaseModel, computed_field

from loadtests.soak.growth import Growth, fit_growth
from loadtests.soak.sampling import QueueSample, Sample

SHARE: Final = 0.02
"""Resident memory may grow so much in half an hour."""
LEAST_MIB: Final = 4.0
"""Or so much, of a single process: allocators take memory in steps."""
LEAST_REDIS_MIB: Final = 1.0
LEAST_FILES: Final = 5.0
LEAST_SHARED_FILES: Final = 1.0
LEAST_KEYS: Final = 2.0
LEAST_KEYS_OF_BATCH: Final = 0.5
LEAST_BYTES_OF_BATCH: Final = 200.0
LEAST_KV: Final = 0.02
"""Share of all KV blocks: how many are in use goes up and down with the load."""
FEWEST_SAMPLES: Final = 5


class SoakReport(BaseModel):
    """What is written to `soak.json`.

    Attributes:
        engine: `light` or `real`.
        minutes: Of the load.
        warm_up_minutes: What is not looked at of it.
        load: What was asked, answered, left, submitted, cancelled, and what failed.
        growths: Of everything that was sampled.
        ended: Processes that were there after the warm-up and not at the end, though nothing has been killed.
        begun: The other way around.
        samples: All of them.
    """

    engine: str
    minutes: float
    warm_up_minutes: float
    load: dict[str, int]
    growths: list[Growth]
    ended: list[str]
    begun: list[str]
    samples: list[Sample]

    @computed_field  # type: ignore[prop-decorator] # of mypy: it is a property to it
    @property
    def problems(self) -> list[str]:
        """What is not as it has to be."""
        found = [
            f"{one.name} grows by {one.growth:.4g} {one.unit} in half an hour; {one.allowed:.4g} are allowed"
            for one in self.growths
            if not one.is_flat
        ]
        if self.load.get("chats failed"):
            found.append(f"{self.load['chats failed']} chats failed")
        return found


def fit_all(samples: Sequence[Sample]) -> list[Growth]:
    """Growth of everything, from samples after the warm-up.

    Memory and open files are those of processes that were there at each sample: one that comes and goes is no leak.

    Raises:
        ValueError: there are too few samples.
    """
    if len(samples) < FEWEST_SAMPLES:
        raise ValueError(f"{len(samples)} samples after the warm-up are too few; {FEWEST_SAMPLES} are needed")
    lasting = sorted(set.intersection(*(set(sample.processes) for sample in samples)))
    times_s = [sample.at_s for sample in samples]

    def fit(name: str, unit: str, read: Callable[[Sample], float], share: float, least: float) -> Growth:
        return fit_growth(name, unit, times_s, [read(sample) for sample in samples], share, least)

    def sum_memory(sample: Sample) -> float:
        return sum(sample.processes[name].rss_mib for name in lasting)

    growths = [
        fit("resident memory of all processes", "MiB", sum_memory, SHARE, 0.0),
        fit("files in shared memory", "", lambda one: one.shared_files, 0.0, LEAST_SHARED_FILES),
    ]
    for name in lasting:
        growths.append(fit(f"memory of {name}", "MiB", _read_memory(name), SHARE, LEAST_MIB))
        growths.append(fit(f"files of {name}", "", _read_files(name), SHARE, LEAST_FILES))
    return growths + _fit_queue(samples)


def _fit_queue(samples: Sequence[Sample]) -> list[Growth]:
    """Of Redis: ended batches are kept, so it is what there is beside them, and what each of them takes."""
    seen = [(sample.at_s, sample.queue) for sample in samples if sample.queue is not None and sample.queue.batches]
    if len(seen) < FEWEST_SAMPLES:
        return []
    times_s = [at_s for at_s, _ in seen]

    def fit(name: str, unit: str, read: Callable[[QueueSample], float], least: float) -> Growth:
        return fit_growth(name, unit, times_s, [read(queue) for _, queue in seen], SHARE, least)

    return [
        fit("keys of Redis, without batches and files", "", lambda one: one.keys - one.kept_keys, LEAST_KEYS),
        fit("keys of Redis for each batch kept", "", lambda one: one.kept_keys / one.batches, LEAST_KEYS_OF_BATCH),
        fit(
            "memory of Redis, without batches and files",
            "MiB",
            lambda one: one.memory_mib - one.kept_memory_mib,
            LEAST_REDIS_MIB,
        ),
        fit(
            "memory of Redis for each batch kept",
            "bytes",
            lambda one: one.kept_memory_mib * 2**20 / one.batches,
            LEAST_BYTES_OF_BATCH,
        ),
        fit("KV blocks in use", "of all", lambda one: one.kv_usage, LEAST_KV),
    ]


def _read_memory(name: str) -> Callable[[Sample], float]:
    return lambda sample: sample.processes[name].rss_mib


def _read_files(name: str) -> Callable[[Sample], float]:
    return lambda sample: sample.processes[name].files
