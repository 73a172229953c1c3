"""Local reward terms r_m(s_{states}, a_{actions}), single and in batches; r is their sum."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from torchloc.errors import InputError
from torchloc.mdp.checks import (
    FloatArray,
    IntArray,
    check_distinct,
    check_finite,
    frozen,
    integers,
    reals,
)


@dataclass(frozen=True, eq=False)
class LocalReward:
    """One term of the reward.

    Attributes:
        states: The p coordinates that it reads.
        actions: The q agents whose actions it reads.
        table: (*S[states], *A[actions]) float64, finite.

    Raises:
        InputError: An entry is not finite, the table's axes do not match, an index stands twice.
    """

    states: tuple[int, ...]
    actions: tuple[int, ...]
    table: FloatArray

    def __init__(self, states: Iterable[int], actions: Iterable[int], table: ArrayLike) -> None:
        batch = RewardBatch([tuple(states)], [tuple(actions)], reals(table, "reward table")[None])
        object.__setattr__(self, "states", tuple(batch.states[0].tolist()))
        object.__setattr__(self, "actions", tuple(batch.actions[0].tolist()))
        object.__setattr__(self, "table", batch.table[0])


@dataclass(frozen=True, eq=False)
class RewardBatch:
    """B terms of equal shape; a table that all share is stored once.

    Attributes:
        states: (B, p) coordinates.
        actions: (B, q) agents.
        table: (B or 1, *S, *A) float64; leading 1: one table shared by all B terms.

    Raises:
        InputError: As `LocalReward`; the message gives the row of the batch.
    """

    states: IntArray
    actions: IntArray
    table: FloatArray

    def __init__(self, states: ArrayLike, actions: ArrayLike, table: ArrayLike) -> None:
        coordinates = integers(states, "reward states", 2)
        agents = integers(actions, "reward actions", 2)
        count = max(len(coordinates), len(agents))
        if count == 0:
            raise InputError(
                "a reward batch has no terms; leave it out, or give one row a term "
                "(a row may be empty: [[]])"
            )
        if coordinates.size == 0 and len(coordinates) != count:
            coordinates = frozen(np.zeros((count, 0), dtype=np.int64))
        if agents.size == 0 and len(agents) != count:
            agents = frozen(np.zeros((count, 0), dtype=np.int64))
        if len(coordinates) != len(agents):
            raise InputError(
                f"reward states has {len(coordinates)} rows, reward actions {len(agents)}; "
                f"both need one a term"
            )

        def place(row: int) -> str:
            return "reward term" if count == 1 else f"reward term {row} of its batch"

        check_distinct(coordinates, place, "coordinate")
        check_distinct(agents, place, "agent")
        tables = reals(table, "reward table")
        axes = coordinates.shape[1] + agents.shape[1] + 1
        if tables.ndim != axes or len(tables) not in (1, count) or 0 in tables.shape:
            leading = f"; the leading axis must be {count} or 1, not {len(tables)}"
            raise InputError(
                f"reward table has shape {tables.shape[1:]} a term; with {coordinates.shape[1]} "
                f"coordinates and {agents.shape[1]} agents it must be (*S[states], *A[actions]), "
                f"none empty"
                + (leading if tables.ndim == axes and len(tables) not in (1, count) else "")
            )
        check_finite(tables, place)
        object.__setattr__(self, "states", coordinates)
        object.__setattr__(self, "actions", agents)
        object.__setattr__(self, "table", frozen(tables))

    def __len__(self) -> int:
        return len(self.states)

    @property
    def state_parents(self) -> IntArray:
        """(B, p) every coordinate that is read."""
        return self.states

    @property
    def action_parents(self) -> IntArray:
        """(B, q) every agent whose action is read."""
        return self.actions

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Sizes of the p coordinates."""
        return self.table.shape[1 : 1 + self.states.shape[1]]

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Sizes of the q agents' action spaces."""
        return self.table.shape[1 + self.states.shape[1] :]
