"""The search for lower ≤ ρ ≤ upper: every bound that leaves here was read off a checked vector.

For B ≥ 0 and x > 0: min_i (Bx)_i/x_i ≤ ρ(B) ≤ max_i (Bx)_i/x_i on an irreducible block (Collatz,
Wielandt), and ρ(B) ≥ ρ(B_SS) for a principal submatrix. The vectors come from, in turn:

1. closed form on cycles;
2. shifted power steps x ← (B + s)x, all components at once; they do not hang on periodic matrices;
3. inverse steps x ← (λI − B)⁻¹x, the shift λ the certified upper bound (Noda 1971, quadratic), or
   a bisection point where that is slow; (λI − B)⁻¹x > 0 exactly if λ > ρ;
4. for the lower bound of a localised Perron vector, the same on the submatrix B_SS of the nodes
   whose quotient has reached ρ: beyond them the vector has not settled, and need not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from torchloc.spectral.balance import least_squares_potential
from torchloc.spectral.blocks import Block, components, cycle_potentials
from torchloc.spectral.matrices import Floats, Ints
from torchloc.spectral.solvers import Solver, SpectralBudget, choose_solver
from torchloc.spectral.steps import SMALLEST, chebyshev_filter, falls_soon, inverse_steps

_SMALL = 2000
_FEW_STEPS, _STEPS = 24, 96
_LOOK = 8
_PATCHES = (16, 128, 1024, 8192, 65_536)
_FOLD = 1e3
_FILTER = 64
_NEAR = 0.999
_LEAST_SHIFT = 1e-6
_NUDGE = 1e-15
_SLOW = 2
_WARM_UP = 10
_DEPTH = 3
_CHEAP = 1e6


@dataclass(frozen=True, eq=False, kw_only=True)
class Bracket:
    """What a search has reached.

    Attributes:
        lower: rigorous, ≤ ρ.
        upper: rigorous, ≥ ρ.
        note: what kept the search from its goal; empty where it was reached.
        vector: where one component holds all nodes, the exponents (n,) and mantissas (n,) of a
            vector with quotients ≤ upper (up to rounding); else None.
    """

    lower: float
    upper: float
    note: str = ""
    vector: tuple[Ints, Floats] | None = None


def _log(value: float) -> float:
    """log of a bound; of 0, that of the smallest normal number."""
    return math.log(max(value, 2.0**-1022))


@dataclass(kw_only=True)
class _Search:
    """One block under way: the bounds so far and the vector in its gauge.

    Attributes:
        block: the components that may still attain ρ.
        target: as in `search`.
        depth: how many submatrices deep this search is.
        floor: ρ of the components of one node, exactly.
        x: (n,) the vector, > 0.
        found: a lower bound of ρ from outside the block, or from a submatrix.
        closed: an upper bound of ρ of the components that were left out.
        low: (C,) lower bounds, a component each.
        high: (C,) upper bounds.
        guess: (C,) estimates of ρ that set the shift of the power steps.
        quotient: (n,) of the vector last looked at.
        best: exponents and mantissas of the vector with the smallest upper bound (one component).
        steps: power steps and filter degrees so far.
        trace: the upper bound and the gap after each window of power steps.
        why: what kept the search from its goal.
    """

    block: Block
    tolerance: float
    budget: SpectralBudget
    target: float
    depth: int
    floor: float
    x: Floats
    found: float = 0.0
    closed: float = 0.0
    low: Floats = field(default_factory=lambda: np.zeros(0))
    high: Floats = field(default_factory=lambda: np.zeros(0))
    guess: Floats = field(default_factory=lambda: np.zeros(0))
    quotient: Floats = field(default_factory=lambda: np.zeros(0))
    best: tuple[Ints, Floats] | None = None
    steps: int = 0
    trace: list[tuple[float, float]] = field(default_factory=list)
    why: str = ""

    def __post_init__(self) -> None:
        count = len(self.block.starts)
        self.low, self.high, self.guess = np.zeros(count), np.full(count, np.inf), np.ones(count)

    @property
    def lower(self) -> float:
        """The best lower bound of ρ so far."""
        return max(self.floor, self.found, float(self.low.max(initial=0.0)))

    @property
    def upper(self) -> float:
        """The best upper bound of ρ so far."""
        return max(self.lower, self.closed, float(self.high.max(initial=0.0)))

    @property
    def limit(self) -> int:
        """How many power steps the budget allows on this block."""
        reads = self.block.csr.nnz + 2 * self.block.size
        return min(self.budget.power_steps, self.budget.power_entries // reads)

    @property
    def done(self) -> bool:
        """The gap is closed, or a caller that wants a lower bound of `target` has its answer."""
        lower, upper = self.lower, self.upper
        if self.target > 0.0 and (lower >= self.target or upper < self.target):
            return True
        return upper - lower <= self.tolerance * upper

    def look(self) -> Floats:
        """Take the quotients of the present vector into the bounds; returns its image B x."""
        image, self.quotient, low, high = self.block.quotients(self.x)
        np.maximum(self.low, low, out=self.low)
        if len(high) == 1 and high[0] < self.high[0]:
            self.best = (self.block.exponent, self.x)
        np.minimum(self.high, high, out=self.high)
        return image

    def prune(self) -> None:
        """Leave out the components whose upper bound is below the lower bound of ρ."""
        keep = self.high > self.lower
        if keep.all() or not keep.any():
            return
        self.closed = max(self.closed, float(self.high[~keep].max()))
        self.found = self.lower
        self.block, mask = self.block.keep(keep)
        self.low, self.high = self.low[keep], self.high[keep]
        self.guess = self.guess[keep]
        self.x = self.x[mask]
        self.quotient = self.quotient[mask]

    def power(self, steps: int) -> None:
        """Shifted power steps x ← (B + s)x / (upper + s), s half of each component's ρ as guessed.

        The guess is √(lower·upper) at first, then the growth over the last window of steps: a shift
        far from ρ lets periodic or star-like components converge slowly.
        """
        for _ in range(-(-steps // _LOOK)):
            self._window()
            if self.done:
                return
            self.prune()
            if self.x.min() < SMALLEST:
                self.x = self.block.fold(self.x)

    def _window(self) -> None:
        """Power steps with one shift; the bounds are read every half window, at first each step."""
        image = self.look()
        if self.done:
            return
        block, high = self.block, self.high
        least = np.maximum(self.low, _LEAST_SHIFT * high)
        if not self.trace:
            self.guess = np.sqrt(least) * np.sqrt(high)
        shift, scale = block.spread(0.5 * self.guess), block.spread(high + 0.5 * self.guess)
        mass, often = block.masses(self.x), not self.trace
        for step in range(1, _LOOK + 1):
            self.x = (image + shift * self.x) / scale
            self.steps += 1
            if often or step == _LOOK // 2:
                image = self.look()
                if self.done:
                    return
            elif step < _LOOK:
                image = block.csr @ self.x
        with np.errstate(all="ignore"):
            growth = (block.masses(self.x) / mass) ** (1.0 / _LOOK) * (high + 0.5 * self.guess)
        self.guess = np.clip(growth - 0.5 * self.guess, least, high)
        self.trace.append((self.upper, self.upper - self.lower))

    def localised(self, most: float = 2 * _PATCHES[-1]) -> None:
        """Lower bounds from submatrices: of the nodes with the largest quotients, more and more.

        Args:
            most: where more nodes than this have a quotient within the tolerance of the upper
                bound, the vector is not taken for localised.
        """
        size = self.block.size
        goal = self.upper * (1.0 - self.tolerance)
        settled = int(np.count_nonzero(self.quotient >= goal))
        if self.depth >= _DEPTH or not 1 < settled <= min(size // 2, most):
            return
        counts = [count for count in _PATCHES if settled <= count < size // 2]
        if settled > _PATCHES[-1] or not counts:
            counts.append(min(2 * settled, size - 1))
        for count in counts:
            chosen = np.sort(np.argpartition(-self.quotient, count)[:count])
            part = sp.csr_array(self.block.csr[chosen][:, chosen])
            part.eliminate_zeros()
            if part.nnz == 0:
                continue
            inner = search(
                part,
                self.block.terms,
                tolerance=self.tolerance / 4,
                budget=self.budget,
                target=goal,
                depth=self.depth + 1,
                start=self.x[chosen],
            )
            self.found = max(self.found, inner.lower)
            if self.done:
                return

    def balance(self) -> None:
        """Take the least-squares gauge on the components where it gives the smaller upper bound."""
        block = self.block
        potential = least_squares_potential(block, self.budget)
        if potential is None:
            return
        old, exponent, high = self.x, block.exponent, self.high
        whole = np.floor(potential)
        block.regauge(exponent + whole.astype(np.int64))
        self.x = np.exp2(potential - whole)
        *_, fresh = block.quotients(self.x)
        better = fresh < high
        if not better.all():
            mask = np.repeat(better, block.lengths)
            block.regauge(np.where(mask, block.exponent, exponent))
            self.x = np.where(mask, self.x, old)
        self.look()

    def inverse(self, solver: Solver) -> None:
        """Inverse steps, the shift at the upper bound (Noda) or, where that is slow, bisected."""
        below, slow, nudge = self.lower, 0, _NUDGE
        trial, balanced = self.upper, solver.cost <= _CHEAP
        for _ in range(self.budget.factorisations):
            if self.x.max() > _FOLD * self.x.min():
                self.x = self.block.fold(self.x)
            before, grew, settled, solve = self.upper, False, False, None  # frees the last factor
            solve = solver.factor(self.block.csr, trial)
            if solve is not None:
                self.x, grew, settled = inverse_steps(
                    solve,
                    self.x,
                    trial,
                    self.tolerance,
                    least=_WARM_UP if solver.cost > _CHEAP else 2,
                    limit=self.budget.solves,
                )
            if grew:
                self.look()
            if settled and not self.done:
                self.localised(most=np.inf)
            if self.done:
                return
            if not grew and trial < before:
                below = max(below, trial)
            nudge = 8.0 * nudge if not grew and trial >= before else _NUDGE
            below = max(below, self.lower)
            if self.upper - below <= 0.25 * self.tolerance * self.upper:
                below = self.lower
            halved = 2.0 * math.log(self.upper) <= math.log(before) + _log(below)
            slow = 0 if halved or trial < before else slow + 1
            if slow >= _SLOW and not balanced:
                self.balance()
                balanced = True
            trial = self.upper * (1.0 + nudge)
            if slow >= _SLOW:
                middle = math.exp(0.5 * (_log(below) + math.log(self.upper)))
                trial = min(middle, self.upper * (1.0 - 0.25 * self.tolerance))
                slow = 0
        self.why = f"{self.budget.factorisations} factorisations did not close the gap"

    def filters(self, highest: int, *, reserve: bool) -> None:
        """Chebyshev filters of growing degree, as long as each lowers the upper bound.

        Or, without a factorisation in `reserve`, evens out the quotients.
        """
        degree = _FILTER
        while degree <= highest and self.steps + degree <= self.limit:
            before, gap = self.upper, self.upper - self.lower
            spread = float(np.ptp(self.quotient))
            block, exponent, x = self.block, self.block.exponent, self.x
            filtered = chebyshev_filter(block.csr, x, block.spread(self.high), degree)
            self.steps += degree
            if filtered is None:
                return
            self.x = filtered
            self.power_and_patches(_LOOK)
            if self.done:
                return
            uneven = reserve or float(np.ptp(self.quotient)) > 0.7 * spread
            if self.block is block and uneven and before - self.upper < 0.01 * gap:
                block.regauge(exponent)
                self.x = x
                self.look()
                return
            degree *= 2

    def power_and_patches(self, steps: int) -> None:
        """Power steps, then lower bounds from submatrices."""
        self.power(steps)
        self.prune()
        if not self.done:
            self.localised()

    def run(self) -> None:
        """Close the gap, or say why it stayed open."""
        small = self.block.size <= _SMALL
        if small:
            self.power(_FEW_STEPS)
            self.prune()
        else:
            self.power_and_patches(_STEPS)
        if self.done:
            return
        block, solver = self.block, choose_solver(self.block.csr, self.budget)
        if solver is None or solver.cost > _CHEAP:
            self._without(solver is not None)
        if self.done:
            return
        if self.block is not block:
            solver = choose_solver(self.block.csr, self.budget)
        if solver is None:
            self.why = (
                f"{self.steps} power steps left a gap, and a factorisation is foreseen to exceed "
                f"{self.budget.fill} entries"
            )
            return
        if solver.cost <= _CHEAP:
            self.balance()
        if not self.done:
            self.inverse(solver)

    def _without(self, reserve: bool) -> None:
        """Power steps and filters where a factorisation is dear, or (no `reserve`) out of reach."""
        while not self.done and self.steps < self.limit and self._power_pays():
            self.power_and_patches(_STEPS)
        if not self.done:
            self.filters(4 * _FILTER if reserve else self.limit, reserve=reserve)
        while not (reserve or self.done) and self.steps < self.limit:
            self.power_and_patches(_STEPS)

    def _power_pays(self) -> bool:
        """Whether a few hundred power steps are foreseen to close the gap.

        Or, where the vector is localised, to settle the upper bound: a patch gives the lower one.
        """
        uppers, gaps = [list(values) for values in zip(*self.trace, strict=True)]
        goal = 0.25 * self.tolerance * self.upper
        if falls_soon(gaps, goal, to_zero=True):
            return True
        near = int(np.count_nonzero(self.quotient >= _NEAR * self.upper))
        return near <= self.block.size // 2 and falls_soon(uppers, goal, to_zero=False)


def search(
    matrix: sp.csr_array,
    terms: int,
    *,
    tolerance: float,
    budget: SpectralBudget,
    target: float = 0.0,
    depth: int = 0,
    start: Floats | None = None,
) -> Bracket:
    """Bounds on ρ of a nonnegative matrix without stored zeros.

    Args:
        matrix: (n, n).
        terms: entries of the longest row, for rounding.
        tolerance: the relative gap (upper − lower)/upper to reach.
        budget: limits of the work.
        target: if positive, stop as soon as lower ≥ target, or upper < target.
        depth: how many submatrices deep this search is.
        start: (n,) a positive vector to start from.
    """
    cut = components(matrix, terms)
    block = cut.block
    if block is None:
        return Bracket(lower=cut.single, upper=cut.single)
    x = np.ones(block.size) if start is None else start[block.nodes]
    cycles = cycle_potentials(block)
    if cycles is not None:
        mask, exponent, mantissa = cycles
        block.regauge(exponent)
        x = np.where(mask, mantissa, x)
    way = _Search(
        block=block,
        x=x,
        tolerance=tolerance,
        budget=budget,
        target=target,
        depth=depth,
        floor=cut.single,
    )
    way.run()
    vector = way.best if block.size == matrix.shape[0] and len(block.starts) == 1 else None
    return Bracket(lower=way.lower, upper=way.upper, note=way.why, vector=vector)
