"""What one block update was worth: its guarantee, term by term, beside the gain that was realised.

With μ the new policy of agent k, d^μ the stationary law of the *new* joint policy, τ' = τ for the
entropy objective and 0 for the reward objective, any update has

    gain ≥ E_{d^μ}[⟨μ_k − π_k, ĝ_k⟩ + τ'(Ent μ_k − Ent π_k)] − ε_k E_{d^μ} TV(μ_k, π_k)                (guarantee)

and, the update being the exact prox of ḡ_k + x (a price or a damped step is part of x),

    gain ≥ E_{d^μ}[η KL(μ‖π) + (η + τ') KL(π‖μ)]                                         (prox_gain)
           − E_{d^μ}[TV] ε_k                                                            (truncation_error)
           − E_{d^μ}[TV ω_k]                                                            (scope_error)
           − E_{d^μ}[TV span_a x] ,   x = (η + τ')/τ (z_realised − z_target)             (fit_error)

never above the first. (Paper, Theorem 14, in the form in which it holds.) d^μ is exact here;
discounted, it is the occupancy from the initial law and every right side is divided by 1 − γ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchloc.errors import SolveError
from torchloc.evaluation.joint import JointEvaluation
from torchloc.improvement.prox import BlockTarget, entropy, kl, log_law, span


@dataclass(frozen=True)
class BlockRecord:
    """The ledger of one block. All terms are in units of reward per step of the whole system.

    Attributes:
        agent: k.
        realised: J(μ) − J(π), within `slack`.
        guarantee: Certified lower bound of the gain, from ĝ_k itself; −∞ where ε_k = ∞ and the law
            moved.
        prox_gain, truncation_error, scope_error, fit_error, staleness: The named terms (expected
            under d^μ); their balance prox_gain − Σ errors is a lower bound too, at most
            `guarantee`.
        epsilon: ε_k.
        total_variation: E_{d^μ} TV(μ_k, π_k).
        fit_kl: Largest KL(aim ‖ realised) over scope states; the aim is the prox step but for what a
            price or the guard made of it.
        slack: Widths of both solves: what a comparison of `realised` with a bound must allow.
        share: How much of the step was taken: 1, less where the guard damped it, 0 where it took it
            back.
    """

    agent: int
    realised: float
    guarantee: float
    prox_gain: float
    truncation_error: float
    scope_error: float
    fit_error: float
    staleness: float
    epsilon: float
    total_variation: float
    fit_kl: float
    slack: float
    share: float = 1.0

    @property
    def balance(self) -> float:
        """prox_gain − truncation_error − scope_error − fit_error − staleness ≤ guarantee."""
        errors = (self.truncation_error, self.scope_error, self.fit_error, self.staleness)
        return self.prox_gain - math.fsum(errors) if all(map(math.isfinite, errors)) else -math.inf

    def check(self) -> None:
        """Stops the run where a proved bound is above the realised gain by more than the solves allow.

        Raises:
            SolveError: A guarantee failed: a defect of the package, or a solve worse than it says.
        """
        for name, bound in (("guarantee", self.guarantee), ("balance", self.balance)):
            if bound > self.realised + self.slack:
                raise SolveError(
                    f"the {name} of agent {self.agent}'s update, {bound:.12g}, is above the realised gain "
                    f"{self.realised:.12g} by more than the widths of the solves ({self.slack:.3g}): this is a "
                    f"defect of torchloc; please report it with {self}"
                )


def block_record(
    before: JointEvaluation,
    after: JointEvaluation,
    target: BlockTarget,
    *,
    old_logits: Tensor,
    wanted_logits: Tensor,
    new_logits: Tensor,
    temperature: float,
    prox: float,
    epsilon: float,
    aimed_logits: Tensor | None = None,
) -> BlockRecord:
    """The ledger of agent k's update from `before` to `after`.

    Args:
        before: Evaluation of the joint policy before.
        after: Evaluation after; only agent k differs.
        target: What the update was computed from.
        old_logits: (R, A) logits of the baseline.
        wanted_logits: (R, A) logits of the prox step.
        new_logits: (R, A) logits realised.
        temperature: τ_k.
        prox: η.
        epsilon: ε_k ≥ 0 certified for the baseline; ∞ where nothing is.
        aimed_logits: (R, A) what the network was fitted to; None: `wanted_logits`.
    """
    k = target.agent
    old, new = log_law(old_logits, temperature), log_law(new_logits, temperature)
    tau = temperature if before.objective == "entropy" else 0.0
    tv = 0.5 * (new.exp() - old.exp()).abs().sum(dim=-1)
    occupancy = after.over_scope(k, after.stationary)
    seen = occupancy.sum(dim=1)
    horizon = 1.0 - before.discount if before.discount < 1.0 else 1.0

    def expected(values: Tensor) -> float:
        """E under d^μ, 0 · ∞ = 0."""
        terms = torch.where(seen > 0, seen * values, 0.0)
        return float(terms.sum()) / horizon

    moved = (new.exp() - old.exp()).unsqueeze(1)
    direct = (occupancy.unsqueeze(-1) * moved * target.gain).sum()
    gain = float(direct) / horizon + expected(tau * (entropy(new) - entropy(old)))
    mean_tv = expected(tv)
    truncation = epsilon * mean_tv if mean_tv > 0 else 0.0
    aim = wanted_logits if aimed_logits is None else aimed_logits
    misfit = torch.where(wanted_logits.isneginf(), 0.0, new_logits - wanted_logits)
    prox_gain = prox * kl(new, old) + (prox + tau) * kl(old, new)
    rounding = 1e-13 * (1.0 + float(target.gain.abs().max())) * target.gain.shape[-1] / horizon
    residuals = (after.stationary_residual + before.stationary_residual) / horizon
    return BlockRecord(
        agent=k,
        realised=after.value - before.value,
        guarantee=gain - truncation,
        prox_gain=expected(prox_gain),
        truncation_error=truncation,
        scope_error=expected(tv * target.scope_error),
        fit_error=expected(tv * span(misfit) * (prox + tau) / temperature),
        staleness=0.0,
        epsilon=epsilon,
        total_variation=mean_tv,
        fit_kl=float(kl(log_law(aim, temperature), new).max()),
        slack=before.width + after.width + residuals * float(span(target.gain).max()) + rounding,
    )
