"""Strongly connected components, and the irreducible blocks between which ρ is a maximum.

ρ(M) is the largest ρ of a strongly connected component. One node is its diagonal entry. A component
with one entry a row is a cycle: its ρ is the geometric mean of its weights, and its Perron vector
is the running product of weight over mean.

A block is kept in a *gauge*: B = 2^{-e} M 2^{e} with one whole exponent e_i a node. B has the
spectrum of M, its entries are those of M moved by exact powers of two, and a vector x > 0 of B
stands for 2^e x of M, whatever the range of that is. `Block.fold` moves a vector into the gauge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from torchloc.spectral.matrices import Floats, Ints, down, underflow, up

_SHIFT_LIMIT = 4000


class Block:
    """A block-diagonal matrix of irreducible blocks (its components), in a gauge.

    Attributes:
        csr: (n, n) the matrix in its gauge, 2^{-e_i} M_ij 2^{e_j}.
        exponent: (n,) the gauge e.
        starts: (C,) the first node of each component; nodes of one component follow each other.
        nodes: (n,) the nodes' numbers in the matrix that the block was cut from.
        terms: entries in the longest row, for rounding.
    """

    def __init__(self, matrix: sp.csr_array, starts: Ints, nodes: Ints, terms: int) -> None:
        self.starts, self.nodes, self.terms = starts, nodes, terms
        self.exponent = np.zeros(matrix.shape[0], dtype=np.int64)
        self.csr = matrix
        self._data = matrix.data
        self._least = float(matrix.data.min())

    @property
    def size(self) -> int:
        """The number n of nodes."""
        return len(self.exponent)

    @property
    def lengths(self) -> Ints:
        """(C,) the number of nodes of each component."""
        return np.diff(self.starts, append=self.size)

    def spread(self, values: Floats) -> Floats:
        """One value a component (C,) to one value a node (n,), or (1,) where there is one."""
        return values if len(values) == 1 else np.repeat(values, self.lengths)

    def masses(self, vector: Floats) -> Floats:
        """(C,) the sum of a vector (n,) over each component."""
        if len(self.starts) == 1:
            return np.array([vector.sum()])
        return np.add.reduceat(vector, self.starts)

    def regauge(self, exponent: Ints) -> None:
        """Set the gauge to `exponent` (n,)."""
        self.exponent = exponent
        relative = np.clip(exponent, -(2**30), 2**30).astype(np.int32)
        rows = np.repeat(relative, np.diff(self.csr.indptr))
        move = np.clip(relative[self.csr.indices] - rows, -_SHIFT_LIMIT, _SHIFT_LIMIT)
        with np.errstate(over="ignore", under="ignore"):
            data = np.ldexp(self._data, move)
        self.csr = sp.csr_array((data, self.csr.indices, self.csr.indptr), shape=self.csr.shape)
        self._least = float(data.min())

    def fold(self, vector: Floats) -> Floats:
        """Move the powers of two of `vector` > 0 into the gauge; what is left lies in [1, 2)."""
        mantissa, power = np.frexp(vector)
        self.regauge(self.exponent + power - 1)
        return 2.0 * mantissa

    def quotients(self, vector: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Collatz–Wielandt quotients of `vector` > 0.

        Returns:
            B x (n,) and (B x)_i / x_i (n,) as computed; then for each component (C,) a number no
            larger than the smallest and one no smaller than the largest true quotient, so
            lower ≤ ρ(component) ≤ upper.
        """
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            image = self.csr @ vector
            quotient = image / vector
        if len(self.starts) == 1:
            least, most = np.array([quotient.min()]), np.array([quotient.max()])
        else:
            least = np.minimum.reduceat(quotient, self.starts)
            most = np.maximum.reduceat(quotient, self.starts)
        lost = underflow(self._least, vector, self.terms, moved=True)
        lower, upper = down(least, self.terms), up(most, self.terms)
        if lost:
            lower, upper = np.maximum(lower - lost, 0.0), np.nextafter(upper + lost, np.inf)
        upper = np.where(np.isfinite(upper), upper, np.inf)
        return image, quotient, np.where(np.isfinite(lower), lower, 0.0), upper

    def keep(self, components: np.ndarray) -> tuple[Block, np.ndarray]:
        """The block of the components where the mask (C,) is true, and its nodes as a mask (n,)."""
        mask = np.repeat(components, self.lengths)
        lengths = self.lengths[components]
        kept = sp.csr_array((self._data, self.csr.indices, self.csr.indptr), shape=self.csr.shape)[
            mask
        ][:, mask]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        block = Block(sp.csr_array(kept), starts, self.nodes[mask], self.terms)
        block.regauge(self.exponent[mask])
        return block, mask


