from __future__ import annotations

import pytest
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, ResponseError

from conserve.jobs.outages import is_out_of_memory, is_outage

DISK_FULL = "MISCONF Errors writing to the AOF file: No space left on device"
OLD_SCRIPT = (
    "Error running script (call to f_1): @user_script:1: @user_script: 1: "
    "-OOM command not allowed when used memory > 'maxmemory'."
)


@pytest.mark.parametrize(
    "error",
    [
        ResponseError(DISK_FULL),
        ResponseError(f"Command # 1 (SET k 1) of pipeline caused error: {DISK_FULL}"),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
        ResponseError(f"Error running script (call to f_1): @user_script:1: @user_script: 1: -{DISK_FULL}"),
        BusyLoadingError("Redis is loading the dataset in memory"),
        ReadOnlyError("You can't write against a read only replica."),
    ],
)
def test_what_passes_is_an_outage(error: Exception) -> None:
    assert is_outage(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), ResponseError(OLD_SCRIPT)],
)
def test_want_of_memory_is_known_apart(error: Exception) -> None:
    assert is_outage(error)
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [ResponseError("WRONGTYPE Operation against a key"), ValueError("OOM")])
def test_a_fault_of_ours_is_none(error: Exception) -> None:
    assert not is_outage(error)
