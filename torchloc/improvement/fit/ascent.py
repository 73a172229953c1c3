"""The prox objective ascended over a network's parameters."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from torchloc.errors import InputError
from torchloc.evaluation.joint import Objective
from torchloc.improvement.fit.adam import adam
from torchloc.improvement.fit.problem import Problem, assigned, check_settings, problem
from torchloc.improvement.fit.report import FitReport, joined, measured
from torchloc.improvement.fit.tangent import tangent_bytes
from torchloc.improvement.prox import kl, log_law, prox_logits
from torchloc.policy import SoftmaxPolicy, Tabular

ASCENT_STEPS = 2000


def ascend_prox(
    policy: SoftmaxPolicy,
    index: int,
    rows: Tensor,
    gain: Tensor,
    *,
    prox: float | Tensor,
    objective: Objective,
    anchor: Tensor | None = None,
    weights: Tensor | None = None,
    steps: int = ASCENT_STEPS,
    tolerance: float = 1e-12,
    observations: Tensor | None = None,
    rate: float = 1e-2,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> FitReport:
    """Ascends E_s[⟨μ, g⟩ + τ' Ent μ − η KL(μ ‖ π)] over the parameters of some agents, in place.

    What is brought down, by Adam, is the distance to the supremum over all laws, (η + τ') E_s KL(μ ‖ μ*).
    It has hardly any slope where μ hardly draws what μ* draws: a long step is better begun with
    `fit_logits`, whose direction has no such plateaus, and then ascended from `anchor`, the logits
    before both; no agent loses by it. Tables are assigned the maximiser.

    Args:
        policy: The policy.
        index: Which group.
        rows: (B,) distinct rows of the group.
        gain: (B, M, A) g.
        prox: η, one number or (B,); > 0, or ≥ 0 with the entropy objective.
        objective: `reward` or `entropy`.
        anchor: (B, M, A) logits of π; None: those that the policy has.
        weights: (B, M) weights of s an agent, of any sum; None: uniform.
        steps: Most steps.
        tolerance: An agent is done when its distance is at most this.
        observations: (B, M, m) int64 local observations that the gains are for; None: all M = R
            scope states.
        rate: Pace of Adam at first.
        batch: Rows of each agent in one step, drawn anew; None: all.
        generator: Draws them; None: seeded with 0.

    Returns:
        The report, against the closed-form target; its `objective` is the distance.

    Raises:
        InputError: Shapes do not fit, a setting is out of range, weights that are negative or all 0,
            or all parameters are shared with agents that are not fitted.
        BudgetError: The scope states are too many to enumerate.
    """
    check_settings(steps, rate, batch, tolerance=tolerance)
    asked = problem(policy, index, rows, gain, observations)
    law = _laws(weights, asked.targets)
    eta = _eta(prox, len(rows), objective)
    generator = generator or torch.Generator().manual_seed(0)
    size = asked.part_size(tangent_bytes(asked))
    reports = []
    old = None if anchor is None else _like(anchor, asked.targets, "anchor").split(size)
    pieces = zip(asked.parts(size), law.split(size), eta.split(size), strict=True)
    for place, (part, mass, weight) in enumerate(pieces):
        tau = part.temperature[:, None, None]
        wanted = prox_logits(
            part.by_agent(part.logits(part.start())).double() if old is None else old[place],
            part.targets,
            temperature=tau,
            prox=weight[:, None, None],
            objective=objective,
        )
        part = replace(part, targets=wanted)
        price = weight + (part.temperature if objective == "entropy" else 0.0)
        factor, best = mass * price[:, None], log_law(wanted, tau)
        if isinstance(part.network, Tabular):
            taken, logits = assigned(part, everywhere=observations is None)
        else:
            tau_of = tau.expand(*factor.shape, 1)
            found, taken = adam(
                part,
                partial(_distance, part, *map(part.by_unit, (factor, best, tau_of))),
                lambda _, value, __: value <= tolerance,
                steps=steps,
                rate=rate,
                batch=batch,
                generator=generator,
            )
            part.write(found)
            taken, logits = part.each(taken), part.by_agent(part.logits(found))
        left = (factor * kl(log_law(logits, tau), best)).sum(dim=1)
        how = "assigned" if isinstance(part.network, Tabular) else "adam"
        reports.append(measured(how, taken, logits, part, objective=left))
    return joined(reports)


def _distance(
    part: Problem,
    factor: Tensor,
    best: Tensor,
    tau: Tensor,
    logits: Tensor,
    units: Tensor,
    columns: Tensor | None,
) -> Tensor:
    """(u,) Σ factor KL(μ ‖ μ*) over the rows, or that many times its mean over some of them."""
    weight, wanted, tau = (part.at(x, units, columns) for x in (factor, best, tau))
    terms = weight * kl(log_law(logits, tau), wanted)
    return terms.mean(dim=1) * factor.shape[1]


def _like(values: Tensor, other: Tensor, field: str) -> Tensor:
    """`values` in float64, which must have the shape of `other`."""
    if values.shape != other.shape:
        raise InputError(
            f"{field} has shape {tuple(values.shape)}; {tuple(other.shape)} is needed, as the gains"
        )
    return values.double()


def _eta(prox: float | Tensor, n_agents: int, objective: Objective) -> Tensor:
    """(B,) float64 η."""
    eta = torch.as_tensor(prox, dtype=torch.float64)
    if eta.ndim > 1 or (eta.ndim == 1 and len(eta) != n_agents):
        raise InputError(
            f"prox has shape {tuple(eta.shape)}; give one number, or one for each of the {n_agents} rows"
        )
    eta = eta.expand(n_agents)
    bad = ~(torch.isfinite(eta) & ((eta > 0) | ((eta == 0) & (objective == "entropy"))))
    if bool(bad.any()):
        raise InputError(
            f"prox is {float(eta[bad][0]):.6g}; it must be > 0 (0 is allowed with objective=entropy, "
            f"where the step is soft policy iteration)"
        )
    return eta


def _laws(weights: Tensor | None, targets: Tensor) -> Tensor:
    """(B, M) float64 laws from weights."""
    if weights is None:
        return torch.full(targets.shape[:2], 1.0 / targets.shape[1], dtype=torch.float64)
    law = _like(weights, targets[..., 0], "weights")
    total = law.sum(dim=1, keepdim=True)
    if bool((law < 0).any()) or not bool((torch.isfinite(total) & (total > 0)).all()):
        raise InputError("weights must be finite and ≥ 0, and > 0 somewhere for every agent")
    return law / total