@dataclass(frozen=True, eq=False)
class Components:
    """The strongly connected components of a matrix.

    Attributes:
        single: the largest diagonal entry of a component of one node (0.0 without any): exactly
            their ρ.
        block: all other components, or None.
    """

    single: float
    block: Block | None


def components(matrix: sp.csr_array, terms: int) -> Components:
    """Cut a nonnegative matrix (no stored zeros) into its strongly connected components."""
    number, labels = connected_components(matrix, directed=True, connection="strong")
    size = matrix.shape[0]
    if number == 1 and size > 1:
        starts = np.zeros(1, dtype=np.int64)
        return Components(0.0, Block(matrix, starts, np.arange(size, dtype=np.int64), terms))
    lengths = np.bincount(labels, minlength=number)
    alone = lengths[labels] == 1
    single = float(matrix.diagonal()[alone].max(initial=0.0))
    if alone.all():
        return Components(single, None)
    order = np.argsort(labels, kind="stable")
    nodes = order[~alone[order]].astype(np.int64)
    block = sp.csr_array(matrix[nodes][:, nodes])
    label = labels[nodes]
    inside = np.repeat(label, np.diff(block.indptr)) == label[block.indices]
    if not inside.all():
        block.data[~inside] = 0.0
        block.eliminate_zeros()
    starts = np.flatnonzero(np.concatenate([[True], label[1:] != label[:-1]])).astype(np.int64)
    return Components(single, Block(block, starts, nodes, terms))


def cycle_potentials(block: Block) -> tuple[np.ndarray, Ints, Floats] | None:
    """The Perron vector of every component that is a cycle, in closed form.

    On a cycle row i has one entry, to its successor σ(i): x_σ(i) = x_i ρ / M_iσ(i), and log ρ is
    the mean of the logarithms. The sums along the cycle are taken by pointer doubling, all cycles
    at once.

    Returns:
        A mask (n,) of the nodes on cycles, exponents (n,) and mantissas (n,) in [1, 2), which are
        0 and 1 elsewhere. None where no component is a cycle.
    """
    entries = np.add.reduceat(np.diff(block.csr.indptr), block.starts)
    cyclic = entries == block.lengths
    if not cyclic.any():
        return None
    sub, mask = block.keep(cyclic)
    logs = np.log2(sub.csr.data)
    mean = np.add.reduceat(logs, sub.starts) / sub.lengths
    step = logs - np.repeat(mean, sub.lengths)
    onward = sub.csr.indices.astype(np.int64)
    roots = np.repeat(sub.starts, sub.lengths)
    last = onward == roots
    onward = np.where(last, np.arange(len(onward)), onward)
    ahead = np.where(last, 0.0, step)
    for _ in range(int(sub.lengths.max()).bit_length()):
        ahead = ahead + ahead[onward]
        onward = onward[onward]
    whole = np.floor(ahead)
    exponent = np.zeros(block.size, dtype=np.int64)
    mantissa = np.ones(block.size)
    exponent[mask] = whole.astype(np.int64)
    mantissa[mask] = np.exp2(ahead - whole)
    return mask, exponent, mantissa
