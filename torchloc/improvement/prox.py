"""The KL-prox step of one block, on logits.

Agent k maximises, at every scope state,

    ⟨μ, g⟩ − η KL(μ ‖ π)              objective `reward`     z_new = z + (τ/η) g
    ⟨μ, g⟩ + τ Ent μ − η KL(μ ‖ π)     objective `entropy`    z_new = (η z + τ g) / (η + τ)

in closed form on the logits z of π = softmax(z/τ); η = τ is the paper's choice (Eq. 1, Algorithm 1,
Lemma 13), η = 0 with entropy is soft policy iteration. g is g_k(s, ·) averaged over the coordinates
that agent k does not see.

Axis letters: R scope states, U states of the unseen coordinates, A actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchloc.errors import InputError
from torchloc.evaluation.joint import JointEvaluation, Objective
from torchloc.policy import scaled_logits
from torchloc.shapes import Float

Weighting = Literal["stationary", "marginal", "uniform"]
"""By d^π given what the agent sees, by the product of its marginals, or all states equally."""


@dataclass(frozen=True, eq=False)
class BlockTarget:
    """What one agent's update is computed from.

    Attributes:
        agent: k.
        gain: (R, U, A) float64 ĝ_k(s, a), scope states first.
        average: (R, A) float64 ḡ_k(s_O, a), its weighted mean over the unseen coordinates, zero
            mean over a.
        scope_error: (R,) float64 ω_k(s_O) = sup over unseen of span_a(ĝ_k − ḡ_k).
    """

    agent: int
    gain: Float[Tensor, "R U A"]
    average: Float[Tensor, "R A"]
    scope_error: Float[Tensor, " R"]


def span(values: Float[Tensor, "*rows A"]) -> Float[Tensor, "*rows"]:
    """(…, A) → (…): max − min over the actions."""
    return values.amax(dim=-1) - values.amin(dim=-1)


def block_target(
    joint: JointEvaluation, k: int, kappa: int | None, weighting: Weighting = "stationary"
) -> BlockTarget:
    """ĝ_k from the joint engine, and its average over what agent k does not see.

    Args:
        joint: Evaluation of the baseline policy.
        k: Agent.
        kappa: Truncation κ; None uses the exact h.
        weighting: `stationary` weighs unseen coordinates by d^π given s_O (uniformly where d^π(s_O)
            = 0), `marginal` by the product of the marginals of d^π, `uniform` all their states equally.

    Raises:
        InputError: Unknown weighting.
    """
    gain = joint.over_scope(k, joint.block_logits(k, kappa))
    if weighting == "uniform":
        average = gain.mean(dim=1)
    elif weighting in ("stationary", "marginal"):
        law = joint.stationary if weighting == "stationary" else joint.marginal_product
        weight = joint.over_scope(k, law)
        total = weight.sum(dim=1, keepdim=True)
        even = torch.full_like(weight, 1.0 / weight.shape[1])
        weight = torch.where(total > 0, weight / total, even)
        average = (weight.unsqueeze(-1) * gain).sum(dim=1)
    else:
        raise InputError(f"weighting is {weighting!r}; choose stationary, marginal or uniform")
    scope_error = span(gain - average.unsqueeze(1)).amax(dim=1)
    return BlockTarget(k, gain, average - average.mean(dim=-1, keepdim=True), scope_error)


def prox_logits(
    logits: Float[Tensor, "*rows A"],
    gain: Float[Tensor, "*rows A"],
    *,
    temperature: Tensor | float,
    prox: Tensor | float,
    objective: Objective,
) -> Float[Tensor, "*rows A"]:
    """The closed-form prox step.

    Args:
        logits: (…, A) z of the baseline; −∞ stays −∞ unless η = 0.
        gain: (…, A) g.
        temperature: τ > 0, broadcastable to (…, 1).
        prox: η ≥ 0, likewise; 0 only with the entropy objective.
        objective: `reward` or `entropy`.

    Returns:
        (…, A) logits of the maximiser at temperature τ.

    Raises:
        InputError: η < 0, or η = 0 with the reward objective, whose maximiser is then no softmax.
    """
    tau = torch.as_tensor(temperature, dtype=logits.dtype)
    eta = torch.as_tensor(prox, dtype=logits.dtype)
    if bool((eta < 0).any()) or (objective == "reward" and bool((eta == 0).any())):
        raise InputError(
            f"prox is {prox}; it must be > 0 (0 is allowed with objective=entropy, where the step is soft "
            f"policy iteration)"
        )
    if objective == "reward":
        return logits + (tau / eta) * gain
    anchor = torch.where(eta > 0, eta * logits, 0.0)
    return (anchor + tau * gain) / (eta + tau)


def log_law(
    logits: Float[Tensor, "*rows A"], temperature: Tensor | float
) -> Float[Tensor, "*rows A"]:
    """(…, A) float64 log softmax(z/τ)."""
    return torch.log_softmax(scaled_logits(logits, temperature), dim=-1)


def kl(first: Float[Tensor, "*rows A"], second: Float[Tensor, "*rows A"]) -> Float[Tensor, "*rows"]:
    """(…) KL of two laws given by their logarithms (…, A); ∞ where the support is not contained."""
    gap = torch.where(first.isneginf(), 0.0, first - second)
    terms = torch.where(gap.isposinf(), gap, first.exp() * gap)  # 0 · ∞ where the mass underflows
    return torch.where(first.isneginf(), 0.0, terms).sum(dim=-1).clamp(min=0.0)


def entropy(log_probabilities: Float[Tensor, "*rows A"]) -> Float[Tensor, "*rows"]:
    """(…) entropy in nats of laws given by their logarithms (…, A)."""
    return torch.special.entr(log_probabilities.exp()).sum(dim=-1)
