from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from conserve.engine.host_memory import AUTO_BYTES, choose_host_kv_bytes, count_available_bytes

GIB = 2**30


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    class Memory:
        available = 10 * GIB

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    return tmp_path


def test_the_machine_limits_it_where_there_is_no_control_group(cgroup: Path, tmp_path: Path) -> None:
    assert count_available_bytes(tmp_path / "none") == 10 * GIB
    (cgroup / "memory.max").write_text("max\n")
    assert count_available_bytes(cgroup) == 10 * GIB


@pytest.mark.parametrize(("limit_gib", "available_gib"), [(4, 2), (100, 10)])
def test_a_container_limits_it_less_what_it_has_in_use_but_for_what_can_be_taken_back(
    cgroup: Path, limit_gib: int, available_gib: int
) -> None:
    (cgroup / "memory.max").write_text(f"{limit_gib * GIB}\n")
    assert count_available_bytes(cgroup) == available_gib * GIB


def test_without_a_wish_it_is_a_part_of_what_there_is() -> None:
    assert choose_host_kv_bytes(None, 100 * GIB) == AUTO_BYTES
    assert choose_host_kv_bytes(None, 6 * GIB) == 1.5 * GIB


def test_what_is_wished_is_taken_or_refused_by_the_name_of_the_setting() -> None:
    assert choose_host_kv_bytes(0, GIB) == 0
    assert choose_host_kv_bytes(5 * GIB, 6 * GIB) == 5 * GIB
    with pytest.raises(
        ValueError, match=r"engine\.host_kv_gib: 7\.0 GiB are wanted, 6\.0 GiB .* are available: set less"
    ):
        choose_host_kv_bytes(7 * GIB, 6 * GIB)
