"""Levenberg-Marquardt in function space: quadratic where the network can represent the target.

With outputs and error as in `tangent`, the damped minimum-norm step

    θ ← θ + Jᵀ (J Jᵀ + λ I)^{-1} e

needs only O × O systems. λ is each unit's own, in units of the mean diagonal of J Jᵀ: it falls after a
step that brought ‖e‖² down and rises after one that did not, which is not taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchloc.improvement.fit.problem import Parameters, Problem
from torchloc.improvement.fit.stopping import Goal, errors
from torchloc.improvement.fit.tangent import Tangent, basis, tangent

_START, _GROW, _SHRINK = 10.0, 2.0, 0.5
_STALL = 8
"""Steps in a row that win less than a part `_LITTLE` of ‖e‖², after which a unit has stopped."""
_LITTLE = 1e-6


def levenberg(problem: Problem, goal: Goal, *, steps: int) -> tuple[Parameters, Tensor]:
    """Fitted parameters, and (U,) steps that each unit took.

    Args:
        problem: What to fit.
        goal: When a unit is done.
        steps: Most steps.
    """
    q = basis(problem.targets.shape[-1])
    least_damping = max(1e-12, torch.finfo(problem.dtype).eps)
    whole = problem.start()
    active = torch.arange(problem.n_units)
    taken = torch.zeros(problem.n_units, dtype=torch.int64)
    damping = torch.full((problem.n_units,), _START, dtype=torch.float64)
    stalled = torch.zeros(problem.n_units, dtype=torch.int64)
    work = whole
    with torch.no_grad():
        error = errors(goal.aims, problem.logits(work))
    for step in range(steps + 1):
        done = goal.reached(error, active) | (stalled >= _STALL)
        if bool(done.any()):
            for name, value in work.items():
                whole[name][active[done]] = value[done]
            keep = ~done
            active, error, damping, stalled = (x[keep] for x in (active, error, damping, stalled))
            work = {name: value[keep] for name, value in work.items()}
        if step == steps or not len(active):
            break
        rate = tangent(problem, work, active)
        trial = _moved(work, rate, (error @ q).flatten(1), damping)
        with torch.no_grad():
            there = errors(goal.aims[active], problem.logits(trial, active))
        cost, lowest = (x.square().sum(dim=(1, 2)) for x in (there, error))
        better = cost < lowest
        if bool(better.all()):
            work, error = trial, there
        else:
            work = {name: _chosen(better, trial[name], value) for name, value in work.items()}
            error = _chosen(better, there, error)
        stalled = torch.where(cost < (1.0 - _LITTLE) * lowest, 0, stalled + 1)
        damping = torch.where(better, damping * _SHRINK, damping * _GROW).clamp(least_damping, 1e6)
        taken[active] += 1
    for name, value in work.items():
        whole[name][active] = value
    return whole, taken


def _moved(parameters: Parameters, rate: Tangent, error: Tensor, damping: Tensor) -> Parameters:
    """θ + Jᵀ (J Jᵀ + λ I)^{-1} e; NaN where the system is too near to singular."""
    gram = rate.gram.double()
    scale = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-300)
    gram.diagonal(dim1=1, dim2=2).add_((damping * scale)[:, None])
    factor, failed = torch.linalg.cholesky_ex(gram)
    weight = torch.cholesky_solve(error.unsqueeze(-1), factor).squeeze(-1)
    weight = weight.masked_fill((failed > 0)[:, None], torch.nan)
    step = rate.pull(weight)
    return {name: value + step[name] for name, value in parameters.items()}


def _chosen(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *(1,) * (yes.ndim - 1)), yes, no)
