"""Local transition kernels P_j(s'_j | s_{states}, a_{actions}) as tables, single and in batches.

Axis letters: B sites of a batch, p state parents, q action parents; `*S` and `*A` are the parents'
sizes and S_j the size of the coordinate that the kernel drives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from torchloc.errors import InputError
from torchloc.mdp.checks import (
    FloatArray,
    IntArray,
    check_distinct,
    check_parents,
    frozen,
    integers,
    normalised,
    reals,
)

_UNPLACED = -1  # the coordinate of a single kernel before a model takes it


@dataclass(frozen=True, eq=False)
class LocalKernel:
    """The law of one coordinate's next value given its parents.

    Which coordinate it drives is told by its place in the model's list of kernels.

    Attributes:
        states: The p state parents (coordinate indices, each once).
        actions: The q action parents (agent indices, each once).
        table: (*S[states], *A[actions], S_j) float64, rows along the last axis sum to 1.

    Raises:
        InputError: A row is not a law, the table's axes do not match the parents, a parent stands
            twice.
    """

    states: tuple[int, ...]
    actions: tuple[int, ...]
    table: FloatArray

    def __init__(self, states: Iterable[int], actions: Iterable[int], table: ArrayLike) -> None:
        tables = reals(table, "kernel table")[None]
        batch = KernelBatch([_UNPLACED], [tuple(states)], [tuple(actions)], tables)
        object.__setattr__(self, "states", tuple(batch.states[0].tolist()))
        object.__setattr__(self, "actions", tuple(batch.actions[0].tolist()))
        object.__setattr__(self, "table", batch.table[0])

    @classmethod
    def from_function(
        cls,
        states: Sequence[int],
        actions: Sequence[int],
        f: Callable[[tuple[int, ...], tuple[int, ...]], ArrayLike],
        sizes: Sequence[int] | tuple[Sequence[int], Sequence[int]],
    ) -> LocalKernel:
        """Tabulates `f(s, a)`, the law of s'_j given the parents' values.

        Args:
            states: State parents.
            actions: Action parents.
            f: Takes the parents' values (two tuples of ints) and returns S_j probabilities.
            sizes: The parents' sizes (*S[states], *A[actions]); or the model's own
                `(state_sizes, action_sizes)`, from which the parents' are taken.

        Raises:
            InputError: The sizes do not fit the parents, or `f` returns no law.
        """
        states, actions = tuple(states), tuple(actions)
        shape = _parent_sizes(states, actions, sizes)
        rows = [
            reals(f(index[: len(states)], index[len(states) :]), f"f's law at parents {index}")
            for index in itertools.product(*map(range, shape))
        ]
        lengths = {row.shape for row in rows}
        if len(lengths) != 1 or rows[0].ndim != 1:
            raise InputError(
                f"f returned laws of different shapes {sorted(lengths)}; "
                f"each must be a vector of S_j probabilities"
            )
        return cls(states, actions, np.stack(rows).reshape(*shape, -1))


def _parent_sizes(
    states: tuple[int, ...],
    actions: tuple[int, ...],
    sizes: Sequence[int] | tuple[Sequence[int], Sequence[int]],
) -> tuple[int, ...]:
    if len(sizes) == 2 and all(np.ndim(part) == 1 for part in sizes):
        of_state = integers(sizes[0], "state_sizes", 1)
        of_action = integers(sizes[1], "action_sizes", 1)
        for parents, table, kind in (
            (states, of_state, "coordinate"),
            (actions, of_action, "agent"),
        ):
            check_parents(np.array([parents], np.int64), lambda _: "kernel", len(table), kind)
        shape = np.concatenate([of_state[list(states)], of_action[list(actions)]])
    else:
        shape = integers(sizes, "sizes", 1)
        if len(shape) != len(states) + len(actions):
            raise InputError(
                f"sizes has {len(shape)} entries, but the kernel has {len(states)} state and "
                f"{len(actions)} action parents; give one size a parent, or "
                f"(state_sizes, action_sizes)"
            )
    if (shape < 1).any():
        raise InputError(
            f"sizes: parent {int(np.argmax(shape < 1))} has size {int(shape.min())}; a space needs "
            f"at least one element"
        )
    return tuple(shape.tolist())


@dataclass(frozen=True, eq=False)
class KernelBatch:
    """B kernels of equal shape; a table that all share is stored once.

    Attributes:
        coordinates: (B,) the coordinate that each kernel drives.
        states: (B, p) state parents.
        actions: (B, q) action parents.
        table: (B or 1, *S, *A, S_j) float64; leading 1: one table shared by all B sites.

    Raises:
        InputError: As `LocalKernel`; the message gives the row of the batch.
    """

    coordinates: IntArray
    states: IntArray
    actions: IntArray
    table: FloatArray

    def __init__(
        self, coordinates: ArrayLike, states: ArrayLike, actions: ArrayLike, table: ArrayLike
    ) -> None:
        def put(field: str, value: object) -> None:
            object.__setattr__(self, field, value)

        put("coordinates", integers(coordinates, "kernel coordinates", 1))
        count = len(self.coordinates)
        if count == 0:
            raise InputError("a kernel batch drives no coordinate; leave it out")
        for field, value, kind in (
            ("states", states, "coordinate"),
            ("actions", actions, "agent"),
        ):
            parents = integers(value, f"kernel {field}", 2)
            if parents.size == 0 and len(parents) != count:
                parents = frozen(np.zeros((count, 0), dtype=np.int64))
            put(field, parents)
            if len(parents) != count:
                raise InputError(
                    f"kernel {field} has {len(parents)} rows, but the batch has {count} "
                    f"coordinates; give one row each"
                )
            check_distinct(parents, self.place, kind)
        tables = reals(table, "kernel table")
        axes = self.states.shape[1] + self.actions.shape[1] + 2
        if tables.ndim != axes or len(tables) not in (1, count) or 0 in tables.shape:
            leading = f"; the leading axis must be {count} or 1, not {len(tables)}"
            raise InputError(
                f"{self.place(0)}: the table has shape {tables.shape[1:]}; with "
                f"{self.states.shape[1]} state and {self.actions.shape[1]} action parents it must "
                f"be (*S[states], *A[actions], S_j), none empty"
                + (leading if tables.ndim == axes and len(tables) not in (1, count) else "")
            )
        put("table", frozen(normalised(tables, self.place)))

    def place(self, row: int) -> str:
        """How an error calls the kernel of this row."""
        site = int(self.coordinates[row])
        return "kernel" if site == _UNPLACED else f"kernel of coordinate {site}"

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Sizes of the p state parents."""
        return self.table.shape[1 : 1 + self.states.shape[1]]

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Sizes of the q action parents."""
        return self.table.shape[1 + self.states.shape[1] : -1]

    @property
    def state_parents(self) -> IntArray:
        """(B, p) every coordinate that is read."""
        return self.states

    @property
    def action_parents(self) -> IntArray:
        """(B, q) every agent whose action is read."""
        return self.actions

    def state_influence(self) -> FloatArray:
        """E^s of each state parent: sup of TV(P_j) over a change of that parent alone.

        Returns:
            (B or 1, p), exact up to the rounding of a sum of S_j terms (paper, Section 2).
        """
        first = 1
        return self._influence(range(first, first + self.states.shape[1]))

    def action_influence(self) -> FloatArray:
        """E^a of each action parent: sup of TV(P_j) over a change of that action alone.

        Returns:
            (B or 1, q), exact up to the rounding of a sum of S_j terms (paper, Section 2).
        """
        first = 1 + self.states.shape[1]
        return self._influence(range(first, first + self.actions.shape[1]))

    def _influence(self, axes: range) -> FloatArray:
        result = np.zeros((len(self.table), len(axes)))
        for column, axis in enumerate(axes):
            parts = np.moveaxis(self.table, axis, 0)
            for x, y in itertools.combinations(range(len(parts)), 2):
                distance = 0.5 * np.abs(parts[x] - parts[y]).sum(axis=-1)
                worst = distance.reshape(len(distance), -1).max(axis=1)
                np.maximum(result[:, column], worst, out=result[:, column])
        return np.minimum(result, 1.0)
