"""What a policy earns, computed exactly or simulated, in the same words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torchloc.evaluation.joint import Objective
from torchloc.evaluation.rollout import Rollout


class Values(Protocol):
    """What the loop, the measures and the closing tables read of an evaluation."""

    @property
    def discount(self) -> float:
        """γ."""
        ...

    @property
    def reward_rate(self) -> float:
        """r̄ of the plain reward, per step of the whole system."""
        ...

    @property
    def entropy_rate(self) -> float:
        """Σ_k τ_k Ent π_k on average."""
        ...

    @property
    def value(self) -> float:
        """What the run maximises."""
        ...

    @property
    def width(self) -> float:
        """Uncertainty of `value`: Odoni width of an exact solve, half an interval of a simulation."""
        ...

    @property
    def marginals(self) -> Tensor:
        """(N, max S) float64 law of each coordinate, padded with zeros."""
        ...

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, N) states, distributed as under the policy."""
        ...


@dataclass(frozen=True, eq=False)
class SimulatedValues:
    """A simulation's estimates.

    Attributes:
        rollout: The simulation, with the entropy objective.
        objective: What the run maximises.
        discount: γ.
    """

    rollout: Rollout
    objective: Objective
    discount: float

    @property
    def reward_rate(self) -> float:
        """Estimate of r̄."""
        return self.rollout.average_reward

    @property
    def entropy_rate(self) -> float:
        """Estimate of Σ_k τ_k Ent π_k on average."""
        horizon = 1.0 if self.discount == 1.0 else 1.0 / (1.0 - self.discount)
        return self.rollout.objective_value / horizon - self.rollout.average_reward

    @property
    def value(self) -> float:
        """Estimate of what the run maximises."""
        if self.objective == "entropy":
            return self.rollout.objective_value
        horizon = 1.0 if self.discount == 1.0 else 1.0 / (1.0 - self.discount)
        return self.rollout.average_reward * horizon

    @property
    def width(self) -> float:
        """Half width of the interval of `value`."""
        if self.objective == "entropy":
            return self.rollout.objective_half_width
        horizon = 1.0 if self.discount == 1.0 else 1.0 / (1.0 - self.discount)
        return self.rollout.half_width * horizon

    @property
    def marginals(self) -> Tensor:
        """(N, max S) visit frequencies."""
        return self.rollout.marginals.cpu()

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, N) int64 last states of randomly chosen replicas."""
        states = self.rollout.states
        chosen = torch.randint(states.shape[1], (count,), generator=generator)
        return states[:, chosen.to(states.device)].T.long().cpu()
