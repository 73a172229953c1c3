"""Local reward terms r_m(s_{states}, a_{actions}), single and in batches; r is their sum."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

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
from torchloc.mdp.kernels import stacked


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
    def state_shape(self) -> tuple[int, ...]:
        """Sizes of the p coordinates."""
        return self.table.shape[1 : 1 + self.states.shape[1]]

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Sizes of the q agents' action spaces."""
        return self.table.shape[1 + self.states.shape[1] :]


def gather_rewards(
    items: Iterable[LocalReward | RewardBatch],
) -> list[tuple[RewardBatch, Callable[[int], str]]]:
    """Batches of equal shape, batches first, then singles in the order of first appearance.

    Beside each batch a function that says which term of `items` its row b is.
    """
    batches: list[tuple[RewardBatch, Callable[[int], str]]] = []
    groups: dict[tuple[object, ...], list[int]] = {}
    singles: dict[int, LocalReward] = {}
    for position, item in enumerate(items):
        if isinstance(item, RewardBatch):
            batches.append((item, partial("rewards[{}], row {}".format, position)))
        elif isinstance(item, LocalReward):
            singles[position] = item
            groups.setdefault((len(item.states), item.table.shape), []).append(position)
        else:
            raise InputError(
                f"rewards[{position}] is a {type(item).__name__}; give LocalReward or RewardBatch "
                f"objects"
            )
    for positions in groups.values():
        members = [singles[position] for position in positions]
        batch = RewardBatch(
            np.array([member.states for member in members]).reshape(len(members), -1),
            np.array([member.actions for member in members]).reshape(len(members), -1),
            stacked([member.table for member in members]),
        )
        batches.append((batch, partial(_single, positions)))
    return batches


def _single(positions: list[int], row: int) -> str:
    return f"rewards[{positions[row]}]"
