"""Rows under a weight: how heavy each is, what an agent adds to it, and how room is shared out.

For H = E^s + E^a Π and w > 0,

    load_j = (H w)_j / w_j = [ (E^s w)_j + Σ_k E^a[j, k] u_k ] / w_j,      u_k = Σ_i Π[k, i] w_i.

max_j load_j ≤ λ implies ρ(H) ≤ λ, and ρ(Hᵀ) = ρ(H). Row j sees the policies through the numbers u_k of
the agents that act on j alone, and is linear in them: agent k's *weighted row* u_k is all that locality
asks of its policy. So a target λ is the packing problem

    E^a u ≤ room,   room_j = λ w_j − (E^s w)_j,   low ≤ u ≤ high,

which `fill` solves with max-min fair shares of the ways from low to high (Bertsekas and Gallager, Data
Networks, 6.5.2): all shares rise together, and those of the agents on a row stop when it is full. In
the result no share can be raised, unless one that is no larger is lowered.

Axis letters: N coordinates j (influenced) and i (causes), K agents.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from torchloc.errors import InputError
from torchloc.mdp.checks import FloatArray


def row_loads(
    state: sp.csr_array, action: sp.csr_array, sensitivity: sp.csr_array, weights: FloatArray
) -> FloatArray:
    """(H w)_j / w_j of H = E^s + E^a Π, right to rounding: the largest is ≥ ρ(H).

    Args:
        state: (N, N) E^s.
        action: (N, K) E^a.
        sensitivity: (K, N) Π of any rung.
        weights: (N,) w > 0.

    Returns:
        (N,) loads; 0 for a row of zeros.

    Raises:
        InputError: The weights are not N finite positive numbers.

    Example:
        >>> one = sp.csr_array(np.eye(2))
        >>> row_loads(sp.csr_array((2, 2)), one, sp.csr_array([[0.0, 0.5], [0.2, 0.0]]), np.ones(2))
        array([0.5, 0.2])
    """
    weights = checked_weights(weights, state.shape[0])
    return (state @ weights + action @ (sensitivity @ weights)) / weights


def checked_weights(weights: FloatArray, n: int) -> FloatArray:
    """(n,) finite positive float64 weights.

    Raises:
        InputError: They are not.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (n,):
        raise InputError(f"weights has shape {weights.shape}; give one for each of {n} coordinates")
    bad = ~(np.isfinite(weights) & (weights > 0.0))
    if bad.any():
        index = int(np.argmax(bad))
        raise InputError(
            f"weights: entry {index} is {weights[index]}; every weight must be finite and > 0"
        )
    return weights


def largest_rows(
    state: sp.csr_array,
    action: sp.csr_array,
    sensitivity: sp.csr_array,
    weights: FloatArray,
    target: float,
) -> FloatArray:
    """The largest weighted row Σ_i Π[k, i] w_i that each agent may have while the others stay as they are.

    For every row j that agent k acts on: what λ w_j leaves after E^s and the other agents, divided by
    E^a[j, k]; the least of these. One agent alone may move to its bound, not several at once (`fill`).

    Args:
        state: (N, N) E^s.
        action: (N, K) E^a.
        sensitivity: (K, N) Π.
        weights: (N,) w > 0.
        target: λ.

    Returns:
        (K,): ∞ for an agent that acts on nothing; negative where a row is over the target without it.

    Raises:
        InputError: The weights are not N finite positive numbers.
    """
    weights = checked_weights(weights, state.shape[0])
    acts = sp.coo_array(action)
    rows, agents = acts.coords
    used = sensitivity @ weights
    room = target * weights - state @ weights - action @ used
    return _least(room[rows] / acts.data + used[agents], agents, action.shape[1])


def fill(
    action: sp.csr_array, room: FloatArray, low: FloatArray, high: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weighted rows between low and high with E^a u ≤ room, in max-min fair shares.

    Rounds of vectorised work: every round settles all agents of each row whose common share is least
    among the rows that it shares agents with, and all agents that may go to `high`.

    Args:
        action: (N, K) E^a ≥ 0.
        room: (N,) what the agents may add to each row; E^a low ≤ room is asked of the caller.
        low: (K,) u that is granted.
        high: (K,) u that is wished for, ≥ low.

    Returns:
        (K,) u = low + share · (high − low), and the shares in [0, 1]; 1 where high = low.

    Example:
        >>> both = sp.csr_array([[1.0, 1.0], [0.0, 1.0]])
        >>> fill(both, np.array([1.2, 0.5]), np.zeros(2), np.ones(2))[0]
        array([0.7, 0.5])
    """
    acts = sp.coo_array(action)
    rows, agents = acts.coords
    gain = high - low
    share = np.ones(len(gain))
    free = gain > 0.0
    left = room - action @ low
    while free.any():
        kept = free[agents]
        rows, agents = rows[kept], agents[kept]
        acts = sp.coo_array((acts.data[kept], (rows, agents)), shape=action.shape)
        need = acts @ np.where(free, gain, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            level = np.where(need > 0.0, np.maximum(left, 0.0) / need, np.inf)
        limit = _least(level[rows], agents, len(gain))
        least = _least(limit[agents], rows, len(room))
        # Exact: `least` is one of the levels, or smaller than this one.
        full = np.zeros(len(gain), dtype=np.bool_)
        full[agents[(least == level)[rows]]] = True
        settled = free & (full | (limit >= 1.0))
        share[settled] = np.minimum(limit[settled], 1.0)
        left = left - acts @ np.where(settled, gain * share, 0.0)
        free &= ~settled
    return low + share * gain, share


def _least(values: FloatArray, places: np.ndarray, count: int) -> FloatArray:
    """(count,) the least value at each place; ∞ where there is none."""
    result = np.full(count, np.inf)
    np.minimum.at(result, places, values)
    return result
