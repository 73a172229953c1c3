"""Locality as a price: one dual a coordinate, and the prox step that pays it.

The constraints load_j(Π) ≤ λ (`loads`), one a coordinate j, with multipliers y_j ≥ 0. The Lagrangian
takes Σ_j y_j (load_j − λ) from the objective, and with weights w frozen it is linear in Π:

    ∂/∂Π[k, i] Σ_j y_j load_j = a_k w_i,       a_k = Σ_j y_j E^a[j, k] / w_j,

so every agent k sees one *price* a_k for its weighted row u_k = Σ_i w_i Π[k, i], and needs to know nothing
else of the others. Dual ascent, y_j ← max(0, y_j + step · (load_j − λ)), raises the price of what is over.

`priced_laws` makes the step that pays it, on Π of `exact`. With π* the law of the unpriced prox step and
q = η + τ' (τ' = τ for the entropy objective, 0 for reward), the objective at another law μ is less than its
maximum by q KL(μ ‖ π*), exactly. So each agent brings down, over α in [0, 1]^m,

    q E_ν KL(S_α π* ‖ π*) + Σ_i p_i α_i TV_i(π*),        p_i = a_k w_i,        S_α = Π_i (α_i + (1 − α_i) M_i),

where M_i averages over coordinate i of its scope, by that coordinate's marginal of ν: S_α takes the share
1 − α_i of what the law owes to coordinate i away, α_i = 0 makes the agent blind to i. S_α multiplies the
largest total variation in i by α_i, and averaging over another coordinate never raises it, so α_i TV_i(π*)
bounds Π[k, i] after the step. Both terms are convex in each α_i. The search goes by coordinates, each
minimised in turn.

What is guaranteed: the priced objective of the result, E_ν F(μ) − Σ_i p_i Π[k, i], is no less than that of
the unpriced step. Nothing is certified: a price is an incentive, and the certificate decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from torchloc.errors import InputError
from torchloc.improvement import Charge, log_law
from torchloc.locality.loads import checked_weights
from torchloc.locality.shrinking import UNSEEN
from torchloc.mdp.checks import FloatArray
from torchloc.policy import SoftmaxPolicy
from torchloc.sensitivity import total_variations

_GRID = 9
"""Values of one α that are tried first, from 0 to 1."""
_HALVINGS = 24
"""Halvings of the step from there."""


class LocalityPenalty:
    """The duals of the constraints load_j ≤ λ.

    Args:
        n_coordinates: N.
        target: λ > 0.
        step: Of dual ascent, in units of the objective for one unit of load, > 0.

    Attributes:
        duals: (N,) y ≥ 0, in units of the objective; 0 at first.

    Raises:
        InputError: A number is out of range.

    Example:
        >>> penalty = LocalityPenalty(2, target=0.9, step=0.5)
        >>> penalty.ascend(np.array([1.1, 0.2]))
        >>> penalty.duals.round(6)
        array([0.1, 0. ])
        >>> action = sp.csr_array([[1.0, 0.0], [0.0, 1.0]])
        >>> penalty.prices(action, np.array([1.0, 2.0])).round(6)
        array([0.1, 0. ])
    """

    def __init__(self, n_coordinates: int, *, target: float, step: float) -> None:
        for field, value in (("target", target), ("step", step)):
            if not 0.0 < value < math.inf:
                raise InputError(f"{field} is {value}; it must be finite and > 0")
        self.target = float(target)
        self.step = float(step)
        self.duals: FloatArray = np.zeros(n_coordinates)

    def ascend(self, loads: FloatArray) -> None:
        """y ← max(0, y + step · (loads − λ)).

        Args:
            loads: (N,) row loads of the policy as it is (`row_loads`), of any rung.

        Raises:
            InputError: Not N finite numbers.
        """
        if loads.shape != self.duals.shape or not np.isfinite(loads).all():
            raise InputError(
                f"loads has shape {loads.shape}; give one finite number for each of "
                f"{len(self.duals)} coordinates"
            )
        self.duals = np.maximum(0.0, self.duals + self.step * (loads - self.target))

    def prices(self, action: sp.csr_array, weights: FloatArray) -> FloatArray:
        """(K,) a_k: what one unit of each agent's weighted row costs; Π[k, i] costs a_k w_i a unit.

        Args:
            action: (N, K) E^a.
            weights: (N,) w > 0 of the loads.

        Raises:
            InputError: The weights are not N finite positive numbers.
        """
        return action.T @ (self.duals / checked_weights(weights, len(self.duals)))


def scope_prices(
    policy: SoftmaxPolicy, prices: FloatArray, weights: FloatArray, index: int
) -> Tensor:
    """(G, m) float64 prices a_k w_i of the entries of Π of the agents of group `index`, in scope order."""
    group = policy.groups[index]
    return torch.tensor(prices[group.agents][:, None] * weights[group.scope])


def charge(policy: SoftmaxPolicy, prices: FloatArray, weights: FloatArray) -> Charge:
    """`priced_laws` on the steps of a sweep, at prices that stay while it lasts.

    Args:
        policy: The live policy.
        prices: (K,) a of `LocalityPenalty.prices`.
        weights: (N,) w > 0 of the loads.
    """

    def paid(
        index: int, rows: Tensor, logits: Tensor, stiffness: Tensor, law: Tensor | None
    ) -> Tensor:
        asked = scope_prices(policy, prices, weights, index)[rows]
        if not bool((asked > 0.0).any()):
            return logits
        group = policy.groups[index]
        temperature = policy.temperature[torch.tensor(group.agents)[rows], None, None]
        shape = (len(rows), *group.sizes)
        laws, kept = priced_laws(
            log_law(logits, temperature).reshape(*shape, -1),
            stiffness=stiffness,
            prices=asked,
            law=None if law is None else law.reshape(shape),
        )
        moved = (kept < 1.0).any(dim=1)[:, None, None]
        return torch.where(moved, temperature * laws.reshape(logits.shape), logits)

    return paid


def priced_laws(
    log_laws: Tensor,
    *,
    stiffness: Tensor,
    prices: Tensor,
    law: Tensor | None = None,
    sweeps: int = 2,
) -> tuple[Tensor, Tensor]:
    """The prox step that pays for what its laws owe to each coordinate; as logits, τ times the result.

    Args:
        log_laws: (G, *S_scope, A) log π* of the unpriced step; −∞ stays.
        stiffness: (G,) q = η + τ' > 0.
        prices: (G, m) p ≥ 0 a coordinate of the scope, in units of the objective (`scope_prices`).
        law: (G, *S_scope) ν, what each agent sees; None: uniform.
        sweeps: Passes over the coordinates.

    Returns:
        (G, *S_scope, A) float64 log laws, and (G, m) α: 1 where the price is 0, and where a coordinate says
        which actions are forbidden, which no averaging may change.

    Example:
        >>> steep = torch.tensor([[[0.9, 0.1], [0.1, 0.9]]]).log()
        >>> _, kept = priced_laws(steep, stiffness=torch.ones(1), prices=torch.tensor([[0.5]]))
        >>> 0.0 < float(kept) < 1.0
        True
    """
    x = log_laws.double()
    n_agents, *sizes, _ = x.shape
    finite = torch.isfinite(x)
    base = x.exp()
    if law is None:
        law = torch.ones(n_agents, *sizes, dtype=torch.float64)
    nu = law.double() / law.double().reshape(n_agents, -1).sum(1).reshape(-1, *[1] * len(sizes))
    means = [_marginal(nu, i) for i in range(len(sizes))]
    total = total_variations(base)
    even = [(finite.any(dim=i + 1) == finite.all(dim=i + 1)) for i in range(len(sizes))]
    priced = (prices > 0.0) & (total > 0.0)
    for i, same in enumerate(even):
        priced[:, i] &= same.reshape(n_agents, -1).all(dim=1)
    alpha = torch.ones(n_agents, len(sizes), dtype=torch.float64)

    def averaged(laws: Tensor, i: int, factor: Tensor) -> Tensor:
        factor = factor.reshape(-1, *[1] * (x.ndim - 1))
        mean = (laws * means[i]).sum(dim=i + 1, keepdim=True)
        return torch.where(factor == 1.0, laws, mean + factor * (laws - mean))

    def loss(laws: Tensor) -> Tensor:
        gap = torch.where(laws > 0.0, laws * (laws.log() - torch.where(finite, x, 0.0)), 0.0)
        return stiffness * (nu * gap.sum(dim=-1)).reshape(n_agents, -1).sum(dim=1)

    for _ in range(sweeps):
        for i in range(len(sizes)):
            if not bool(priced[:, i].any()):
                continue
            others = base
            for j in range(len(sizes)):
                others = averaged(others, j, alpha[:, j]) if j != i else others

            def cost(factor: Tensor, i: int = i, others: Tensor = others) -> Tensor:
                return loss(averaged(others, i, factor)) + prices[:, i] * factor * total[:, i]

            alpha[:, i] = torch.where(priced[:, i], _least(cost, alpha[:, i]), 1.0)
    moved = base
    for i in range(len(sizes)):
        moved = averaged(moved, i, alpha[:, i])
    still = (alpha == 1.0).all(dim=1).reshape(-1, *[1] * (x.ndim - 1))
    # What underflows keeps its logarithm: only −∞ forbids.
    return torch.where(still | (finite & (moved <= 0.0)), x, moved.log()), alpha


def _marginal(nu: Tensor, i: int) -> Tensor:
    """(G, 1…, S_i, …1, 1) law of coordinate i of the scope, with a little of the uniform one."""
    others = [axis for axis in range(1, nu.ndim) if axis != i + 1]
    marginal = nu.sum(dim=others, keepdim=True) if others else nu
    return ((1.0 - UNSEEN) * marginal + UNSEEN / nu.shape[i + 1]).unsqueeze(-1)


def _least(cost: Callable[[Tensor], Tensor], present: Tensor) -> Tensor:
    """(G,) the minimum of a convex `cost` on [0, 1], no worse than `present`: a grid, then halvings."""
    best, least = present, cost(present)
    step = 1.0 / (_GRID - 1)

    def take(tried: Tensor) -> None:
        nonlocal best, least
        value = cost(tried)
        better = value < least
        best, least = torch.where(better, tried, best), torch.where(better, value, least)

    for rank in range(_GRID):
        take(torch.full_like(present, rank * step))
    for _ in range(_HALVINGS):
        step *= 0.5
        centre = best
        for sign in (-1.0, 1.0):
            take((centre + sign * step).clamp(0.0, 1.0))
    return best
