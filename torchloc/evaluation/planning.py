"""Optimal control of small models: over all joint policies, and over deterministic policies on given scopes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from torchloc.errors import BudgetError, InputError, SolveError
from torchloc.evaluation.dynamics import StepOperator, StepPlan, moves
from torchloc.evaluation.space import check_budget, initial_law, joint_reward
from torchloc.graphs import Scopes, as_scopes
from torchloc.mdp import FactoredMDP
from torchloc.mdp.dynamics import Dynamics

PAIR_BUDGET = 2**24
"""Joint state-action pairs that the planner enumerates at most."""
LOCAL_BUDGET = 2**17
"""Deterministic local policies times joint states that are enumerated at most."""
_DAMPING = 0.9
_SWEEPS = 50_000


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best gain over all joint policies.

    Attributes:
        lower, upper: Bracket of the optimal average reward (or of μ₀·V* with a discount).
        values: (*S) float64 relative values, up to a constant (V* with a discount).
        actions: (*S) int64 a maximising joint action, row-major over the agents' actions.
    """

    lower: float
    upper: float
    values: Tensor
    actions: Tensor

    @property
    def gain(self) -> float:
        """Midpoint of the bracket."""
        return 0.5 * (self.lower + self.upper)


def optimal_control(
    mdp: FactoredMDP,
    *,
    discount: float = 1.0,
    dynamics: Dynamics = "synchronous",
    site_law: ArrayLike | None = None,
    tolerance: float = 1e-9,
) -> Optimum:
    """Relative value iteration on the joint model, with the bracket min(Bh − h) ≤ g* ≤ max(Bh − h).

    (B h)(s) = max_a r(s, a) + γ E[h(s') | s, a]; the bracket is Odoni's (1969). The damping makes
    periodic models converge and changes no fixed point.

    Args:
        mdp: A small model.
        discount: γ in (0, 1]; 1 is the average reward.
        dynamics: `synchronous`, or `asynchronous` (one coordinate moves per step; paper, B.6).
        site_law: (N,) law ν of the coordinate that moves, asynchronous only; uniform if None.
        tolerance: Width of the bracket, in units of max(1, max |r|).

    Raises:
        InputError: Discount, dynamics or site law is out of range.
        BudgetError: Too many state-action pairs.
        SolveError: No convergence: the optimal gain depends on the start, or the model mixes too
            slowly.
    """
    check_budget(mdp)
    mdp = mdp.tabulated()
    pairs = mdp.n_states * mdp.n_joint_actions
    if pairs > PAIR_BUDGET:
        raise BudgetError(
            f"planning enumerates {pairs} joint state-action pairs ({8 * pairs} bytes a table), over the "
            f"budget of {PAIR_BUDGET}; use a smaller model"
        )
    if not 0.0 < discount <= 1.0:
        raise InputError(f"discount is {discount}; it must lie in (0, 1], 1 for average reward")
    move = _given_all_actions(mdp, dynamics, site_law)
    shape: tuple[int, ...] = tuple(mdp.state_sizes.tolist())
    reward = joint_reward(mdp)
    scale = max(1.0, float(reward.abs().max()))
    values = torch.zeros(shape, dtype=torch.float64)
    low, high = -math.inf, math.inf
    for _ in range(_SWEEPS):
        scores = (reward + discount * move(values)).reshape(*shape, -1)
        best, actions = scores.max(dim=-1)
        drift = best - values
        low, high = float(drift.min()), float(drift.max())
        if discount < 1.0:
            low, high = low / (1.0 - discount), high / (1.0 - discount)
        if high - low <= tolerance * scale:
            start = float((initial_law(mdp) * values).sum()) if discount < 1.0 else 0.0
            return Optimum(start + low, start + high, values, actions)
        values = values + (1.0 if discount < 1.0 else _DAMPING) * drift
        if discount == 1.0:
            values = values - values.reshape(-1)[0]
    raise SolveError(
        f"value iteration reached the bracket [{low:.6g}, {high:.6g}] in {_SWEEPS} sweeps, wider than "
        f"{tolerance * scale:.3g}: the optimal gain depends on the start, or the model mixes too slowly; "
        f"add noise or use a discount below 1"
    )


def _given_all_actions(
    mdp: FactoredMDP, dynamics: Dynamics, site_law: ArrayLike | None
) -> StepOperator:
    """(*S) → (*S, *A): E[f(s') | s, a]."""
    everyone = frozenset(range(mdp.n_agents))
    steps = moves(mdp, dynamics, site_law)
    return StepPlan(mdp, [()] * mdp.n_agents, steps, everyone).operator(mdp, _no_law)


def _no_law(k: int) -> Tensor:
    raise SolveError(f"agent {k} has no law: every action is open")  # pragma: no cover


