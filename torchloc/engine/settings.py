"""How policies are evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from torchloc.errors import InputError
from torchloc.evaluation.radius import BALL_BYTES, largest_kappa
from torchloc.improvement import Improvement
from torchloc.mdp import FactoredMDP
from torchloc.policy import SoftmaxPolicy

DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Evaluation:
    """How policies are evaluated.

    Attributes:
        engine: `joint` enumerates the joint states; `local` computes advantages on balls and
            simulates rewards; `auto` enumerates where it can.
        kappa: Truncation radius κ ≥ 0 of the advantages; `auto` takes the largest whose balls fit,
            `certified` before every sweep the smallest whose certified bias is a small share of what the
            last sweep gained.
        kappa_most: Largest κ of `certified`; `auto`: the largest whose balls fit.
        kappa_share: That share, > 0.
        discount: γ in (0, 1]; 1 is the average reward.
        tolerance: Largest Odoni width of an exact solve, in units of max(1, max |r|) (joint).
        steps: Simulated steps a replica that are kept (local).
        burn_in: Steps before them (local).
        replicas: Independent simulations of the whole system (local).
        ball_bytes: Bytes of the largest tensor of one ball (local).
        dtype: Of the advantages: float64 or float32 (local); certificates are float64.
        device: Where advantages and simulations are computed: cpu or cuda (local).

    Raises:
        InputError: A value is out of range.
    """

    engine: Literal["auto", "joint", "local"] = "auto"
    kappa: int | Literal["auto", "certified"] = 3
    kappa_most: int | Literal["auto"] = 3
    kappa_share: float = 0.1
    discount: float = 1.0
    tolerance: float = 1e-10
    steps: int = 64
    burn_in: int = 64
    replicas: int = 8
    ball_bytes: int = BALL_BYTES
    dtype: str = "float64"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.engine not in ("auto", "joint", "local"):
            raise InputError(f"engine is {self.engine!r}; choose auto, joint or local")
        for field, value, words in (
            ("kappa", self.kappa, ("auto", "certified")),
            ("kappa_most", self.kappa_most, ("auto",)),
        ):
            if value not in words and (isinstance(value, str) or value != int(value) or value < 0):
                raise InputError(
                    f"{field} is {value!r}; it must be a whole number ≥ 0, or {' or '.join(words)}"
                )
        if not self.kappa_share > 0.0:
            raise InputError(f"kappa_share is {self.kappa_share}; it must be > 0")
        if not 0.0 < self.discount <= 1.0:
            raise InputError(f"discount is {self.discount}; it must lie in (0, 1]")
        if not self.tolerance > 0.0:
            raise InputError(f"tolerance is {self.tolerance}; it must be > 0")
        for field, least in (("steps", 1), ("burn_in", 0), ("replicas", 1), ("ball_bytes", 8)):
            value = getattr(self, field)
            if value != int(value) or value < least:
                raise InputError(f"{field} is {value}; it must be a whole number ≥ {least}")
        if self.steps * self.replicas < 2:
            raise InputError("steps · replicas is 1; an interval needs at least 2")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype!r}; choose {' or '.join(DTYPES)}")

    def radius(self, mdp: FactoredMDP, policy: SoftmaxPolicy, improvement: Improvement) -> int:
        """κ, with `auto` resolved; of `certified` the largest.

        Raises:
            BudgetError: Not even κ = 0 fits.
        """
        kappa = self.kappa_most if self.kappa == "certified" else self.kappa
        if kappa == "auto":
            return largest_kappa(
                mdp, policy, objective=improvement.objective, ball_bytes=self.ball_bytes
            )
        return int(kappa)
