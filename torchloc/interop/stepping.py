"""Steps of one system at a time, on NumPy alone: what an environment of another library needs.

`torchloc.evaluation.simulator` steps thousands of replicas of a policy at once; here the actions come
from outside, one joint action at a time, so what counts is the time of a single call. The law is the
same: v is the number of thresholds

    t_v = (p_0 + … + p_v) / (p_0 + … + p_{S−1}),   0 ≤ v < S − 1,

that u ~ U[0, 1) has reached, u one number a coordinate. A value of probability 0 is never drawn.

The reward is a sum of terms, r = Σ_m r_m; `Shares` divides every term evenly among its *owners*:

    1. the agents whose actions it reads; where it reads none,
    2. the agents that act on a coordinate which it reads; where there are none,
    3. the agents that see a coordinate which it reads; where there are none,
    4. all agents.

So the local rewards add up to r(s, a), and an agent's own cost is its own.

Axis letters: B sites of a batch, M reward terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from torchloc.graphs import Scopes, action_matrix
from torchloc.mdp import FactoredMDP, KernelBatch, RewardBatch
from torchloc.mdp.checks import FloatArray, IntArray
from torchloc.mdp.counting import Counters
from torchloc.mdp.gathering import Kernels, Rewards


@dataclass(frozen=True, eq=False)
class _Counts:
    """Counters c_i = min(C_i − 1, Σ_m w[i, m, x_m]) of B sites, row-major as one number.

    Attributes:
        parts: For counted coordinates and for counted agents: (B, d) places in the state followed by
            the actions, and (B or 1, d, X, r) weights.
        most: (r,) C_i − 1.
        strides: (r,) mixed radix.
    """

    parts: tuple[tuple[IntArray, IntArray], ...]
    most: IntArray
    strides: IntArray

    @classmethod
    def of(cls, mdp: FactoredMDP, counters: Counters) -> _Counts:
        parts = (
            (counters.states, counters.state_weights),
            (mdp.n_coordinates + counters.actions, counters.action_weights),
        )
        return cls(
            tuple((read, weights.transpose(0, 2, 3, 1)) for read, weights in parts if read.size),
            np.array(counters.levels, dtype=np.int64) - 1,
            _strides(counters.levels),
        )

    def __call__(self, joint: IntArray) -> IntArray | int:
        """(B,) counter states at a joint (state, action)."""
        sums: IntArray | int = 0
        for read, weights in self.parts:
            site = np.arange(len(weights))[:, None]
            sums = sums + weights[site, np.arange(read.shape[1]), joint[read]].sum(axis=1)
        return np.minimum(sums, self.most) @ self.strides


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of a flat table, by what each of B sites reads of the joint (state, action).

    Attributes:
        read: (B, p + q) places in the state followed by the actions.
        strides: (p + q,) mixed radix, the last variable running fastest, counters after all of them.
        base: (B,) first row of each site; 0 for a table shared by all.
        counts: What is read through counters; None for a plain table.
    """

    read: IntArray
    strides: IntArray
    base: IntArray | int
    counts: _Counts | None

    @classmethod
    def of(cls, mdp: FactoredMDP, batch: Kernels | Rewards) -> _Rows:
        """For the sites of a batch."""
        read = np.concatenate([batch.states, mdp.n_coordinates + batch.actions], axis=1)
        counters = None if isinstance(batch, KernelBatch | RewardBatch) else batch.counters
        inner = 1 if counters is None else counters.n_states
        sizes = (*batch.state_shape, *batch.action_shape, inner)
        base = np.arange(len(batch.table), dtype=np.int64) * math.prod(sizes)
        return cls(
            read,
            _strides(sizes)[:-1],
            base if len(base) > 1 else 0,
            None if counters is None else _Counts.of(mdp, counters),
        )

    def __call__(self, joint: IntArray) -> IntArray:
        """(B,) rows at a joint (state, action) of N + K numbers."""
        rows = joint[self.read] @ self.strides + self.base
        return rows if self.counts is None else rows + self.counts(joint)


def _strides(sizes: Sequence[int]) -> IntArray:
    """Mixed radix, the last variable running fastest."""
    strides = [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]
    return np.array(strides, dtype=np.int64)


