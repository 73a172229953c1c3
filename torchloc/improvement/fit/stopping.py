"""When a fit is near enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchloc.improvement.fit.problem import Problem
from torchloc.improvement.prox import kl, log_law

_FLOOR = 4.0
"""Units in the last place of the network's dtype below which no relative tolerance is asked for."""


@dataclass(frozen=True, eq=False)
class Goal:
    """Targets and how near to come; U units of M' rows each.

    Attributes:
        aims: (U, M', A) float64 target logits.
        largest: (U,) float64 deviation of a logit at which a unit is done; −1: never.
        temperature: (U, M', 1) τ.
        kl: KL(target law ‖ realised law), largest over the rows, at which a unit is done; 0: never.
    """

    aims: Tensor
    largest: Tensor
    temperature: Tensor
    kl: float

    def reached(self, error: Tensor, units: Tensor) -> Tensor:
        """(u,) whether units with these errors, (u, M', A), are done."""
        result = error.abs().flatten(1).amax(dim=1) <= self.largest[units]
        if self.kl > 0:
            aims, tau = self.aims[units], self.temperature[units]
            gap = kl(log_law(aims, tau), log_law(aims - error, tau)).amax(dim=1)
            result = result | (gap <= self.kl)
        return result


def errors(aims: Tensor, logits: Tensor) -> Tensor:
    """(…, A) float64 target − z without what is common to all actions, which no law sees."""
    error = aims - logits.double()
    return error - error.mean(dim=-1, keepdim=True)


def goal_of(part: Problem, *, tolerance: float, kl_tolerance: float) -> Goal:
    """The goal of a problem.

    Args:
        part: The problem.
        tolerance: Part of 1 + max |centred target| that a deviation may have; 0: never done by it.
        kl_tolerance: Of the KL gap; 0: never done by it.
    """
    aims = part.by_unit(part.aims())
    precision = _FLOOR * torch.finfo(part.dtype).eps
    size = 1.0 + errors(aims, torch.zeros_like(aims)).abs().flatten(1).amax(dim=1)
    largest = max(tolerance, precision) * size if tolerance > 0 else torch.full_like(size, -1.0)
    tau = part.temperature[:, None, None].expand(*part.targets.shape[:2], 1)
    return Goal(aims, largest, part.by_unit(tau), kl_tolerance)
