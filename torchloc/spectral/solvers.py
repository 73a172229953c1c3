"""Direct solves with the M-matrix λI − B, by the cheapest factorisation that the budget allows.

λI − B has a nonnegative inverse if and only if λ > ρ(B) (Berman and Plemmons, Nonnegative Matrices
in the Mathematical Sciences, ch. 6). What a solve returns is a proposal: every bound is taken from
a check of the vector. Three factorisations: dense LAPACK for small or full blocks; banded LAPACK
where reverse Cuthill–McKee finds a narrow band (rings, paths); SuperLU with a minimum-degree order
and diagonal pivots (which an M-matrix allows) where its fill is foreseen to fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack
from scipy.sparse.csgraph import breadth_first_order, reverse_cuthill_mckee
from scipy.sparse.linalg import splu

from torchloc.spectral.matrices import Floats, Ints

Solve = Callable[[Floats], Floats]

_DENSE_ALWAYS = 64
_DENSE_SIZE = 3000
_DENSE_SHARE = 0.05
_BAND = 48
_SMALL = 5000
_MEDIUM = 50_000
_SEPARATOR = 1200
_SAMPLES = (5000, 20_000)
_PEELS = 64


@dataclass(frozen=True, kw_only=True)
class SpectralBudget:
    """How much work one bound may take. All limits are counts, so results do not depend on time.

    Attributes:
        power_steps: shifted power steps a block.
        power_entries: matrix entries that the power steps of a block may read in all.
        factorisations: factorisations of λI − B a block.
        solves: solves with one factorisation.
        fill: entries of one factorisation (12 bytes each, about).
        norm_entries: matrix entries that the norms ‖M^t‖ of the (C, λ) may read in all.
    """

    power_steps: int = 20_000
    power_entries: int = 8_000_000_000
    factorisations: int = 60
    solves: int = 40
    fill: int = 150_000_000
    norm_entries: int = 200_000_000


class Solver(Protocol):
    """Factorises λI − B for matrices B with one sparsity pattern.

    Attributes:
        cost: what one factorisation costs, in entries of a SuperLU factor.
    """

    cost: float

    def factor(self, matrix: sp.csr_array, shift: float) -> Solve | None:
        """The solve with shift·I − matrix; None where the factorisation breaks down."""
        ...


class DenseSolver:
    """LAPACK's dense LU."""

    def __init__(self, size: int) -> None:
        self.cost = float(size) ** 2

    def factor(self, matrix: sp.csr_array, shift: float) -> Solve | None:
        """The solve with shift·I − matrix; None where the factorisation breaks down."""
        full = -matrix.toarray()
        full[np.diag_indices_from(full)] += shift
        factors, pivots, info = lapack.dgetrf(full, overwrite_a=True)
        if info != 0:
            return None
        return lambda right: lapack.dgetrs(factors, pivots, right)[0]


class BandedSolver:
    """LAPACK's banded LU in reverse Cuthill–McKee order."""

    def __init__(self, matrix: sp.csr_array, order: Ints, width: int) -> None:
        size = len(order)
        self.cost = 0.1 * size * (3 * width + 1)
        self._order, self._width = order, width
        place = np.empty(size, dtype=np.int64)
        place[order] = np.arange(size)
        self._column = place[matrix.indices]
        rows = np.repeat(place, np.diff(matrix.indptr))
        self._row = 2 * width + rows - self._column

    def factor(self, matrix: sp.csr_array, shift: float) -> Solve | None:
        """The solve with shift·I − matrix; None where the factorisation breaks down."""
        size, width, order = len(self._order), self._width, self._order
        band = np.zeros((3 * width + 1, size), order="F")
        band[self._row, self._column] = -matrix.data
        band[2 * width] += shift
        factors, pivots, info = lapack.dgbtrf(band, width, width, overwrite_ab=True)
        if info != 0:
            return None

        def solve(right: Floats) -> Floats:
            solution = np.empty(size)
            solution[order] = lapack.dgbtrs(factors, width, width, right[order], pivots)[0]
            return solution

        return solve


