"""Steps that propose vectors: a Chebyshev filter, and inverse steps with one factorisation.

Nothing here is a bound; what comes out is checked by its quotients elsewhere.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from torchloc.spectral.matrices import Floats
from torchloc.spectral.solvers import Solve

SMALLEST = 1e-60
_PATIENCE = 30
_WINDOW = 4
_HORIZON = 16


def chebyshev_filter(
    matrix: sp.csr_array, vector: Floats, radius: Floats, degree: int
) -> Floats | None:
    """T_degree of the matrix, moved to damp [−radius, radius(1 − (6/degree)²)], on a vector.

    Where the spectrum is close to real this needs √ of the steps that power iteration needs.

    Args:
        matrix: (n, n).
        vector: (n,).
        radius: (n,) or (1,), about ρ or above.
        degree: the number of products with the matrix.

    Returns:
        (n,) the absolute values, the largest 1 and none below 1e-60; None after an overflow.
    """
    edge = radius * (1.0 - min((6.0 / degree) ** 2, 0.5))
    centre, half = 0.5 * (edge - radius), 0.5 * (edge + radius)
    older, old = vector, (matrix @ vector - centre * vector) / half
    with np.errstate(all="ignore"):
        for step in range(degree - 1):
            older, old = old, (matrix @ old - centre * old) * (2.0 / half) - older
            if step % 8 == 7:
                size = np.abs(old).max()
                older, old = older / size, old / size
        size = np.abs(old).max()
        if not (np.isfinite(size) and size > 0.0):
            return None
        return np.abs(old) / size + SMALLEST


def inverse_steps(
    solve: Solve, vector: Floats, shift: float, tolerance: float, *, least: int, limit: int
) -> tuple[Floats, bool, bool]:
    """Steps x ← (shift − B)⁻¹x with one factorisation, while they pay.

    They stop when the gap or the change still to come (taken as geometric) is small, or x spans too
    much; after `least` steps also when `_PATIENCE` more are not foreseen to settle the upper bound.

    Returns:
        The last x > 0, the largest entry 1; whether there was a step (none: a solution without one
        sign, so shift ≤ ρ up to rounding); whether the upper bound has settled.
    """
    previous, change, grew = np.inf, np.inf, False
    for step in range(limit):
        with np.errstate(all="ignore"):
            fresh = solve(vector)
            if not (np.isfinite(fresh).all() and (fresh > 0.0).all()):
                return vector, grew, False
            ratio = vector / fresh
        low, high = shift - float(ratio.max()), shift - float(ratio.min())
        vector, grew = fresh / fresh.max(), True
        if vector.min() < SMALLEST or high - low <= 0.25 * tolerance * high:
            return vector, grew, False
        last, change, previous = change, previous - high, high
        if not np.isfinite(last):
            continue
        rate = min(max(change / last, 0.0), 0.999) if last > 0.0 else 0.0
        left = change * rate / (1.0 - rate)
        if left <= tolerance / 16 * high:
            return vector, grew, True
        if step >= least and left * rate**_PATIENCE > tolerance / 16 * high:
            return vector, grew, False
    return vector, grew, False


def falls_soon(values: list[float], goal: float, *, to_zero: bool) -> bool:
    """Whether a sequence, taken to fall geometrically, will soon be within `goal` of its limit.

    Args:
        values: one value for each window of steps, the last one now.
        goal: the distance to reach within `_HORIZON` times `_WINDOW` more windows.
        to_zero: the limit is 0; otherwise it is what the last two differences extrapolate to.
    """
    if len(values) < 2 * _WINDOW + 1:
        return False
    first, second, third = values[-1 - 2 * _WINDOW], values[-1 - _WINDOW], values[-1]
    drop, last = first - second, second - third
    if not 0.0 < last < drop < np.inf:
        return False
    rate = last / drop
    left = third if to_zero else last * rate / (1.0 - rate)
    return bool(left > goal and np.log(left / goal) <= _HORIZON * -np.log(rate))
