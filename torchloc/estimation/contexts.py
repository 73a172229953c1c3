"""Contexts: which parents each coordinate has, and the values that these can take.

Coordinates of equal shape form a batch; a context is one number, mixed radix over the parents in their order,
the last parent running fastest. Axis letters: B coordinates of a batch, p state parents, q action parents,
C contexts of one coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchloc.alike import equal_rows
from torchloc.errors import BudgetError, InputError
from torchloc.graphs import Scopes
from torchloc.mdp.checks import IntArray, integers

CELL_BUDGET = 50_000_000
"""Counts (contexts times values) that are kept at most."""

Parents = Scopes | Sequence[ArrayLike]


@dataclass(frozen=True, eq=False)
class ContextBatch:
    """B coordinates whose parents and values have the same sizes.

    Attributes:
        coordinates: (B,) the coordinates.
        states: (B, p) their state parents.
        actions: (B, q) their action parents.
        sizes: p + q sizes of the parents' spaces.
        n_values: S_j.
    """

    coordinates: IntArray
    states: IntArray
    actions: IntArray
    sizes: tuple[int, ...]
    n_values: int

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def n_contexts(self) -> int:
        """C."""
        return math.prod(self.sizes)

    @property
    def informative(self) -> tuple[bool, ...]:
        """For each parent whether its entry can differ from 0: both spaces have two values."""
        return tuple(size > 1 and self.n_values > 1 for size in self.sizes)

    def values(self, numbers: IntArray) -> tuple[IntArray, IntArray]:
        """(R, p) and (R, q) values of the parents in contexts of these numbers."""
        p = self.states.shape[1]
        if not self.sizes:
            none = np.zeros((len(numbers), 0), dtype=np.int64)
            return none, none
        columns = np.stack(np.unravel_index(numbers, self.sizes), axis=1)
        return columns[:, :p], columns[:, p:]

    def numbers(
        self, states: NDArray[np.integer], actions: NDArray[np.integer], rows: slice
    ) -> IntArray:
        """(T, b) context numbers of these rows of the batch, from (T, N) states and (T, K) actions."""
        read = [(states, column) for column in self.states[rows].T]
        read += [(actions, column) for column in self.actions[rows].T]
        number = np.zeros((len(states), len(self.coordinates[rows])), dtype=np.int64)
        for (values, column), size in zip(read, self.sizes, strict=True):
            number *= size
            number += values[:, column]
        return number


@dataclass(frozen=True, eq=False)
class Contexts:
    """The contexts of all coordinates.

    Attributes:
        state_sizes: (N,) sizes of the coordinates' spaces.
        action_sizes: (K,) sizes of the agents' action spaces.
        batches: Every coordinate stands in exactly one row of one batch.
        declared: Whether some coordinate or agent was declared to be no parent.
    """

    state_sizes: IntArray
    action_sizes: IntArray
    batches: tuple[ContextBatch, ...]
    declared: bool

    @property
    def n_contexts(self) -> int:
        """Contexts of all coordinates together."""
        return sum(len(batch) * batch.n_contexts for batch in self.batches)

    @property
    def n_entries(self) -> int:
        """M: entries of E^s and E^a that must be estimated."""
        return sum(len(batch) * sum(batch.informative) for batch in self.batches)


def contexts(
    state_sizes: ArrayLike,
    action_sizes: ArrayLike,
    state_parents: Parents | None = None,
    action_parents: Parents | None = None,
) -> Contexts:
    """Sorts the coordinates by shape.

    Args:
        state_sizes: (N,) sizes of the coordinates' spaces.
        action_sizes: (K,) sizes of the agents' action spaces.
        state_parents: For each coordinate the coordinates that its next value may depend on; None: all.
        action_parents: For each coordinate the agents whose actions it may depend on; None: all.

    Raises:
        InputError: A parent that there is not, or twice; not one list a coordinate.
        BudgetError: More contexts than are counted.
    """
    n_states, n_actions = (
        integers(state_sizes, "state_sizes", 1), integers(action_sizes, "action_sizes", 1)
    )  # fmt: skip
    for field, sizes in (("state_sizes", n_states), ("action_sizes", n_actions)):
        if (sizes < 1).any():
            index = int(np.argmax(sizes < 1))
            raise InputError(f"{field}: entry {index} is {int(sizes[index])}; it must be ≥ 1")
    if len(n_states) == 0:
        raise InputError("state_sizes is empty; there must be at least one coordinate")
    n = len(n_states)
    of_state = _parents(state_parents, "state_parents", "coordinate", n, n_states)
    of_action = _parents(action_parents, "action_parents", "agent", n, n_actions)
    batches = []
    for (p, q), rows in equal_rows(np.stack([of_state.lengths, of_action.lengths], axis=1)):
        states, actions = _rows(of_state, rows, p), _rows(of_action, rows, q)
        sizes = np.concatenate(
            [n_states[states], n_actions[actions], n_states[rows, None]], axis=1
        )  # fmt: skip
        for shape, members in equal_rows(sizes):
            batch = ContextBatch(
                rows[members], states[members], actions[members], tuple(shape[:-1]), shape[-1]
            )
            batches.append(batch)
    cells = sum(len(batch) * batch.n_contexts * batch.n_values for batch in batches)
    if cells > CELL_BUDGET:
        worst = max(batches, key=lambda batch: batch.n_contexts)
        raise BudgetError(
            f"coordinate {int(worst.coordinates[0])} has {worst.n_contexts} contexts ({worst.states.shape[1]} state "
            f"and {worst.actions.shape[1]} action parents): {cells} counts, {8 * cells} bytes in all, over the "
            f"budget of {CELL_BUDGET}; declare fewer parents with state_parents and action_parents"
        )
    declared = len(of_state.indices) < n * n or len(of_action.indices) < n * len(n_actions)
    return Contexts(n_states, n_actions, tuple(batches), declared)


def _parents(given: Parents | None, field: str, kind: str, n: int, sizes: IntArray) -> Scopes:
    if given is None:
        count = len(sizes)
        if n * count > CELL_BUDGET:
            raise BudgetError(
                f"without {field}, {n} coordinates would depend on {count} {kind}s each; declare the parents"
            )
        return Scopes(np.arange(n + 1) * count, np.tile(np.arange(count), n))
    try:
        parents = given if isinstance(given, Scopes) else Scopes.from_lists(given)
    except InputError as error:
        # A list of parents is read as a list of scopes, one a coordinate.
        raise InputError(f"{field}: {str(error).replace('scope of agent', 'row')}") from error
    if len(parents) != n:
        raise InputError(
            f"{field} has {len(parents)} lists, but there are {n} coordinates; give one each"
        )
    if len(parents.indices) and int(parents.indices.max()) >= len(sizes):
        at = int(np.argmax(parents.indices >= len(sizes)))
        row = int(np.searchsorted(parents.indptr, at, side="right")) - 1
        raise InputError(
            f"{field} of coordinate {row} names {kind} {int(parents.indices[at])}, but there are "
            f"{len(sizes)}, numbered from 0"
        )
    return parents


def _rows(parents: Scopes, rows: IntArray, length: int) -> IntArray:
    """(B, length) parents of rows that have equally many."""
    return parents.indices[parents.indptr[rows][:, None] + np.arange(length)]
