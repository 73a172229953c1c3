"""The search for lower ≤ ρ ≤ upper. Every number that leaves this file was read off a checked vector.

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

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from torchloc.spectral.balance import least_squares_potential
from torchloc.spectral.blocks import Block, components, cycle_potentials
from torchloc.spectral.matrices import Floats, Ints
from torchloc.spectral.solvers import Solve, Solver, SpectralBudget, choose_solver

_SMALL = 2000
_FEW_STEPS, _STEPS = 24, 96
_LOOK = 8
_PATCHES = (16, 128, 1024, 8192, 65_536)
_RANGE = 1e-60
_FOLD = 1e3
_PATIENCE = 30
_FILTER = 64
_WINDOW = 4
_PAYS = 16
_DEPTH = 3
_CHEAP = 1e6


@dataclass(kw_only=True)
class Bracket:
    """What a search has reached.

    Attributes:
        lower: rigorous, ≤ ρ.
        upper: rigorous, ≥ ρ.
        note: what kept the search from its goal; empty where it was reached.
        nodes: where one component holds all nodes, the exponents (n,) and mantissas (n,) of a
            vector with quotients ≤ upper (up to rounding); else None.
    """

    lower: float
    upper: float
    note: str = ""
    vector: tuple[Ints, Floats] | None = None


@dataclass(kw_only=True)
class _Search:
    """One block under way: the bounds so far, a component each, and the vector in its gauge."""

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

        The guess is √(lower·upper) at first, then the growth over the last window of steps: one that
        is far off lets periodic or star-like components converge slowly, and a fixed one would.
        """
        for _ in range(-(-steps // _LOOK)):
            self._window()
            if self.done:
                return
            self.prune()
            if self.x.min() < _RANGE:
                self.x = self.block.fold(self.x)

    def _window(self) -> None:
        """Power steps with one shift; the bounds are read every half window, at first every step."""
        image = self.look()
        if self.done:
            return
        block, high = self.block, self.high
        if not self.trace:
            self.guess = np.sqrt(np.maximum(self.low, 1e-12 * high)) * np.sqrt(high)
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
        self.guess = np.clip(growth - 0.5 * self.guess, self.low, self.high)
        self.trace.append((self.upper, self.upper - self.lower))

    def chebyshev(self, degree: int) -> None:
        """One Chebyshev filter: damps [−upper, upper(1 − (6/degree)²)], where most eigenvalues lie.

        It needs √ of the steps that power iteration needs where the spectrum is close to real; what
        it gives is smoothed by power steps and then checked like any other vector.
        """
        block, high = self.block, self.block.spread(self.high)
        edge = high * (1.0 - min((6.0 / degree) ** 2, 0.5))
        centre, half = 0.5 * (edge - high), 0.5 * (edge + high)
        older, old = self.x, (block.csr @ self.x - centre * self.x) / half
        with np.errstate(all="ignore"):
            for step in range(degree - 1):
                older, old = old, (block.csr @ old - centre * old) * (2.0 / half) - older
                if step % 8 == 7:
                    size = np.abs(old).max()
                    older, old = older / size, old / size
        if np.isfinite(old).all():
            self.x = np.abs(old) / np.abs(old).max() + _RANGE
            self.steps += degree
            self.power(8)

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
        below, slow, nudge = self.lower, 0, 1e-15
        trial, balanced = self.upper, solver.cost <= _CHEAP
        for _ in range(self.budget.factorisations):
            if self.x.max() > _FOLD * self.x.min():
                self.x = self.block.fold(self.x)
            before = self.upper
            solve = solver.factor(self.block.csr, trial)
            grew, settled = (False, False) if solve is None else self._steps(solve, trial)
            if grew:
                self.look()
                if settled and not self.done:
                    self.localised(most=np.inf)
            if self.done:
                return
            upper = self.upper
            if not grew and trial < upper:
                below = max(below, trial)
            nudge = nudge * 8.0 if not grew and trial >= upper else 1e-15
            below = max(below, self.lower)
            if upper - below <= 0.25 * self.tolerance * upper:
                below = self.lower
            shrunk = np.log(before / upper) / np.log(before / below) if below > 0.0 else 0.0
            slow = 0 if shrunk >= 0.5 or trial < before else slow + 1
            if slow >= 2 and not balanced:
                self.balance()
                balanced = True
            trial = self.upper * (1.0 + nudge)
            if slow >= 2:
                middle = np.sqrt(below) * np.sqrt(upper) if below > 0.0 else 1e-3 * upper
                trial, slow = min(middle, self.upper * (1.0 - self.tolerance / 4)), 0
        self.why = f"{self.budget.factorisations} factorisations did not close the gap"

    def _steps(self, solve: Solve, shift: float) -> tuple[bool, bool]:
        """Steps x ← (shift − B)⁻¹x with one factor, while they pay.

        Returns:
            Whether there was a step (none: the solution has not one sign, so shift ≤ ρ up to
            rounding), and whether the upper bound has settled.
        """
        previous, change, grew = np.inf, np.inf, False
        for _ in range(self.budget.solves):
            with np.errstate(all="ignore"):
                y = solve(self.x)
                if not (np.isfinite(y).all() and (y > 0.0).all()):
                    return grew, False
                ratio = self.x / y
            grew = True
            low, high = shift - float(ratio.max()), shift - float(ratio.min())
            self.x = y / y.max()
            if self.x.min() < _RANGE or high - low <= 0.25 * self.tolerance * high:
                return grew, False
            last, change, previous = change, previous - high, high
            if not np.isfinite(last):
                continue
            rate = min(max(change / last, 0.0), 0.999) if last > 0.0 else 0.0
            left = change * rate / (1.0 - rate)
            if left <= self.tolerance / 16 * high:
                return grew, True
            if left * rate**_PATIENCE > self.tolerance / 16 * high:
                return grew, False
        return grew, False

    def filters(self, highest: int) -> None:
        """Chebyshev filters of growing degree, as long as each lowers the upper bound."""
        degree = _FILTER
        while degree <= highest and self.steps + degree <= self.budget.power_steps:
            before, gap = self.upper, self.upper - self.lower
            spread = float(np.ptp(self.quotient))
            block, exponent, x = self.block, self.block.exponent, self.x
            self.chebyshev(degree)
            self.prune()
            if not self.done:
                self.localised()
            if self.done:
                return
            slow = before - self.upper < 0.01 * gap and float(np.ptp(self.quotient)) > 0.7 * spread
            if self.block is block and slow:
                block.regauge(exponent)
                self.x = x
                self.look()
                return
            degree *= 2

    def run(self) -> None:
        """Close the gap, or say why it stayed open."""
        small = self.block.size <= _SMALL
        self.power(_FEW_STEPS if small else _STEPS)
        self.prune()
        if not (self.done or small):
            self.localised()
        if self.done:
            return
        solver = choose_solver(self.block.csr, self.budget)
        if solver is None or solver.cost > _CHEAP:
            while not self.done and self.steps < self.budget.power_steps and self._power_pays():
                self.power(_STEPS)
                self.prune()
                self.localised()
            if not self.done:
                self.filters(4 * _FILTER if solver is not None else self.budget.power_steps)
            while solver is None and not self.done and self.steps < self.budget.power_steps:
                self.power(_STEPS)
                self.prune()
                self.localised()
        if self.done:
            return
        if solver is None:
            self.why = (
                f"{self.steps} power steps left a gap, and a factorisation is foreseen to exceed "
                f"{self.budget.fill} entries"
            )
            return
        solver = choose_solver(self.block.csr, self.budget) or solver
        if solver.cost <= _CHEAP:
            self.balance()
        if not self.done:
            self.inverse(solver)

    def _power_pays(self) -> bool:
        """Whether a few hundred more power steps are foreseen to settle the upper bound or the gap.

        Both are taken to fall geometrically, at the rate of the last two windows.
        """
        if len(self.trace) < 2 * _WINDOW + 1:
            return False
        first, second, third = (
            self.trace[-1 - 2 * _WINDOW],
            self.trace[-1 - _WINDOW],
            self.trace[-1],
        )
        goal = 0.25 * self.tolerance * self.upper
        localised = np.count_nonzero(self.quotient >= 0.999 * self.upper) <= self.block.size // 2
        for column in (0, 1):
            if column == 0 and not localised:
                continue
            drop, last = first[column] - second[column], second[column] - third[column]
            if not 0.0 < last < drop < np.inf:
                continue
            rate = last / drop
            left = last * rate / (1.0 - rate) if column == 0 else third[column]
            if left > goal and np.log(left / goal) <= _PAYS * -np.log(rate):
                return True
        return False


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