class Stepper:
    """One system: its first state, its next state, its reward terms.

    Args:
        mdp: The model.

    Attributes:
        mdp: The model.
        n_terms: M.

    Example:
        >>> from torchloc.environments import sysadmin
        >>> stepper = Stepper(sysadmin(n=3))
        >>> states, reboot = np.array([1, 0, 1]), np.array([0, 1, 0])
        >>> float(stepper.terms(states, reboot).sum())
        1.25
        >>> int(stepper.following(states, reboot, np.random.default_rng(0))[1])
        1
    """

    def __init__(self, mdp: FactoredMDP) -> None:
        self.mdp = mdp
        sizes, initial = mdp.state_sizes, mdp.initial
        if initial is None:
            initial = (np.arange(sizes.max()) < sizes[:, None]) / sizes[:, None]
        self._initial = _thresholds(initial)
        self._kernels = [
            (
                _Rows.of(mdp, batch),
                _thresholds(batch.table.reshape(-1, batch.table.shape[-1])),
                batch.coordinates,
            )
            for batch in mdp.kernels
        ]
        self._rewards = [(_Rows.of(mdp, batch), batch.table.reshape(-1)) for batch in mdp.rewards]
        self.n_terms = sum(map(len, mdp.rewards))

    def start(self, generator: np.random.Generator) -> IntArray:
        """(N,) a first state from the model's initial law; uniform where it names none."""
        uniform = generator.random(self.mdp.n_coordinates)
        return (uniform[:, None] >= self._initial).sum(axis=1)

    def following(
        self, states: IntArray, actions: IntArray, generator: np.random.Generator
    ) -> IntArray:
        """(N,) a next state, from (N,) values and (K,) actions in range (unchecked)."""
        joint = np.concatenate([states, actions])
        uniform = generator.random(self.mdp.n_coordinates)
        result = np.empty(self.mdp.n_coordinates, dtype=np.int64)
        for rows, thresholds, coordinates in self._kernels:
            reached = uniform[coordinates, None] >= thresholds[rows(joint)]
            result[coordinates] = reached.sum(axis=1)
        return result

    def terms(self, states: IntArray, actions: IntArray) -> FloatArray:
        """(M,) r_m(s, a), batch by batch, from (N,) values and (K,) actions in range (unchecked)."""
        joint = np.concatenate([states, actions])
        values = [table[rows(joint)] for rows, table in self._rewards]
        return np.concatenate(values) if values else np.zeros(0)


@dataclass(frozen=True, eq=False)
class Shares:
    """What part of each reward term is whose.

    Attributes:
        owned: (K, M) CSR; a column sums to 1, or to 0 where the term has no owner of its own.
        common: Terms that belong to all agents.
    """

    owned: sp.csr_array
    common: IntArray

    @classmethod
    def of(cls, mdp: FactoredMDP, scopes: Scopes) -> Shares:
        """By the rule above, terms in the order of `Stepper.terms`."""
        reads, owned = _readers(mdp)
        n_terms = reads.shape[0]
        near = action_matrix(mdp).astype(np.int64), scopes.matrix(mdp.n_coordinates).T
        for candidates in near:
            free = np.flatnonzero(np.diff(owned.indptr) == 0)
            place = _ones([free], [np.arange(len(free))], (n_terms, len(free)))
            owned = sp.csr_array(owned + place @ (reads[free] @ candidates.astype(np.int64)))
        counts = np.diff(owned.indptr)
        parts = np.repeat(1.0 / np.maximum(counts, 1), counts)
        divided = sp.csr_array((parts, owned.indices, owned.indptr), shape=owned.shape)
        return cls(sp.csr_array(divided.T), np.flatnonzero(counts == 0))

    def __call__(self, terms: FloatArray) -> FloatArray:
        """(K,) local rewards, from (M,) terms."""
        return self.owned @ terms + terms[self.common].sum() / self.owned.shape[0]


def _readers(mdp: FactoredMDP) -> tuple[sp.csr_array, sp.csr_array]:
    """(M, N) and (M, K): which coordinates and whose actions each term reads, as ones."""
    first = np.cumsum([0, *map(len, mdp.rewards)])
    shapes = (int(first[-1]), mdp.n_coordinates), (int(first[-1]), mdp.n_agents)
    parts: tuple[list[IntArray], ...] = ([], [], [], [])
    for start, batch in zip(first, mdp.rewards, strict=False):
        for place, read in ((0, batch.state_parents), (2, batch.action_parents)):
            parts[place].append(np.repeat(start + np.arange(len(batch)), read.shape[1]))
            parts[place + 1].append(read.ravel())
    states, actions = (_ones(parts[2 * kind], parts[2 * kind + 1], shapes[kind]) for kind in (0, 1))
    return states, actions


def _ones(
    rows: Sequence[IntArray], columns: Sequence[IntArray], shape: tuple[int, int]
) -> sp.csr_array:
    empty = np.zeros(0, dtype=np.int64)
    row, column = np.concatenate([empty, *rows]), np.concatenate([empty, *columns])
    return sp.csr_array((np.ones(len(row), dtype=np.int64), (row, column)), shape=shape)


def _thresholds(laws: FloatArray) -> FloatArray:
    """(…, S) laws → (…, S − 1) thresholds; `cumsum` adds one by one, in order."""
    sums = np.cumsum(laws, axis=-1)
    return sums[..., :-1] / sums[..., -1:]
