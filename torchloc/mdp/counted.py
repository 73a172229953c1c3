"""What kernels and reward terms that count have in common: their parents, and the tables they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from torchloc.errors import BudgetError, InputError
from torchloc.mdp.checks import FloatArray, IntArray, check_distinct, frozen, integers
from torchloc.mdp.counting import Counters, grid

TABLE_ENTRIES = 2**22
"""Entries of the table that a site with counters is written out as at most."""


class Counted:
    """B sites of equal shape with own parents and counted ones.

    Attributes:
        states: (B, p) own coordinates.
        actions: (B, q) own agents.
        counters: Of the d counted coordinates and e counted agents.
        table: (B or 1, *S, *A, C_1, …, C_r, …).
        TAIL: Number of axes after the counters.
    """

    states: IntArray
    actions: IntArray
    counters: Counters
    table: FloatArray
    TAIL: ClassVar[int]

    def place(self, row: int) -> str:
        """How an error calls the site of this row."""
        return f"site {row} of its batch"

    def __len__(self) -> int:
        return len(self.counters)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Sizes of the p own coordinates."""
        return self.table.shape[1 : 1 + self.states.shape[1]]

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Sizes of the q own agents' action spaces."""
        first = 1 + self.states.shape[1]
        return self.table.shape[first : first + self.actions.shape[1]]

    @property
    def state_parents(self) -> IntArray:
        """(B, p + d): own coordinates, then counted ones."""
        return np.concatenate([self.states, self.counters.states], axis=1)

    @property
    def action_parents(self) -> IntArray:
        """(B, q + e): own agents, then counted ones."""
        return np.concatenate([self.actions, self.counters.actions], axis=1)

    @property
    def table_entries(self) -> int:
        """Entries of one site written out."""
        read = (self.state_shape, self.counters.sizes, self.action_shape)
        ends = self.table.shape[self.table.ndim - self.TAIL :]
        return math.prod(size for sizes in (*read, ends) for size in sizes)

    def written(
        self, entries: int
    ) -> Iterator[tuple[IntArray, tuple[IntArray, IntArray], FloatArray]]:
        """(rows, (states, actions), table) of the sites with equal weights, counted parents as axes.

        Raises:
            BudgetError: One table has more entries than given.
        """
        counters, p, q = self.counters, self.states.shape[1], self.actions.shape[1]
        d, size = counters.states.shape[1], self.table_entries
        if size > entries:
            raise BudgetError(
                f"{self.place(0)}: written out it is a table over {p + q + counters.width} parents with {size} "
                f"entries, over the budget of {entries}; here only kernels that fit a table can be used"
            )
        own = self.table.shape[1 : 1 + p + q]
        ends = self.table.shape[self.table.ndim - self.TAIL :] if self.TAIL else ()
        flat = self.table.reshape(len(self.table), *own, counters.n_states, *ends)
        for rows, members in counters.patterns():
            table = flat if len(flat) == 1 else flat[rows]
            full = np.take(table, grid(counters.levels, members), axis=1 + p + q)
            # own states, own actions, counted states, counted actions → all states first
            order = [
                0,
                *range(1, 1 + p),
                *range(1 + p + q, 1 + p + q + d),
                *range(1 + p, 1 + p + q),
            ]
            order += range(1 + p + q + d, full.ndim)
            parents = (self.state_parents[rows], self.action_parents[rows])
            yield rows, parents, np.transpose(full, order)


def own_and_counted(
    count: int,
    states: ArrayLike,
    actions: ArrayLike,
    counted_states: ArrayLike,
    counted_actions: ArrayLike,
    table: FloatArray,
    tail: int,
    state_weights: ArrayLike | None,
    action_weights: ArrayLike | None,
    state_sizes: Sequence[int] | None,
    action_sizes: Sequence[int] | None,
    place: Callable[[int], str],
) -> tuple[IntArray, IntArray, Counters]:
    """Checked own parents and counters; the table's axes after the own parents are the levels."""
    own: list[IntArray] = []
    for field, value, kind in (("states", states, "coordinate"), ("actions", actions, "agent")):
        parents = integers(value, field, 2)
        if parents.size == 0 and len(parents) != count:
            parents = frozen(np.zeros((count, 0), dtype=np.int64))
        if len(parents) != count:
            raise InputError(
                f"{field} has {len(parents)} rows, but there are {count} sites; give one row each"
            )
        check_distinct(parents, place, kind)
        own.append(parents)
    head = 1 + own[0].shape[1] + own[1].shape[1]
    if table.ndim < head + tail or len(table) not in (1, count) or 0 in table.shape:
        raise InputError(
            f"{place(0)}: the table has shape {table.shape}; with {own[0].shape[1]} own coordinates and "
            f"{own[1].shape[1]} own agents it must be (1 or {count}, *S, *A, *C"
            f"{', S_j' if tail else ''}), none empty"
        )
    counters = Counters(
        counted_states,
        counted_actions,
        table.shape[head : table.ndim - tail],
        count=count,
        state_weights=state_weights,
        action_weights=action_weights,
        state_sizes=state_sizes,
        action_sizes=action_sizes,
        place=place,
    )
    if counters.width and not counters.levels:
        raise InputError(
            f"{place(0)}: it counts {counters.width} parents, but its table has no axis for a count"
        )
    check_distinct(np.concatenate([own[0], counters.states], axis=1), place, "coordinate")
    check_distinct(np.concatenate([own[1], counters.actions], axis=1), place, "agent")
    return own[0], own[1], counters
