"""Weights: w > 0 with M w ≤ λ w, checked, for the whole matrix M, reducible or not.

w = (λI − M)⁻¹1 exists for every λ > ρ(M) and has (M w)_i / w_i = λ − 1/w_i < λ. Three ways to it:

* a solve, where a factorisation is cheap (no fill at all for a triangular matrix);
* power steps: with A = (M + s)/(λ + s) and v_t = A^t 1, the partial sum closed by a geometric tail,
  w = Σ_{t<p} v_t + v_p (λ + s)/(λ − r), has M w ≤ λ w as soon as M v_p ≤ r v_p with r < λ;
* the Perron vector itself, where the bracket has one and its range fits.

Then ‖M^t‖_∞ ≤ (max w / min w) λ^t: t steps of M w ≤ λ w. Weights outside 1e±280 are refused, and
one λ gives way to the next larger. w = 1 with the largest row sum always stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse.csgraph import connected_components

from torchloc.spectral.matrices import Checked, Floats, Ints, norm_rows, underflow, up
from torchloc.spectral.solvers import Solver, SpectralBudget, choose_solver, triangular_solver

_BITS = int(560 * np.log2(10.0))
_SOLVE_SIZE = 20_000
_QUICK_COST, _SOLVE_COST = 3e6, 5e7
_MODEST = 40
_CLOSURE = 512
_LOOK = 8


@dataclass(frozen=True, eq=False)
class Weighted:
    """A checked pair: (M w)_i ≤ rate · w_i for all i.

    Attributes:
        weights: (n,) float64, > 0, within 1e±280.
        rate: λ_w ≥ ρ(M), rounded up.
        constant: max w / min w, rounded up (inf past 1e308): ‖M^t‖_∞ ≤ constant · rate^t for t ≥ 0.
    """

    weights: Floats
    rate: float
    constant: float


def check_weights(matrix: Checked, vector: Floats) -> Weighted | None:
    """Scale a positive vector by a power of two and read its rate off; None if out of range."""
    if not (np.isfinite(vector).all() and (vector > 0.0).all()):
        return None
    least, most = np.frexp(vector.min())[1], np.frexp(vector.max())[1]
    if most - least > _BITS:
        return None
    weights = np.ldexp(vector, -((most + least) // 2))
    csr = matrix.csr
    with np.errstate(over="ignore", under="ignore"):
        quotient = float(((csr @ weights) / weights).max())
    entry = float(csr.data.min()) if csr.nnz else 1.0
    lost = underflow(entry, weights, matrix.terms, moved=False)
    rate = float(up(quotient, matrix.terms))
    if lost:
        rate = float(np.nextafter(rate + lost, np.inf))
    if not np.isfinite(rate):
        return None
    smallest, largest = float(weights.min()), float(weights.max())
    with np.errstate(over="ignore"):
        constant = (
            1.0
            if smallest == largest
            else float(np.nextafter(np.divide(largest, smallest), np.inf))
        )
    return Weighted(weights, rate, constant)


class WeightMaker:
    """Makes weights of one matrix at any λ > ρ; its solver is chosen once."""

    def __init__(
        self,
        matrix: Checked,
        upper: float,
        vector: tuple[Ints, Floats] | None,
        budget: SpectralBudget,
    ) -> None:
        self._matrix, self._upper, self._vector, self._budget = matrix, upper, vector, budget

    @cached_property
    def _solver(self) -> Solver | None:
        return choose_solver(self._matrix.csr, self._budget)

    @cached_property
    def _triangular(self) -> Solver | None:
        """The solver without fill where every strongly connected component is one node."""
        csr = self._matrix.csr
        number, labels = connected_components(csr, directed=True, connection="strong")
        if number < self._matrix.size:
            return None
        order = np.argsort(labels)
        rows = np.repeat(labels, np.diff(csr.indptr))
        below = rows >= labels[csr.indices]
        return triangular_solver(csr, order.astype(np.int64)) if below.all() else None

    def _solved(self, rate: float, solver: Solver | None) -> Weighted | None:
        """(rate·I − M)⁻¹1, checked."""
        factored = None if solver is None else solver.factor(self._matrix.csr, rate)
        if factored is None:
            return None
        with np.errstate(all="ignore"):
            return self._accept(factored(np.ones(self._matrix.size)), rate)

    def _accept(self, vector: Floats, rate: float) -> Weighted | None:
        """The checked vector, if its rate is no larger than asked for (up to rounding)."""
        found = check_weights(self._matrix, vector)
        return found if found is not None and found.rate <= rate * (1.0 + 1e-9) else None

    def _closed(self, rate: float) -> Weighted | None:
        """Power steps closed by a geometric tail; given up once the tail is out of reach."""
        csr, size = self._matrix.csr, self._matrix.size
        shift, goal = 0.5 * rate, 0.5 * (rate + self._upper)
        v, total, past = np.ones(size), np.zeros(size), np.inf
        with np.errstate(all="ignore"):
            for step in range(_CLOSURE):
                image = csr @ v
                if step % _LOOK == _LOOK - 1:
                    reached = float((image / v).max())
                    if reached <= goal:
                        tail = v * ((rate + shift) / (rate - reached))
                        return self._accept(total + tail, rate)
                    if not (past - reached) * (_CLOSURE - step) > (reached - goal) * _LOOK:
                        return None
                    past = reached
                total += v
                v = (image + shift * v) / (rate + shift)
        return None

    def _perron(self, rate: float, bits: int) -> Weighted | None:
        """The bracket's own vector, if it spans no more than 2^bits."""
        if self._vector is None:
            return None
        exponent, mantissa = self._vector
        reach = np.frexp(mantissa)[1] + exponent
        if np.ptp(reach) > bits:
            return None
        middle = (int(reach.max()) + int(reach.min())) // 2
        return self._accept(np.ldexp(mantissa, exponent - middle), rate)

    def at(self, rate: float) -> Weighted | None:
        """Weights whose rate is at most `rate` (up to a relative 1e-9), or None.

        Args:
            rate: λ > ρ(M); at or below the upper bound of ρ there is nothing to find.
        """
        if not self._upper < rate < np.inf:
            return None
        if self._matrix.csr.nnz == 0:
            return self._accept(np.ones(self._matrix.size), rate)
        quick = self.quick
        found = self._solved(rate, self._solver) if quick else self._perron(rate, _MODEST)
        if found is None:
            found = self._solved(rate, self._triangular) if self._upper == 0.0 else None
        if found is None and self._upper > 0.0:
            found = self._closed(rate)
        if found is None and not quick and self._solver and self._solver.cost <= _SOLVE_COST:
            found = self._solved(rate, self._solver)
        return found if found is not None else self._perron(rate, _BITS)

    @property
    def quick(self) -> bool:
        """Whether weights at several rates are cheap: one small factorisation each."""
        if self._matrix.size > _SOLVE_SIZE or self._solver is None:
            return False
        return self._solver.cost <= _QUICK_COST

    def closest(self) -> Weighted | None:
        """The weights with a rate as close above ρ as their range allows.

        The first λ aims at 0.1 % above the upper bound, and stays below 1 if the bound does. For
        ρ = 0, where w grows like λ^{1−p} for nilpotency index p, it starts at 1e-6 of ‖M‖_∞.
        """
        largest = norm_rows(self._matrix)
        if not np.isfinite(largest):
            return None
        ones = check_weights(self._matrix, np.ones(self._matrix.size))
        upper = self._upper
        excess = 1e-3 * upper if upper > 0.0 else 1e-6 * largest
        if upper < 1.0:
            excess = min(excess, 0.125 * (1.0 - upper))
        while 0.0 < upper + excess < largest:
            found = self.at(upper + excess)
            if found is not None:
                return found
            excess = max((4.0 if upper > 0.0 else 16.0) * excess, np.finfo(np.float64).tiny)
        return ones
