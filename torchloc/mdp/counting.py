"""Sums over many parents: what a kernel or reward term reads of neighbours that only count.

A site has r counters. Each counted parent m with value x adds w[i, m, x] ∈ {0, 1, …} to counter i,
and counter i stops at its last level C_i − 1:

    c_i = min(C_i − 1, Σ_m w[i, m, x_m]).

Stopping sums add up in any order, so what some of the parents can bring counters to is a set that
grows parent by parent: sizes are linear in the number of parents, where a table is exponential.

Axis letters: B sites, r counters, d counted coordinates, e counted agents, X and A their sizes, Q =
Π C_i counter states.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchloc.errors import InputError
from torchloc.mdp.checks import (
    IntArray,
    check_distinct,
    check_parents,
    first,
    frozen,
    integers,
    reals,
)

BoolArray = NDArray[np.bool_]
Key = tuple[tuple[int, ...], ...]
"""Weights of one parent: r rows of one number a value."""


@dataclass(frozen=True, eq=False)
class Counters:
    """The counters of B sites.

    Attributes:
        states: (B, d) counted coordinates.
        actions: (B, e) counted agents.
        state_weights: (B or 1, r, d, X) int64 ≥ 0; leading 1: shared by all sites.
        action_weights: (B or 1, r, e, A) int64 ≥ 0.
        levels: (C_1, …, C_r).
        state_sizes: d sizes of the counted coordinates, at most X; weights beyond a size are not read.
        action_sizes: e sizes of the counted agents' action spaces, at most A.

    Raises:
        InputError: Shapes do not fit, a weight is negative, a parent stands twice.
    """

    states: IntArray
    actions: IntArray
    state_weights: IntArray
    action_weights: IntArray
    levels: tuple[int, ...]
    state_sizes: tuple[int, ...]
    action_sizes: tuple[int, ...]

    def __init__(
        self,
        states: ArrayLike,
        actions: ArrayLike,
        levels: Sequence[int],
        *,
        count: int,
        state_weights: ArrayLike | None = None,
        action_weights: ArrayLike | None = None,
        state_sizes: Sequence[int] | None = None,
        action_sizes: Sequence[int] | None = None,
        place: Callable[[int], str],
    ) -> None:
        for field, value, weights, sizes, kind in (
            ("states", states, state_weights, state_sizes, "coordinate"),
            ("actions", actions, action_weights, action_sizes, "agent"),
        ):
            members = integers(value, f"counted {field}", 2)
            if members.size == 0 and len(members) != count:
                members = frozen(np.zeros((count, 0), dtype=np.int64))
            if len(members) != count:
                raise InputError(
                    f"counted {field} has {len(members)} rows, but there are {count} sites; give "
                    f"one row each"
                )
            check_distinct(members, place, kind)
            object.__setattr__(self, field, members)
            shape = (count, len(levels), members.shape[1])
            name = field.removesuffix("s")
            table = weights_of(weights, f"{name}_weights", shape, place)
            object.__setattr__(self, f"{name}_weights", table)
            largest, width = table.shape[-1], members.shape[1]
            own = (largest,) * width
            if sizes is not None:
                own = tuple(integers(sizes, f"{name}_sizes", 1).tolist())
            if len(own) != width or any(not 1 <= size <= largest for size in own):
                raise InputError(
                    f"{name}_sizes is {own}; give {width} numbers from 1 to {largest}, one a counted "
                    f"parent"
                )
            object.__setattr__(self, f"{name}_sizes", own)
        object.__setattr__(self, "levels", tuple(int(level) for level in levels))

    def __len__(self) -> int:
        return len(self.states)

    @property
    def width(self) -> int:
        """Number of counted parents of a site."""
        return self.states.shape[1] + self.actions.shape[1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """d + e sizes of the counted parents, coordinates first."""
        return (*self.state_sizes, *self.action_sizes)

    @property
    def n_states(self) -> int:
        """Q, the number of counter states."""
        return math.prod(self.levels)

    def check(
        self, state_sizes: IntArray, action_sizes: IntArray, place: Callable[[int], str]
    ) -> None:
        """Holds the parents against a model.

        Raises:
            InputError: A parent that the model does not have, or whose size is not that of its weights.
        """
        for members, sizes, own, kind in (
            (self.states, state_sizes, self.state_sizes, "coordinate"),
            (self.actions, action_sizes, self.action_sizes, "agent"),
        ):
            check_parents(members, place, len(sizes), kind)
            wrong = sizes[members] != np.array(own, dtype=np.int64)
            if wrong.any():
                row, column = first(wrong)
                raise InputError(
                    f"{place(row)}: it counts {kind} {int(members[row, column])}, which has size "
                    f"{int(sizes[members[row, column]])}, with {own[column]} weights; give one weight a "
                    f"value"
                )

    def members(self, row: int) -> list[Key]:
        """The weights of each counted parent of one site, coordinates first."""
        found: list[Key] = []
        for weights, sizes in (
            (self.state_weights, self.state_sizes),
            (self.action_weights, self.action_sizes),
        ):
            table = weights[row if len(weights) > 1 else 0]
            found += [tuple(map(tuple, table[:, m, :s].tolist())) for m, s in enumerate(sizes)]
        return found

    def patterns(self) -> Iterator[tuple[IntArray, list[Key]]]:
        """Sites with equal weights, and the weights of their counted parents."""
        rows = np.arange(len(self))
        if len(self.state_weights) == len(self.action_weights) == 1:
            yield rows, self.members(0)
            return
        groups: dict[tuple[Key, ...], list[int]] = {}
        for row in rows.tolist():
            groups.setdefault(tuple(self.members(row)), []).append(row)
        for members, chosen in groups.items():
            yield np.array(chosen), list(members)

    def added(self, weight: Sequence[int]) -> IntArray:
        """(Q,) the counter state after adding a weight (r,), from each one."""
        return added(self.levels, weight)


def added(levels: Sequence[int], weight: Sequence[int]) -> IntArray:
    """(Q,) the counter state after adding a weight (r,), from each one; row-major."""
    if not levels:
        return np.zeros(1, dtype=np.int64)
    moved = [
        np.minimum(np.arange(level) + w, level - 1) for level, w in zip(levels, weight, strict=True)
    ]
    return np.ravel_multi_index(tuple(np.meshgrid(*moved, indexing="ij")), tuple(levels)).reshape(
        -1
    )


def values_of(member: Key, levels: Sequence[int]) -> list[IntArray]:
    """For each value of a parent the (Q,) counter states it leads to."""
    n_values = len(member[0]) if member else 1
    return [added(levels, [row[x] for row in member]) for x in range(n_values)]


def reachable(levels: Sequence[int], members: Sequence[Key]) -> BoolArray:
    """(Q,) which counter states some parents can bring the counters to, from zero."""
    reach = np.zeros(math.prod(levels), dtype=np.bool_)
    reach[0] = True
    for key, count in _counted(members):
        moves = values_of(key, levels)
        for _ in range(count):
            grown = np.zeros_like(reach)
            for move in moves:
                grown[move[reach]] = True
            if np.array_equal(grown, reach):
                break
            reach = grown
    return reach


def reachable_beside(
    levels: Sequence[int], members: Sequence[Key]
) -> dict[Key, tuple[BoolArray, list[IntArray]]]:
    """For each distinct parent: what all others can reach, and where its values lead from there."""
    result = {}
    for key in dict.fromkeys(members):
        rest = list(members)
        rest.remove(key)
        result[key] = (reachable(levels, rest), values_of(key, levels))
    return result


def _counted(members: Sequence[Key]) -> list[tuple[Key, int]]:
    return [(key, len(list(same))) for key, same in itertools.groupby(sorted(members))]


def grid(levels: Sequence[int], members: Sequence[Key]) -> IntArray:
    """(*X of the members) the counter state at every combination of their values."""
    shape = [len(key[0]) if key else 1 for key in members]
    sums = [np.zeros(shape, dtype=np.int64) for _ in levels]
    for axis, key in enumerate(members):
        view = [1] * len(shape)
        view[axis] = shape[axis]
        for total, row in zip(sums, key, strict=True):
            total += np.array(row).reshape(view)
    state = np.zeros(shape, dtype=np.int64)
    for total, level in zip(sums, levels, strict=True):
        state = state * level + np.minimum(total, level - 1)
    return state


def weights_of(
    value: ArrayLike | None,
    name: str,
    shape: tuple[int, int, int],
    place: Callable[[int], str],
) -> IntArray:
    """(B or 1, r, d, X) from (X,), (d, X), (r, d, X) or (B, r, d, X); None: a binary parent's value.

    Raises:
        InputError: Another shape, or a weight that is negative or no whole number.
    """
    count, n_counters, width = shape
    array = reals([0, 1] if value is None else value, name)
    if array.ndim == 0 or array.ndim > 4:
        raise InputError(f"{name} has shape {array.shape}; give one weight a value of a parent")
    array = integers(array, name, array.ndim)
    full = array.reshape((1,) * (4 - array.ndim) + array.shape)
    wanted = (count if len(full) == count and count > 1 else 1, n_counters, width, full.shape[-1])
    empty = width > 0 and full.shape[-1] == 0
    if empty or any(have not in (1, want) for have, want in zip(full.shape, wanted, strict=True)):
        raise InputError(
            f"{name} has shape {array.shape}; with {n_counters} counters and {width} counted parents "
            f"it must be (X,), ({width}, X), ({n_counters}, {width}, X) or "
            f"({count}, {n_counters}, {width}, X)"
        )
    full = np.broadcast_to(full, wanted)
    if (full < 0).any():
        index = first(full < 0)
        raise InputError(
            f"{place(index[0])}: {name}{list(index[1:])} is {int(full[index])}; counters only grow, so "
            f"a weight must be 0 or more"
        )
    return frozen(full.copy())
