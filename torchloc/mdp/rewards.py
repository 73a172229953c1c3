"""Local reward terms r_m(s_{states}, a_{actions}), single and in batches. The reward is their sum."""

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

    def __post_init__(self) -> None:
        states = integers(self.states, "reward states", 2)
        actions = integers(self.actions, "reward actions", 2)
        count = max(len(states), len(actions))
        if states.size == 0 and len(states) != count:
            states = frozen(np.zeros((count, 0), dtype=np.int64))
        if actions.size == 0 and len(actions) != count:
            actions = frozen(np.zeros((count, 0), dtype=np.int64))
        if len(states) != len(actions):
            raise InputError(
                f"reward states has {len(states)} rows, reward actions {len(actions)}; "
                f"both need one a term"
            )
        check_distinct(states, "reward states")
        check_distinct(actions, "reward actions")
        table = reals(self.table, "reward table")
        axes = states.shape[1] + actions.shape[1] + 1
        if table.ndim != axes or len(table) not in (1, count):
            raise InputError(
                f"reward table has shape {table.shape[1:]} a term; with {states.shape[1]} coordinates "
                f"and {actions.shape[1]} agents it must be (*S[states], *A[actions])"
            )
        check_finite(table, lambda row: f"reward term {row}")
        object.__setattr__(self, "states", states)
        object.__setattr__(self, "actions", actions)
        object.__setattr__(self, "table", frozen(table))

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


def gather_rewards(items: Iterable[LocalReward | RewardBatch]) -> tuple[RewardBatch, ...]:
    """Batches of equal shape, batches first, then singles in the order of first appearance."""
    batches: list[RewardBatch] = []
    groups: dict[tuple[object, ...], list[LocalReward]] = {}
    for item in items:
        if isinstance(item, RewardBatch):
            batches.append(item)
        elif isinstance(item, LocalReward):
            groups.setdefault((len(item.states), item.table.shape), []).append(item)
        else:
            raise InputError(
                f"rewards holds a {type(item).__name__}; give LocalReward or RewardBatch objects"
            )
    for members in groups.values():
        batches.append(
            RewardBatch(
                np.array([member.states for member in members]).reshape(len(members), -1),
                np.array([member.actions for member in members]).reshape(len(members), -1),
                stacked([member.table for member in members]),
            )
        )
    return tuple(batches)
