from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.fairness import MOST_DEBT_ROUNDS, QUANTUM_TOKENS, DeficitRoundRobin, JobWork


def run(
    robin: DeficitRoundRobin, tenants: dict[str, float], weights: dict[str, float], rounds: int, requests: int = 10
) -> Counter[str]:
    """Tokens that each tenant got, all of them with endless work; the requests of each take as many as said."""
    tokens: Counter[str] = Counter()
    for _ in range(rounds):
        work = {tenant: [JobWork(tenant, 1_000, size)] for tenant, size in tenants.items()}
        for batch_id, count in robin.deal(work, weights, requests):
            tokens[batch_id] += round(count * tenants[batch_id])
    return tokens


def test_tokens_are_shared_not_requests() -> None:
    tokens = run(DeficitRoundRobin(), {"large": 4_000.0, "small": 100.0}, {}, rounds=400)
    assert tokens["large"] == pytest.approx(tokens["small"], rel=0.02)


def test_weights_are_kept() -> None:
    tokens = run(
        DeficitRoundRobin(), {"a": 700.0, "b": 300.0, "c": 5_000.0}, {"a": 3.0, "b": 1.0, "c": 0.5}, rounds=900
    )
    assert tokens["a"] / tokens["b"] == pytest.approx(3.0, rel=0.05)
    assert tokens["c"] / tokens["b"] == pytest.approx(0.5, rel=0.05)


def test_all_places_are_given_while_there_is_work() -> None:
    robin = DeficitRoundRobin()
    dealt = robin.deal(
        {"a": [JobWork("a1", 2, 90_000.0), JobWork("a2", 50, 10.0)], "b": [JobWork("b1", 3, 10.0)]}, {}, 40
    )
    assert sum(count for _, count in dealt) == 40
    assert Counter(dict(dealt))["b1"] == 3
    assert robin.deal({}, {}, 40) == []
    assert robin.deal({"a": [JobWork("a1", 0, 10.0)]}, {}, 40) == []


def test_batches_of_a_tenant_go_in_their_order() -> None:
    dealt = DeficitRoundRobin().deal({"a": [JobWork("first", 3, 10.0), JobWork("second", 9, 10.0)]}, {}, 5)
    assert dealt == [("first", 3), ("second", 2)]


def test_who_was_away_has_saved_nothing_up() -> None:
    robin = DeficitRoundRobin()
    run(robin, {"a": 100.0}, {}, rounds=500)
    tokens = run(robin, {"a": 100.0, "b": 100.0}, {}, rounds=10)
    assert abs(tokens["a"] - tokens["b"]) <= 2 * QUANTUM_TOKENS


def test_what_was_taken_beyond_the_expectation_is_charged() -> None:
    robin = DeficitRoundRobin()
    fair = run(robin, {"a": 100.0, "b": 100.0}, {}, rounds=5)
    assert abs(fair["a"] - fair["b"]) <= QUANTUM_TOKENS
    robin.charge("a", 50_000.0)
    robin.charge("unknown", 1.0)
    tokens = run(robin, {"a": 100.0, "b": 100.0}, {}, rounds=100)
    assert tokens["b"] - tokens["a"] == pytest.approx(50_000, abs=2 * QUANTUM_TOKENS)


@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.tuples(st.floats(1, 20_000), st.floats(0.1, 10)),
        min_size=2,
    )
)
def test_nobody_is_further_behind_than_a_round_and_a_request(tenants: dict[str, tuple[float, float]]) -> None:
    sizes = {tenant: size for tenant, (size, _) in tenants.items()}
    weights = {tenant: weight for tenant, (_, weight) in tenants.items()}
    tokens = run(DeficitRoundRobin(), sizes, weights, rounds=60, requests=20)
    shares = {tenant: tokens[tenant] / weights[tenant] for tenant in sizes}
    slack = {tenant: QUANTUM_TOKENS + 2 * sizes[tenant] / weights[tenant] for tenant in sizes}
    for one in sizes:
        for other in sizes:
            assert shares[one] - shares[other] <= QUANTUM_TOKENS + slack[one] + slack[other]


def test_credit_does_not_pile_up_while_nothing_is_taken() -> None:
    robin = DeficitRoundRobin()
    for _ in range(100):
        robin.settle(["a", "b"], {}, {"a": 3.0})
    assert robin.deficits == {"a": pytest.approx(3 * QUANTUM_TOKENS), "b": pytest.approx(QUANTUM_TOKENS)}


def test_differences_stay_when_accounts_are_settled() -> None:
    robin = DeficitRoundRobin()
    robin.settle(["a", "b"], {}, {})
    robin.settle(["a", "b"], {"a": 10_000.0, "gone": 5.0}, {})
    robin.settle(["a", "b"], {}, {})
    assert robin.deficits["b"] == pytest.approx(QUANTUM_TOKENS)
    assert robin.deficits["b"] - robin.deficits["a"] == pytest.approx(10_000)


def test_who_goes_away_owes_until_the_others_have_had_as_much() -> None:
    robin = DeficitRoundRobin()
    robin.settle(["a", "b"], {}, {})
    robin.settle(["b"], {"a": 10_000.0}, {})
    robin.settle(["a", "b"], {}, {})
    assert robin.deficits["b"] - robin.deficits["a"] == pytest.approx(10_000)
    robin.settle(["b"], {"b": 4_000.0}, {})
    robin.settle(["a", "b"], {}, {})
    assert robin.deficits["b"] - robin.deficits["a"] == pytest.approx(6_000)
    robin.settle(["b"], {"b": 9_000.0}, {})
    robin.settle([], {}, {})
    assert robin.debts == {}
    robin.settle(["a", "b"], {}, {})
    assert robin.deficits["b"] - robin.deficits["a"] <= QUANTUM_TOKENS, "nothing is owed to who goes away"
    assert not robin.is_blank


def test_what_is_owed_has_a_limit_and_alone_nothing_is_owed() -> None:
    robin = DeficitRoundRobin()
    robin.settle(["a", "b"], {}, {"a": 2.0})
    robin.settle(["b"], {"a": 1e9}, {"a": 2.0})
    robin.settle(["a", "b"], {}, {"a": 2.0})
    assert robin.deficits["a"] == pytest.approx(-2.0 * MOST_DEBT_ROUNDS * QUANTUM_TOKENS)
    robin.settle(["a"], {}, {"a": 2.0})
    assert robin.deficits == {"a": pytest.approx(2.0 * QUANTUM_TOKENS)}
    robin.settle([], {}, {})
    assert robin.is_blank
