"""Least squares on logits, centred over actions."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from torchloc.errors import BudgetError, InputError
from torchloc.improvement.fit.adam import adam
from torchloc.improvement.fit.levenberg import levenberg
from torchloc.improvement.fit.problem import Problem, assigned, check_settings, problem
from torchloc.improvement.fit.report import FitReport, joined, measured
from torchloc.improvement.fit.stopping import Goal, errors, goal_of
from torchloc.improvement.fit.tangent import tangent_bytes
from torchloc.policy import SoftmaxPolicy, Tabular

FitMethod = Literal["auto", "levenberg", "adam"]
TANGENT_BUDGET = 2**28
"""Bytes that one Gauss-Newton step of one agent may take; `auto` goes to a quarter of it."""
LEVENBERG_STEPS, ADAM_STEPS = 60, 2000


def fit_logits(
    policy: SoftmaxPolicy,
    index: int,
    rows: Tensor,
    targets: Tensor,
    *,
    method: FitMethod = "auto",
    steps: int | None = None,
    tolerance: float = 1e-10,
    kl_tolerance: float = 0.0,
    observations: Tensor | None = None,
    rate: float = 1e-2,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> FitReport:
    """Fits some agents of a group to target logits, in place, from the weights they have.

    Args:
        policy: The policy.
        index: Which group.
        rows: (B,) distinct rows of the group.
        targets: (B, M, A) logits; networks are fitted to them up to a constant per row.
        method: `levenberg`, `adam`, or `auto`: the first where it is small enough and no `batch` is
            given.
        steps: Most steps; None: 60, or 2000 of Adam.
        tolerance: An agent is done when its largest deviation is at most this part of
            1 + max |target|, or what the precision of the network allows; 0: only the KL gap counts.
        kl_tolerance: An agent is done when KL(target law ‖ realised law), largest over its rows, is
            at most this; 0: only the deviation counts. Agents that no longer gain stop as well.
        observations: (B, M, m) int64 local observations that the targets are for; None: all M = R
            scope states. Everything is measured on these only.
        rate: Pace of Adam at first.
        batch: Rows of each agent in one step of Adam, drawn anew; None: all.
        generator: Draws them; None: seeded with 0.

    Raises:
        InputError: A network is asked for −∞, shapes do not fit, a setting is out of range, or all
            parameters are shared with agents that are not fitted.
        BudgetError: The scope states are too many to enumerate, or a step of `levenberg` is too
            large.
    """
    check_settings(steps, rate, batch, tolerance=tolerance, kl_tolerance=kl_tolerance)
    asked = problem(policy, index, rows, targets, observations)
    if isinstance(asked.network, Tabular):
        return measured("assigned", *assigned(asked, everywhere=observations is None), asked)
    if not bool(torch.isfinite(asked.targets).all()):
        raise InputError(
            "a network cannot represent a forbidden action (a logit of −∞); use policy=tabular"
        )
    size = tangent_bytes(asked)
    chosen = _chosen(method, size, asked, batch)
    generator = generator or torch.Generator().manual_seed(0)
    reports = []
    for part in asked.parts(asked.part_size(size)):
        goal = goal_of(part, tolerance=tolerance, kl_tolerance=kl_tolerance)
        if chosen == "levenberg":
            found, taken = levenberg(part, goal, steps=LEVENBERG_STEPS if steps is None else steps)
        else:
            found, taken = adam(
                part,
                partial(_mean_square, part, goal),
                partial(_done, goal),
                steps=ADAM_STEPS if steps is None else steps,
                rate=rate,
                batch=batch,
                generator=generator,
            )
        part.write(found)
        logits = part.by_agent(part.logits(found))
        reports.append(measured(chosen, part.each(taken), logits, part))
    return joined(reports)


def _chosen(
    method: FitMethod, size: int, asked: Problem, batch: int | None
) -> Literal["levenberg", "adam"]:
    """The method of a fit whose Gauss-Newton step takes `size` bytes a unit."""
    if method not in ("auto", "levenberg", "adam"):
        raise InputError(f"method is {method!r}; choose auto, levenberg or adam")
    if method == "auto":
        return "levenberg" if 4 * size <= TANGENT_BUDGET and batch is None else "adam"
    if method == "levenberg" and batch is not None:
        raise InputError(f"batch is {batch}, but levenberg takes all rows; use method=adam")
    if method == "levenberg" and size > TANGENT_BUDGET:
        n_agents, n_rows, n_actions = asked.targets.shape
        whose = f"{n_agents} agents that share parameters" if asked.joint else "an agent"
        raise BudgetError(
            f"a Gauss-Newton step takes {size} bytes ({whose}, {n_rows} observations each, "
            f"{n_actions} actions), over the budget of {TANGENT_BUDGET}; use method=adam"
        )
    return method


def _mean_square(
    part: Problem, goal: Goal, logits: Tensor, units: Tensor, columns: Tensor | None
) -> Tensor:
    """(u,) mean over rows of the squared error."""
    error = errors(part.at(goal.aims, units, columns), logits)
    return error.square().sum(dim=2).mean(dim=1)


def _done(goal: Goal, logits: Tensor, _: Tensor, units: Tensor) -> Tensor:
    return goal.reached(errors(goal.aims[units], logits), units)
