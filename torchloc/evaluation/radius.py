"""How large κ can be: every ball must fit a budget.

A ball grows with κ until it is the whole model, and its tensors are exponential in it. What fits is
found by planning, before any number is computed.
"""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from torchloc.alike import at_rows
from torchloc.closed_loop import Layout
from torchloc.contraction.balls import Ball, BallTooLarge, Planner
from torchloc.contraction.sites import Sites
from torchloc.errors import InputError
from torchloc.evaluation.joint import Objective
from torchloc.evaluation.sources import Sources
from torchloc.graphs import action_matrix, dependency_matrix
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import IntArray
from torchloc.policy import SoftmaxPolicy

BALL_BYTES = 2**27
"""Bytes of the largest tensor of one ball, float64, unless told otherwise."""
LARGEST_KAPPA = 64
"""Where the search stops: models whose balls stop growing fit at every κ."""


def largest_kappa(
    mdp: FactoredMDP,
    policy: SoftmaxPolicy,
    *,
    objective: Objective = "reward",
    ball_bytes: int = BALL_BYTES,
    at_most: int = LARGEST_KAPPA,
) -> int:
    """The largest κ ≤ `at_most` at which every ball fits the budget.

    Raises:
        BudgetError: Not even κ = 0 fits.
    """
    every = largest_kappas(mdp, policy, objective=objective, ball_bytes=ball_bytes, at_most=at_most)
    return int(every.min(initial=at_most))


def largest_kappas(
    mdp: FactoredMDP,
    policy: SoftmaxPolicy,
    *,
    objective: Objective = "reward",
    ball_bytes: int = BALL_BYTES,
    at_most: int = LARGEST_KAPPA,
) -> IntArray:
    """(K,) the largest κ ≤ `at_most` of every agent at which all balls that it reaches fit the budget.

    Raises:
        BudgetError: For some agent not even κ = 0 fits.
    """
    check_settings(at_most, objective, 1.0, ball_bytes)
    policy.check(mdp)
    sites = Sites(mdp, policy)
    sources = Sources.of(mdp, policy, entropies=objective == "entropy")
    largest = np.full(mdp.n_agents, at_most)
    for kappa in range(at_most + 1):
        refused: list[tuple[int, IntArray]] = []
        balls = plan_balls(sites, sources, policy, kappa, ball_bytes, refused)
        if refused and kappa == 0:
            plan_balls(sites, sources, policy, 0, ball_bytes)
        for index, rows in refused:
            reached = _agents_within(mdp, policy, sources.classes[index].scope[rows], kappa)
            largest[reached] = np.minimum(largest[reached], kappa - 1)
        if (largest < kappa).all() or (
            not refused
            and kappa
            and all(_is_closed(ball, sites) for ball in balls if len(ball.steps) == kappa)
        ):
            break
    return largest


def _agents_within(
    mdp: FactoredMDP, policy: SoftmaxPolicy, scope: IntArray, kappa: int
) -> IntArray:
    """Agents that act on what functions of these coordinates read up to κ steps before."""
    acts = action_matrix(mdp)
    parents = dependency_matrix(mdp)
    sees = policy.scopes.matrix(mdp.n_coordinates)
    reached = np.zeros(mdp.n_coordinates, dtype=np.bool_)
    reached[scope.reshape(-1)] = True
    agents = np.zeros(mdp.n_agents, dtype=np.bool_)
    for _ in range(kappa + 1):
        acting = (acts.T @ reached).astype(np.bool_)
        agents |= acting
        reached = (
            reached | (parents.T @ reached).astype(np.bool_) | (sees.T @ acting).astype(np.bool_)
        )
    return np.flatnonzero(agents)


