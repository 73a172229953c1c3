"""How far realised logits are from those that were asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchloc.improvement.fit.problem import Problem
from torchloc.improvement.prox import kl, log_law, span


@dataclass(frozen=True, eq=False)
class FitReport:
    """How well a fit went, measured on the policy after it.

    Attributes:
        method: `assigned` (tables), `levenberg` or `adam`.
        taken: (B,) steps of each agent, accepted and rejected.
        error_span: (B, M) float64 span over actions of z − target: e of the ledger's fit error.
        deviation: (B,) float64 largest |z − target| of an agent, both centred over actions.
        kl: (B,) float64 largest KL(target law ‖ realised law) of an agent over its M rows.
        objective: (B,) float64 what was brought down: the mean over rows of ‖z − target‖², centred,
            or for `ascend_prox` the distance of the prox objective to its supremum.
    """

    method: str
    taken: Tensor
    error_span: Tensor
    deviation: Tensor
    kl: Tensor
    objective: Tensor

    @property
    def steps(self) -> int:
        """Most steps that an agent took."""
        return int(self.taken.max()) if len(self.taken) else 0

    @property
    def residual(self) -> float:
        """Largest |z − target| over agents, rows and actions, both centred over actions."""
        return float(self.deviation.max()) if len(self.deviation) else 0.0


def measured(
    method: str, taken: Tensor, logits: Tensor, part: Problem, *, objective: Tensor | None = None
) -> FitReport:
    """The report of some agents.

    Args:
        method: As in `FitReport`.
        taken: (B,) steps.
        logits: (B, M, A) realised; −∞ where, and only where, the targets are.
        part: What was asked for.
        objective: (B,) what was brought down; None: the mean squared error.
    """
    logits, targets = logits.detach().double(), part.targets
    tau = part.temperature[:, None, None]
    error = torch.where(targets == logits, 0.0, logits - targets)
    centred = error - error.mean(dim=-1, keepdim=True)
    if objective is None:
        objective = centred.square().sum(dim=2).mean(dim=1)
    return FitReport(
        method,
        taken,
        span(error),
        centred.abs().amax(dim=(1, 2)),
        kl(log_law(targets, tau), log_law(logits, tau)).amax(dim=1),
        objective,
    )


def joined(reports: list[FitReport]) -> FitReport:
    """One report of agents that were fitted in parts."""
    fields = ("taken", "error_span", "deviation", "kl", "objective")
    values = [torch.cat([getattr(report, field) for report in reports]) for field in fields]
    return FitReport(reports[0].method, *values)
