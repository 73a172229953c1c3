"""How far an agent's logits may keep their differences: Π as a function of one scale an agent.

Let agent k's logits be shrunk towards any row c of logits that does not depend on the state,
z ↦ c + α_k (z − c), 0 < α_k ≤ 1 (c = 0: dividing by α_k the temperature is the same policy). Differences
between two states are multiplied by α_k, whatever c is, so for the spreads

    x[k, i] = span/(4τ_k)   on `span`,           L/(2τ_k)   on `tanh` and `paper`,

Π[k, i] = φ(α_k x[k, i]) with φ = tanh, or min{1, ·} on `paper`. Where an action is forbidden on one side
only, x = ∞ and Π = 1 at every scale. φ is increasing and concave on [0, ∞), so the weighted row

    u_k(α) = Σ_i w_i φ(α x[k, i])

is too: Newton's steps from a scale at which u_k is below what is allowed never pass the solution (a
tangent lies above a concave function), and rise to it.

On `exact` Π is the total variation of the shrunk laws, which need not fall with α. It is at most that of
`span`, so that rung's scale always does; a grid between it and 1 is searched for a larger one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from torchloc.errors import InputError
from torchloc.lipschitz import certified_spreads
from torchloc.mdp.checks import FloatArray
from torchloc.policy import SoftmaxPolicy

MONOTONE = ("span", "tanh", "paper")
"""Rungs whose Π is an explicit increasing function of the scale."""
GRID = 12
"""Scales that are tried, equal in ratio, where Π need not fall with the scale."""
HALVINGS = 16
"""Bisections between the last scale of the grid that does and the next, which does not."""
_NEWTON = 200


def spreads(policy: SoftmaxPolicy, rung: str) -> sp.csr_array:
    """(K, N) CSR x with Π = φ(x): span/(4τ) on `span`, L/(2τ) on `tanh` and `paper`.

    Exact where scope states are enumerated, else upper bounds (`lipschitz.certified_spreads`).

    Raises:
        InputError: Another rung.
    """
    if rung not in MONOTONE:
        raise InputError(f"rung is {rung!r}; spreads are for {', '.join(MONOTONE)}")
    matrix, _ = certified_spreads(policy, span=rung == "span")
    divisor = (4.0 if rung == "span" else 2.0) * policy.temperature.numpy()
    matrix.data = matrix.data / np.repeat(divisor, np.diff(matrix.indptr))
    return matrix


def sensitivity_at(x: sp.csr_array, scale: FloatArray, rung: str) -> sp.csr_array:
    """(K, N) CSR Π = φ(α_k x[k, i]).

    Args:
        x: (K, N) spreads.
        scale: (K,) α ≥ 0; at 0 what no scale removes is left, the entries with x = ∞.
        rung: `span`, `tanh` or `paper`.
    """
    result = x.copy()
    result.data = _phi(_scaled(x, scale), rung)
    return result


def largest_scales(
    x: sp.csr_array,
    weights: FloatArray,
    allowed: FloatArray,
    rung: str,
    *,
    start: FloatArray | None = None,
) -> FloatArray:
    """The largest scales α_k ≤ 1 with Σ_i w_i φ(α_k x[k, i]) ≤ allowed_k.

    Args:
        x: (K, N) spreads.
        weights: (N,) w > 0.
        allowed: (K,) u; at least what is left at scale 0.
        rung: `span`, `tanh` or `paper`.
        start: (K,) scales that are known to be allowed; None: 0.

    Returns:
        (K,) scales, right to rounding; 0 where nothing above scale 0 is allowed.
    """
    count = x.shape[0]
    scale = np.ones(count)
    short = sensitivity_at(x, scale, rung) @ weights > allowed
    agents = np.repeat(np.arange(count), np.diff(x.indptr))
    kept = short[agents] & np.isfinite(x.data)
    at, slopes, w = agents[kept], x.data[kept], weights[x.indices[kept]]
    goal = allowed - sensitivity_at(x, np.zeros(count), rung) @ weights
    # φ(y) ≤ y: the tangent at 0 is a first step.
    steepest = np.bincount(at, w * slopes, minlength=count)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.clip(goal / steepest, 0.0, 1.0)
    if start is not None:
        first = np.maximum(first, start)
    scale[short] = first[short]
    for _ in range(_NEWTON):
        y = scale[at] * slopes
        found = np.bincount(at, w * _phi(y, rung), minlength=count)
        rise = np.bincount(at, w * slopes * _slope(y, rung), minlength=count)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(short & (goal > found) & (rise > 0.0), (goal - found) / rise, 0.0)
        moved = np.minimum(scale + step, 1.0)
        if not (moved > scale * (1.0 + 2.0**-50)).any():
            break
        scale = moved
    return scale


def largest_on_grid(
    row: Callable[[FloatArray], FloatArray], allowed: FloatArray, safe: FloatArray
) -> FloatArray:
    """Large scales with row(α)_k ≤ allowed_k where u_k is known by evaluation only, monotone or not.

    Args:
        row: (K,) scales → (K,) weighted rows u_k(α_k), each a function of its own scale.
        allowed: (K,).
        safe: (K,) scales in [0, 1] that are allowed.

    Returns:
        (K,) scales in [safe, 1] that were all evaluated and allowed: 1 where that is, else the largest
        of the grid that is, moved up by bisection as long as it is.
    """
    share = np.zeros(len(safe))
    top = np.ones(len(safe))
    settled = safe <= 0.0
    for rank in range(GRID + 1):
        tried = 1.0 - rank / GRID
        fits = (row(_between(safe, np.full(len(safe), tried))) <= allowed) & ~settled
        share[fits] = tried
        top[fits] = min(tried + 1.0 / GRID, 1.0)
        settled |= fits
        if settled.all():
            break
    top = np.where(share > 0.0, top, 1.0 / GRID)
    for _ in range(HALVINGS):
        middle = 0.5 * (share + top)
        fits = row(_between(safe, middle)) <= allowed
        share, top = np.where(fits, middle, share), np.where(fits, top, middle)
        if (share >= top).all():
            break
    return np.where(safe > 0.0, _between(safe, share), safe)


def _between(low: FloatArray, share: FloatArray) -> FloatArray:
    """low^(1 − share): from low at 0 to 1 at 1, in equal ratios."""
    return np.where(share <= 0.0, low, np.maximum(low, 1e-300) ** (1.0 - share))


def _scaled(x: sp.csr_array, scale: FloatArray) -> FloatArray:
    """α_k x[k, i] of the stored entries; ∞ stays ∞."""
    factor = np.repeat(scale, np.diff(x.indptr))
    return np.where(np.isinf(x.data), np.inf, factor * np.where(np.isinf(x.data), 0.0, x.data))


def _phi(y: FloatArray, rung: str) -> FloatArray:
    return np.minimum(y, 1.0) if rung == "paper" else np.tanh(y)


def _slope(y: FloatArray, rung: str) -> FloatArray:
    """φ' (from the right), not below it: a tangent must not lie under φ."""
    if rung == "paper":
        return (y < 1.0).astype(np.float64)
    # sech² by decaying exponentials: 1 − tanh² would lose all digits where tanh is near 1.
    decay = np.exp(-2.0 * np.minimum(y, 350.0))
    return 4.0 * decay / (1.0 + decay) ** 2
