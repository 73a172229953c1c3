"""Which agents may move together: the conflict graph of a chromatic pass, and its colouring.

Agents conflict at truncation κ if the truncated advantage of one can change with the policy of the
other. Up to a constant in a_k it is

    ĝ_k(s, a_k) = E[r(s, A) + ĥ_κ(S') | s, a_k],   ĥ_κ = Σ_{t=0}^{κ} (T^π)^t r^π.

Let f be a term of r^π: a reward term r_m^π, or Ent π_j for the entropy objective. It depends on the
policies of agents D₋₁ (those of r_m; j) and reads coordinates V₀ (those of r_m and the scopes of
D₋₁; O_j). With act_t the agents that act on V_t, and V_{t+1} the state parents of V_t and the
scopes of act_t, (T^π)^t f reads V_t and depends on the policies of D₋₁ ∪ act_0 ∪ … ∪ act_{t−1}. So
a_k changes E[(T^π)^t f(S') | s, a_k] only for k ∈ act_t, and what it changes depends on the policies
of D_t = D₋₁ ∪ act_0 ∪ … ∪ act_t and on no other. In D_κ any two agents conflict: the one that came
in no earlier than the other depends on it, and two of D₋₁ share the reward r_m(s, a) of step 0 (its
entropies no action changes). So the graph is the union of the cliques D_κ, one a term:

    Q = P ∪ A O,   R = (I ∪ Q ∪ … ∪ Q^κ) A,   D = G ∪ (S ∪ G O) R,   conflicts = DᵀD off the diagonal

with boolean matrices P (N, N) state parents, A (N, K) action parents, O (K, N) scopes, and for M
terms S (M, N) their coordinates and G (M, K) their agents; for the entropies S = 0 and G = I. Spaces
of size 1 carry nothing and are left out.

The graph is sound for every table and policy: agents without an edge do not see each other. Where
the tables are in general position it is also exact; tables that ignore a parent, or terms that are
sums and could be split, leave edges that nothing needs. It grows with κ. As long as the weighting
of unseen coordinates is held, nothing else of an update depends on other policies: the blocks of
one colour, moved together, give the iterates of a sequential pass in the order of colours, and only
the neighbours of what moved have to be evaluated again. Source: the package's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from torchloc.errors import BudgetError, InputError
from torchloc.graphs import Scopes, as_scopes
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import IntArray, integers

BoolArray = NDArray[np.bool_]

PAIR_BUDGET = 2**31
"""Pairs of entries that meet in one boolean product at most."""
_ROWS = 2**15
"""Rows of a graph that are Python ints at a time; as such they take ten times their memory."""


def conflict_graph(
    mdp: FactoredMDP,
    scopes: Scopes | Sequence[ArrayLike],
    kappa: int,
    *,
    objective: Literal["reward", "entropy"] = "reward",
) -> sp.csr_array:
    """Who must not move together at truncation κ.

    Args:
        mdp: The model.
        scopes: What each agent sees.
        kappa: Truncation κ ≥ 0; with one κ an agent, the largest.
        objective: Whether the entropies of the policies are part of the reward.

    Returns:
        (K, K) boolean CSR, symmetric, empty diagonal, sorted: entry (k, l) is set iff agents k and
        l conflict.

    Raises:
        InputError: κ, the objective or the scopes do not fit.
        BudgetError: Too many agents meet: some term is reached by a large part of the system.

    Example:
        >>> from torchloc.environments import sysadmin
        >>> from torchloc.graphs import neighbourhood_scopes
        >>> mdp = sysadmin(n=10)
        >>> conflict_graph(mdp, neighbourhood_scopes(mdp), 1)[[0]].indices.tolist()
        [1, 2, 8, 9]
    """
    if isinstance(kappa, bool) or not isinstance(kappa, Integral) or kappa < 0:
        raise InputError(f"kappa = {kappa!r}; it must be a whole number ≥ 0")
    if objective not in ("reward", "entropy"):
        raise InputError(f"objective is {objective!r}; choose reward or entropy")
    cliques = _cliques(mdp, as_scopes(mdp, scopes), int(kappa), objective)
    graph = _product(sp.csr_array(cliques.T), cliques)
    graph.data = _row_numbers(graph) != graph.indices
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def first_fit(conflicts: sp.spmatrix | sp.sparray) -> IntArray:
    """Each vertex, in the order of its index, gets the least colour that no neighbour has yet.

    On rings and lattices numbered in order the colours repeat with a period, so that equal sites
    stay equal; where the period does not divide the ring, its end takes some colours more. Never
    more than the largest degree + 1 colours.

    Args:
        conflicts: (K, K) graph; an entry on either side of the diagonal is an edge, one on it is
            none.

    Returns:
        (K,) int64 colours from 0; neighbours differ.

    Raises:
        InputError: The matrix is not square.

    Example:
        >>> path = sp.csr_array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
        >>> first_fit(path).tolist()
        [0, 1, 0]
    """
    lower = _earlier(conflicts)
    size = lower.shape[0]
    bits: list[int] = []  # 2^colour of each vertex: a set of colours is the bits of an int
    for start in range(0, size, _ROWS):
        ends = lower.indptr[start : start + _ROWS + 1].tolist()
        earlier = lower.indices[ends[0] : ends[-1]].tolist()
        offset = ends[0]
        for i in range(len(ends) - 1):
            taken = 0
            for other in earlier[ends[i] - offset : ends[i + 1] - offset]:
                taken |= bits[other]
            bits.append(~taken & (taken + 1))
    return np.fromiter((bit.bit_length() for bit in bits), np.int64, size) - 1


def colour_classes(colours: ArrayLike) -> tuple[IntArray, ...]:
    """The vertices of each colour.

    Args:
        colours: (K,) colours ≥ 0.

    Returns:
        One array of ascending vertices for each colour 0 … largest; an unused colour's is empty.

    Raises:
        InputError: A colour is negative or no whole number.

    Example:
        >>> [part.tolist() for part in colour_classes([0, 1, 0])]
        [[0, 2], [1]]
    """
    values = integers(colours, "colours", 1)
    if (values < 0).any():
        place = int(np.argmax(values < 0))
        raise InputError(f"colours: vertex {place} has {int(values[place])}; colours count from 0")
    order = np.argsort(values, kind="stable")
    cuts = [0, *np.cumsum(np.bincount(values)).tolist()]
    return tuple(order[start:end] for start, end in pairwise(cuts))


def _cliques(
    mdp: FactoredMDP, scopes: Scopes, kappa: int, objective: Literal["reward", "entropy"]
) -> sp.csr_array:
    """D: (terms, K), one row for each set of agents that meet in a term, each set once."""
    n, agents = mdp.n_coordinates, mdp.n_agents
    moving = mdp.state_sizes > 1, mdp.action_sizes > 1
    parents = _incidence(*mdp.state_edges(), n, moving[0])
    acted = _incidence(*mdp.action_edges(), n, moving[1])
    seers = np.repeat(np.arange(agents), scopes.lengths)
    seen = _incidence(seers, scopes.indices, agents, moving[0])
    reach = acted
    for _ in range(kappa):
        before = reach.nnz
        reach = acted + _product(parents, reach) + _product(acted, _product(seen, reach))
        if reach.nnz == before:  # it only grows, so it has all it will ever have
            break
    met = _product(seen, reach)  # agents that reach what agent k sees
    n_terms = sum(map(len, mdp.rewards))
    reads = _incidence(*_members([m.state_parents for m in mdp.rewards]), n_terms, moving[0])
    acts = _incidence(*_members([m.action_parents for m in mdp.rewards]), n_terms, moving[1])
    cliques = acts + _product(reads, reach) + _product(acts, met)
    if objective == "entropy":
        own = _incidence(np.arange(agents), np.arange(agents), agents, moving[1])
        cliques = sp.vstack([cliques, own + _product(own, met)], format="csr")
    return _distinct(cliques)


def _members(batches: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """(term, member) of (B, p) members a batch; the terms are numbered batch after batch."""
    none = np.zeros(0, np.int64)
    starts = np.cumsum([0, *map(len, batches)])[:-1]
    terms = [
        start + np.repeat(np.arange(len(batch)), batch.shape[1])
        for start, batch in zip(starts, batches, strict=True)
    ]
    return np.concatenate([none, *terms]), np.concatenate([none, *map(np.ravel, batches)])


def _incidence(rows: IntArray, columns: IntArray, n_rows: int, live: BoolArray) -> sp.csr_array:
    """(n_rows, len(live)) boolean CSR with the entries (row, column) of live columns."""
    kept = live[columns]
    small = np.int32 if max(n_rows, len(live)) < 2**31 else np.int64
    places = rows[kept].astype(small), columns[kept].astype(small)
    ones = np.ones(len(places[0]), dtype=np.bool_)
    return sp.csr_array((ones, places), shape=(n_rows, len(live)))


def _product(left: sp.csr_array, right: sp.csr_array) -> sp.csr_array:
    """The boolean product, if it is not too much work."""
    pairs = int(np.diff(right.indptr)[left.indices].sum(dtype=np.int64))
    if pairs > PAIR_BUDGET:
        raise BudgetError(
            f"the conflict graph takes a boolean product of {pairs} pairs (up to {5 * pairs} "
            f"bytes), over the budget of {PAIR_BUDGET}: too many agents meet in one reward term; "
            f"use a smaller kappa or smaller scopes, or update the agents one after the other"
        )
    return left @ right


def _distinct(matrix: sp.csr_array) -> sp.csr_array:
    """The nonempty rows, each once. Rows of equal hash are compared, so none is lost."""
    matrix = matrix[np.diff(matrix.indptr) > 0]
    hashes = _hashes(matrix)
    order = np.argsort(hashes, kind="stable")
    place = 1 + np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    if len(place) == 0:
        return matrix
    differs = matrix[order[place]] != matrix[order[place - 1]]
    repeated = order[place[np.diff(sp.csr_array(differs).indptr) == 0]]
    return matrix[np.setdiff1d(np.arange(matrix.shape[0]), repeated, assume_unique=True)]


def _hashes(matrix: sp.csr_array) -> NDArray[np.uint64]:
    """Per row, the sum modulo 2^64 of a fixed random number for each entry."""
    weights = np.random.default_rng(0).integers(2**63, size=matrix.shape[1], dtype=np.uint64)
    return matrix.astype(np.uint64) @ weights


def _row_numbers(matrix: sp.csr_array) -> IntArray:
    """The row of each entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def _earlier(conflicts: sp.spmatrix | sp.sparray) -> sp.csr_array:
    """(K, K) boolean CSR: row k holds the neighbours of k that come before it."""
    graph = sp.csr_array(conflicts, dtype=np.bool_)
    if graph.shape[0] != graph.shape[1]:
        raise InputError(f"conflicts has shape {graph.shape}; it must be square, one row an agent")
    # The sum leaves stored zeros out.
    return sp.csr_array(sp.tril(graph, -1)) + sp.csr_array(sp.triu(graph, 1).T)
