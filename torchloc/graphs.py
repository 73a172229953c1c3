"""The dependency graph of a model: observation scopes, balls.

An edge i → j says that coordinate i is a state parent of coordinate j: i influences j. *Upstream*
follows edges backwards. Everything is index arrays; nothing here is a Python object per site.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from torchloc.errors import InputError
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import IntArray, integers


@dataclass(frozen=True, eq=False)
class Scopes:
    """What each agent sees: agent k reads `indices[indptr[k]:indptr[k + 1]]`, in that order.

    Attributes:
        indptr: (K + 1,) int64, as in CSR.
        indices: (total,) int64 coordinates.

    Raises:
        InputError: `indptr` does not cut `indices` into K rows, or a row holds a negative
            coordinate or one twice.

    Example:
        >>> scopes = Scopes.from_lists([(1, 0), ()])
        >>> scopes[0], len(scopes)
        ((1, 0), 2)
    """

    indptr: IntArray
    indices: IntArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "indptr", integers(self.indptr, "indptr of scopes", 1))
        object.__setattr__(self, "indices", integers(self.indices, "indices of scopes", 1))
        ends = self.indptr
        if len(ends) == 0 or ends[0] != 0 or (ends[1:] < ends[:-1]).any():
            raise InputError("indptr of scopes must start with 0 and never fall")
        if ends[-1] != len(self.indices):
            raise InputError(
                f"indptr of scopes ends with {int(ends[-1])}, but there are {len(self.indices)} "
                f"indices; both must agree"
            )
        if (self.indices < 0).any():
            place = int(np.argmax(self.indices < 0))
            raise InputError(
                f"scope of agent {self._agent(place)}: coordinate {int(self.indices[place])} is "
                f"negative; coordinates are numbered from 0"
            )
        agents = np.repeat(np.arange(len(self)), self.lengths)
        order = np.lexsort((self.indices, agents))
        values = self.indices[order]
        twice = (values[1:] == values[:-1]) & (agents[1:] == agents[:-1])
        if twice.any():
            place = int(np.argmax(twice))
            raise InputError(
                f"scope of agent {int(agents[place])}: coordinate {int(values[place])} stands "
                f"twice; name each coordinate once"
            )

    def _agent(self, place: int) -> int:
        """The agent whose scope holds `indices[place]`."""
        return int(np.searchsorted(self.indptr, place, side="right")) - 1

    @classmethod
    def from_lists(cls, lists: Sequence[ArrayLike]) -> Scopes:
        """Scopes from K lists of coordinates, the order kept.

        Raises:
            InputError: A coordinate is negative, no whole number, or stands twice in one scope.
        """
        rows = [integers(row, f"scope of agent {k}", 1) for k, row in enumerate(lists)]
        indptr = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
        return cls(indptr, np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64))

    @classmethod
    def from_matrix(cls, matrix: sp.spmatrix | sp.sparray) -> Scopes:
        """Scopes from a (K, N) sparse matrix: agent k sees the nonzero columns of row k, rising."""
        csr = sp.csr_array(matrix, copy=True)
        csr.sum_duplicates()
        csr.eliminate_zeros()
        return cls(csr.indptr.astype(np.int64), csr.indices.astype(np.int64))

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, k: int) -> tuple[int, ...]:
        if not -len(self) <= k < len(self):
            raise IndexError(k)
        k %= len(self)
        return tuple(self.indices[self.indptr[k] : self.indptr[k + 1]].tolist())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[k] for k in range(len(self)))

    @property
    def lengths(self) -> IntArray:
        """(K,) number of coordinates in each scope."""
        return np.diff(self.indptr)

    def matrix(self, n_coordinates: int) -> sp.csr_array:
        """(K, N) boolean CSR: entry (k, i) is set iff agent k sees coordinate i."""
        ones = np.ones(len(self.indices), dtype=np.bool_)
        return sp.csr_array((ones, self.indices, self.indptr), shape=(len(self), n_coordinates))

    def rows(self, agents: IntArray) -> IntArray:
        """(len(agents), m) coordinates of agents whose scopes all have the same length m."""
        if len(agents) == 0:
            return np.zeros((0, 0), dtype=np.int64)
        starts = self.indptr[agents]
        return self.indices[starts[:, None] + np.arange(int(self.lengths[agents[0]]))]

    def check(self, mdp: FactoredMDP) -> None:
        """Refuses scopes that do not fit the model.

        Raises:
            InputError: Another number of agents, or a coordinate that the model does not have.
        """
        if len(self) != mdp.n_agents:
            raise InputError(
                f"scopes names {len(self)} agents, but the model has {mdp.n_agents}; "
                f"give one list of coordinates an agent (an empty one for a blind agent)"
            )
        if len(self.indices) and int(self.indices.max()) >= mdp.n_coordinates:
            place = int(np.argmax(self.indices >= mdp.n_coordinates))
            raise InputError(
                f"scope of agent {self._agent(place)}: coordinate {int(self.indices[place])} is "
                f"out of range; the model has {mdp.n_coordinates} coordinates, numbered from 0"
            )


def as_scopes(mdp: FactoredMDP, scopes: Scopes | Sequence[ArrayLike]) -> Scopes:
    """Scopes that fit the model, from a `Scopes` or from K lists of coordinates."""
    result = scopes if isinstance(scopes, Scopes) else Scopes.from_lists(scopes)
    result.check(mdp)
    return result


def dependency_matrix(mdp: FactoredMDP) -> sp.csr_array:
    """(N, N) boolean CSR: entry (j, i) is set iff i is a state parent of coordinate j."""
    targets, sources = mdp.state_edges()
    ones = np.ones(len(targets), dtype=np.bool_)
    return sp.csr_array((ones, (targets, sources)), shape=(mdp.n_coordinates,) * 2)


def action_matrix(mdp: FactoredMDP) -> sp.csr_array:
    """(N, K) boolean CSR: entry (j, k) is set iff kernel j reads the action of agent k."""
    return _actions(mdp, mdp.action_edges())


def _own_actions(mdp: FactoredMDP) -> sp.csr_array:
    """The same without actions that a kernel only counts, as one of many."""
    parts = [
        (np.repeat(kernel.coordinates, kernel.actions.shape[1]), kernel.actions.ravel())
        for kernel in mdp.kernels
    ]
    targets, agents = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return _actions(mdp, (targets, agents))


def _actions(mdp: FactoredMDP, edges: tuple[IntArray, IntArray]) -> sp.csr_array:
    targets, agents = edges
    ones = np.ones(len(targets), dtype=np.bool_)
    return sp.csr_array((ones, (targets, agents)), shape=(mdp.n_coordinates, mdp.n_agents))


def neighbourhood_scopes(mdp: FactoredMDP, hops: int = 1) -> Scopes:
    """The coordinates at most `hops` edges upstream of those that agent k acts on, these included.

    With 0 hops an agent sees just what it acts on; with 1 also their state parents. What only counts an
    action, as one of many, is not acted on here.

    Args:
        mdp: The model.
        hops: Number of edges, ≥ 0.

    Returns:
        Scopes in ascending order of coordinates.

    Raises:
        InputError: `hops` is negative or no whole number.
    """
    if isinstance(hops, bool) or not isinstance(hops, Integral) or hops < 0:
        raise InputError(f"hops = {hops!r}; it must be a whole number ≥ 0")
    parents = dependency_matrix(mdp)
    reached = sp.csr_array(_own_actions(mdp).T)
    for _ in range(int(hops)):
        before = reached.nnz
        reached = _pattern(reached + reached @ parents)
        if reached.nnz == before:  # it only grows, so it has all it will ever have
            break
    return Scopes.from_matrix(reached)


def parent_scopes(mdp: FactoredMDP) -> Scopes:
    """The state parents of the coordinates that agent k acts on, and nothing else.

    An agent sees what it acts on only where that coordinate is its own parent. What only counts an
    action is not acted on here.
    """
    return Scopes.from_matrix(_pattern(sp.csr_array(_own_actions(mdp).T) @ dependency_matrix(mdp)))


def _pattern(matrix: sp.csr_array) -> sp.csr_array:
    matrix.data[:] = True
    return matrix
