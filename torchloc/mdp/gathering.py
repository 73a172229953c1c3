"""A model's kernels and reward terms, gathered into batches of equal shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from torchloc.errors import InputError
from torchloc.mdp.checks import FloatArray
from torchloc.mdp.count_rewards import CountRewardBatch
from torchloc.mdp.counts import CountBatch, CountKernel, gather_counts
from torchloc.mdp.kernels import KernelBatch, LocalKernel
from torchloc.mdp.rewards import LocalReward, RewardBatch

Kernels = KernelBatch | CountBatch
Rewards = RewardBatch | CountRewardBatch


def gather_kernels(
    items: Iterable[LocalKernel | CountKernel | Kernels], n_coordinates: int
) -> tuple[Kernels, ...]:
    """Batches of equal shape; singles drive, in order, the coordinates that no batch drives.

    Raises:
        InputError: A coordinate without a kernel, or with two.
    """
    items = list(items)
    batches = [item for item in items if isinstance(item, Kernels)]
    singles = [item for item in items if isinstance(item, LocalKernel | CountKernel)]
    if len(batches) + len(singles) != len(items):
        other = next(i for i in items if not isinstance(i, Kernels | LocalKernel | CountKernel))
        raise InputError(
            f"kernels holds a {type(other).__name__}; give LocalKernel, KernelBatch, CountKernel or "
            f"CountBatch objects"
        )
    driven = np.zeros(n_coordinates, dtype=np.int64)
    for batch in batches:
        wrong = (batch.coordinates < 0) | (batch.coordinates >= n_coordinates)
        if wrong.any():
            raise InputError(
                f"a kernel drives coordinate {int(batch.coordinates[wrong][0])}, "
                f"but the model has {n_coordinates} coordinates, numbered from 0"
            )
        driven += np.bincount(batch.coordinates, minlength=n_coordinates)
    if (driven > 1).any():
        raise InputError(
            f"coordinate {int(np.argmax(driven > 1))} has {int(driven.max())} kernels; give it one"
        )
    free = np.flatnonzero(driven == 0)
    if len(free) != len(singles):
        kind = "no kernel is left for" if len(free) > len(singles) else "no coordinate is left for"
        what = (
            f"coordinate {int(free[len(singles)])}"
            if len(free) > len(singles)
            else f"kernel {len(free)}"
        )
        raise InputError(
            f"the model has {n_coordinates} coordinates but {int(driven.sum()) + len(singles)} "
            f"kernels: {kind} {what}; give exactly one kernel a coordinate"
        )
    groups: dict[tuple[object, ...], list[int]] = {}
    tables: dict[int, LocalKernel] = {}
    counting: list[tuple[int, CountKernel]] = []
    for i, single in enumerate(singles):
        if isinstance(single, CountKernel):
            counting.append((int(free[i]), single))
            continue
        tables[i] = single
        groups.setdefault((len(single.states), single.table.shape), []).append(i)
    for rows in groups.values():
        members = [tables[i] for i in rows]
        batches.append(
            KernelBatch(
                free[rows],
                np.array([member.states for member in members]).reshape(len(rows), -1),
                np.array([member.actions for member in members]).reshape(len(rows), -1),
                stacked([member.table for member in members]),
            )
        )
    return (*batches, *gather_counts(counting))


def stacked(tables: list[FloatArray]) -> FloatArray:
    """(B, …) tables of equal shape, or (1, …) when all are the same."""
    head = tables[0]
    if all(table is head or np.array_equal(table, head) for table in tables):
        return head[None]
    return np.stack(tables)


def gather_rewards(
    items: Iterable[LocalReward | Rewards],
) -> list[tuple[Rewards, Callable[[int], str]]]:
    """Batches of equal shape, batches first, then singles in the order of first appearance.

    Beside each batch a function that says which term of `items` its row b is.
    """
    batches: list[tuple[Rewards, Callable[[int], str]]] = []
    groups: dict[tuple[object, ...], list[int]] = {}
    singles: dict[int, LocalReward] = {}
    for position, item in enumerate(items):
        if isinstance(item, Rewards):
            batches.append((item, partial("rewards[{}], row {}".format, position)))
        elif isinstance(item, LocalReward):
            singles[position] = item
            groups.setdefault((len(item.states), item.table.shape), []).append(position)
        else:
            raise InputError(
                f"rewards[{position}] is a {type(item).__name__}; give LocalReward, RewardBatch or "
                f"CountRewardBatch objects"
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
