"""Adam with a pace of its own for every unit, for what is too large for Gauss-Newton steps.

Every `_EVERY` steps the objective is measured on all rows. The parameters of the lowest value seen are
what is kept, the initial ones included, so that no unit ends worse than it began. Where the value has
not fallen by a hundredth over `_PATIENCE` such checks the pace is halved; a unit whose pace has fallen
by 2⁸ has stopped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchloc.improvement.fit.problem import Parameters, Problem

Objective = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(u, M', A) logits of units (u,) at columns of the rows (None: all) → (u,) values to bring down."""
Done = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(u, M, A) logits, (u,) values, (u,) units → (u,) whether they are done."""

_FIRST, _SECOND, _TINY = 0.9, 0.99, 1e-12
_EVERY = 10
_PATIENCE = 5
_ENOUGH = 0.99
_SLOWEST = 2.0**-8


def adam(
    problem: Problem,
    objective: Objective,
    done: Done,
    *,
    steps: int,
    rate: float,
    batch: int | None,
    generator: torch.Generator,
) -> tuple[Parameters, Tensor]:
    """Fitted parameters, and (U,) steps that each unit took.

    Args:
        problem: What to fit.
        objective: What to bring down.
        done: When a unit is done.
        steps: Most steps.
        rate: Pace at first.
        batch: Observations of an agent in one step, drawn anew; None: all.
        generator: Draws them.
    """
    n_units, n_rows = problem.n_units, problem.targets.shape[1]
    best = problem.start()
    work = {name: value.clone() for name, value in best.items()}
    first = {name: torch.zeros_like(value) for name, value in work.items()}
    second = {name: torch.zeros_like(value) for name, value in work.items()}
    active = torch.arange(n_units)
    taken = torch.zeros(n_units, dtype=torch.int64)
    lowest = torch.full((n_units,), torch.inf, dtype=torch.float64)
    pace = torch.full((n_units,), rate, dtype=torch.float64)
    idle = torch.zeros(n_units, dtype=torch.int64)
    for step in range(steps + 1):
        if step % _EVERY == 0 or step == steps:
            with torch.no_grad():
                logits = problem.logits(work, active)
                value = objective(logits, active, None)
                ended = done(logits, value, active)
            better = value < lowest
            for name, kept in best.items():
                kept[active[better]] = work[name][better]
            idle = torch.where(value < _ENOUGH * lowest, 0, idle + 1)
            lowest = torch.where(better, value, lowest)
            pace = torch.where(idle > _PATIENCE, 0.5 * pace, pace)
            idle = torch.where(idle > _PATIENCE, 0, idle)
            keep = ~(ended | (pace < _SLOWEST * rate))
            if step == steps or not bool(keep.any()):
                break
            if not bool(keep.all()):
                active, lowest, pace, idle = (x[keep] for x in (active, lowest, pace, idle))
                work, first, second = (_some(x, keep) for x in (work, first, second))
        columns = None
        if batch is not None and batch < n_rows:
            columns = torch.randperm(n_rows, generator=generator)[:batch]
        leaves = {name: value.requires_grad_() for name, value in work.items()}
        value = objective(problem.logits(leaves, active, columns), active, columns)
        gradients = torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True)
        with torch.no_grad():
            _step(work, first, second, gradients, pace, step + 1)
        taken[active] += 1
    return best, taken


def _step(
    work: Parameters,
    first: Parameters,
    second: Parameters,
    gradients: tuple[Tensor, ...],
    pace: Tensor,
    count: int,
) -> None:
    """One step of Adam, in place."""
    # Both corrections of the averages' start, in the pace.
    pace = pace * ((1.0 - _SECOND**count) ** 0.5 / (1.0 - _FIRST**count))
    for (name, value), gradient in zip(work.items(), gradients, strict=True):
        value.requires_grad_(False)
        first[name].lerp_(gradient, 1.0 - _FIRST)
        second[name].mul_(_SECOND).addcmul_(gradient, gradient, value=1.0 - _SECOND)
        size = second[name].sqrt().add_(_TINY)
        shape = (-1, *(1,) * (value.ndim - 1))
        value.sub_(pace.to(value.dtype).reshape(shape) * first[name].div(size))


def _some(parameters: Parameters, keep: Tensor) -> Parameters:
    return {name: value[keep] for name, value in parameters.items()}
