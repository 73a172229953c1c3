"""One pass over the agents: block after block, colour after colour, or all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from torchloc.errors import InputError
from torchloc.evaluation.joint import JointEvaluation, Objective
from torchloc.evaluation.local import LocalEvaluation
from torchloc.evaluation.problem import Selection
from torchloc.evaluation.weighting import Weighting as LocalWeighting
from torchloc.improvement.fit import FitMethod, fit_logits
from torchloc.improvement.ledger import BlockRecord, block_record
from torchloc.improvement.prox import BlockTarget, Weighting, block_target, prox_logits
from torchloc.mdp.checks import IntArray
from torchloc.policy import SoftmaxPolicy


@dataclass(frozen=True)
class Improvement:
    """How blocks are updated.

    Attributes:
        order: `cyclic` recomputes the evaluation after every block, which Corollary 15 needs;
            `chromatic` moves blocks together whose truncated advantages do not see each other, with
            the iterates of a cyclic pass in the order of the colours (theory: conflict graph);
            `jacobi` computes every block from the same baseline, as Algorithm 1 is printed, without
            a guarantee.
        objective: `entropy` for J_τ, or `reward`.
        weighting: How unseen coordinates are averaged: `stationary`, `marginal` (product of the
            stationary marginals) or `uniform`. The last two do not change within a pass of the
            local engine, nor does `stationary`, which it simulates.
        prox: η; None takes η = τ, as the paper does.
        fit_method: How networks are fitted: `levenberg`, `adam`, or `auto` by size.
        fit_steps: Most steps of the fit of a network; None: what suits the method.
        fit_tolerance: Relative residual at which a fit stops.

    Raises:
        InputError: A value is out of range.
    """

    order: Literal["cyclic", "chromatic", "jacobi"] = "cyclic"
    objective: Objective = "entropy"
    weighting: Weighting = "stationary"
    prox: float | None = None
    fit_method: FitMethod = "auto"
    fit_steps: int | None = None
    fit_tolerance: float = 1e-10

    def __post_init__(self) -> None:
        for field, allowed in (
            ("order", ("cyclic", "chromatic", "jacobi")),
            ("objective", ("entropy", "reward")),
            ("fit_method", ("auto", "levenberg", "adam")),
            ("weighting", ("stationary", "marginal", "uniform")),
        ):
            if getattr(self, field) not in allowed:
                raise InputError(
                    f"{field} is {getattr(self, field)!r}; choose one of {', '.join(allowed)}"
                )
        if self.prox is not None and not (
            self.prox > 0 or (self.prox == 0 and self.objective == "entropy")
        ):
            raise InputError(
                f"prox is {self.prox}; it must be > 0, or 0 with objective=entropy, or null for η = τ"
            )
        if (self.fit_steps is not None and self.fit_steps < 1) or not self.fit_tolerance > 0:
            raise InputError(
                f"fit_steps is {self.fit_steps} and fit_tolerance {self.fit_tolerance}; "
                f"they must be ≥ 1 and > 0"
            )


@dataclass(frozen=True, eq=False)
class _Move:
    """An update of one agent that was carried out."""

    target: BlockTarget
    old: Tensor
    wanted: Tensor
    new: Tensor
    temperature: float
    prox: float


def _move(policy: SoftmaxPolicy, target: BlockTarget, settings: Improvement) -> _Move:
    """Updates the agent of `target` in place."""
    k = target.agent
    index, row = int(policy.group_of[k]), int(policy.row_of[k])
    temperature = float(policy.temperature[k])
    prox = temperature if settings.prox is None else settings.prox

    def logits() -> Tensor:
        return policy.logits(k).double().reshape(target.average.shape)

    old = logits()
    wanted = prox_logits(
        old, target.average, temperature=temperature, prox=prox, objective=settings.objective
    )
    fit_logits(
        policy,
        index,
        torch.tensor([row]),
        wanted.unsqueeze(0),
        method=settings.fit_method,
        steps=settings.fit_steps,
        tolerance=settings.fit_tolerance,
    )
    return _Move(target, old, wanted, logits(), temperature, prox)


def cyclic_sweep(
    joint: JointEvaluation,
    policy: SoftmaxPolicy,
    settings: Improvement,
    kappa: int | None,
    epsilon: Callable[[SoftmaxPolicy], Tensor],
) -> tuple[JointEvaluation, list[BlockRecord]]:
    """Updates every agent once, in order, each from the policy that the one before left.

    Args:
        joint: Evaluation of `policy` as it is.
        policy: Changed in place.
        settings: How.
        kappa: Truncation κ of the advantages; None for exact ones.
        epsilon: policy ↦ (K,) certified ε_k at this κ; asked for before every block.

    Returns:
        Evaluation of the final policy, and one record a block.

    Raises:
        SolveError: A solve failed, or a guarantee was above the gain it bounds.
    """
    records = []
    for k in range(policy.n_agents):
        bound = float(epsilon(policy)[k])
        move = _move(policy, block_target(joint, k, kappa, settings.weighting), settings)
        after = joint.renewed(policy)
        record = block_record(
            joint,
            after,
            move.target,
            old_logits=move.old,
            wanted_logits=move.wanted,
            new_logits=move.new,
            temperature=move.temperature,
            prox=move.prox,
            epsilon=bound,
        )
        record.check()
        records.append(record)
        joint = after
    return joint, records


def jacobi_sweep(
    joint: JointEvaluation,
    policy: SoftmaxPolicy,
    settings: Improvement,
    kappa: int | None,
) -> JointEvaluation:
    """Updates every agent once, all from the baseline that `joint` evaluates (Algorithm 1 as printed).

    No guarantee holds for the joint move; compare `value` before and after.

    Returns:
        Evaluation of the final policy.
    """
    return coloured_sweep(joint, policy, settings, kappa, (np.arange(policy.n_agents),))


def coloured_sweep(
    joint: JointEvaluation,
    policy: SoftmaxPolicy,
    settings: Improvement,
    kappa: int | None,
    colours: Sequence[IntArray],
) -> JointEvaluation:
    """Updates the agents of one colour together, each colour from the policy that the one before left.

    Args:
        joint: Evaluation of `policy` as it is.
        policy: Changed in place.
        settings: How.
        kappa: Truncation κ of the advantages.
        colours: The agents of each colour.

    Returns:
        Evaluation of the final policy.
    """
    for agents in colours:
        targets = [block_target(joint, int(k), kappa, settings.weighting) for k in agents]
        for target in targets:
            _move(policy, target, settings)
        joint = joint.renewed(policy)
    return joint


def chromatic_sweep(
    local: LocalEvaluation,
    colours: Sequence[Selection],
    policy: SoftmaxPolicy,
    settings: Improvement,
    weighting: LocalWeighting = "uniform",
    states: Tensor | None = None,
) -> None:
    """Updates the agents of one colour together, with truncated advantages from their balls.

    Where no two agents of a colour conflict (`colouring.conflict_graph`) the iterates are those of
    one agent after another in the order of the colours, as weighting and states are the same
    throughout.

    Args:
        local: The plan of the balls.
        colours: The agents of each colour, from `local.select`.
        policy: Changed in place.
        settings: How; order and weighting are not read.
        weighting: As in `LocalEvaluation.logits`.
        states: Likewise.
    """
    tracked = local.track(policy)
    for number, selection in enumerate(colours):
        found = tracked.logits(selection, weighting=weighting, states=states)
        for index, group in enumerate(policy.groups):
            rows = torch.from_numpy(np.flatnonzero(selection.agents[group.agents]))
            if not len(rows):
                continue
            temperature = policy.temperature[torch.tensor(group.agents)][rows, None, None]
            with torch.no_grad():
                old = policy.group_logits(index)[rows].double()
            wanted = prox_logits(
                old,
                found.values[index][rows].double().reshape(old.shape),
                temperature=temperature,
                prox=temperature if settings.prox is None else settings.prox,
                objective=settings.objective,
            )
            fit_logits(
                policy,
                index,
                rows,
                wanted,
                method=settings.fit_method,
                steps=settings.fit_steps,
                tolerance=settings.fit_tolerance,
            )
        if number + 1 < len(colours):
            tracked.moved(policy, selection.agents)
