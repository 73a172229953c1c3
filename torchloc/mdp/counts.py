"""Kernels that read most of their parents only through counters.

    P_j(s'_j | s, a) = T[s_own, a_own, c_1, …, c_r, s'_j],        c_i = min(C_i − 1, Σ_m w[i, m, x_m]).

Memory and sensitivities are linear in the number of counted parents. A noisy-or, whose law depends on
the counts through powers only, is a count kernel that knows these powers (its *modes*, 0^0 = 1):

    T[s_own, a_own, c, s'_j] = Σ_h M[s_own, a_own, h, s'_j] Π_i λ_{h,i}^{c_i},

so that a contraction needs one index of H values, where a chain of adders needs one as long as the
count at every parent.

Axis letters as in `mdp.counting`; p own coordinates, q own agents, H modes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from torchloc.errors import BudgetError, InputError
from torchloc.mdp.checks import (
    FloatArray,
    IntArray,
    frozen,
    integers,
    normalised,
    reals,
)
from torchloc.mdp.counted import TABLE_ENTRIES, Counted, own_and_counted
from torchloc.mdp.counting import Counters, weights_of
from torchloc.mdp.kernels import KernelBatch
from torchloc.mdp.spreads import influences, total_variation

NOISY_ENTRIES = 2**28
"""Entries of the table of one noisy-or at most."""
_MODE_ERROR = 1e-12
"""How far the modes of a kernel may be from its table."""
_UNPLACED = -1  # the coordinate of a single kernel before a model takes it


@dataclass(frozen=True, eq=False)
class Modes:
    """Powers of the count that a law is made of.

    Attributes:
        table: (B or 1, *S, *A, H, S_j) M; the rates of mode 0 are all 1.
        rates: (H, r) λ, each in [0, 1].
    """

    table: FloatArray
    rates: FloatArray


@dataclass(frozen=True, eq=False)
class CountBatch(Counted):
    """B kernels of equal shape that count most of their parents.

    Args:
        coordinates: (B,) the coordinate that each kernel drives.
        states: (B, p) own coordinates, read one by one.
        actions: (B, q) own agents.
        counted_states: (B, d) counted coordinates.
        counted_actions: (B, e) counted agents.
        table: (B or 1, *S, *A, C_1, …, C_r, S_j), rows along the last axis sum to 1.
        state_weights: (X,), (d, X), (r, d, X) or (B, r, d, X) whole numbers ≥ 0: what a counted
            coordinate adds at each of its values; None: its value, 0 or 1.
        action_weights: The same of counted agents.
        state_sizes: d sizes of the counted coordinates; None: all have X values.
        action_sizes: e sizes of the counted agents' action spaces; None: all have as many as weights.
        modes: (M, λ): (B or 1, *S, *A, H, S_j) and (H, r), or (H,) for one counter, if the law is a sum of
            powers of the counts. A counter that can stop has rates 0 and 1 only.

    Raises:
        InputError: A row is not a law, shapes do not match, a parent stands twice, the modes are not
            those of the table.
    """

    coordinates: IntArray
    states: IntArray
    actions: IntArray
    counters: Counters
    table: FloatArray
    modes: Modes | None
    TAIL = 1

    def __init__(
        self,
        coordinates: ArrayLike,
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
        modes: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> None:
        sites = integers(coordinates, "kernel coordinates", 1)
        object.__setattr__(self, "coordinates", sites)
        if not len(sites):
            raise InputError("a kernel batch drives no coordinate; leave it out")
        tables = reals(table, "kernel table")
        own_states, own_actions, counters = own_and_counted(
            len(sites), states, actions, counted_states, counted_actions, tables, 1,
            state_weights, action_weights, state_sizes, action_sizes, self.place,
        )  # fmt: skip
        object.__setattr__(self, "states", own_states)
        object.__setattr__(self, "actions", own_actions)
        object.__setattr__(self, "counters", counters)
        object.__setattr__(self, "table", frozen(normalised(tables, self.place)))
        held = None if modes is None else self._checked_modes(*_pair(modes))
        object.__setattr__(self, "modes", held)

    def _checked_modes(self, table: ArrayLike, rates: ArrayLike) -> Modes:
        powers, core = reals(rates, "mode rates"), reals(table, "mode table")
        counters = self.counters
        levels, r = counters.levels, len(counters.levels)
        if powers.ndim == 1 and r == 1:
            powers = powers[:, None]
        if powers.ndim != 2 or powers.shape[1] != r or not _are_rates(powers):
            raise InputError(
                f"mode rates are {powers.tolist()}; give {r} numbers between 0 and 1 a mode"
            )
        largest = np.zeros(r, dtype=np.int64)
        for _, members in counters.patterns():
            sums = [[max(key[i]) for key in members] for i in range(r)]
            largest = np.maximum(largest, [sum(row) for row in sums])
        stopping = (largest >= np.array(levels)) & ~np.isin(powers, (0.0, 1.0)).all(axis=0)
        if stopping.any():
            i = int(np.argmax(stopping))
            raise InputError(
                f"modes need counts that never stop, or rates 0 and 1, but counter {i} reaches "
                f"{largest[i]} and the table has {levels[i]} levels; give the table {largest[i] + 1}"
            )
        own = self.table.shape[1 : self.table.ndim - r - 1]
        shape = (*own, len(powers), self.table.shape[-1])
        if core.shape[1:] != shape or len(core) not in (1, len(self)):
            raise InputError(
                f"the mode table has shape {core.shape}; it must be (1 or {len(self)}, "
                f"{', '.join(map(str, shape))})"
            )
        if not (powers == 1.0).all(axis=1).any():
            core = np.concatenate([np.zeros((*core.shape[:-2], 1, core.shape[-1])), core], axis=-2)
            powers = np.concatenate([np.ones((1, r)), powers])
        order = np.argsort(-powers.min(axis=1, initial=1.0), kind="stable")
        core, powers = np.ascontiguousarray(core[..., order, :]), powers[order]
        counts = [
            np.arange(min(top + 1, level)) for top, level in zip(largest, levels, strict=True)
        ]
        spelled = np.ones((len(powers), 1))
        for i, count in enumerate(counts):
            power = powers[:, i, None, None] ** count
            spelled = (spelled[:, :, None] * power).reshape(len(powers), -1)
        reached = self.table[(..., *(slice(len(count)) for count in counts), slice(None))]
        reached = reached.reshape(len(self.table), *own, -1, self.table.shape[-1])
        error = float(np.abs(np.einsum("...hs,hc->...cs", core, spelled) - reached).max())
        if not error <= _MODE_ERROR:
            raise InputError(
                f"the modes differ from the table by {error:.3g}; they must be the same law"
            )
        return Modes(frozen(core), frozen(powers))

    def place(self, row: int) -> str:
        """How an error calls the kernel of this row."""
        site = int(self.coordinates[row])
        return "kernel" if site == _UNPLACED else f"kernel of coordinate {site}"

    def state_influence(self) -> FloatArray:
        """E^s of each state parent: sup of TV(P_j) over a change of that parent alone.

        Returns:
            (B or 1, p + d), exact up to the rounding of a sum of S_j terms: over all own values and all
            counts that the other parents can reach.
        """
        p, d = self.states.shape[1], self.counters.states.shape[1]
        own = range(1, 1 + p)
        return influences(self.table, self.counters, own, range(d), total_variation)

    def action_influence(self) -> FloatArray:
        """E^a of each action parent: (B or 1, q + e), as `state_influence`."""
        p, q, d = self.states.shape[1], self.actions.shape[1], self.counters.states.shape[1]
        own, counted = range(1 + p, 1 + p + q), range(d, self.counters.width)
        return influences(self.table, self.counters, own, counted, total_variation)

    def tables(self, entries: int = TABLE_ENTRIES) -> Iterable[KernelBatch]:
        """The same kernels written out.

        Raises:
            BudgetError: A table has more entries than given.
        """
        for rows, parents, table in self.written(entries):
            yield KernelBatch(self.coordinates[rows], *parents, table)


class CountKernel:
    """The law of one coordinate that counts most of its parents; see `CountBatch`.

    Args:
        states: p own coordinates, read one by one.
        actions: q own agents.
        counted: d counted coordinates.
        table: (*S, *A, C_1, …, C_r, S_j), rows along the last axis sum to 1.
        counted_actions: e counted agents.
        weights: (X,), (d, X) or (r, d, X): what a counted coordinate adds; None: its value, 0 or 1.
        action_weights: The same of counted agents.
        modes: (M, λ), (*S, *A, H, S_j) and (H,), as `CountBatch`.

    Raises:
        InputError: As `CountBatch`.

    Example:
        >>> majority = CountKernel((0,), (), range(1, 500), np.stack([np.linspace(1, 0, 500)] * 2)[
        ...     :, :, None] * [1, -1] + [0, 1])
        >>> majority.batch.state_influence().shape
        (1, 500)
    """

    def __init__(
        self,
        states: Iterable[int],
        actions: Iterable[int],
        counted: Iterable[int],
        table: ArrayLike,
        *,
        counted_actions: Iterable[int] = (),
        weights: ArrayLike | None = None,
        action_weights: ArrayLike | None = None,
        modes: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> None:
        self.batch = CountBatch(
            [_UNPLACED],
            [tuple(states)],
            [tuple(actions)],
            [tuple(counted)],
            [tuple(counted_actions)],
            reals(table, "kernel table")[None],
            state_weights=weights,
            action_weights=action_weights,
            modes=None if modes is None else _of_one(*_pair(modes)),
        )

    @classmethod
    def noisy_or(
        cls,
        states: Iterable[int],
        actions: Iterable[int],
        counted: Iterable[int],
        *,
        reached: ArrayLike,
        spared: ArrayLike,
        inhibition: ArrayLike,
        weights: ArrayLike | None = None,
    ) -> CountKernel:
        """A law that is `spared` where no counted parent gets through, `reached` where one does.

        A parent that counts w is held back with probability inhibition^w, each by itself.

        Args:
            states: p own coordinates.
            actions: q own agents.
            counted: d counted coordinates.
            reached: (*S, *A, S_j) law where one gets through.
            spared: (*S, *A, S_j) law where none does.
            inhibition: (*S, *A) probability in [0, 1] that a parent that counts 1 is held back.
            weights: As `CountKernel`.

        Raises:
            InputError: As `CountKernel`, or an inhibition outside [0, 1].
            BudgetError: The counts are so large that the table would be.
        """
        states, actions, counted = tuple(states), tuple(actions), tuple(counted)
        axes, found = len(states) + len(actions) + 1, reals(reached, "reached").ndim
        if found != axes:
            raise InputError(
                f"reached has {found} axes; with {len(states)} own coordinates and {len(actions)} own "
                f"agents it must have {axes}: (*S, *A, S_j)"
            )
        scale = weights_of(weights, "weights", (1, 1, len(counted)), lambda _: "kernel")
        largest = int(scale.max(axis=-1, initial=0).sum())
        table, modes = noisy_or_tables(reached, spared, inhibition, largest)
        return cls(states, actions, counted, table, weights=weights, modes=modes)


def noisy_or_tables(
    reached: ArrayLike, spared: ArrayLike, inhibition: ArrayLike, largest: int
) -> tuple[FloatArray, tuple[FloatArray, FloatArray]]:
    """(*S, *A, largest + 1, S_j) table of a noisy-or and its modes (*S, *A, H, S_j), (H,).

    Raises:
        InputError: An inhibition outside [0, 1], or shapes that do not fit.
        BudgetError: The table would have more than `NOISY_ENTRIES` entries.
    """
    high, low = reals(reached, "reached"), reals(spared, "spared")
    held = reals(inhibition, "inhibition")
    if not high.ndim or high.shape != low.shape or high.shape[:-1] != held.shape:
        raise InputError(
            f"reached has shape {high.shape}, spared {low.shape} and inhibition {held.shape}; they "
            f"must be (*S, *A, S_j) twice and (*S, *A)"
        )
    if not _are_rates(held):
        raise InputError(f"inhibition is {held.tolist()}; it must be probabilities")
    if high.size * (largest + 1) > NOISY_ENTRIES:
        raise BudgetError(
            f"a noisy-or over counts up to {largest} is a table of {high.size * (largest + 1)} entries, "
            f"over the budget of {NOISY_ENTRIES}; use smaller weights"
        )
    rates = np.unique(np.append(held, 1.0))[::-1]
    chosen = held[..., None] == rates
    modes = np.where(chosen[..., None], (low - high)[..., None, :], 0.0)
    modes[..., 0, :] += high
    power = held[..., None] ** np.arange(largest + 1)
    table = high[..., None, :] + power[..., None] * (low - high)[..., None, :]
    return table, (modes, rates)


def gather_counts(singles: Sequence[tuple[int, CountKernel]]) -> list[CountBatch]:
    """Batches of equal shape from (coordinate, kernel) pairs."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, (_, single) in enumerate(singles):
        batch = single.batch
        rates = None if batch.modes is None else tuple(batch.modes.rates.ravel().tolist())
        counters = batch.counters
        key = (
            batch.states.shape, batch.table.shape, counters.state_weights.shape,
            counters.action_weights.shape, rates,
        )  # fmt: skip
        groups.setdefault(key, []).append(i)
    result = []
    for rows in groups.values():
        parts = [singles[i][1].batch for i in rows]
        modes = None
        if parts[0].modes is not None:
            held = [part.modes for part in parts if part.modes is not None]
            modes = (_joined([one.table for one in held]), held[0].rates)
        result.append(
            CountBatch(
                [singles[i][0] for i in rows],
                np.concatenate([part.states for part in parts]),
                np.concatenate([part.actions for part in parts]),
                np.concatenate([part.counters.states for part in parts]),
                np.concatenate([part.counters.actions for part in parts]),
                _joined([part.table for part in parts]),
                state_weights=_joined([part.counters.state_weights for part in parts]),
                action_weights=_joined([part.counters.action_weights for part in parts]),
                modes=modes,
            )
        )
    return result


def _pair(modes: tuple[ArrayLike, ArrayLike]) -> tuple[ArrayLike, ArrayLike]:
    if not isinstance(modes, tuple | list) or len(modes) != 2:
        raise InputError("modes must be a pair: the table M of the modes, and their rates λ")
    return modes[0], modes[1]


def _of_one(table: ArrayLike, rates: ArrayLike) -> tuple[ArrayLike, ArrayLike]:
    """The modes of a kernel as those of a batch."""
    return reals(table, "mode table")[None], rates


def _are_rates(values: FloatArray) -> bool:
    """Whether all lie in [0, 1]; NaN does not."""
    return bool(((values >= 0) & (values <= 1)).all())


def _joined(tables: list[np.ndarray]) -> np.ndarray:
    head = tables[0]
    if all(table is head or np.array_equal(table, head) for table in tables):
        return head
    return np.concatenate(tables)
