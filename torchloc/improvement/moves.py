"""The update of some agents of one group: prox step, price, fit.

Axis letters: B agents, R scope states, A actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchloc.evaluation.joint import Objective
from torchloc.improvement.fit import ASCENT_STEPS, ascend_prox, fit_logits
from torchloc.improvement.ledger import BlockRecord
from torchloc.improvement.prox import kl, log_law, prox_logits
from torchloc.improvement.settings import Improvement
from torchloc.policy import SoftmaxPolicy
from torchloc.shapes import Float

Charge = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""What locality costs, taken from a step: group, (B,) rows, (B, R, A) logits of the unpriced step,
(B,) stiffness η + τ' and (B, R) law of what the agents see (None: uniform) → (B, R, A) logits."""


@dataclass(frozen=True, eq=False)
class Move:
    """An update that was carried out.

    Attributes:
        index: The group.
        rows: (B,) its agents.
        old: (B, R, A) logits before.
        wanted: (B, R, A) logits of the prox step.
        aim: (B, R, A) what was fitted: `wanted`, or what a price or the guard made of it.
        new: (B, R, A) logits realised.
        temperature: (B, 1, 1) τ.
        prox: (B, 1, 1) η.
    """

    index: int
    rows: Tensor
    old: Float[Tensor, "B R A"]
    wanted: Float[Tensor, "B R A"]
    aim: Float[Tensor, "B R A"]
    new: Float[Tensor, "B R A"]
    temperature: Tensor
    prox: Tensor

    def worth(
        self, objective: Objective, law: Float[Tensor, "B R"] | None
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Prox gain and total variation of each agent, expected under a law of what it sees (None: uniform).

        The first is η KL(μ‖π) + (η + τ') KL(π‖μ), what an exact prox step gains but for its errors.
        """
        old, new = log_law(self.old, self.temperature), log_law(self.new, self.temperature)
        eta = self.prox[..., 0]
        price = eta + (self.temperature[..., 0] if objective == "entropy" else 0.0)
        gain = eta * kl(new, old) + price * kl(old, new)
        tv = 0.5 * (new.exp() - old.exp()).abs().sum(dim=-1)
        if law is None:
            return gain.mean(dim=1), tv.mean(dim=1)
        return (law * gain).sum(dim=1), (law * tv).sum(dim=1)


@dataclass(frozen=True, eq=False)
class Gains:
    """What a sweep moved, agent by agent: certified where there is a ledger, estimated elsewhere.

    Attributes:
        prox_gain: (K,) expected η KL(μ‖π) + (η + τ') KL(π‖μ).
        total_variation: (K,) expected TV(μ_k, π_k).
    """

    prox_gain: Float[Tensor, " K"]
    total_variation: Float[Tensor, " K"]

    @classmethod
    def none(cls, n_agents: int) -> Gains:
        """Nothing has moved yet."""
        return cls(*(torch.zeros(n_agents, dtype=torch.float64) for _ in range(2)))

    @classmethod
    def of(cls, records: Sequence[BlockRecord]) -> Gains:
        """Those of a ledger, a record an agent."""
        ordered = sorted(records, key=lambda record: record.agent)
        names = ("prox_gain", "total_variation")
        return cls(*(torch.tensor([getattr(r, name) for r in ordered]).double() for name in names))

    def book(
        self,
        agents: Tensor,
        made: Move,
        objective: Objective,
        law: Float[Tensor, "B R"] | None = None,
    ) -> None:
        """Adds what some agents moved."""
        gain, tv = made.worth(objective, law)
        self.prox_gain[agents] += gain
        self.total_variation[agents] += tv


def move(
    policy: SoftmaxPolicy,
    index: int,
    rows: Tensor,
    gain: Float[Tensor, "B R A"],
    settings: Improvement,
    *,
    charge: Charge | None = None,
    law: Float[Tensor, "B R"] | None = None,
    share: float = 1.0,
) -> Move:
    """Updates some agents of a group in place.

    Args:
        policy: The policy.
        index: Which group.
        rows: (B,) which of its agents.
        gain: (B, R, A) ḡ_k.
        settings: How.
        charge: Takes the price of locality from the step; None: it has none.
        law: (B, R) law of what each agent sees, for the price and the ascent; None: uniform.
        share: How much of the step in logits is taken, in (0, 1].
    """
    group = policy.groups[index]
    temperature = policy.temperature[torch.tensor(group.agents)[rows], None, None]
    prox = temperature
    if settings.prox is not None:
        prox = torch.full_like(temperature, settings.prox)

    def logits() -> Tensor:
        with torch.no_grad():
            return policy.group_logits(index)[rows].double().reshape(gain.shape)

    old, gain = logits(), gain.double()
    wanted = prox_logits(
        old, gain, temperature=temperature, prox=prox, objective=settings.objective
    )
    aim = wanted
    if charge is not None:
        stiffness = prox + (temperature if settings.objective == "entropy" else 0.0)
        aim = charge(index, rows, wanted, stiffness[:, 0, 0], law)
    if share < 1.0:
        # What was forbidden, or becomes it, has no way between.
        between = torch.where(old.isneginf() | aim.isneginf(), 0.0, aim - old)
        aim = old + share * between
    fit_logits(
        policy,
        index,
        rows,
        aim,
        method=settings.fit_method,
        steps=settings.fit_steps,
        tolerance=settings.fit_tolerance,
        kl_tolerance=settings.fit_kl,
        rate=settings.fit_rate,
        batch=settings.fit_batch,
    )
    if settings.fit_ascend and aim is wanted:
        steps = ASCENT_STEPS if settings.fit_steps is None else settings.fit_steps
        ascend_prox(
            policy,
            index,
            rows,
            gain,
            prox=prox[:, 0, 0],
            objective=settings.objective,
            anchor=old,
            weights=law,
            rate=settings.fit_rate,
            batch=settings.fit_batch,
            steps=steps,
        )
    return Move(index, rows, old, wanted, aim, logits(), temperature, prox)
