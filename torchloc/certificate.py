"""Certificates of locality: what each rung of the ladder proves about a policy.

With H a sound influence matrix (rows influenced), M the matrix that moves oscillations, δ(T f) ≤ M δ(f):

    synchronous   M = γ Hᵀ                                        (paper, Theorem 3 and Section 3, "Discounted")
    asynchronous  M = γ ((I − diag ν) + diag ν H)ᵀ                (paper, B.6; here C^π serves as `coupled`)

and b ≥ δ(r^π) (with τ Ent π_k included for the entropy objective), whenever ρ(M) < 1:

    δ(h)       ≤ (I − M)^{-1} b                                   `poisson`
    δ(ĥ_κ)     ≤ Σ_{t ≤ κ} M^t b                                  `delta_hat`, by κ rounds of message passing
    δ(h − ĥ_κ) ≤ Σ_{t > κ} M^t b                                  `tail`, closed by a checked weight
    span_{a_k}(ĝ_k − g_k) ≤ ε_k = Σ_j γ ν_j E^a[j, k] tail_j      `epsilon` (ν_j = 1 if synchronous)

The several-step rungs `coupled_m` know M_1, …, M_m with δ(T^q f) ≤ M_q δ(f): there M^t above reads
M_m^{⌊t/m⌋} M_{t mod m}, and the condition is ρ(M_m) < 1, a decay of ρ(M_m)^{1/m} per step.

All are componentwise upper bounds. Where the upper bound of ρ is ≥ 1, tail, poisson and ε are ∞, never a solve.
Rounding is added outward: every number is a bound for the stored tables and logits as exact reals, except that
e^x is trusted to the last places.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import ArrayLike

from torchloc.closed_loop import PolicyTables, entropy_terms, reward_terms
from torchloc.coupling import coupled_steps
from torchloc.errors import InputError
from torchloc.lipschitz import logit_span
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import FloatArray
from torchloc.policy import SoftmaxPolicy
from torchloc.sensitivity import (
    RUNGS,
    action_sensitivity,
    coupled_influence,
    policy_sensitivity,
    state_sensitivity,
)
from torchloc.spectral import SpectralBound, norm_columns, norm_rows, spectral_radius

Dynamics = Literal["synchronous", "asynchronous"]
_UNIT = 2.0**-53
_ROUNDS = 256
_CLOSED = 1e-6
_KAPPA_CAP = 100_000


@dataclass(frozen=True, eq=False)
class RungCertificate:
    """What one rung proves.

    Attributes:
        rung: Its name.
        matrix: (N, N) CSR, H or K^(m), rows influenced, rounded up.
        operators: M_1, …, M_m (N, N) CSR: what moves oscillations in 1 … m steps, rounded up.
        reward_oscillation: (N,) b ≥ δ(r^π).
        reach: (N, K) CSR γ ν_j E^a[j, k], rounded up: what turns a tail into ε.
        kappa: κ of `delta_hat`, `tail` and `epsilon`.
    """

    rung: str
    matrix: sp.csr_array
    operators: tuple[sp.csr_array, ...]
    reward_oscillation: FloatArray
    reach: sp.csr_array
    kappa: int

    @property
    def steps(self) -> int:
        """m: how many steps the matrix speaks of."""
        return len(self.operators)

    @cached_property
    def rho(self) -> SpectralBound:
        """lower ≤ ρ(H) ≤ upper, checked; ρ(K^(m)) for m steps."""
        return spectral_radius(self.matrix)

    @cached_property
    def contraction(self) -> SpectralBound:
        """lower ≤ ρ(M_m) ≤ upper, checked; ρ(M) = ρ(H) for synchronous dynamics without discount."""
        return spectral_radius(self.operators[-1])

    @property
    def rate(self) -> float:
        """Upper bound of the decay per step, ρ(M_m)^{1/m}."""
        return float(self.contraction.upper) ** (1.0 / self.steps) * (1.0 + 4.0 * _UNIT)

    @property
    def certified(self) -> bool:
        """Whether the upper bound of ρ(M_m) is below 1, so that tails are finite."""
        return self.contraction.upper < 1.0

    @property
    def row_norm(self) -> float:
        """Largest row sum of the matrix: an upper bound of its ρ, the norm test of prior work."""
        return norm_rows(self.matrix)

    @property
    def column_norm(self) -> float:
        """Largest column sum of the matrix: an upper bound of its ρ."""
        return norm_columns(self.matrix)

    @cached_property
    def delta_hat(self) -> FloatArray:
        """(N,) δ(ĥ_κ) ≤ Σ_{t ≤ κ} M^t b (paper, Theorem 7, certificate); valid whether certified or not."""
        total = np.zeros_like(self.reward_oscillation)
        blocks = self._blocks()
        for start in range(0, self.kappa + 1, self.steps):
            for term in next(blocks)[: self.kappa + 1 - start]:
                total = total + term
        return total * self._growth(self.kappa + 1)

    @cached_property
    def tail(self) -> FloatArray:
        """(N,) δ(h − ĥ_κ) ≤ Σ_{t > κ} M^t b; ∞ where not certified."""
        return self.tail_at(self.kappa)

    @cached_property
    def poisson(self) -> FloatArray:
        """(N,) δ(h) ≤ (I − M)^{-1} b; ∞ where not certified (paper, Theorem 3)."""
        return self.tail_at(-1)

    @cached_property
    def epsilon(self) -> FloatArray:
        """(K,) ε_k ≥ span over a_k of ĝ_k − g_k, uniformly in the state; ∞ where not certified."""
        return self.epsilon_at(self.kappa)

    def tail_at(self, kappa: int) -> FloatArray:
        """(N,) the tail of another κ ≥ −1; κ = −1 bounds δ(h) itself.

        The sum is followed term by term, and closed by (M_m w)_i ≤ λ w_i, which gives
        (I − M_m)^{-1} x ≤ w max_j(x_j / w_j) / (1 − λ).
        """
        weights, rate = self.contraction.weights, self.contraction.weighted_rate
        if not self.certified or weights is None or not rate < 1.0:
            return np.full(len(self.reward_oscillation), np.inf)
        total = np.zeros_like(self.reward_oscillation)
        for block, terms in enumerate(self._blocks()):
            start = block * self.steps
            grow = self._growth(start + self.steps)
            if start > kappa:
                rest = np.sum(terms, axis=0)
                close = weights * (np.max(rest / weights) / (1.0 - rate) * grow)
                if start > kappa + _ROUNDS or close.max() <= _CLOSED * total.max(initial=0.0):
                    return (total + close) * grow
            for term in terms[max(kappa + 1 - start, 0) :]:
                total = total + term
        raise AssertionError("unreachable")  # pragma: no cover - the generator is endless

    def epsilon_at(self, kappa: int) -> FloatArray:
        """(K,) ε_k of another κ ≥ 0; 0·∞ counts as 0."""
        longest = int(np.bincount(self.reach.indices, minlength=1).max())
        return (self.reach.T @ self.tail_at(kappa)) * (1.0 + 2.0 * (longest + 2) * _UNIT)

    def kappa_for(self, epsilon: float) -> float:
        """The smallest κ with ε_k ≤ epsilon for every agent; ∞ where none is known.

        ε falls with κ, so the answer is found by doubling and bisection.

        Raises:
            InputError: epsilon is not > 0.
        """
        if not epsilon > 0:
            raise InputError(f"epsilon is {epsilon}; it must be > 0")

        def enough(kappa: int) -> bool:
            return bool((self.epsilon_at(kappa) <= epsilon).all())

        if not self.certified:
            return math.inf if self.reach.nnz else 0
        high = 0
        while not enough(high):
            high = 2 * high + 1
            if high > _KAPPA_CAP:
                return math.inf
        low = (high - 1) // 2
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle + 1, high)
        return high

    def _growth(self, terms: int) -> float:
        """Covers the rounding of sums of `terms` products of the operators."""
        longest = max(int(np.diff(m.indptr).max(initial=0)) for m in self.operators)
        return 1.0 + 2.0 * (terms + 4) * (longest + 2) * _UNIT

    def _blocks(self) -> Iterator[list[FloatArray]]:
        """[M_m^q M_r b for r < m], for q = 0, 1, …"""
        b = self.reward_oscillation
        terms = [b, *(operator @ b for operator in self.operators[:-1])]
        while True:
            yield terms
            terms = [self.operators[-1] @ term for term in terms]


class Certificate(Mapping[str, RungCertificate]):
    """One `RungCertificate` a rung, from sharp to blunt; `certificate["paper"].rho.upper` and so on.

    Attributes:
        floor: Bracket of ρ(E^s): no temperature brings the rungs `exact` … `scope` below it.
        kappa, discount, dynamics, objective: What was asked for.
    """

    def __init__(
        self,
        rungs: dict[str, RungCertificate],
        environment: Environment,
        *,
        kappa: int,
        discount: float,
        dynamics: Dynamics,
        objective: str,
    ) -> None:
        self._rungs = rungs
        self.environment = environment
        self.kappa = kappa
        self.discount = discount
        self.dynamics = dynamics
        self.objective = objective

    def __getitem__(self, rung: str) -> RungCertificate:
        if rung not in self._rungs:
            raise KeyError(f"no rung {rung!r}; this certificate has {', '.join(self._rungs)}")
        return self._rungs[rung]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rungs)

    def __len__(self) -> int:
        return len(self._rungs)

    @property
    def floor(self) -> SpectralBound:
        """lower ≤ ρ(E^s) ≤ upper."""
        return self.environment.floor

    @cached_property
    def epsilon(self) -> FloatArray:
        """(K,) the smallest ε_k that any rung proves."""
        return np.minimum.reduce([rung.epsilon for rung in self.values()])

    @cached_property
    def tail(self) -> FloatArray:
        """(N,) the smallest tail that any rung proves, componentwise."""
        return np.minimum.reduce([rung.tail for rung in self.values()])


def certify(
    mdp: FactoredMDP,
    policy: SoftmaxPolicy,
    kappa: int = 3,
    discount: float = 1.0,
    dynamics: Dynamics = "synchronous",
    *,
    objective: Literal["reward", "entropy"] = "reward",
    site_law: ArrayLike | None = None,
    rungs: Sequence[str] = RUNGS,
    steps: int = 1,
    environment: Environment | None = None,
) -> Certificate:
    """Certifies how local a policy makes a model.

    Args:
        mdp: The model.
        policy: A policy on its scopes; scope states are enumerated.
        kappa: Truncation radius κ ≥ 0 of `delta_hat`, `tail` and `epsilon`.
        discount: γ in (0, 1]; 1 is the average reward.
        dynamics: `synchronous`, or `asynchronous` (one coordinate moves per step; paper, B.6).
        objective: `entropy` adds τ_k Ent π_k to the reward whose oscillation is propagated.
        site_law: (N,) law ν of the coordinate that moves, asynchronous only; uniform if None.
        rungs: Which rungs to compute, among those of `sensitivity.RUNGS`.
        steps: m ≥ 1; above 1, the rungs `coupled_2` … `coupled_m` join (synchronous dynamics).
        environment: E^s and E^a of this model, if computed already.

    Returns:
        A mapping rung → certificate; spectral bounds and tails are computed on first use.

    Raises:
        InputError: Something is out of range or does not fit.
        BudgetError: A closed loop is too large to enumerate.
    """
    policy.scopes.check(mdp)
    _check(kappa, discount, dynamics, objective, rungs, steps)
    moves = _site_law(mdp, dynamics, site_law)
    environment = environment or Environment(mdp)
    ladder = Ladder(environment, policy, averaged=dynamics == "asynchronous")
    b = reward_oscillation(mdp, ladder.tables, entropy=objective == "entropy")
    reach = _outward(discount * (sp.diags_array(moves) @ ladder.action), 4)
    reach.eliminate_zeros()
    result = {}
    for rung in rungs:
        matrix = ladder.matrix(rung)
        if dynamics == "asynchronous":
            moved = sp.diags_array(1.0 - moves) + sp.diags_array(moves) @ matrix
            operator = _outward(discount * moved.T, 4)
        else:
            operator = _discounted(matrix, discount)
        result[rung] = RungCertificate(rung, matrix, (operator,), b, reach, int(kappa))
    if steps > 1:
        powers = ladder.several_steps(steps)
        operators = tuple(_discounted(m, discount**q) for q, m in enumerate(powers, start=1))
        for m in range(2, steps + 1):
            name = f"coupled_{m}"
            result[name] = RungCertificate(
                name, powers[m - 1], operators[:m], b, reach, int(kappa)
            )
    return Certificate(
        result,
        environment,
        kappa=int(kappa),
        discount=discount,
        dynamics=dynamics,
        objective=objective,
    )


def _check(
    kappa: int, discount: float, dynamics: str, objective: str, rungs: Sequence[str], steps: int
) -> None:
    if kappa != int(kappa) or kappa < 0:
        raise InputError(f"kappa is {kappa}; it must be a whole number ≥ 0")
    if not 0.0 < discount <= 1.0:
        raise InputError(f"discount is {discount}; it must lie in (0, 1], 1 for average reward")
    if dynamics not in ("synchronous", "asynchronous"):
        raise InputError(f"dynamics is {dynamics!r}; choose synchronous or asynchronous")
    if objective not in ("reward", "entropy"):
        raise InputError(f"objective is {objective!r}; choose reward or entropy")
    for rung in rungs:
        if rung not in RUNGS:
            raise InputError(f"rungs holds {rung!r}; choose from {', '.join(RUNGS)}")
    if steps != int(steps) or steps < 1:
        raise InputError(f"steps is {steps}; it must be a whole number ≥ 1")
    if steps > 1 and dynamics == "asynchronous":
        raise InputError(
            f"steps is {steps}, but several coupled steps are for synchronous dynamics; use steps=1"
        )
    if not rungs:
        raise InputError(f"rungs is empty; choose from {', '.join(RUNGS)}")


def _site_law(mdp: FactoredMDP, dynamics: str, site_law: ArrayLike | None) -> FloatArray:
    n = mdp.n_coordinates
    if dynamics == "synchronous":
        if site_law is not None:
            raise InputError("site_law is given, but dynamics is synchronous; drop one of them")
        return np.ones(n)
    if site_law is None:
        return np.full(n, 1.0 / n)
    law = np.asarray(site_law, dtype=np.float64)
    if law.shape != (n,) or (law < 0).any() or abs(law.sum() - 1.0) > 1e-9:
        raise InputError(
            f"site_law has shape {law.shape} and sum {law.sum():.6g}; it must be a law on the "
            f"{n} coordinates"
        )
    return law


class Environment:
    """E^s and E^a of a model, rounded up: computed once, used for every policy on it."""

    def __init__(self, mdp: FactoredMDP) -> None:
        terms = max(kernel.table.shape[-1] for kernel in mdp.kernels)
        self.mdp = mdp
        self.state = _outward(state_sensitivity(mdp), 4 * terms)
        self.action = _outward(action_sensitivity(mdp), 4 * terms)

    @cached_property
    def floor(self) -> SpectralBound:
        """lower ≤ ρ(E^s) ≤ upper: no temperature brings the rungs `exact` … `scope` below it."""
        return spectral_radius(self.state)


class Ladder:
    """The influence matrices of one policy, rounded up, each computed once.

    Args:
        environment: E^s and E^a.
        policy: A policy on the model's scopes; read here and now.
        averaged: Treat every action as private: `coupled` is then C^π, sound only for asynchronous dynamics.
    """

    def __init__(
        self, environment: Environment, policy: SoftmaxPolicy, *, averaged: bool = False
    ) -> None:
        self.mdp = environment.mdp
        self.state = environment.state
        self.action = environment.action
        self.policy = policy
        self.averaged = averaged
        self.tables = PolicyTables.read(policy)

    @cached_property
    def _absolute(self) -> float:
        """Absolute error of a TV of computed probabilities, as a bound for all of them."""
        terms = max(kernel.table[0].size for kernel in self.mdp.kernels)
        terms += max((int(group.n_actions) for group in self.policy.groups), default=0)
        size = 0.0
        for index in range(len(self.policy.groups)):
            scaled = self.policy.group_scaled_logits(index)
            finite = torch.where(torch.isfinite(scaled), scaled.abs(), 0.0)
            size = max(size, float(finite.max()) if finite.numel() else 0.0)
        return 4.0 * (terms + size) * _UNIT

    @cached_property
    def _moving(self) -> sp.csr_array:
        """(K, N) ones where some logit changes with the coordinate: the structural pattern of Π."""
        span = logit_span(self.policy)
        span.data = np.ones_like(span.data)
        return span

    @cached_property
    def _pattern(self) -> sp.csr_array:
        """(N, N) ones where one step can carry influence at all."""
        pattern = sp.csr_array(self.state + self.action @ self._moving)
        pattern.data = np.ones_like(pattern.data)
        return pattern

    def several_steps(self, steps: int) -> list[sp.csr_array]:
        """K^(1), …, K^(steps), rounded up.

        Each of the m steps replaces the joint law of at most `cone` pairs by a computed one, each off by at
        most S² entries' rounding in TV, and D ≤ 1.
        """
        coupled = coupled_steps(self.mdp, self.tables, steps)
        widest = int(self.mdp.state_sizes.max()) ** 2
        result, pattern = [], self._pattern
        for matrix, cone in zip(coupled.matrices, coupled.cones, strict=True):
            error = self._absolute * widest * (cone + 1)
            result.append(sp.csr_array(matrix + error * pattern))
            pattern = sp.csr_array(self._pattern @ pattern)
            pattern.data = np.ones_like(pattern.data)
        return result

    def policy_rung(self, rung: str) -> sp.csr_array:
        """(K, N) CSR Π of a rung, rounded up."""
        matrix = policy_sensitivity(self.policy, rung)
        if rung == "exact":
            matrix = sp.csr_array(matrix + self._absolute * self._moving)
        elif rung != "scope":
            matrix = _outward(matrix, 16)
        matrix.data = np.minimum(matrix.data, 1.0)
        return matrix

    def matrix(self, rung: str) -> sp.csr_array:
        """(N, N) CSR H of a rung, rounded up."""
        if rung == "coupled":
            matrix = coupled_influence(self.mdp, self.tables, all_private=self.averaged)
            return sp.csr_array(matrix + self._absolute * self._pattern)
        product = self.action @ self.policy_rung(rung)
        longest = int(np.diff(self.action.indptr).max(initial=0))
        return _outward(sp.csr_array(self.state + product), 2 * (longest + 2))


def _discounted(matrix: sp.csr_array, factor: float) -> sp.csr_array:
    """factor · matrixᵀ, rounded up."""
    if factor == 1.0:
        return sp.csr_array(matrix.T)
    return _outward(factor * matrix.T, 4)


def _outward(matrix: sp.csr_array, steps: float) -> sp.csr_array:
    """Entries of a nonnegative matrix times 1 + steps · 2⁻⁵³: covers that many roundings."""
    result = sp.csr_array(matrix)
    result.data = result.data * (1.0 + (steps + 2.0) * _UNIT)
    return result


def reward_oscillation(
    mdp: FactoredMDP, tables: PolicyTables, *, entropy: bool = False
) -> FloatArray:
    """b = Σ_m δ(r_m^π) (+ Σ_k τ_k δ(Ent π_k)), componentwise an upper bound of δ(r^π).

    Args:
        mdp: The model.
        tables: The policy's laws.
        entropy: Include the entropies.

    Returns:
        (N,) float64, rounded up.
    """
    b = np.zeros(mdp.n_coordinates)
    terms = [reward_terms(mdp, tables)] + ([entropy_terms(tables)] if entropy else [])
    for union, values in itertools.chain(*terms):
        slack = 4.0 * (math.prod(values.shape[1:]) + 64) * _UNIT * float(values.abs().max())
        for column in range(union.shape[1]):
            if values.shape[1 + column] == 1:
                continue
            spread = values.amax(dim=1 + column) - values.amin(dim=1 + column)
            worst = spread.reshape(len(values), -1).amax(dim=1).numpy()
            worst = np.where(worst > 0, worst + slack, 0.0)
            np.add.at(b, union[:, column], np.broadcast_to(worst, len(union)))
    return b * (1.0 + 64 * _UNIT)
