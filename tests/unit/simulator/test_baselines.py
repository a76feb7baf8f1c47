"""A change of a policy that makes online requests later, or offline ones fewer, is seen here."""

from __future__ import annotations

import pytest

from loadtests.baselines import MOST_LATER, MOST_LESS, NAMES, list_changes, measure, read_baselines


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_those_that_are_kept(name: str) -> None:
    changes = [line for _, line in list_changes(read_baselines()[name], measure(name))]

    assert not changes, "\n".join(changes)


def test_the_same_simulation_gives_the_same_figures() -> None:
    assert measure("interrupt") == measure("interrupt")


@pytest.mark.parametrize(
    ("name", "factor", "verdicts"),
    [
        ("ttft_p99_ms", 1 + 0.9 * MOST_LATER, []),
        ("ttft_p99_ms", 1 + 1.1 * MOST_LATER, [True]),
        ("ttft_p99_ms", 1 - 1.1 * MOST_LATER, [False]),
        ("offline_tokens_per_s", 1 - 0.9 * MOST_LESS, []),
        ("offline_tokens_per_s", 1 - 1.1 * MOST_LESS, [True]),
        ("offline_tokens_per_s", 1 + 1.1 * MOST_LESS, [False]),
    ],
)
def test_a_change_beyond_the_limits_is_worse_or_better(name: str, factor: float, verdicts: list[bool]) -> None:
    kept = {"ttft_p99_ms": 100.0, "offline_tokens_per_s": 1000.0}

    assert [is_worse for is_worse, _ in list_changes(kept, {name: factor * kept[name]})] == verdicts
