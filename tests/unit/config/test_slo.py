from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.config import DEFAULT_CLASS, RequestClass, SettingsError, SloSettings, load_settings
from conserve.policy.priority import OFFLINE_PRIORITY

PAIR = {"ttft_slo_ms": 200, "tbt_slo_ms": 50}
NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,31}", fullmatch=True).filter(lambda name: name != DEFAULT_CLASS)
CLASSES = st.dictionaries(
    NAMES,
    st.builds(RequestClass, ttft_slo_ms=st.sampled_from([10.0, 20.0, 5000.0]), tbt_slo_ms=st.floats(1, 1000)),
    max_size=100,
)


@given(CLASSES)
def test_the_shortest_ttft_goes_first_then_default_then_by_name(classes: dict[str, RequestClass]) -> None:
    order = SloSettings(ttft_slo_ms=20, tbt_slo_ms=30, classes=classes).by_priority()
    assert order == {DEFAULT_CLASS: RequestClass(ttft_slo_ms=20, tbt_slo_ms=30), **classes}
    assert len(order) < OFFLINE_PRIORITY
    keys = [(kind.ttft_slo_ms, name != DEFAULT_CLASS, name) for name, kind in order.items()]
    assert keys == sorted(keys)


@pytest.mark.parametrize("name", ["", "Fast", "-fast", "a b", "a" * 33, "fast\n", "fäst"])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(SettingsError, match=r"slo\.classes.*lower-case"):
        load_settings({"slo": {"classes": {name: PAIR}}}, {})


def test_default_cannot_be_given_twice() -> None:
    with pytest.raises(SettingsError, match=r"slo\.ttft_slo_ms"):
        load_settings({"slo": {"classes": {DEFAULT_CLASS: PAIR}}}, {})


def test_classes_are_few() -> None:
    names = [first + second for first in string.ascii_lowercase for second in string.ascii_lowercase]
    assert len(load_settings({"slo": {"classes": dict.fromkeys(names[:100], PAIR)}}, {}).slo.classes) == 100
    with pytest.raises(SettingsError, match=r"slo\.classes.*100"):
        load_settings({"slo": {"classes": dict.fromkeys(names[:101], PAIR)}}, {})


def test_environment_gives_classes_too() -> None:
    environ = {
        "CONSERVE_SLO__TTFT_SLO_MS": "250",
        "CONSERVE_SLO__CLASSES": "{fast: {ttft_slo_ms: 200, tbt_slo_ms: 50}}",
    }
    slo = load_settings({"slo": {"tbt_slo_ms": 40}}, environ).slo
    assert (slo.ttft_slo_ms, slo.tbt_slo_ms) == (250, 40)
    assert slo.classes == {"fast": RequestClass(ttft_slo_ms=200, tbt_slo_ms=50)}