def check_settings(kappa: int, objective: str, discount: float, ball_bytes: int) -> None:
    """Refuses settings out of range."""
    for field, value, least in (("kappa", kappa, 0), ("ball_bytes", ball_bytes, 8)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise InputError(f"{field} is {value!r}; it must be a whole number ≥ {least}")
    if objective not in ("reward", "entropy"):
        raise InputError(f"objective is {objective!r}; choose reward or entropy")
    if not 0.0 < discount <= 1.0:
        raise InputError(f"discount is {discount}; it must lie in (0, 1], 1 for average reward")


def _is_closed(ball: Ball, sites: Sites) -> bool:
    """Whether the last step that kept all states read nothing new, so that more steps cost the same."""
    step = ball.steps[-1]
    before = [
        sites.classes[kind].rows[rows] for kind, rows in zip(step.kinds, step.sites, strict=True)
    ]
    if len(before) != len(step.scope):
        return False
    return bool((np.sort(np.stack(before), axis=0) == np.sort(np.stack(step.scope), axis=0)).all())


def plan_balls(
    sites: Sites,
    sources: Sources,
    layout: Layout,
    kappa: int,
    budget: int,
    refused: list[tuple[int, IntArray]] | None = None,
    within: NDArray[np.bool_] | None = None,
) -> list[Ball]:
    """The balls of all sources; see `Planner`.

    Args:
        sites: The closed-loop kernels.
        sources: The sources.
        layout: For groups and scopes of the agents.
        kappa: κ.
        budget: Bytes of the largest tensor of one ball.
        refused: Collects what is over the budget; None raises.
        within: (N,) bool: only sources with one of these coordinates; None for all.
    """
    planner = Planner(sites, layout, budget, refused)
    balls = []
    for index, source in enumerate(sources.classes):
        rows = np.arange(len(source.scope))
        if within is not None:
            rows = np.flatnonzero(within[source.scope].any(axis=1))
        for ball in planner.balls(index, at_rows(source.scope, rows), kappa):
            balls.append(ball if within is None else replace(ball, rows=rows[ball.rows]))
    return balls


def coordinates_that_reach(
    mdp: FactoredMDP, policy: SoftmaxPolicy, agents: NDArray[np.bool_], kappa: int
) -> NDArray[np.bool_]:
    """(N,) whether a function of a coordinate meets one of the agents in κ steps back or fewer."""
    acts, parents = action_matrix(mdp), dependency_matrix(mdp)
    sees = policy.scopes.matrix(mdp.n_coordinates)
    direct = (acts @ agents).astype(np.bool_)
    reached = direct
    for _ in range(kappa):
        reached = direct | reached | (parents @ reached) | (acts @ (sees @ reached))
        reached = reached.astype(np.bool_)
    return reached


def ball_sizes(mdp: FactoredMDP, policy: SoftmaxPolicy, kappa: int) -> IntArray:
    """(K,) how many coordinates an agent's action can move within κ + 1 steps: what it must hear of.

    Those it acts on, what these reach through state parents, and what agents reach that see them, κ times.
    """
    acts = sp.csr_array(action_matrix(mdp), dtype=np.int8)
    parents = sp.csr_array(dependency_matrix(mdp), dtype=np.int8)
    sees = sp.csr_array(policy.scopes.matrix(mdp.n_coordinates), dtype=np.int8)
    step = sp.csr_array(parents + acts @ sees)
    reached = acts
    for _ in range(kappa):
        before = reached.nnz
        step.data[:], reached.data[:] = 1, 1
        reached = sp.csr_array(reached + step @ reached)
        if reached.nnz == before:
            break
    return np.bincount(reached.indices, minlength=mdp.n_agents)


def largest_that_fits(
    sites: Sites, sources: Sources, layout: Layout, at_most: int, budget: int
) -> int:
    """The largest κ ≤ `at_most` whose balls fit; −1 if none does."""
    fits = -1
    for kappa in range(at_most + 1):
        try:
            plan_balls(sites, sources, layout, kappa, budget)
        except BallTooLarge:
            break
        fits = kappa
    return fits
