"""Exact truncated advantages from balls of the dependency graph, for any number of agents.

For a product law ν of the state at which actions are chosen,

    Φ(π¹) = E_ν[ r(S₀, A₀) + γ V̂_κ(S₁) ],    A₀ ~ π¹,   V̂_κ = Σ_{t ≤ κ} γ^t (T^π)^t r^π held fixed,

is linear in every law π¹_k, and ∂Φ/∂π¹_k(a | s_O) = ν(s_O) (ḡ_k(s_O, a) + c(s_O)): one reverse pass
gives the scope-averaged truncated advantages of all agents, exactly. V̂_κ is a sum of functions of
balls (`contraction.balls`), so the cost is that of the balls, not of the joint space. With the
entropy objective r^π carries Σ τ_k Ent π_k from the first step on. (Paper, Sections 3 and 5.)

With `rollout` given states stand in place of ν: those of a simulation estimate the average over the
stationary law given what an agent sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from torchloc.alike import equal_columns
from torchloc.closed_loop import PolicyTables
from torchloc.contraction.balls import Ball, BallTooLarge
from torchloc.contraction.sites import SiteClass, Sites
from torchloc.errors import BudgetError, InputError
from torchloc.evaluation.joint import Objective
from torchloc.evaluation.numbers import ModelTables, Numbers
from torchloc.evaluation.problem import Memory, Problem, Reached, Selection
from torchloc.evaluation.radius import (
    BALL_BYTES,
    check_settings,
    coordinates_that_reach,
    largest_kappa,
    largest_that_fits,
    plan_balls,
)
from torchloc.evaluation.rollout import simulate
from torchloc.evaluation.sources import Sources
from torchloc.evaluation.tracked import LocalLogits, Tracked
from torchloc.evaluation.weighting import Weighting
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import IntArray, integers
from torchloc.policy import SoftmaxPolicy

SAMPLES = 64
"""States that `rollout` simulates where none are given."""
_BURN_IN = 256
KEPT_BYTES = 2**30
"""What a tracked policy keeps of its balls at most."""


class LocalEvaluation:
    """Truncated advantages of policies on the same scopes, planned once.

    Args:
        mdp: The model.
        policy: For its scopes.
        kappa: Truncation κ ≥ 0.
        agents: Plan only what reaches these agents; None for all.
        objective: `reward`, or `entropy` for J_τ.
        discount: γ in (0, 1].
        ball_bytes: Bytes of the largest tensor of one ball.
        dtype: float64, or float32 for speed.
        device: Where the work is done.

    Raises:
        InputError: A setting is out of range, or the policy does not fit the model.
        BudgetError: A ball is over the budget; the message names an agent in it, κ, the bytes and the
            largest κ that fits.

    Example:
        >>> import torchloc as tl
        >>> from torchloc.environments import sysadmin
        >>> mdp = sysadmin(n=1000)
        >>> policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
        >>> local = LocalEvaluation(mdp, policy, kappa=3)
        >>> local.logits(policy)[0].shape
        torch.Size([2, 2, 2])
    """

    def __init__(
        self,
        mdp: FactoredMDP,
        policy: SoftmaxPolicy,
        kappa: int,
        *,
        agents: ArrayLike | None = None,
        objective: Objective = "reward",
        discount: float = 1.0,
        ball_bytes: int = BALL_BYTES,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
    ) -> None:
        check_settings(kappa, objective, discount, ball_bytes)
        policy.check(mdp)
        self.mdp = mdp
        self.kappa = int(kappa)
        self.objective: Objective = objective
        self.discount = discount
        self.groups = policy.groups
        self.sites = Sites(mdp, policy)
        self.sources = Sources.of(mdp, policy, entropies=objective == "entropy")
        within = None
        self._planned = np.ones(mdp.n_agents, dtype=np.bool_)
        if agents is not None:
            self._planned[:] = False
            self._planned[_chosen(agents, mdp.n_agents)] = True
            within = coordinates_that_reach(mdp, policy, self._planned, self.kappa)
        try:
            self.balls = plan_balls(
                self.sites, self.sources, policy, self.kappa, ball_bytes, within=within
            )
        except BallTooLarge as error:
            fits = largest_that_fits(self.sites, self.sources, policy, self.kappa - 1, ball_bytes)
            mend = "no kappa fits: use smaller scopes" if fits < 0 else f"kappa={fits} fits"
            raise BudgetError(f"{error}; {mend}, or raise the budget") from None
        self._used = frozenset(
            kind for ball in self.balls for step in (*ball.steps, ball.last) for kind in step.kinds
        )
        self.model = ModelTables(self.sites, self.sources, dtype, torch.device(device))

    @property
    def flops(self) -> int:
        """Additions and multiplications of one forward pass over all balls, equal ones counted apart.

        The reverse pass costs about twice the last step's share again.
        """
        return sum(
            len(ball)
            * (sum(step.pulling().flops for step in ball.steps) + ball.last.averaging().flops)
            for ball in self.balls
        )

    def select(self, agents: ArrayLike | None = None) -> Selection:
        """Prepares the advantages of some agents; None for all that were planned.

        Raises:
            InputError: An agent that the model does not have.
        """
        wanted = self._planned.copy()
        if agents is not None:
            wanted[:] = False
            wanted[_chosen(agents, self.mdp.n_agents)] = True
        if (wanted & ~self._planned).any():
            agent = int(np.argmax(wanted & ~self._planned))
            raise InputError(
                f"agents names {agent}, for which nothing was planned; name it in LocalEvaluation too"
            )
        private = wanted & ~self.sites.is_shared
        kernels = [
            _acted(site, private if i in self._used else np.zeros_like(private))
            for i, site in enumerate(self.sites.classes)
        ]
        rewards = [_acted(site, wanted) for site in self.sources.rewards]
        shared = wanted & self.sites.is_shared
        balls = [
            part
            for origin, ball in enumerate(self.balls)
            for part in self._reaching(origin, ball, kernels, shared)
        ]
        return Selection(wanted, tuple(balls), _rows(kernels), _rows(rewards))

    def _reaching(
        self, origin: int, ball: Ball, kernels: list[np.ndarray], shared: np.ndarray
    ) -> Iterator[Reached]:
        step = ball.last
        codes = [kernels[kind][at] for kind, at in zip(step.kinds, step.sites, strict=True)]
        codes += [
            shared[self.groups[group].agents[at]]
            for group, at in zip(step.groups, step.agents, strict=True)
        ]
        n_sites = len(step.kinds)
        for code, rows in equal_columns([column.astype(np.int64) for column in codes]):
            if any(code):
                yield Reached(
                    ball if len(rows) == len(ball) else ball.at(rows),
                    origin,
                    rows,
                    tuple(i for i in range(n_sites) if code[i]),
                    tuple(i for i in range(len(step.groups)) if code[n_sites + i]),
                )

    def logits(
        self,
        policy: SoftmaxPolicy | PolicyTables,
        *,
        selection: Selection | None = None,
        weighting: Weighting = "uniform",
        states: Tensor | None = None,
    ) -> LocalLogits:
        """ḡ_k of the selected agents (all of them by default) under a policy.

        Args:
            policy: On the scopes that this evaluation was planned for.
            selection: From `select`.
            weighting: How the coordinates that an agent does not see are averaged: `uniform`, or a
                product law (N laws, or (N, max S) padded with zeros, all positive).
            states: (R, N) states to average over; where an agent sees what it sees in none of them,
                its average is by `weighting`.

        Raises:
            InputError: A law or state that does not fit, or a law with a zero.
        """
        return self.track(policy, keep=False).logits(selection, weighting=weighting, states=states)

    def track(self, policy: SoftmaxPolicy | PolicyTables, *, keep: bool = True) -> Tracked:
        """This plan with a policy's numbers, to be updated as agents move.

        Args:
            policy: On the scopes that this evaluation was planned for.
            keep: Keep what balls carry, as far as it takes no more than `KEPT_BYTES`.
        """
        for mine, other in itertools.zip_longest(self.groups, policy.groups):
            if mine is None or other is None or not mine.equals(other):
                raise InputError(
                    "the policy has other agents, scopes or sizes than the one that this evaluation "
                    "was planned for; make a new LocalEvaluation"
                )
        tables = policy if isinstance(policy, PolicyTables) else PolicyTables.read(policy)
        numbers = Numbers(self.model, self.sites, self.sources, tables, self._used)
        memory = None
        if keep and self.kappa and Memory.bytes_of(self.balls) <= KEPT_BYTES:
            memory = Memory(self.balls, self.model)
        problem = Problem(self.sites, self.sources, self.model, numbers, self.discount, memory)
        return Tracked(problem, self.mdp.state_sizes, self.select)


def local_logits(
    mdp: FactoredMDP,
    policy: SoftmaxPolicy,
    kappa: int | Literal["auto"] | IntArray,
    *,
    agents: ArrayLike | None = None,
    weighting: Weighting | Literal["rollout"] = "uniform",
    objective: Objective = "reward",
    discount: float = 1.0,
    ball_bytes: int = BALL_BYTES,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    states: Tensor | None = None,
    seed: int = 0,
) -> LocalLogits:
    """Scope-averaged truncated advantages ḡ_k, exactly, without enumerating the joint space.

    Args:
        mdp: The model.
        policy: A policy for it.
        kappa: Truncation κ ≥ 0; `auto` for the largest that fits the budget; or one κ an agent.
        agents: Which agents; None for all.
        weighting: `uniform`, a product law (one positive law a coordinate), or `rollout`: simulated
            states, uniform where an agent saw what it sees in none of them.
        objective: `reward`, or `entropy` for J_τ.
        discount: γ in (0, 1].
        ball_bytes: Bytes of the largest tensor of one ball.
        dtype: float64, or float32 for speed.
        device: Where the work is done.
        states: (R, N) states for `rollout`; None simulates some.
        seed: Of that simulation.

    Returns:
        `logits[k]` is (*S[scope_k], A_k), zero mean over a_k.

    Raises:
        InputError: A setting is out of range, or the policy does not fit the model.
        BudgetError: A ball is over the budget.

    Example:
        >>> import torchloc as tl
        >>> from torchloc.environments import sysadmin
        >>> mdp = sysadmin(n=8)
        >>> policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
        >>> joint = tl.JointEvaluation(mdp, policy)
        >>> exact = joint.over_scope(0, joint.block_logits(0, 2)).mean(dim=1)
        >>> exact = exact - exact.mean(dim=-1, keepdim=True)
        >>> local = tl.local_logits(mdp, policy, kappa=2)[0].reshape(exact.shape)
        >>> bool((local - exact).abs().max() < 1e-12)
        True
    """
    if isinstance(kappa, str):
        if kappa != "auto":
            raise InputError(f"kappa is {kappa!r}; give a whole number ≥ 0, one an agent, or auto")
        kappa = largest_kappa(mdp, policy, objective=objective, ball_bytes=ball_bytes)
    law: Weighting = "uniform" if isinstance(weighting, str) else weighting
    if isinstance(weighting, str) and weighting == "rollout":
        if states is None:
            generator = torch.Generator().manual_seed(seed)
            rollout = simulate(
                mdp, policy, steps=1, burn_in=_BURN_IN, replicas=SAMPLES, generator=generator
            )
            states = rollout.states.T
    elif states is not None:
        raise InputError("states goes with weighting=rollout only")
    elif isinstance(weighting, str):
        law = weighting

    def at(radius: Any, chosen: ArrayLike | None) -> LocalLogits:
        local = LocalEvaluation(
            mdp,
            policy,
            radius,
            agents=chosen,
            objective=objective,
            discount=discount,
            ball_bytes=ball_bytes,
            dtype=dtype,
            device=device,
        )
        return local.logits(policy, weighting=law, states=states)

    if np.ndim(kappa) == 0:
        return at(kappa, agents)
    return _joined(np.asarray(kappa), agents, mdp.n_agents, at)


def _chosen(agents: ArrayLike | None, n_agents: int) -> IntArray:
    if agents is None:
        return np.arange(n_agents)
    chosen = integers(agents, "agents", 1)
    wrong = chosen[(chosen < 0) | (chosen >= n_agents)]
    if len(wrong):
        raise InputError(
            f"agents names {int(wrong[0])}; the model has {n_agents} agents, numbered from 0"
        )
    return chosen


def _acted(site: SiteClass, wanted: np.ndarray) -> np.ndarray:
    """(B,) which sites average out the action of an agent that is wanted."""
    agents = site.local.agents[:, list(site.closed)]
    return np.asarray(wanted[agents].any(axis=1))


def _rows(masks: list[np.ndarray]) -> tuple[tuple[int, IntArray], ...]:
    return tuple((i, np.flatnonzero(mask)) for i, mask in enumerate(masks) if mask.any())


def _joined(
    kappas: np.ndarray,
    agents: ArrayLike | None,
    n_agents: int,
    at: Callable[[Any, ArrayLike], LocalLogits],
) -> LocalLogits:
    """One κ an agent: the agents of one κ together."""
    if kappas.shape != (n_agents,):
        raise InputError(
            f"kappa has shape {kappas.shape}; give one number, or one for each of {n_agents} agents"
        )
    wanted = _chosen(agents, n_agents)
    kappas = integers(kappas, "kappa", 1)
    joined: LocalLogits | None = None
    for kappa in np.unique(kappas[wanted]):
        part = at(int(kappa), wanted[kappas[wanted] == kappa])
        if joined is None:
            joined = part
            continue
        for group, values, more in zip(part.groups, joined.values, part.values, strict=True):
            rows = torch.from_numpy(np.flatnonzero(part.known[group.agents]))
            values[rows] = more[rows]
        joined.known[part.known] = True
    if joined is None:
        raise InputError("agents is empty; name at least one")
    return joined
