"""How blocks are updated: the settings of a sweep, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torchloc.errors import InputError
from torchloc.evaluation.joint import Objective
from torchloc.improvement.fit import FitMethod
from torchloc.improvement.prox import Weighting

Guard = Literal["none", "damp", "skip"]

_CHOICES = {
    "order": ("cyclic", "chromatic", "jacobi"),
    "objective": ("entropy", "reward"),
    "weighting": ("stationary", "marginal", "uniform"),
    "guard": ("none", "damp", "skip"),
    "fit_method": ("auto", "levenberg", "adam"),
}


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
        guard: What becomes of a block whose guaranteed gain is negative by more than its solves can
            tell: `none` lets it stand, `skip` takes it back, `damp` halves its step (in logits) up to
            four times before it does. Where nothing is certified, ε = ∞, every block is taken back.
            Only for `cyclic` sweeps of models that are enumerated: other moves have no guarantee.
        fit_method: How networks are fitted: `levenberg`, `adam`, or `auto` by size.
        fit_steps: Most steps of the fit of a network; None: what suits the method.
        fit_tolerance: Relative residual at which a fit stops.
        fit_kl: KL(target ‖ realised) at which it stops as well; 0: only the residual counts.
        fit_rate: Pace of Adam at first.
        fit_batch: Scope states of each agent in one step of Adam; None: all.
        fit_ascend: Whether a fit goes on by ascending the prox objective itself; not of a step that
            a price or the guard has changed.

    Raises:
        InputError: A value is out of range, or two do not go together.
    """

    order: Literal["cyclic", "chromatic", "jacobi"] = "cyclic"
    objective: Objective = "entropy"
    weighting: Weighting = "stationary"
    prox: float | None = None
    guard: Guard = "none"
    fit_method: FitMethod = "auto"
    fit_steps: int | None = None
    fit_tolerance: float = 1e-10
    fit_kl: float = 0.0
    fit_rate: float = 1e-2
    fit_batch: int | None = None
    fit_ascend: bool = False

    def __post_init__(self) -> None:
        for field, allowed in _CHOICES.items():
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
        if self.guard != "none" and self.order != "cyclic":
            raise InputError(
                f"guard is {self.guard!r} with order={self.order}, whose moves have no guarantee; "
                f"use order=cyclic, or guard=none"
            )
        for field in ("fit_steps", "fit_batch"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InputError(f"{field} is {value}; it must be ≥ 1, or null")
        for field in ("fit_tolerance", "fit_rate"):
            if not getattr(self, field) > 0:
                raise InputError(f"{field} is {getattr(self, field)}; it must be > 0")
        if not self.fit_kl >= 0:
            raise InputError(f"fit_kl is {self.fit_kl}; it must be ≥ 0")
        if self.fit_batch is not None and self.fit_method == "levenberg":
            raise InputError(
                f"fit_batch is {self.fit_batch}, but fit_method=levenberg takes all scope states; "
                f"use fit_method=adam"
            )
