from __future__ import annotations

import numpy as np
import pytest

from loadtests.chat_load import ChatRecord
from loadtests.latency import percentile_interval, percentile_ratio, percentiles, tbt_groups, ttft_groups


def test_percentiles_interpolate() -> None:
    found = percentiles(range(101))
    assert found is not None
    assert (found.p50, found.p90, found.p99) == (50, 90, 99)
    assert percentiles([]) is None


def test_a_ratio_is_of_the_pooled_values_and_its_interval_covers_it() -> None:
    generator = np.random.default_rng(5)
    below = [[value] for value in generator.exponential(1.0, 300)]
    above = [[2 * value] for value in generator.exponential(1.0, 300)]
    ratio = percentile_ratio(above, below, 50)
    assert ratio is not None
    assert ratio.min is not None
    assert ratio.max is not None
    assert ratio.median == pytest.approx(np.median(above) / np.median(below))
    assert 1.2 < ratio.min < ratio.median < ratio.max < 3.2
    assert ratio == percentile_ratio(above, below, 50)
    assert ratio != percentile_ratio(above, below, 50, seed=1)


def test_samples_that_hang_together_make_the_interval_wider() -> None:
    generator = np.random.default_rng(6)
    levels = generator.exponential(1.0, 30)
    grouped = [[level] * 20 for level in levels]
    single = [[value] for group in grouped for value in group]
    wide, narrow = (percentile_ratio(groups, [[1.0]], 50) for groups in (grouped, single))
    assert wide is not None
    assert narrow is not None
    assert wide.median == narrow.median
    assert wide.min is not None
    assert wide.max is not None
    assert narrow.min is not None
    assert narrow.max is not None
    assert wide.max - wide.min > 2 * (narrow.max - narrow.min)


def test_a_ratio_without_samples_is_not_known() -> None:
    assert percentile_ratio([], [[1.0]], 99) is None
    assert percentile_ratio([[1.0]], [[]], 99) is None
    with pytest.raises(ValueError, match="denominator"):
        percentile_ratio([[1.0]], [[0.0]], 99)


def test_failed_requests_have_no_latency() -> None:
    good = ChatRecord(0.0, 0.0, (0.5, 0.75), 1.0)
    bad = ChatRecord(0.0, 0.0, (9.0, 19.0), 20.0, error="broken")
    assert ttft_groups([good, bad]) == [[500.0]]
    assert tbt_groups([good, bad]) == [[250.0]]


def test_the_interval_of_a_percentile_covers_it_and_is_wider_of_samples_that_hang_together() -> None:
    generator = np.random.default_rng(7)
    grouped = [[level] * 20 for level in generator.exponential(1.0, 30)]
    single = [[value] for group in grouped for value in group]
    wide, narrow = (percentile_interval(groups, 90) for groups in (grouped, single))
    assert wide[0] <= narrow[0] <= np.percentile(single, 90) <= narrow[1] <= wide[1]
    assert wide[1] - wide[0] > narrow[1] - narrow[0]
