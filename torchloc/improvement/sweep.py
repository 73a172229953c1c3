"""One pass over the agents: block after block, colour after colour, or all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from torchloc.evaluation.joint import JointEvaluation
from torchloc.evaluation.local import LocalEvaluation
from torchloc.evaluation.problem import Selection
from torchloc.evaluation.weighting import Weighting as LocalWeighting
from torchloc.improvement.ledger import BlockRecord, block_record
from torchloc.improvement.moves import Charge, Gains, Move, move
from torchloc.improvement.prox import BlockTarget, block_target
from torchloc.improvement.settings import Improvement
from torchloc.mdp.checks import IntArray
from torchloc.policy import SoftmaxPolicy

_LEAST = 2.0**-4
"""Share of a step below which `guard=damp` takes a block back."""


def cyclic_sweep(
    joint: JointEvaluation,
    policy: SoftmaxPolicy,
    settings: Improvement,
    kappa: int | None,
    epsilon: Callable[[SoftmaxPolicy], Tensor],
    charge: Charge | None = None,
) -> tuple[JointEvaluation, list[BlockRecord]]:
    """Updates every agent once, in order, each from the policy that the one before left.

    Args:
        joint: Evaluation of `policy` as it is.
        policy: Changed in place.
        settings: How.
        kappa: Truncation κ of the advantages; None for exact ones.
        epsilon: policy ↦ (K,) certified ε_k at this κ; asked for before every block.
        charge: What locality costs a step; None: nothing.

    Returns:
        Evaluation of the final policy, and one record a block.

    Raises:
        SolveError: A solve failed, or a guarantee was above the gain it bounds.
    """
    records = []
    for k in range(policy.n_agents):
        bound = float(epsilon(policy)[k])
        target = block_target(joint, k, kappa, settings.weighting)
        joint, record = _guarded(joint, policy, target, settings, bound, charge)
        record.check()
        records.append(record)
    return joint, records


def _guarded(
    joint: JointEvaluation,
    policy: SoftmaxPolicy,
    target: BlockTarget,
    settings: Improvement,
    epsilon: float,
    charge: Charge | None,
) -> tuple[JointEvaluation, BlockRecord]:
    """One block, as far as the guard lets it go; the evaluation after it, and its record."""
    k = target.agent
    index, rows = int(policy.group_of[k]), torch.tensor([int(policy.row_of[k])])
    network = policy.networks[index]
    guarded = settings.guard != "none"
    before = {name: x.clone() for name, x in network.state_dict().items()} if guarded else {}
    law = joint.over_scope(k, joint.stationary).sum(dim=1).unsqueeze(0)

    share = 1.0
    while True:
        gain = target.average.unsqueeze(0)
        made = move(policy, index, rows, gain, settings, charge=charge, law=law, share=share)
        after = joint.renewed(policy)
        record = replace(_recorded(joint, after, target, made, epsilon), share=share)
        if not guarded or record.guarantee >= -record.slack:
            return after, record
        network.load_state_dict(before)
        share *= 0.5
        if settings.guard == "skip" or share < _LEAST or record.guarantee == -torch.inf:
            return joint, _taken_back(record, joint)


def _recorded(
    before: JointEvaluation,
    after: JointEvaluation,
    target: BlockTarget,
    made: Move,
    epsilon: float,
) -> BlockRecord:
    return block_record(
        before,
        after,
        target,
        old_logits=made.old[0],
        wanted_logits=made.wanted[0],
        aimed_logits=made.aim[0],
        new_logits=made.new[0],
        temperature=float(made.temperature),
        prox=float(made.prox),
        epsilon=epsilon,
    )


def _taken_back(record: BlockRecord, joint: JointEvaluation) -> BlockRecord:
    """The record of a block that was not updated: all its terms are 0."""
    terms = ("realised", "guarantee", "prox_gain", "truncation_error", "scope_error", "fit_error")
    zero = dict.fromkeys((*terms, "staleness", "total_variation", "fit_kl", "share"), 0.0)
    return replace(record, slack=2.0 * joint.width, **zero)


def jacobi_sweep(
    joint: JointEvaluation,
    policy: SoftmaxPolicy,
    settings: Improvement,
    kappa: int | None,
    charge: Charge | None = None,
) -> tuple[JointEvaluation, Gains]:
    """Updates every agent once, all from the baseline that `joint` evaluates (Algorithm 1 as printed).

    No guarantee holds for the joint move; compare `value` before and after.

    Returns:
        Evaluation of the final policy, and estimates of what each agent gained.
    """
    return coloured_sweep(joint, policy, settings, kappa, (np.arange(policy.n_agents),), charge)


def coloured_sweep(
    joint: JointEvaluation,
    policy: SoftmaxPolicy,
    settings: Improvement,
    kappa: int | None,
    colours: Sequence[IntArray],
    charge: Charge | None = None,
) -> tuple[JointEvaluation, Gains]:
    """Updates the agents of one colour together, each colour from the policy that the one before left.

    Args:
        joint: Evaluation of `policy` as it is.
        policy: Changed in place.
        settings: How.
        kappa: Truncation κ of the advantages.
        colours: The agents of each colour.
        charge: What locality costs a step; None: nothing.

    Returns:
        Evaluation of the final policy, and estimates of what each agent gained, under the law of the
        baseline of its colour.
    """
    gains = Gains.none(policy.n_agents)
    for agents in colours:
        targets = {int(k): block_target(joint, int(k), kappa, settings.weighting) for k in agents}
        for index, group in enumerate(policy.groups):
            rows = np.flatnonzero(np.isin(group.agents, agents))
            if not len(rows):
                continue
            members = group.agents[rows].tolist()
            seen = [joint.over_scope(k, joint.stationary).sum(dim=1) for k in members]
            law = torch.stack(seen)
            made = move(
                policy,
                index,
                torch.from_numpy(rows),
                torch.stack([targets[k].average for k in members]),
                settings,
                charge=charge,
                law=law,
            )
            gains.book(torch.tensor(members), made, settings.objective, law)
        joint = joint.renewed(policy)
    return joint, gains


def chromatic_sweep(
    local: LocalEvaluation,
    colours: Sequence[Selection],
    policy: SoftmaxPolicy,
    settings: Improvement,
    weighting: LocalWeighting = "uniform",
    states: Tensor | None = None,
    charge: Charge | None = None,
) -> Gains:
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
        charge: What locality costs a step, under the uniform law; None: nothing.

    Returns:
        Estimates of what each agent gained: means over all scope states alike.
    """
    gains = Gains.none(policy.n_agents)
    tracked = local.track(policy)
    for number, selection in enumerate(colours):
        found = tracked.logits(selection, weighting=weighting, states=states)
        for index, group in enumerate(policy.groups):
            rows = torch.from_numpy(np.flatnonzero(selection.agents[group.agents]))
            if len(rows):
                gain = found.values[index][rows].reshape(len(rows), group.n_rows, -1)
                made = move(policy, index, rows, gain, settings, charge=charge)
                gains.book(torch.tensor(group.agents)[rows], made, settings.objective)
        if number + 1 < len(colours):
            tracked.moved(policy, selection.agents)
    return gains
