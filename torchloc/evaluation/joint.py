"""Exact evaluation on the joint state space, for models small enough to enumerate.

For a policy π with joint kernel T and closed-loop reward r^π:

    d T = d,   r̄ = d·r^π,   h − T h = r^π − r̄ with d·h = 0                       (average reward, discount 1)
    ĥ_κ = Σ_{t=0}^{κ} T^t (r^π − r̄)
    Â(s, a) = r(s, a) − r̄ + Σ_{s'} P(s'|s, a) ĥ(s') − ĥ(s),   g_k(s, a_k) = E_{a_{-k} ~ π} Â(s, a)

With a discount γ < 1, h is the value V = r + γ T V, r̄ = 0, T^t carries γ^t, and d is the
discounted occupancy (1 − γ) Σ γ^t μ₀ T^t. With the entropy objective, r^π is r^π + Σ_k τ_k Ent π_k
throughout (paper, Sections 3-5).

Synchronous dynamics move all coordinates in a step, asynchronous ones a single coordinate j ~ ν
(paper, B.6); the reward r(s, a) is collected in every step of both, and everything above holds with
the T and P of either (`dynamics.py`). T is applied through its factors (`operator.py`). The two
linear systems are made regular by a rank-one term: (I − T + 1uᵀ) h = r, u uniform, has h with u·h = r̄,
and its transpose gives d; both regular iff there is one closed class (`solver.py`). Every solve is
checked by the two-sided bound min(r + T h − h) ≤ r̄ ≤ max(r + T h − h), true of *any* h (Odoni 1969),
whose width is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from torchloc.closed_loop import PolicyTables, entropy_terms, reward_terms
from torchloc.errors import BudgetError, InputError, SolveError
from torchloc.evaluation.dynamics import StepOperator, StepPlan, moves
from torchloc.evaluation.reachability import closed_classes
from torchloc.evaluation.rewards import reward_given, summed
from torchloc.evaluation.solver import PoissonSolver
from torchloc.evaluation.space import check_budget, initial_law, joint_reward, on_axes
from torchloc.mdp import FactoredMDP
from torchloc.mdp.dynamics import Dynamics
from torchloc.policy import SoftmaxPolicy

Objective = Literal["reward", "entropy"]

DENSE_STATES = 600
"""States up to which T is formed and factorised; beyond it, Krylov."""
TABLE_BUDGET = 2**28
"""Bytes of a dense table that a caller asks for (transition matrix, joint advantage)."""


@dataclass(frozen=True, eq=False)
class Structure:
    """What does not change with the policy's numbers.

    Attributes:
        plans: Elimination plans by open actions.
        classes: One state of every closed class, by the support of the policy's laws; the last one
            seen.
    """

    plans: dict[frozenset[int], StepPlan] = field(default_factory=dict)
    classes: dict[bytes, list[int]] = field(default_factory=dict)


class JointEvaluation:
    """Exact values of one policy on the joint state space, each computed on first use.

    The policy is read once, when the evaluation is made; changing it later changes nothing here.

    Args:
        mdp: A model with at most a few million joint states.
        policy: A policy for it.
        objective: `reward`, or `entropy` for J_τ = E[r + Σ_k τ_k Ent π_k].
        discount: γ in (0, 1]; 1 is the average reward.
        dynamics: `synchronous`, or `asynchronous` (one coordinate moves per step; paper, B.6).
        site_law: (N,) law ν of the coordinate that moves, asynchronous only; uniform if None.
        tolerance: Largest Odoni width accepted, in units of max(1, max |r|).
        structure: What evaluations of one model and its scopes share (see `renewed`).

    Raises:
        InputError: Objective, discount, dynamics, site law or tolerance is out of range, or the
            policy does not fit the model.
        BudgetError: More joint states than can be enumerated; the message gives size, bytes and the
            way out.

    Example:
        >>> import torchloc as tl
        >>> from torchloc.environments import sysadmin
        >>> mdp = sysadmin(n=3)
        >>> policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
        >>> joint = JointEvaluation(mdp, policy)
        >>> joint.width < 1e-10 and bool(abs(joint.poisson().mul(joint.stationary).sum()) < 1e-12)
        True
    """

    def __init__(
        self,
        mdp: FactoredMDP,
        policy: SoftmaxPolicy,
        *,
        objective: Objective = "reward",
        discount: float = 1.0,
        dynamics: Dynamics = "synchronous",
        site_law: ArrayLike | None = None,
        tolerance: float = 1e-10,
        structure: Structure | None = None,
    ) -> None:
        if objective not in ("reward", "entropy"):
            raise InputError(f"objective is {objective!r}; choose reward or entropy")
        if not 0.0 < discount <= 1.0:
            raise InputError(f"discount is {discount}; it must lie in (0, 1], 1 for average reward")
        if not tolerance > 0.0:
            raise InputError(f"tolerance is {tolerance}; it must be > 0")
        check_budget(mdp)
        policy.check(mdp)
        self.mdp = mdp
        self._model = mdp.tabulated()
        self.policy = policy
        self.objective: Objective = objective
        self.discount = discount
        self.tolerance = tolerance
        self.shape: tuple[int, ...] = tuple(mdp.state_sizes.tolist())
        self.dynamics: Dynamics = dynamics
        self._moves = moves(mdp, dynamics, site_law)
        self.site_law = None if site_law is None else np.array(site_law, dtype=np.float64)
        self._structure = structure or Structure()
        self._tables = PolicyTables.read(policy)

    def renewed(self, policy: SoftmaxPolicy) -> JointEvaluation:
        """The same evaluation of another policy on the same scopes, sharing the elimination plans."""
        return JointEvaluation(
            self.mdp,
            policy,
            objective=self.objective,
            discount=self.discount,
            dynamics=self.dynamics,
            site_law=self.site_law,
            tolerance=self.tolerance,
            structure=self._structure,
        )

    # -- operators
    # ----------------------------------------------------------------------------------

    def law(self, k: int) -> Tensor:
        """(*S[scope_k], A_k) float64 law of agent k when the evaluation was made."""
        return self._tables.law(k)

    def operator(self, open_actions: frozenset[int] = frozenset()) -> StepOperator:
        """T^π; with open actions, the expectation of f given s and those actions."""
        return self._plan(open_actions).operator(self._model, self.law)

    def _plan(self, open_actions: frozenset[int]) -> StepPlan:
        plans = self._structure.plans
        if open_actions not in plans:
            scopes = list(self.policy.scopes)
            plans[open_actions] = StepPlan(self._model, scopes, self._moves, open_actions)
        return plans[open_actions]

    @cached_property
    def _step(self) -> StepOperator:
        return self.operator()

    @cached_property
    def transition_matrix(self) -> Tensor:
        """(S, S) float64: row s is the law of the next joint state, states in row-major order.

        Raises:
            BudgetError: The matrix would not fit.
        """
        n = self.mdp.n_states
        if 8 * n * n > TABLE_BUDGET:
            raise BudgetError(
                f"the transition matrix of {n} joint states takes {8 * n * n} bytes, over the budget of "
                f"{TABLE_BUDGET}; use `operator()`, which applies it without forming it"
            )
        if self.dynamics == "synchronous" and _acts_apart(self.mdp):
            return self._product_of_laws()
        eye = torch.eye(n, dtype=torch.float64).reshape(*self.shape, n)
        return self._step(eye).reshape(n, n)

    def _product_of_laws(self) -> Tensor:
        """(S, S) where no two coordinates read the same action: given s, the next coordinates are independent."""
        n = self.mdp.n_states
        ones = [
            torch.eye(size, dtype=torch.float64)
            .reshape(*(size if i == j else 1 for i in range(len(self.shape))), size)
            .expand(*self.shape, size)
            for j, size in enumerate(self.shape)
        ]
        laws = self._step(torch.cat(ones, dim=-1)).reshape(n, -1).split(self.shape, dim=1)
        result = torch.ones(n, 1, dtype=torch.float64)
        for law in laws:
            result = (result[:, :, None] * law[:, None, :]).reshape(n, -1)
        return result

    # -- reward
    # -------------------------------------------------------------------------------------

    @cached_property
    def plain_reward(self) -> Tensor:
        """(*S) float64 closed-loop reward r^π, without entropies."""
        return summed(reward_terms(self._model, self._tables), self.shape)

    @cached_property
    def entropy(self) -> Tensor:
        """(*S) float64 Σ_k τ_k Ent π_k."""
        return summed(entropy_terms(self._tables), self.shape)

    @property
    def reward(self) -> Tensor:
        """(*S) float64 what is averaged: r^π, plus the entropies for the entropy objective."""
        if self.objective == "reward":
            return self.plain_reward
        return self.plain_reward + self.entropy

    # -- solves
    # -------------------------------------------------------------------------------------

    @cached_property
    def n_closed_classes(self) -> int:
        """Number of closed classes of the chain.

        Raises:
            SolveError: More than one, for which average-reward quantities depend on the start.
        """
        pattern = b"".join((laws > 0).numpy().tobytes() for laws in self._tables.laws)
        known = self._structure.classes
        if pattern not in known:
            support = self._plan(frozenset()).operator(self._model, self.law, support=True)
            known.clear()
            known[pattern] = closed_classes(support, self.shape)
        found = known[pattern]
        if len(found) > 1:
            states = ", ".join(
                str(tuple(int(x) for x in np.unravel_index(state, self.shape)))
                for state in found[:4]
            )
            raise SolveError(
                f"the chain has {len(found)} closed classes (one state of each: "
                f"{states}{', …' if len(found) > 4 else ''}), "
                f"so its average reward depends on the start; add noise to the deterministic laws, raise "
                f"the temperature, or use a discount below 1"
            )
        return len(found)

    @cached_property
    def _solver(self) -> PoissonSolver:
        if self.discount == 1.0:
            _ = self.n_closed_classes
        dense = self.transition_matrix if self.mdp.n_states <= DENSE_STATES else None
        return PoissonSolver(self._step, self.shape, self.discount, dense)

    @cached_property
    def stationary(self) -> Tensor:
        """(*S) float64 stationary law d; with a discount, the occupancy (1 − γ) Σ γ^t μ₀ T^t.

        Nonnegative and summing to 1; ‖d T − d‖₁ (or its discounted form) is `stationary_residual`.

        Raises:
            SolveError: Several closed classes, or the residual stays over tolerance.
        """
        return self._stationary[0]

    @property
    def stationary_residual(self) -> float:
        """‖d T − d‖₁, or ‖d − (1 − γ) μ₀ − γ d T‖₁ with a discount, of the law that is returned."""
        return self._stationary[1]

    @cached_property
    def _stationary(self) -> tuple[Tensor, float]:
        return self._solver.law(self.initial, self.tolerance)

    @property
    def marginals(self) -> Tensor:
        """(N, max S) law of each coordinate under `stationary`, padded with zeros."""
        n = len(self.shape)
        padded = torch.zeros(n, max(self.shape), dtype=torch.float64)
        for i, size in enumerate(self.shape):
            others = [j for j in range(n) if j != i]
            padded[i, :size] = self.stationary.sum(dim=others) if others else self.stationary
        return padded

    @property
    def marginal_product(self) -> Tensor:
        """(*S) product of the marginals."""
        n, marginals = len(self.shape), self.marginals
        product = torch.ones((1,) * n, dtype=torch.float64)
        for i, size in enumerate(self.shape):
            product = product * on_axes(marginals[i, :size], [i], n)
        return product

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, N) int64 states drawn from `stationary`."""
        drawn = torch.multinomial(self.stationary.reshape(-1), count, True, generator=generator)
        return torch.stack(torch.unravel_index(drawn, self.shape), dim=-1)

    @cached_property
    def initial(self) -> Tensor:
        """(*S) product law of the first state; uniform where the model names none."""
        return initial_law(self.mdp)

    @cached_property
    def _values(self) -> tuple[Tensor, float, float]:
        """h up to a constant, and the Odoni bounds (or bounds on the residual with a discount)."""
        return self._solver.values(self.reward, self.tolerance)

    @property
    def average_reward_bounds(self) -> tuple[float, float]:
        """lower ≤ r̄ ≤ upper, the two-sided bound of Odoni from the computed h (discount 1 only)."""
        _, low, high = self._values
        return low, high

    @property
    def width(self) -> float:
        """Odoni width upper − lower; with a discount, a bound on |V − V_true| instead."""
        _, low, high = self._values
        return high - low if self.discount == 1.0 else max(-low, high, 0.0) / (1.0 - self.discount)

    @property
    def average_reward(self) -> float:
        """r̄ (J_τ for the entropy objective), within half the width; per step of the whole system.

        Raises:
            InputError: With a discount below 1, where the run's number is `value`.
        """
        if self.discount < 1.0:
            raise InputError(
                f"discount is {self.discount}: an average reward needs discount 1; use `value`"
            )
        low, high = self.average_reward_bounds
        return 0.5 * (low + high)

    @property
    def value(self) -> float:
        """What the run maximises: r̄ at discount 1, else μ₀·V (both with entropies if so asked)."""
        if self.discount == 1.0:
            return self.average_reward
        return float((self.initial * self.poisson()).sum())

    @property
    def reward_rate(self) -> float:
        """d·r^π without the entropies: the plain reward per step under `stationary`."""
        return float((self.stationary * self.plain_reward).sum())

    @property
    def entropy_rate(self) -> float:
        """d·Σ_k τ_k Ent π_k under `stationary`."""
        return float((self.stationary * self.entropy).sum())

    def poisson(self) -> Tensor:
        """(*S) float64 solution h of the Poisson equation with d·h = 0; the value V with a discount."""
        values, _, _ = self._values
        if self.discount < 1.0:
            return values
        return values - (self.stationary * values).sum()

    # -- truncated quantities
    # -----------------------------------------------------------------------

    def truncated_value(self, kappa: int) -> Tensor:
        """(*S) ĥ_κ = Σ_{t=0}^{κ} (γT)^t (r^π − r̄), with r̄ = 0 if γ < 1 (paper, Section 5, step 2).

        Raises:
            InputError: κ is negative.
        """
        if kappa < 0:
            raise InputError(f"kappa is {kappa}; it must be a whole number ≥ 0")
        centre = self.average_reward if self.discount == 1.0 else 0.0
        term = self.reward - centre
        total = term.clone()
        for _ in range(int(kappa)):
            term = self.discount * self._step(term)
            total += term
        return total

    def _surrogate(self, kappa: int | None) -> Tensor:
        return self.poisson() if kappa is None else self.truncated_value(kappa)

    def advantage(self, kappa: int | None = None) -> Tensor:
        """(*S, *A) Â_κ(s, a) = r(s, a) − r̄ + γ E[ĥ_κ(s') | s, a] − ĥ_κ(s); κ = None uses h itself.

        With the entropy objective r includes the entropies of the policy, which no action changes.

        Raises:
            BudgetError: The table would not fit.
        """
        size = 8 * self.mdp.n_states * self.mdp.n_joint_actions
        if size > TABLE_BUDGET:
            raise BudgetError(
                f"the joint advantage takes {size} bytes ({self.mdp.n_states} states × "
                f"{self.mdp.n_joint_actions} joint actions), over the budget of {TABLE_BUDGET}; use "
                f"`block_logits`, one agent at a time"
            )
        values = self._surrogate(kappa)
        n_agents = self.mdp.n_agents
        move = self.operator(frozenset(range(n_agents)))(values)
        centre = self.average_reward if self.discount == 1.0 else 0.0
        state_part = (self.reward - self.plain_reward) - centre - values
        total = self.discount * move + state_part.reshape(*self.shape, *(1,) * n_agents)
        return total + joint_reward(self._model)

    def block_logits(self, k: int, kappa: int | None = None) -> Tensor:
        """(*S, A_k) g_k(s, a_k) = E_{a_{-k} ~ π} Â_κ(s, (a_k, a_{-k})); κ = None uses h itself.

        Raises:
            InputError: No such agent, or κ negative.
        """
        if not 0 <= k < self.mdp.n_agents:
            raise InputError(f"k is {k}; the model has {self.mdp.n_agents} agents, numbered from 0")
        values = self._surrogate(kappa)
        move = self.operator(frozenset([k]))(values)
        centre = self.average_reward if self.discount == 1.0 else 0.0
        given = reward_given(self._model, self._tables, k, self.reward)
        return given + self.discount * move - (values + centre).unsqueeze(-1)

    def over_scope(self, k: int, values: Tensor) -> Tensor:
        """(*S, …) → (R, S/R, …): scope states of agent k first, the unseen coordinates second."""
        scope = list(self.policy.scopes[k])
        unseen = [i for i in range(len(self.shape)) if i not in scope]
        tail = values.shape[len(self.shape) :]
        order = [*scope, *unseen, *range(len(self.shape), values.ndim)]
        n_rows = int(np.prod([self.shape[i] for i in scope], dtype=np.int64))
        return values.permute(order).reshape(n_rows, -1, *tail)


def _acts_apart(mdp: FactoredMDP) -> bool:
    """Whether no action is read by the kernels of two coordinates."""
    _, agents = mdp.action_edges()
    return len(np.unique(agents)) == len(agents)
