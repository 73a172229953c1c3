"""What rounding can hide: outward factors for nonnegative sums, and absolute errors of computed laws.

The laws of a policy are computed as softmax of x = (z − max z)/τ ≤ 0. Each x is right to two
roundings of itself, so e^x, which they move by |x| e^x ≤ 1/e of them, is right to one unit whatever
τ is; the exponential, the sum over A actions (≥ 1) and the division add a few relative ones. So

    ‖p̂ − p‖₁ ≤ θ,   θ = (3 A + 16)·2⁻⁵³.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchloc.lipschitz import scope_matrix
from torchloc.mdp.checks import IntArray
from torchloc.policy import SoftmaxPolicy
from torchloc.policy.groups import ROW_BUDGET

UNIT = 2.0**-53


def outward(matrix: sp.csr_array, steps: float) -> sp.csr_array:
    """Entries of a nonnegative matrix times 1 + steps · 2⁻⁵³: covers that many roundings."""
    result = sp.csr_array(matrix)
    result.data = result.data * (1.0 + (steps + 2.0) * UNIT)
    return result


def largest_logit(policy: SoftmaxPolicy, budget: int = ROW_BUDGET) -> float:
    """max |z − max_a z|/τ over the finite logits of scopes of at most `budget` states."""
    size = 0.0
    for index, group in enumerate(policy.groups):
        if group.n_rows > budget:
            continue
        scaled = policy.group_scaled_logits(index)
        finite = torch.where(torch.isfinite(scaled), scaled.abs(), 0.0)
        size = max(size, float(finite.max()) if finite.numel() else 0.0)
    return size


def most_actions(policy: SoftmaxPolicy) -> int:
    """max A_k; 0 without agents."""
    return max((group.n_actions for group in policy.groups), default=0)


def law_error(actions: int) -> float:
    """θ ≥ ‖p̂ − p‖₁ for computed laws of at most `actions` actions."""
    return (3.0 * actions + 16.0) * UNIT


def moving(policy: SoftmaxPolicy, budget: int = ROW_BUDGET) -> sp.csr_array:
    """(K, N) CSR of ones where a law can change with the coordinate, decided without rounding.

    That is where a difference z_a − z_b of stored logits changes, or which actions are forbidden. The
    difference is kept as its rounded value and the exact rest (Knuth's two-sum). A scope of more
    than `budget` states counts as all.
    """
    entries = []
    for index, group in enumerate(policy.groups):
        if group.n_rows > budget:
            entries.append(torch.ones(group.scope.shape, dtype=torch.float64))
            continue
        with torch.no_grad():
            table = group.unflatten(policy.group_logits(index).double())
        entries.append(_varies(table))
    return scope_matrix(policy, entries)


def _varies(table: Tensor) -> Tensor:
    """(G, *S, A) logits → (G, m) ones where the law changes along the axis."""
    allowed = torch.isfinite(table)
    base = table.gather(-1, allowed.to(torch.int8).argmax(dim=-1, keepdim=True))
    value = torch.where(allowed, table, base)
    rounded = value - base
    part = rounded - value
    rest = (value - (rounded - part)) - (base + part)
    result = torch.zeros(len(table), table.ndim - 2, dtype=torch.float64)
    for i in range(table.ndim - 2):
        changes = torch.zeros(len(table), dtype=torch.bool)
        for part in (rounded, rest, allowed.double()):
            changes |= (part.amax(dim=i + 1) != part.amin(dim=i + 1)).reshape(len(table), -1).any(1)
        result[:, i] = changes.double()
    return result


def stored(matrix: sp.csr_array, rows: IntArray, columns: IntArray) -> NDArray[np.bool_]:
    """(B,) whether the entries (rows, columns) are stored."""
    width = matrix.shape[1]
    held = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)) * width + matrix.indices
    return np.isin(rows * width + columns, held)