class SparseSolver:
    """SuperLU: minimum degree on A + Aᵀ, or the order given, with pivots on the diagonal."""

    def __init__(self, size: int, cost: float, *, order: Ints | None = None) -> None:
        self.cost = cost
        self._order = order
        self._identity = sp.eye_array(size, format="csc")

    def factor(self, matrix: sp.csr_array, shift: float) -> Solve | None:
        """The solve with shift·I − matrix; None where the factorisation breaks down."""
        order = self._order
        if order is not None:
            matrix = sp.csr_array(matrix[order][:, order])
        shifted = sp.csc_array(shift * self._identity - matrix.tocsc())
        try:
            factors = splu(
                shifted,
                permc_spec="MMD_AT_PLUS_A" if order is None else "NATURAL",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True},
            )
        except RuntimeError:  # SuperLU's word for an exactly singular factor
            return None
        if order is None:
            return factors.solve

        def solve(right: Floats) -> Floats:
            solution = np.empty_like(right)
            solution[order] = factors.solve(right[order])
            return solution

        return solve


def _peeled(matrix: sp.csr_array) -> sp.csr_array:
    """The symmetric pattern without its hanging trees, which are eliminated without fill."""
    ones = np.ones(matrix.nnz, dtype=np.int8)
    pattern = sp.csr_array((ones, matrix.indices, matrix.indptr), shape=matrix.shape)
    pattern = sp.csr_array(pattern + pattern.T)
    for _ in range(_PEELS):
        stay = np.diff(pattern.indptr) - (pattern.diagonal() != 0) > 1
        if stay.all() or not stay.any():
            break
        pattern = sp.csr_array(pattern[stay][:, stay])
    return pattern


def _bandwidth(pattern: sp.csr_array, order: Ints) -> int:
    """The largest |i − j| of an entry in the given order."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    rows = np.repeat(place, np.diff(pattern.indptr))
    return int(np.abs(rows - place[pattern.indices]).max(initial=0))


def _foreseen_fill(pattern: sp.csr_array, order: Ints) -> float:
    """The fill of the whole pattern, extrapolated from two balls around its middle.

    Fill per node grows like log n on a plane and like n^{1/3} in space; two balls show which.
    """
    size = pattern.shape[0]
    ball = breadth_first_order(pattern, int(order[size // 2]), return_predecessors=False)
    shares = []
    for piece in _SAMPLES:
        chosen = np.sort(ball[:piece])
        part = sp.csc_array(pattern[chosen][:, chosen], dtype=np.float64)
        part.data[:] = -1.0
        degree = np.diff(part.indptr).astype(np.float64)
        part = sp.csc_array(part + sp.diags_array(2.0 * degree + 1.0))
        factors = splu(
            part,
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        shares.append(factors.nnz / piece)
    growth = max(np.log(shares[1] / shares[0]) / np.log(_SAMPLES[1] / _SAMPLES[0]), 0.0)
    return float(size * shares[1] * (size / _SAMPLES[1]) ** growth)


def choose_solver(matrix: sp.csr_array, budget: SpectralBudget) -> Solver | None:
    """The cheapest factorisation of matrices with this pattern, or None where none fits the budget.

    Args:
        matrix: (n, n) the pattern; its values do not matter.
        budget: `fill` bounds the entries of a factorisation.
    """
    size = matrix.shape[0]
    few = size <= _DENSE_SIZE and matrix.nnz >= _DENSE_SHARE * size * size
    if size <= _DENSE_ALWAYS or few:
        return DenseSolver(size) if size * size <= budget.fill else None
    order = reverse_cuthill_mckee(matrix, symmetric_mode=False).astype(np.int64)
    width = _bandwidth(matrix, order)
    if width <= _BAND and (3 * width + 1) * size <= budget.fill:
        return BandedSolver(matrix, order, width)
    if size <= _SMALL:
        return SparseSolver(size, float(size) ** 2) if size * size <= budget.fill else None
    core = _peeled(matrix)
    left = core.shape[0]
    if left > _SMALL:
        order = reverse_cuthill_mckee(core, symmetric_mode=True).astype(np.int64)
        width = _bandwidth(core, order)
        if width > _SEPARATOR:
            return None
        fill = 2.0 * left * width if left <= _MEDIUM else _foreseen_fill(core, order)
    else:
        fill = float(left) ** 2
    fill += 3.0 * matrix.nnz
    return SparseSolver(size, fill) if fill <= budget.fill else None


def triangular_solver(matrix: sp.csr_array, order: Ints) -> SparseSolver:
    """The solver without fill for a matrix that `order` makes lower triangular."""
    return SparseSolver(matrix.shape[0], float(matrix.nnz), order=order)
