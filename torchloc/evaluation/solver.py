"""The two linear systems of a chain, solved until their own checks pass.

    (I − T + 1uᵀ) h = r,      d (I − T + 1uᵀ) = u,      u uniform                       (γ = 1)
    (I − γT) V = r,           d (I − γT) = (1 − γ) μ₀                                   (γ < 1)

LU where T is formed, restarted GMRES where it is only applied; both are refined on their residuals.
Every h is checked by min(r + T h − h) ≤ r̄ ≤ max(r + T h − h), true of *any* h (Odoni 1969), every d
by ‖d T − d‖₁. What is computed of either is off by its rounding, `c` units of max |h| or of ‖d‖₁ = 1,
and both say so: a chain that hardly leaves one part of its states has an h of 1/(the probability that
it does), so that below some 10⁻¹² r̄ and d are no longer known, and where rounding takes the
probability away, the systems are singular. Both end in a `SolveError`, never in a wrong number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from torchloc.errors import SolveError
from torchloc.evaluation.dynamics import StepOperator

_REFINEMENTS = 12
_UNIT = float(np.finfo(np.float64).eps)
WORST = 1e-6
"""Rounding of r̄ beyond which a solve has failed, in units of max(1, max |r|); a larger tolerance allows more."""


_PARTED = (
    "the chain has parts that it leaves with a probability that rounding takes away, so its average reward "
    "depends on the start; add noise to the deterministic laws, raise the temperature, or use a discount "
    "below 1"
)
_NEAR_ONE = "the discount {} is 1 to rounding, and the values of the chain are not unique; lower it"


class PoissonSolver:
    """Solves both systems for one T and γ.

    Args:
        step: T.
        shape: S.
        discount: γ.
        dense: (S, S) T formed; None: it is only applied.
    """

    def __init__(
        self, step: StepOperator, shape: tuple[int, ...], discount: float, dense: Tensor | None
    ) -> None:
        self._step = step
        self._shape = shape
        self._discount = discount
        self._rank_one = discount == 1.0
        # An entry of T h has as many terms as the coordinates have values, each with a few factors;
        # as many again for rows that sum to 1 only to rounding.
        self._rounding = max(64, 4 * sum(shape)) * _UNIT
        self._factors: tuple[Tensor, Tensor] | None = None
        if dense is not None:
            n = len(dense)
            system = torch.eye(n, dtype=torch.float64) - discount * dense
            if self._rank_one:
                system = system + 1.0 / n
            factors, pivots, singular = torch.linalg.lu_factor_ex(system)
            if int(singular):
                raise SolveError(_PARTED if self._rank_one else _NEAR_ONE.format(discount))
            self._factors = (factors, pivots)

    def law(self, initial: Tensor, tolerance: float) -> tuple[Tensor, float]:
        """(*S) stationary law d, or the occupancy (1 − γ) Σ γ^t μ₀ T^t; and its residual.

        Args:
            initial: (*S) μ₀; not read at γ = 1.
            tolerance: Largest residual accepted.

        Returns:
            d, nonnegative and summing to 1, and an upper bound of ‖d T − d‖₁ or ‖d − (1 − γ) μ₀ − γ d T‖₁,
            rounding included.

        Raises:
            SolveError: The residual stays over tolerance.
        """
        law = torch.zeros(self._shape, dtype=torch.float64)
        if self._rank_one:
            right = torch.full_like(law, 1.0 / law.numel())
        else:
            right = (1.0 - self._discount) * initial

        def residual(law: Tensor) -> Tensor:
            moved = self._step.adjoint(law)
            return moved - law if self._rank_one else right + self._discount * moved - law

        best, best_error = law, np.inf
        for _ in range(_REFINEMENTS):
            law = law + self._solve(right - self._apply_adjoint(law), adjoint=True)
            clipped = law.clamp(min=0.0)
            clipped = clipped / clipped.sum()
            error = float(residual(clipped).abs().sum())
            if error < best_error:
                improved = error < 0.5 * best_error
                best, best_error = clipped, error
            else:
                improved = False
            if best_error <= 1e-3 * tolerance or not improved:
                break
        if not best_error <= tolerance:
            raise SolveError(
                f"the stationary law has residual {best_error:.3g}, over the tolerance "
                f"{tolerance:.3g}; the chain mixes too slowly for this solver: raise the tolerance "
                f"or the temperature"
            )
        return best, best_error + self._rounding

    def values(self, reward: Tensor, tolerance: float) -> tuple[Tensor, float, float]:
        """(*S) h up to a constant, or V; and bounds of min and max of r + γ T h − h, rounding included.

        Args:
            reward: (*S) r.
            tolerance: Largest max − min accepted (γ < 1: largest |r + γ T V − V|), in units of
                max(1, max |r|).

        Raises:
            SolveError: It stays over tolerance.
        """
        scale = max(1.0, float(reward.abs().max()))
        values = torch.zeros(self._shape, dtype=torch.float64)
        best = (values, -np.inf, np.inf)
        for _ in range(_REFINEMENTS):
            values = values + self._solve(reward - self._apply(values), adjoint=False)
            drift = reward + self._discount * self._step(values) - values
            low, high = float(drift.min()), float(drift.max())
            if high - low >= best[2] - best[1]:
                break
            improved = high - low < 0.5 * (best[2] - best[1])
            best = (values, low, high)
            if high - low <= 1e-2 * tolerance * scale or not improved:
                break
        width, limit = best[2] - best[1], tolerance * scale
        rounding = self._rounding * (float(best[0].abs().max()) + scale)
        if not self._rank_one:
            # V grows like 1/(1 − γ), and its residual is never smaller than its own rounding.
            width = max(-best[1], best[2])
            limit = max(limit, rounding)
        if not width <= limit:
            raise SolveError(
                f"the Poisson equation was solved to width {width:.3g}, over the tolerance "
                f"{limit:.3g}; the chain mixes too slowly for this solver: raise the "
                f"tolerance or the temperature"
            )
        if self._rank_one and rounding > max(tolerance, WORST) * scale:
            raise SolveError(
                f"the relative values of the chain are of size {float(best[0].abs().max()):.3g}, and what "
                f"rounding makes of them leaves the average reward unknown by {rounding:.3g}; the chain hardly "
                f"leaves some of its states: raise the temperature, or use a discount below 1"
            )
        return best[0], best[1] - rounding, best[2] + rounding

    def _apply(self, values: Tensor) -> Tensor:
        """(I − γT + 1uᵀ) h."""
        result = values - self._discount * self._step(values)
        return result + values.mean() if self._rank_one else result

    def _apply_adjoint(self, law: Tensor) -> Tensor:
        """(I − γTᵀ + u1ᵀ) d."""
        result = law - self._discount * self._step.adjoint(law)
        return result + law.mean() if self._rank_one else result

    def _solve(self, right: Tensor, *, adjoint: bool) -> Tensor:
        """An approximate solution of one of the systems, to be refined on its residual."""
        if self._factors is not None:
            column = right.reshape(-1, 1)
            return torch.linalg.lu_solve(*self._factors, column, adjoint=adjoint).reshape(
                self._shape
            )
        n = right.numel()
        apply: Callable[[Tensor], Tensor] = self._apply_adjoint if adjoint else self._apply

        def matvec(vector: np.ndarray) -> np.ndarray:
            return apply(torch.from_numpy(vector).reshape(self._shape)).reshape(-1).numpy()

        operator = LinearOperator((n, n), matvec=matvec, dtype=np.float64)
        solution, _ = gmres(
            operator, right.reshape(-1).numpy(), rtol=1e-7, atol=0.0, restart=40, maxiter=5
        )
        return torch.from_numpy(solution).reshape(self._shape)
