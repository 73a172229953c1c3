"""A diagonal gauge that makes the entries of a block as equal as it can.

‖2^{-φ} B 2^{φ}‖_∞ ≥ ρ(B) for every φ, and the best φ is the logarithm of the Perron vector. The
least-squares φ of log₂ B_ij + φ_j − φ_i ≈ c over all entries is one solve with a graph Laplacian.
It is exact on cycles, and on trees of two-way edges it makes the block symmetric, however far its
Perron vector reaches beyond the range of floating point.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import cg

from torchloc.spectral.blocks import Block
from torchloc.spectral.matrices import Floats
from torchloc.spectral.solvers import SpectralBudget, choose_solver

_DIRECT_FILL = 30_000_000
_ROUNDS = 300


def _laplacian_solve(laplacian: sp.csr_array, right: Floats, budget: SpectralBudget) -> Floats:
    """Solve a grounded Laplacian: directly where that is cheap, else by conjugate gradients."""
    fill = min(budget.fill, _DIRECT_FILL)
    solver = choose_solver(laplacian, replace(budget, fill=fill))
    if solver is not None:
        solve = solver.factor(-laplacian, 0.0)
        if solve is not None:
            return np.stack([solve(column) for column in right.T], axis=1)
    scale = sp.diags_array(1.0 / laplacian.diagonal())
    columns = [cg(laplacian, column, rtol=1e-6, maxiter=_ROUNDS, M=scale)[0] for column in right.T]
    return np.stack(columns, axis=1)


def least_squares_potential(block: Block, budget: SpectralBudget) -> Floats | None:
    """The potential φ (n,) in powers of two, relative to the block's gauge; None where it is 0."""
    entries = block.csr.tocoo()
    row, column = entries.row, entries.col
    away = (row != column) & (entries.data > 0.0)
    row, column, logs = row[away], column[away], np.log2(entries.data[away])
    size = block.size

    def divergence(values: Floats) -> Floats:
        into = np.bincount(row, values, size).astype(np.float64)
        return into - np.bincount(column, values, size)

    ones = np.ones_like(logs)
    right = np.stack([divergence(logs), divergence(ones)], axis=1)
    if np.abs(right).max() <= 1e-6 * (1.0 + np.abs(logs).max()):
        return None
    pattern = sp.csr_array((ones, (row, column)), shape=(size, size))
    degree = np.bincount(row, minlength=size) + np.bincount(column, minlength=size)
    degree = degree.astype(np.float64)
    degree[block.starts] += 1.0
    laplacian = sp.csr_array(sp.diags_array(degree) - pattern - pattern.T)
    potential = _laplacian_solve(laplacian, right, budget)
    differences = potential[column] - potential[row]
    rest, unit = logs + differences[:, 0], 1.0 + differences[:, 1]
    component = np.repeat(np.arange(len(block.starts)), block.lengths)[row]
    square = np.bincount(component, unit * unit)
    mean = np.bincount(component, rest * unit) / np.where(square > 0.0, square, 1.0)
    level = potential[:, 0] - np.repeat(mean, block.lengths) * potential[:, 1]
    return level if np.isfinite(level).all() else None
