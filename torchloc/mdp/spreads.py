"""How far the rows of a table that counts are apart when one parent changes: maxima over all reachable counts.

Axis letters as in `mdp.counting`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from torchloc.mdp.checks import FloatArray
from torchloc.mdp.counting import Counters, Key, reachable, reachable_beside

Distance = Callable[[FloatArray, FloatArray], FloatArray]
"""Of rows along the last axis."""


def influences(
    table: FloatArray,
    counters: Counters,
    own: Sequence[int],
    counted: Sequence[int],
    distance: Distance,
) -> FloatArray:
    """(B or 1, len(own) + len(counted)) largest distance between rows that differ in one parent alone.

    Args:
        table: (B or 1, …, C_1, …, C_r, S_j).
        counters: Of its sites.
        own: Axes of the table.
        counted: Positions among the counted parents, coordinates first.
        distance: Of rows along the last axis.
    """
    r = len(counters.levels)
    flat = table.reshape(*table.shape[: table.ndim - r - 1], -1, table.shape[-1])
    shared = len(table) == 1 and len(counters.state_weights) == len(counters.action_weights) == 1
    result = np.zeros((1 if shared else len(counters), len(own) + len(counted)))
    for rows, members in counters.patterns():
        part = flat if len(flat) == 1 else flat[rows]
        by_own = own_spreads(part, counters.levels, members, own, distance)
        by_counted = counted_spreads(part, counters.levels, members, distance)
        found = [*by_own, *(by_counted[members[m]] for m in counted)]
        if found:
            result[slice(None) if shared else rows] = np.stack(found, axis=1)
    return result


def own_spreads(
    table: FloatArray,
    levels: Sequence[int],
    members: Sequence[Key],
    axes: Sequence[int],
    distance: Distance,
) -> list[FloatArray]:
    """(B or 1,) an axis: largest distance between rows of (B or 1, …, Q, S_j) along that axis.

    Over all counter states that the counted parents can reach.
    """
    reach = reachable(levels, members)
    result = []
    for axis in axes:
        worst = np.zeros(len(table))
        for x, y in itertools.combinations(np.moveaxis(table[..., reach, :], axis, 0), 2):
            np.maximum(worst, distance(x, y).reshape(len(table), -1).max(axis=1), out=worst)
        result.append(worst)
    return result


def counted_spreads(
    table: FloatArray, levels: Sequence[int], members: Sequence[Key], distance: Distance
) -> dict[Key, FloatArray]:
    """(B or 1,) a distinct weight: largest distance between rows of (B or 1, …, Q, S_j) as its parent changes.

    Over everything that the other counted parents can reach.
    """
    found = {}
    for key, (rest, moves) in reachable_beside(levels, members).items():
        worst = np.zeros(len(table))
        for x, y in itertools.combinations(moves, 2):
            apart = distance(table[..., x[rest], :], table[..., y[rest], :])
            np.maximum(worst, apart.reshape(len(table), -1).max(axis=1), out=worst)
        found[key] = worst
    return found


def total_variation(x: FloatArray, y: FloatArray) -> FloatArray:
    """TV along the last axis."""
    return np.minimum(0.5 * np.abs(x - y).sum(axis=-1), 1.0)


def change(x: FloatArray, y: FloatArray) -> FloatArray:
    """Of numbers, which stand along an axis of one entry."""
    return np.abs(x - y)[..., 0]
