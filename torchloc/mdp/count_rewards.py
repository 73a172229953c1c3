"""Reward terms that count most of what they read; see `mdp.counts`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from torchloc.errors import InputError
from torchloc.mdp.checks import FloatArray, IntArray, check_finite, frozen, integers, reals
from torchloc.mdp.counted import TABLE_ENTRIES, Counted, own_and_counted
from torchloc.mdp.counting import Counters
from torchloc.mdp.rewards import RewardBatch
from torchloc.mdp.spreads import change, influences


@dataclass(frozen=True, eq=False)
class CountRewardBatch(Counted):
    """B reward terms of equal shape that count most of what they read.

    Args:
        states: (B, p) own coordinates.
        actions: (B, q) own agents.
        counted_states: (B, d) counted coordinates.
        counted_actions: (B, e) counted agents.
        table: (B or 1, *S, *A, C_1, …, C_r) float64, finite.
        state_weights: As `CountBatch`.
        action_weights: As `CountBatch`.
        state_sizes: As `CountBatch`.
        action_sizes: As `CountBatch`.

    Raises:
        InputError: As `CountBatch`.
    """

    states: IntArray
    actions: IntArray
    counters: Counters
    table: FloatArray
    TAIL = 0

    def __init__(
        self,
        states: ArrayLike,
        actions: ArrayLike,
        counted_states: ArrayLike,
        counted_actions: ArrayLike,
        table: ArrayLike,
        *,
        state_weights: ArrayLike | None = None,
        action_weights: ArrayLike | None = None,
        state_sizes: Sequence[int] | None = None,
        action_sizes: Sequence[int] | None = None,
    ) -> None:
        tables = reals(table, "reward table")
        fields = ("states", "actions", "counted states", "counted actions")
        read = (states, actions, counted_states, counted_actions)
        count = max(len(integers(x, field, 2)) for x, field in zip(read, fields, strict=True))
        if count == 0:
            raise InputError(
                "a reward batch has no terms; leave it out, or give one row a term "
                "(a row may be empty: [[]])"
            )
        own_states, own_actions, counters = own_and_counted(
            count, states, actions, counted_states, counted_actions, tables, 0,
            state_weights, action_weights, state_sizes, action_sizes, self.place,
        )  # fmt: skip
        check_finite(tables, self.place)
        object.__setattr__(self, "states", own_states)
        object.__setattr__(self, "actions", own_actions)
        object.__setattr__(self, "counters", counters)
        object.__setattr__(self, "table", frozen(tables))

    def place(self, row: int) -> str:
        """How an error calls the term of this row."""
        return f"reward term {row} of its batch"

    def state_spreads(self) -> FloatArray:
        """(B or 1, p + d) largest change of a term with each coordinate alone, exact."""
        p, d = self.states.shape[1], self.counters.states.shape[1]
        return influences(self.table[..., None], self.counters, range(1, 1 + p), range(d), change)

    def action_spreads(self) -> FloatArray:
        """(B or 1, q + e) largest change of a term with each action alone, exact."""
        p, q, d = self.states.shape[1], self.actions.shape[1], self.counters.states.shape[1]
        own, counted = range(1 + p, 1 + p + q), range(d, self.counters.width)
        return influences(self.table[..., None], self.counters, own, counted, change)

    def tables(self, entries: int = TABLE_ENTRIES) -> Iterable[RewardBatch]:
        """The same terms written out.

        Raises:
            BudgetError: A table has more entries than given.
        """
        for _, parents, table in self.written(entries):
            yield RewardBatch(*parents, table)
