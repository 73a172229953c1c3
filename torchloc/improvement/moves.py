"""The update of some agents of one group: prox step, price, fit.

Axis letters: B agents, R scope states, A actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchloc.improvement.fit import ASCENT_STEPS, ascend_prox, fit_logits
from torchloc.improvement.prox import prox_logits
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