@dataclass(frozen=True, eq=False)
class LocalOptimum:
    """The best deterministic policy on given scopes.

    Attributes:
        gain: Its average reward. Randomised policies on partial scopes can be better.
        actions: K arrays (*S[scope_k]) of chosen actions.
        multichain: Number of policies left out because their chain has several closed classes.
    """

    gain: float
    actions: tuple[np.ndarray, ...]
    multichain: int


def best_deterministic_local(
    mdp: FactoredMDP,
    scopes: Scopes | Sequence[ArrayLike],
    *,
    dynamics: Dynamics = "synchronous",
    site_law: ArrayLike | None = None,
) -> LocalOptimum:
    """Enumerates all deterministic policies on the scopes, and takes the best average reward.

    Args:
        mdp: A small model.
        scopes: What each agent sees.
        dynamics: `synchronous`, or `asynchronous` (one coordinate moves per step; paper, B.6).
        site_law: (N,) law ν of the coordinate that moves, asynchronous only; uniform if None.

    Raises:
        InputError: Scopes, dynamics or site law do not fit the model.
        BudgetError: More policies times states than are enumerated; the message gives the number.
        SolveError: Every policy has several closed classes.
    """
    scopes = as_scopes(mdp, scopes)
    check_budget(mdp)
    mdp = mdp.tabulated()
    rows = [math.prod(mdp.state_sizes[list(scope)].tolist()) for scope in scopes]
    sizes: list[int] = mdp.action_sizes.tolist()
    count = math.prod(size**row for size, row in zip(sizes, rows, strict=True))
    n = mdp.n_states
    if count * n > LOCAL_BUDGET or n * n * mdp.n_joint_actions > PAIR_BUDGET:
        shown = count if count < 10**9 else f"about 10^{len(str(count)) - 1}"
        raise BudgetError(
            f"there are {shown} deterministic policies on these scopes over {n} states, more than the "
            f"{LOCAL_BUDGET} policy-states that are enumerated; use a smaller model"
        )
    shape: tuple[int, ...] = tuple(mdp.state_sizes.tolist())
    move = _given_all_actions(mdp, dynamics, site_law)
    eye = torch.eye(n, dtype=torch.float64).reshape(*shape, n)
    kernel = move(eye).reshape(n, -1, n)
    reward = joint_reward(mdp).expand(*shape, *sizes).reshape(n, -1)
    states = np.array(list(itertools.product(*map(range, shape)))).reshape(n, -1)
    seen = [
        np.ravel_multi_index(states[:, list(scope)].T, shape_k) if scope else np.zeros(n, np.int64)
        for scope, shape_k in ((scope, mdp.state_sizes[list(scope)].tolist()) for scope in scopes)
    ]
    best, best_choice, multichain = -np.inf, None, 0
    choices = [
        itertools.product(range(size), repeat=row) for size, row in zip(sizes, rows, strict=True)
    ]
    batches = itertools.product(*choices)
    while chunk := list(itertools.islice(batches, max(1, PAIR_BUDGET // (n * n)))):
        joint = np.zeros((len(chunk), n), dtype=np.int64)
        for k, size in enumerate(sizes):
            table = np.array([choice[k] for choice in chunk]).reshape(len(chunk), -1)
            joint = joint * size + table[:, seen[k]]
        index = torch.from_numpy(joint)
        rows_index = torch.arange(n)
        moved = kernel[rows_index, index]
        gains, single = _gains(moved, reward[rows_index, index])
        multichain += int((~single).sum())
        gains = torch.where(single, gains, -torch.inf)
        top = int(torch.argmax(gains))
        if float(gains[top]) > best:
            best, best_choice = float(gains[top]), chunk[top]
    if best_choice is None:
        raise SolveError("every deterministic policy on these scopes has several closed classes")
    actions = tuple(
        np.array(choice).reshape(mdp.state_sizes[list(scope)])
        for choice, scope in zip(best_choice, scopes, strict=True)
    )
    return LocalOptimum(best, actions, multichain)


def _gains(kernels: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) average rewards of (B, S, S) chains, and whether each has one closed class.

    The number of closed classes is the multiplicity of the eigenvalue 1: with one, I − P has rank S
        − 1.
    """
    n = kernels.shape[-1]
    system = torch.eye(n, dtype=torch.float64) - kernels
    singular = torch.linalg.svdvals(system)
    single = singular[:, -2] > 1e-10 if n > 1 else torch.ones(len(kernels), dtype=torch.bool)
    regular = torch.where(
        single[:, None, None], system + 1.0 / n, torch.eye(n, dtype=torch.float64)
    )
    right = torch.full((len(kernels), n, 1), 1.0 / n, dtype=torch.float64)
    law = torch.linalg.solve(regular.mT, right).squeeze(-1)
    return (law * rewards).sum(dim=-1), single
