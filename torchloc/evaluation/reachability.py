"""Closed classes of a chain, from its 0/1 operator alone: no transition matrix is formed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchloc.evaluation.dynamics import StepOperator


def closed_classes(support: StepOperator, shape: tuple[int, ...]) -> list[int]:
    """One state (row-major index) of every closed communicating class.

    From any state, the forward set F(s) holds a closed class; F(s) is one iff every state of it
    reaches s back. Otherwise a state of F(s) that does not reach s has a strictly smaller forward
    set; of these one is taken that is furthest from s, as the states on long transient paths are
    passed over so. States that reach a class found are done with.

    Args:
        support: The operator with 1{P > 0} and 1{π > 0} for its numbers.
        shape: S.

    Returns:
        Indices, one a class, at least one.
    """
    undecided = torch.ones(shape, dtype=torch.float64)
    found: list[int] = []
    while bool(undecided.any()):
        state = int(torch.argmax(undecided))
        while True:
            start = torch.zeros(shape, dtype=torch.float64)
            start.view(-1)[state] = 1.0
            forward, distance = _closure(start, support.adjoint)
            backward, _ = _closure(start, support)
            stray = forward * (1.0 - backward)
            if not bool(stray.any()):
                break
            state = int(torch.argmax(stray * (1.0 + distance)))
        found.append(state)
        undecided = undecided * (1.0 - _closure(forward, support)[0])
    return found


def _closure(start: Tensor, step: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The states reached from `start` by any number of steps, as 0/1, and how many it takes."""
    reached, distance = start, torch.zeros_like(start)
    while True:
        grown = ((reached + step(reached)) > 0).to(torch.float64)
        if torch.equal(grown, reached):
            return reached, distance
        distance = distance + (1.0 - reached)
        reached = grown
