from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from conserve.policy.least_squares import Array, solve_nonnegative


def loss(gram: Array, moments: Array, solution: Array) -> float:
    return float(solution @ gram @ solution / 2 - moments @ solution)


def best_of_all_subsets(gram: Array, moments: Array) -> float:
    best = 0.0
    size = len(moments)
    for count in range(1, size + 1):
        for chosen in map(list, itertools.combinations(range(size), count)):
            part = np.linalg.lstsq(gram[np.ix_(chosen, chosen)], moments[chosen])[0]
            if (part >= 0).all():
                solution = np.zeros(size)
                solution[chosen] = part
                best = min(best, loss(gram, moments, solution))
    return best


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 20), columns=st.integers(1, 5))
def test_no_subset_of_coefficients_does_better(seed: int, rows: int, columns: int) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(rows, columns)) * 10.0 ** generator.integers(-3, 4, columns)
    target = generator.normal(size=rows)
    gram, moments = matrix.T @ matrix, matrix.T @ target
    solution = solve_nonnegative(gram, moments)
    assert (solution >= 0).all()
    ridged = gram + 1e-6 * np.diag(np.diagonal(gram))
    assert loss(ridged, moments, solution) <= best_of_all_subsets(ridged, moments) + 1e-6 * rows


def test_known_solution() -> None:
    matrix = np.array([[1.0, 0.0, 2.0], [1.0, 1.0, 0.0], [1.0, 3.0, 1.0], [1.0, 0.0, 5.0]])
    planted = np.array([4.0, 0.5, 2.0])
    assert_allclose(solve_nonnegative(matrix.T @ matrix, matrix.T @ matrix @ planted), planted, rtol=1e-3)


def test_a_falling_cost_becomes_a_constant() -> None:
    matrix = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    solution = solve_nonnegative(matrix.T @ matrix, matrix.T @ np.array([3.0, 2.0, 1.0]))
    assert_allclose(solution, [2.0, 0.0], rtol=1e-5)


def test_equal_and_empty_columns() -> None:
    row = np.array([1.0, 1.0, 0.0])
    solution = solve_nonnegative(np.outer(row, row), 6.0 * row)
    assert_allclose(solution, [3.0, 3.0, 0.0], rtol=1e-4)
