"""The size of a pass that computes the most, as measured."""

from __future__ import annotations

from conserve.policy.latency import IterationShape
from conserve.policy.pass_rates import MEMORY, PassRates


def measure(rates: PassRates, tokens: int, token_ms: float, times: int = 5, decodes: int = 0) -> None:
    shape = IterationShape(decode_sequences=decodes).add_prefill(tokens, 0)
    for _ in range(times):
        rates.observe(shape, token_ms * shape.tokens)


def test_a_pass_is_as_large_as_what_computes_most() -> None:
    rates = PassRates()
    measure(rates, 100, 1.0)
    measure(rates, 200, 0.7)
    measure(rates, 400, 0.71)
    measure(rates, 1_500, 0.8)
    assert rates.best_tokens(2_048) == 511
    assert rates.best_tokens(300) == 300


def test_where_larger_ones_are_better_it_is_the_largest() -> None:
    rates = PassRates()
    measure(rates, 200, 1.0)
    measure(rates, 1_500, 0.8)
    assert rates.best_tokens(2_048) == 2_048
    assert rates.best_tokens(8_192) == 8_192, "what is larger was not tried"


def test_too_little_to_go_by_limits_nothing() -> None:
    rates = PassRates()
    assert rates.best_tokens(2_048) == 2_048
    measure(rates, 200, 0.5)
    measure(rates, 1_500, 0.8, times=2)
    measure(rates, 20, 0.1)
    measure(rates, 1_000, 0.1, decodes=900)
    assert rates.best_tokens(2_048) == 2_048


def test_a_size_that_was_slow_long_ago_is_tried_again() -> None:
    rates = PassRates()
    measure(rates, 1_500, 0.8)
    measure(rates, 100, 0.9)
    measure(rates, 200, 0.5, times=MEMORY - 6)
    assert rates.best_tokens(2_048) == 255
    measure(rates, 200, 0.5, times=20)
    assert rates.best_tokens(2_048) == 2_048


def test_a_change_is_followed() -> None:
    rates = PassRates()
    measure(rates, 200, 0.5)
    measure(rates, 1_500, 0.8)
    assert rates.best_tokens(2_048) == 255
    measure(rates, 1_500, 0.4, times=40)
    assert rates.best_tokens(2_048) == 2_048
