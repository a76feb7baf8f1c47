from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.shared_service import SharedService


def test_others_have_had_their_share_meanwhile() -> None:
    service = SharedService({"a": 300.0, "b": 100.0}, {"a": 3.0, "b": 1.0})
    assert service.find_total("a", 150.0) == pytest.approx(200.0)
    assert service.find_total("b", 100.0) == pytest.approx(400.0)


def test_what_one_that_is_through_leaves_goes_to_the_others() -> None:
    service = SharedService({"a": 1_000.0, "b": 100.0, "c": 400.0}, {})
    assert [service.find_total("a", tokens) for tokens in (50.0, 100.0, 300.0, 400.0, 900.0)] == pytest.approx(
        [150.0, 300.0, 700.0, 900.0, 1_400.0]
    )


@given(st.floats(0.01, 100), st.floats(0.1, 1e6))
def test_alone_a_tenant_has_everything(weight: float, tokens: float) -> None:
    assert SharedService({"a": tokens}, {"a": weight}).find_total("a", tokens / 3) == tokens / 3


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 10)), min_size=1),
    st.floats(0, 1),
)
def test_in_the_end_all_is_done_and_never_less_than_one_s_own(
    tenants: dict[str, tuple[float, float]], part: float
) -> None:
    left = {name: tokens for name, (tokens, _) in tenants.items()}
    service = SharedService(left, {name: weight for name, (_, weight) in tenants.items()})
    totals = {name: service.find_total(name, tokens) for name, tokens in left.items()}
    assert max(totals.values()) == pytest.approx(sum(left.values()))
    for name, tokens in left.items():
        assert part * tokens <= service.find_total(name, part * tokens) <= totals[name] * (1 + 1e-9)
