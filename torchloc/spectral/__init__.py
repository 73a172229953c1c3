"""Checked bounds on the spectral radius of a nonnegative matrix, weights, and explicit (C, λ).

For M ≥ 0 (n, n), any size, dense or sparse, reducible or not:

* lower ≤ ρ(M) ≤ upper, from checked vectors only (`bracket`). For x > 0, ρ ≤ max_i (M x)_i/x_i; for
  x ≥ 0, x ≠ 0, ρ ≥ min over the support of (M x)_i/x_i (Collatz, Wielandt). No eigen-solver's word
  is taken: a quotient of nonnegative terms is right to a few units of rounding, and is moved
  outward by more than that (`matrices`). ρ is the maximum over strongly connected components; one
  node is its diagonal entry, exactly, so a strictly triangular M has ρ = 0 exactly (`blocks`).
* weights w > 0 with M w ≤ λ_w w, λ_w just above ρ (`weights`).
* (C, λ) with ‖M^t‖_∞ ≤ C λ^t for all t ≥ 0 (`constants`), ‖·‖_∞ the largest row sum. The bounds are
  for the matrix that is handed in: oscillations obey δ(T f) ≤ M δ(f) with M = Hᵀ, so hand in Hᵀ.

References: Berman and Plemmons, Nonnegative Matrices in the Mathematical Sciences, ch. 2 and 6;
Noda, Numer. Math. 17 (1971), the inverse steps; Higham, Accuracy and Stability, ch. 3, rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from torchloc.errors import InputError
from torchloc.spectral.bracket import Bracket, search
from torchloc.spectral.constants import (
    PowerBound,
    check_tail_request,
    gelfand_bounds,
    power_norms,
    undominated,
)
from torchloc.spectral.matrices import Checked, Floats, checked, norm_columns, norm_rows
from torchloc.spectral.solvers import SpectralBudget
from torchloc.spectral.weights import Weighted, WeightMaker

__all__ = [
    "PowerBound",
    "SpectralBound",
    "SpectralBudget",
    "Weighted",
    "norm_columns",
    "norm_rows",
    "spectral_radius",
]

_SHARES = (0.02, 0.1, 0.25, 0.5, 0.75)
_LEAST_RATE = 1e-6
_EXTREME = 300


@dataclass(frozen=True, eq=False)
class SpectralBound:
    """lower ≤ ρ(M) ≤ upper, rigorous, with weights and explicit decay constants for the same M.

    Attributes:
        lower: ≤ ρ(M), rounded down.
        upper: ≥ ρ(M), rounded up.
        tolerance: the relative gap (upper − lower)/upper that was asked for.
        note: empty, or what was reached and why no more.
    """

    lower: float
    upper: float
    tolerance: float
    note: str
    _matrix: Checked = field(repr=False)
    _maker: WeightMaker = field(repr=False)
    _budget: SpectralBudget = field(repr=False)

    @property
    def converged(self) -> bool:
        """Whether the relative gap is within the tolerance. The bounds hold in either case."""
        return self.upper - self.lower <= self.tolerance * self.upper

    @cached_property
    def weighted(self) -> Weighted | None:
        """Weights with the rate closest above ρ that their range allows; None if M overflows sums.

        The rate is within 0.1 % of `upper`, and below 1 if `upper` is, unless the weights would
        leave 1e±280 or (large matrices) need a factorisation out of proportion: then the next
        larger rate. Computed on first use.
        """
        return self._maker.closest()

    @property
    def weights(self) -> Floats | None:
        """(n,) w > 0 with (M w)_i ≤ weighted_rate · w_i, checked for all i; see `weighted`."""
        return None if self.weighted is None else self.weighted.weights

    @property
    def weighted_rate(self) -> float:
        """λ_w ≥ ρ, rounded up; inf without weights."""
        return math.inf if self.weighted is None else self.weighted.rate

    def weights_at(self, rate: float) -> Weighted | None:
        """Weights (λI − M)⁻¹1, or as good, at λ = rate; None at or below `upper`, or out of range.

        A larger rate gives a smaller constant max w / min w.
        """
        return self._maker.at(rate)

    @cached_property
    def _norms(self) -> Floats:
        """log₂ of bounds of ‖M^t‖_∞, t = 0, 1, …; only t = 0 where ρ may reach 1."""
        if self.upper >= 1.0:
            return np.zeros(1)
        return power_norms(self._matrix, self.upper, self._budget.norm_entries)

    @cached_property
    def nilpotency(self) -> int | None:
        """The p with M^p = 0 and M^(p−1) ≠ 0, or None where there is none or it was not found."""
        last = len(self._norms) - 1
        return last if np.isneginf(self._norms[-1]) else None

    @cached_property
    def candidates(self) -> tuple[PowerBound, ...]:
        """Pairs (C, λ), λ < 1, with ‖M^t‖_∞ ≤ C λ^t for all t ≥ 0: none where upper ≥ 1.

        No pair is beaten by another in both numbers. Computed on first use: products for the norms
        of powers, and one solve for each further weight where a factorisation is cheap.
        """
        if self.upper >= 1.0:
            return ()
        bounds = gelfand_bounds(self._norms) if len(self._norms) > 1 else []
        base = math.log(max(self.upper, _LEAST_RATE))
        rates = [math.exp((1.0 - share) * base) for share in _SHARES]
        found = [self.weighted, *(self._maker.at(rate) for rate in rates if self._maker.quick)]
        bounds += [
            PowerBound(weighted.constant, weighted.rate, "weighted")
            for weighted in found
            if weighted is not None and weighted.rate < 1.0 and math.isfinite(weighted.constant)
        ]
        return undominated(bounds)

    def kappa_for(self, eps: float, scale: float = 1.0) -> int | float:
        """The smallest κ ≥ 0 over all candidates with scale · C λ^{κ+1}/(1 − λ) ≤ eps.

        Then scale · Σ_{t>κ} ‖M^t‖_∞ ≤ eps. For nilpotent M the sum is empty from κ = p − 1 on.

        Args:
            eps: what the tail may be, > 0.
            scale: a factor of the tail, such as ‖b‖_∞, ≥ 0.

        Returns:
            An int, or math.inf where no candidate has λ < 1.

        Raises:
            InputError: eps is not positive, or scale is negative, or one is not finite.

        Example:
            >>> spectral_radius([[0.5]]).kappa_for(0.01)
            7
        """
        check_tail_request(eps, scale)
        kappas = [bound.kappa(eps, scale) for bound in self.candidates]
        if self.nilpotency is not None:
            kappas.append(self.nilpotency - 1)
        return min(kappas, default=math.inf)


def _search(taken: Checked, tolerance: float, limits: SpectralBudget) -> Bracket:
    """The search, on entries brought near 1 by a power of two where they are extreme."""
    csr = taken.csr
    power = int(np.frexp(csr.data.max())[1]) if csr.nnz else 0
    if abs(power) <= _EXTREME:
        return search(csr, taken.terms, tolerance=tolerance, budget=limits)
    near = csr.copy()
    near.data = np.ldexp(csr.data, -power)
    found = search(near, taken.terms, tolerance=tolerance, budget=limits)
    if found.upper == 0.0:
        return found
    with np.errstate(over="ignore", under="ignore"):
        lower = math.nextafter(float(np.ldexp(found.lower, power)), -math.inf)
        upper = math.nextafter(float(np.ldexp(found.upper, power)), math.inf)
    return replace(found, lower=max(lower, 0.0), upper=upper)


def spectral_radius(
    matrix: Any, *, tolerance: float = 1e-6, budget: SpectralBudget | None = None
) -> SpectralBound:
    """Bracket ρ(M) of a square nonnegative matrix, rigorously.

    Args:
        matrix: (n, n), SciPy sparse in any format or an array; entries finite and ≥ 0.
        tolerance: the relative gap to reach, (upper − lower)/upper; at least 1e-12.
        budget: limits of the work. Where they end the search before the tolerance is reached,
            `converged` is False, `note` says why, and the bounds hold all the same.

    Raises:
        InputError: The matrix is not square, nonnegative and finite (the entry is named), or the
            tolerance is out of range.

    Example:
        >>> bound = spectral_radius([[0.0, 4.0], [1.0, 0.0]])
        >>> bound.lower <= 2.0 <= bound.upper, bound.converged
        (True, True)
    """
    if not 1e-12 <= tolerance < 1.0:
        raise InputError(f"tolerance: {tolerance}; it must be at least 1e-12 and below 1")
    limits = SpectralBudget() if budget is None else budget
    taken = checked(matrix)
    found = _search(taken, tolerance, limits)
    note = ""
    if found.upper - found.lower > tolerance * found.upper:
        gap = (found.upper - found.lower) / found.upper
        note = (
            f"reached {found.lower:.9g} <= rho <= {found.upper:.9g}, a relative gap of {gap:.1e} "
            f"where {tolerance:.1e} was asked for: {found.note}"
        )
    maker = WeightMaker(taken, found.upper, found.vector, limits)
    return SpectralBound(found.lower, found.upper, tolerance, note, taken, maker, limits)
