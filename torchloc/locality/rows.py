"""Scales that keep a target: weights frozen, rows filled, weights chosen anew.

For H(α) = E^s + E^a Π(α), linear in Π, one round takes w > 0 and gives every agent the largest scale
that its share of the rows allows (`loads.fill`), never less than it had: then H(α) w ≤ λ w, so
ρ(H(α)) ≤ λ. The next round's weights are w = (λI − H(α))⁻¹ 1, under which every row has room again as
long as ρ(H(α)) < λ; so scales only rise, and ρ(H(α)) rises towards λ. The first weights are those that
the caller froze, or where these leave some agent nothing, (λI − H(0))⁻¹ 1: they exist as soon as the
floor ρ(H(0)) is below λ, and leave every agent something.

K^π of the `coupled` rung is not linear in Π, but its row j still depends only on the policies of the
agents that act on j. So agents that share rows, directly or through others, take one scale, and the
heaviest of their rows says whether it will do, whatever the others' scales are. That need not be
monotone: scales are tried on a grid, and only what was evaluated counts. Rounds start from scales near
0 where these keep the target, else from one scale for all, the largest of a grid that does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from torchloc.certificate import Environment
from torchloc.errors import InputError
from torchloc.locality.loads import fill
from torchloc.locality.scales import (
    largest_on_grid,
    largest_scales,
    sensitivity_at,
)
from torchloc.locality.shrinking import Family
from torchloc.mdp.checks import FloatArray
from torchloc.sensitivity import coupled_influence
from torchloc.spectral import SpectralBound, spectral_radius

LEAST = 2.0**-20
"""What stands for scale 0 where a scale above it has to be evaluated."""
_BRACKET = 1e-6
"""Rows are filled this much below the target: ρ is bracketed to this relative width."""
_OVER = 1e-3
"""Weights stand at least this far, relatively, above ρ."""
_GAIN = 1e-3
"""A round that raises no scale by more than this part is the last."""
_COMMON = 12
"""Bisections of a scale that is common to all agents."""
_STEP = 2.0**-0.25
_LEAST_COMMON = 2.0**-8
"""Common scales that are tried on `coupled` where those near 0 do not keep the target."""


class Rows(Protocol):
    """Π of a rung as a function of the scales of the agents."""

    def sensitivity(self, scale: FloatArray) -> sp.csr_array:
        """(K, N) Π at scales (K,), 0 included."""
        ...

    def largest(self, weights: FloatArray, allowed: FloatArray, start: FloatArray) -> FloatArray:
        """(K,) scales ≥ start whose weighted rows Π w are at most `allowed`, those of start being so."""
        ...


class ExplicitRows:
    """Π = φ(α x): the rungs `span`, `tanh` and `paper`."""

    def __init__(self, x: sp.csr_array, rung: str) -> None:
        self._x = x
        self._rung = rung

    def sensitivity(self, scale: FloatArray) -> sp.csr_array:
        """(K, N) Π at scales (K,), 0 included."""
        return sensitivity_at(self._x, scale, self._rung)

    def largest(self, weights: FloatArray, allowed: FloatArray, start: FloatArray) -> FloatArray:
        """(K,) the largest scales, right to rounding."""
        return largest_scales(self._x, weights, allowed, self._rung, start=start)


class EnumeratedRows:
    """Π by total variation of the shrunk laws: the rung `exact`.

    Args:
        family: The laws.
        x: (K, N) spreads of `span`, whose scales always do.
    """

    def __init__(self, family: Family, x: sp.csr_array) -> None:
        self._family = family
        self._x = x

    def sensitivity(self, scale: FloatArray) -> sp.csr_array:
        """(K, N) Π at scales (K,), 0 included."""
        return self._family.sensitivity(scale)

    def largest(self, weights: FloatArray, allowed: FloatArray, start: FloatArray) -> FloatArray:
        """(K,) scales of a grid that do, at least those of `span`."""

        def row(scale: FloatArray) -> FloatArray:
            return self.sensitivity(scale) @ weights

        known = np.maximum(start, largest_scales(self._x, weights, allowed, "span"))
        safe = np.maximum(known, LEAST)
        safe = np.where((known >= safe) | (row(safe) <= allowed), safe, 0.0)
        return largest_on_grid(row, allowed, safe)


def linear_scales(
    environment: Environment,
    rows: Rows,
    *,
    rung: str,
    target: float,
    weights: FloatArray | None,
    rounds: int,
) -> tuple[FloatArray, FloatArray, int]:
    """Scales with ρ(E^s + E^a Π(α)) ≤ target.

    Args:
        environment: E^s and E^a.
        rows: Π.
        rung: Its name, for errors.
        target: λ.
        weights: (N,) frozen weights of the first round; None: (λI − H(0))⁻¹ 1.
        rounds: Most rounds, ≥ 1.

    Returns:
        (K,) scales in (0, 1], (N,) weights of the last round that was kept, and the rounds made.

    Raises:
        InputError: The floor is not below the target.
    """
    state, action = environment.state, environment.action
    zero = np.zeros(action.shape[1])
    widest = rows.sensitivity(np.ones_like(zero))
    aim = target * (1.0 - _BRACKET)

    def influence(scale: FloatArray) -> sp.csr_array:
        return sp.csr_array(state + action @ rows.sensitivity(scale))

    def filled(w: FloatArray, scale: FloatArray) -> FloatArray:
        low = rows.sensitivity(scale) @ w
        high = np.maximum(widest @ w, low)
        allowed, share = fill(action, aim * w - state @ w, low, high)
        raised = np.where(share > 0.0, rows.largest(w, allowed, scale), scale)
        return np.where(share >= 1.0, 1.0, np.maximum(raised, scale))

    if weights is not None:
        scale = filled(weights, zero)
        bound = spectral_radius(influence(scale))
        if (scale > 0.0).all() and bound.upper <= target:
            return _raised(influence, filled, (scale, weights, 1), bound, target, rounds)
    floor = spectral_radius(influence(zero))
    found = (zero, np.ones(len(state.indptr) - 1), 0)
    if floor.upper < aim:
        found = _raised(influence, filled, found, floor, target, rounds)
    if not (found[0] > 0.0).all():
        raise InputError(_infeasible(environment, floor, rung, target))
    return found


def coupled_scales(
    environment: Environment, family: Family, *, target: float, rounds: int
) -> tuple[FloatArray, FloatArray, int]:
    """Scales with ρ(K^π) ≤ target, one for all agents that share rows.

    Args:
        environment: Of the model.
        family: The laws at every scale.
        target: λ.
        rounds: Most rounds, ≥ 1.

    Returns:
        (K,) scales in (0, 1], (N,) weights of the last round that was kept, and the rounds made.

    Raises:
        InputError: No common scale of the grid keeps the target.
        BudgetError: A closed loop is too large to enumerate.
    """
    acts = sp.coo_array(environment.action)
    coordinates, agents = acts.coords
    count = acts.shape[1]
    _, label = connected_components(environment.action.T @ environment.action, directed=False)
    aim = np.full(count, target * (1.0 - _BRACKET))

    def matrix(scale: FloatArray) -> sp.csr_array:
        return coupled_influence(environment.mdp, family.tables(scale))

    def filled(w: FloatArray, scale: FloatArray) -> FloatArray:
        def heaviest(tried: FloatArray) -> FloatArray:
            loads = (matrix(tried) @ w) / w
            result = np.zeros(int(label.max(initial=0)) + 1)
            np.maximum.at(result, label[agents], loads[coordinates])
            return result[label]

        return largest_on_grid(heaviest, aim, scale)

    scale, bound = np.full(count, LEAST), spectral_radius(matrix(np.full(count, LEAST)))
    if bound.upper > aim[0]:
        scale, bound = _common_scale(matrix, count, target)
    start = (scale, np.ones(acts.shape[0]), 0)
    return _raised(matrix, filled, start, bound, target, rounds)


def _raised(
    matrix: Callable[[FloatArray], sp.csr_array],
    filled: Callable[[FloatArray, FloatArray], FloatArray],
    start: tuple[FloatArray, FloatArray, int],
    bound: SpectralBound,
    target: float,
    rounds: int,
) -> tuple[FloatArray, FloatArray, int]:
    """Rounds of new weights, each kept if ρ is certified to be at most the target.

    Args:
        matrix: Scales → H or K.
        filled: Weights and scales → scales that are no smaller.
        start: Scales that keep the target, the weights that they were found with, and the rounds made.
        bound: Of ρ there.
        target: λ.
        rounds: Most rounds.
    """
    scale, weights, made = start
    while made < rounds and (scale < 1.0).any():
        rate = max(target * (1.0 - _BRACKET), bound.upper * (1.0 + _OVER))
        chosen = bound.weights_at(rate)
        if chosen is None:
            break
        tried = filled(chosen.weights, scale)
        made += 1
        reached = spectral_radius(matrix(tried))
        if reached.upper > target:
            break
        raised = bool((tried > scale * (1.0 + _GAIN)).any())
        scale, weights, bound = tried, chosen.weights, reached
        if not raised:
            break
    return scale, weights, made


def _common_scale(
    matrix: Callable[[FloatArray], sp.csr_array], count: int, target: float
) -> tuple[FloatArray, SpectralBound]:
    """A scale for all agents that keeps the target: the largest of a grid, moved up as far as it does."""

    def bound(common: float) -> SpectralBound:
        return spectral_radius(matrix(np.full(count, common)))

    low, least, best = 1.0, math.inf, 1.0
    found = None
    while found is None and low > _LEAST_COMMON:
        low *= _STEP
        here = bound(low)
        if here.upper < least:
            least, best = here.upper, low
        if here.upper <= target:
            found = here
    if found is None:
        raise InputError(
            f"target is {target:.4g}, but no scale common to all agents brings the rung coupled there: "
            f"the least ρ that was found is {least:.6g}, with logits {best:.3g} of what they are; "
            f"raise the target, or start from a policy that keeps it"
        )
    high = low / _STEP
    for _ in range(_COMMON):
        middle = math.sqrt(low * high)
        here = bound(middle)
        if here.upper <= target:
            low, found = middle, here
        else:
            high = middle
    return np.full(count, low), found


def _infeasible(environment: Environment, floor: SpectralBound, rung: str, target: float) -> str:
    """Why no scales keep the target, and what would."""
    state = environment.floor
    where = f"the floor ρ(E^s) = {state.upper:.6g} of the model"
    if state.upper < target * (1.0 - _BRACKET):
        where = (
            f"the floor {floor.upper:.6g} (E^s, and actions that are forbidden in some states only)"
        )
    return (
        f"target is {target:.4g}, but {where} is not below it, so no temperature brings the rung {rung} "
        f"there; raise the target above {floor.upper:.6g}, or choose the rung coupled"
    )
