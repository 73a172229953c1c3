"""How much a coordinate can move a kernel that counts, once its own actions are averaged under the policy.

Averaging the private actions of a kernel T[s_own, a_own, c, s'] gives P̃[u, c, s'], where u runs over own
coordinates and what these agents see. A coordinate that is counted *and* stands in u is taken into the
table, P̃'[u, c, s'] = P̃[u, c ⊕ w(u_i), s'], so that the rest counts alone; then entry (j, i) of K^π is a
maximum over u and over what the rest can reach, of size linear in the number of neighbours.

`joint_influence` is the same maximum where all that belongs to one number, a coordinate and the agent of
that number, changes together, whatever the policy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from torchloc.alike import at_rows, equal_rows, first_places
from torchloc.closed_loop import LocalClass, PolicyTables, local_classes
from torchloc.mdp import CountBatch
from torchloc.mdp.checks import FloatArray, IntArray
from torchloc.mdp.counting import Key, reachable, values_of
from torchloc.mdp.spreads import counted_spreads, own_spreads, total_variation

Entries = tuple[IntArray, IntArray, FloatArray]
"""(B,) coordinates, (B, u) causes, (B or 1, u) values."""


def counted_influence(batch: CountBatch, tables: PolicyTables) -> Iterator[Entries]:
    """Entries of K^π for kernels that count coordinates and whose own actions are all private.

    Args:
        batch: Kernels without counted actions.
        tables: The policy's laws; kernels with an agent whose laws were not read are left out.

    Yields:
        Exact entries, up to the rounding of sums.

    Raises:
        BudgetError: What own agents see is too large to enumerate.
    """
    for local in local_classes(batch, tables):
        if not tables.holds(local.agents.reshape(-1)):
            continue
        u, axes = len(local.sizes), 1 + len(local.sizes)
        law = local.averaged(tables).numpy()
        law = law.reshape(*law.shape[:axes], batch.counters.n_states, law.shape[-1])
        counted = at_rows(batch.counters.states, local.rows)
        places = _places(local.union, counted)
        for pattern, members in batch.counters.patterns():
            inside = np.flatnonzero(np.isin(local.rows, pattern))
            for place, inner in equal_rows(places[inside]):
                rows = inside[inner]
                part = law if len(law) == 1 else law[rows]
                yield (
                    batch.coordinates[local.rows[rows]],
                    np.concatenate([local.union[rows], counted[rows]], axis=1),
                    _entries(part, local, batch.counters.levels, members, place, u),
                )


def _places(union: IntArray, counted: IntArray) -> IntArray:
    """(B, d) where each counted coordinate stands in the union; −1 where it does not."""
    places = np.full(counted.shape, -1)
    for i, column in enumerate(union.T):
        places[counted == column[:, None]] = i
    return places


def _entries(
    law: FloatArray,
    local: LocalClass,
    levels: tuple[int, ...],
    members: list[Key],
    place: list[int],
    u: int,
) -> FloatArray:
    """(B or 1, u + d); a counted coordinate that stands in the union has its entry there, and 0 here."""
    for key, at in zip(members, place, strict=True):
        if at >= 0:
            axis, moves = 1 + at, values_of(key, levels)
            parts = [
                np.take(law, x if law.shape[axis] > 1 else 0, axis=axis)[..., move, :]
                for x, move in zip(range(local.sizes[at]), moves, strict=True)
            ]
            law = np.stack(parts, axis=axis)
    rest = [key for key, at in zip(members, place, strict=True) if at < 0]
    own = own_spreads(law, levels, rest, range(1, 1 + u), total_variation)
    others = counted_spreads(law, levels, rest, total_variation)
    none = np.zeros(len(law))
    beside = [others[key] if at < 0 else none for key, at in zip(members, place, strict=True)]
    found = [*own, *beside]
    return np.stack(found, axis=1) if found else np.zeros((len(law), 0))


def joint_influence(batch: CountBatch) -> Iterator[Entries]:
    """Sup of TV(P_j) as coordinate i and the action of agent i change together, for N = K.

    Yields:
        Exact entries, one cause a distinct number among the parents of a kernel.
    """
    counters, p = batch.counters, batch.states.shape[1]
    n_own = p + batch.actions.shape[1]
    causes = np.concatenate(
        [batch.states, batch.actions, counters.states, counters.actions], axis=1
    )
    flat = batch.table.reshape(
        *batch.table.shape[: 1 + n_own], counters.n_states, batch.table.shape[-1]
    )
    for pattern, members in counters.patterns():
        for places, inner in equal_rows(first_places(causes[pattern])):
            rows = pattern[inner]
            table = flat if len(flat) == 1 else flat[rows]
            columns = sorted(set(places))
            found = []
            for column in columns:
                at = [c for c, first in enumerate(places) if first == column]
                axes = [1 + c for c in at if c < n_own]
                moved = [c - n_own for c in at if c >= n_own]
                found.append(_together(table, counters.levels, members, axes, moved))
            if found:
                yield batch.coordinates[rows], causes[rows][:, columns], np.stack(found, axis=1)


def _together(
    table: FloatArray,
    levels: tuple[int, ...],
    members: list[Key],
    axes: list[int],
    moved: list[int],
) -> FloatArray:
    """(B or 1,) largest TV as some axes of (B or 1, …, Q, S_j) and some counted parents change together."""
    rest = reachable(levels, [key for m, key in enumerate(members) if m not in moved])
    table = np.moveaxis(table, axes, range(len(axes)))
    variants = []
    for own in np.ndindex(*table.shape[: len(axes)]):
        for values in np.ndindex(*(len(members[m][0]) for m in moved)):
            state = np.arange(len(rest))
            for m, x in zip(moved, values, strict=True):
                state = state[values_of(members[m], levels)[x]]
            variants.append(table[own][..., state[rest], :])
    worst = np.zeros(len(variants[0]))
    for x, y in itertools.combinations(variants, 2):
        apart = total_variation(x, y).reshape(len(worst), -1).max(axis=1)
        np.maximum(worst, apart, out=worst)
    return worst
