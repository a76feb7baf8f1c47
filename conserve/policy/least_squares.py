"""Least squares with coefficients that are never negative, from sufficient statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_RIDGE = 1e-6
_TOLERANCE = 1e-9
_TINY = 1e-300


def solve_nonnegative(gram: Array, moments: Array) -> Array:
    """The x >= 0 that minimises `x @ gram @ x / 2 - moments @ x`: Lawson and Hanson's active set, on the Gram matrix.

    Columns are scaled to unit length first, and a small ridge decides between collinear ones. A column of zeros gets 0.

    Args:
        gram: Sum of the outer products of the rows, n x n, positive semidefinite.
        moments: Sum of rows times targets, n.
    """
    length = np.sqrt(np.diagonal(gram))
    length = np.where(length > 0, length, 1.0)
    scaled = gram / np.outer(length, length)
    scaled[np.diag_indices_from(scaled)] += _RIDGE
    target = moments / length
    solution = np.zeros_like(target)
    free = np.zeros(len(target), dtype=bool)
    # Each round frees one coefficient; the method ends by itself, and rounding must not make it go on.
    for _ in range(3 * len(target)):
        gradient = np.where(free, -np.inf, target - scaled @ solution)
        entering = int(gradient.argmax())
        if gradient[entering] <= _TOLERANCE * max(1.0, abs(target[entering])):
            break
        free[entering] = True
        solution = _settle(scaled, target, solution, free)
    unscaled: Array = solution / length
    return unscaled


def _settle(scaled: Array, target: Array, start: Array, free: NDArray[np.bool_]) -> Array:
    """Solves for the free coefficients, walking from `start`; those that would turn negative are fixed at 0 again."""
    while True:
        chosen = np.flatnonzero(free)
        trial = np.zeros_like(target)
        trial[chosen] = np.linalg.solve(scaled[np.ix_(chosen, chosen)], target[chosen])
        negative = np.flatnonzero(free & (trial <= 0))
        if not negative.size:
            return trial
        steps = start[negative] / np.maximum(start[negative] - trial[negative], _TINY)
        first = negative[steps.argmin()]
        start = np.maximum(start + steps.min() * (trial - start), 0.0)
        start[first], free[first] = 0.0, False
