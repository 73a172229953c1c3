"""The kernels of all coordinates with their private actions averaged out under the policy.

An action is *private* if it enters the kernel of one coordinate only; averaged there, it leaves

    Q_j(s'_j | s_{reads(j)}, a_shared(j)),       reads(j) = parents(j) ∪ scopes of the private agents of j,

and T^π is a product of these and of the laws of the shared agents. The derivative of any number in
Q_j gives its derivative in the law of every private agent of j through one small network.

A kernel that counts is a product (`contraction.factors`): Q_j has hidden axes before s'_j, and links
join these to the counted parents. Counted actions are shared ones: they stay axes of the links. A reward
term that counts is averaged over all actions through its links, and what is left has no hidden axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from torchloc.alike import at_rows
from torchloc.closed_loop import Layout, LocalClass, local_classes
from torchloc.contraction.factors import Factors, Link
from torchloc.contraction.network import SEARCHED, Axes, Network
from torchloc.errors import BudgetError
from torchloc.mdp import CountBatch, CountRewardBatch, FactoredMDP, KernelBatch, RewardBatch
from torchloc.mdp.checks import FloatArray, IntArray
from torchloc.mdp.gathering import Kernels, Rewards

COUNT_ENTRIES = 2**14
"""Entries of a term that counts up to which it is written out with all it reads, and of a kernel that
does where its agents see what it counts."""
REWARD_ENTRIES = 2**20
"""Entries at most of a reward term that counts, averaged over the actions."""


@dataclass(frozen=True, eq=False)
class SiteClass:
    """B sites (kernels or reward terms) whose closed-loop forms have the same structure.

    Axes are numbered: places of `local.union` first, then the actions, then what the table adds.

    Attributes:
        rows: (B,) coordinates that the kernels drive, or rows of the reward batch.
        local: Parents, scopes and the table, as read from the model.
        closed: Positions among the actions that are averaged out.
        kept: Positions of those that stay.
        reads: (B, p) coordinates that the averaged form reads, and `read_sizes` their p sizes.
        shared: (B, q + e) agents of the kept actions, then the counted ones.
        factors: Hidden axes and links, for these rows; None for a table.
        members: (B, d) counted coordinates of a kernel.
        member_sizes: (d + e) sizes of counted coordinates and actions of a kernel.
        own: Numbers of own coordinates and agents of a reward term that counts: its table has axes for these
            and the hidden ones, though `local` has the counted ones too. None for everything else.
    """

    rows: IntArray
    local: LocalClass
    closed: tuple[int, ...]
    kept: tuple[int, ...]
    reads: IntArray
    read_sizes: tuple[int, ...]
    shared: IntArray
    factors: Factors | None
    members: IntArray
    member_sizes: tuple[int, ...]
    own: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        rows: IntArray,
        local: LocalClass,
        kept: Sequence[int],
        batch: CountBatch | None = None,
        factors: Factors | None = None,
    ) -> SiteClass:
        """A class with the actions at positions `kept` left open; with what its kernels count."""
        none = np.zeros((len(rows), 0), dtype=np.int64)
        members, counted = none, none
        sizes: tuple[int, ...] = ()
        if batch is not None and factors is not None:
            counters, d = batch.counters, batch.counters.states.shape[1]
            # A parent whose weights are all 0 has no link, and is not read.
            used = sorted({link.member for link in factors.links if link.member is not None})
            members = at_rows(counters.states, local.rows)[:, [m for m in used if m < d]]
            counted = at_rows(counters.actions, local.rows)[:, [m - d for m in used if m >= d]]
            sizes = tuple(counters.sizes[m] for m in used)
            factors = _of_rows(factors, local.rows, used)
        closed = [k for k in range(len(local.n_actions)) if k not in kept]
        seen = sorted({*range(local.n_states), *(i for k in closed for i in local.scopes[k])})
        return cls(
            rows,
            local,
            tuple(closed),
            tuple(kept),
            local.union[:, seen],
            tuple(local.sizes[i] for i in seen),
            np.concatenate([local.agents[:, list(kept)], counted], axis=1),
            factors,
            members,
            sizes,
        )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def read_columns(self) -> list[IntArray]:
        """p + d arrays (B,): the coordinates that are read, then those that are counted."""
        return [*np.ascontiguousarray(self.reads.T), *np.ascontiguousarray(self.members.T)]

    @property
    def column_sizes(self) -> tuple[int, ...]:
        """p + d sizes of these."""
        return (*self.read_sizes, *self.member_sizes[: self.members.shape[1]])

    @cached_property
    def shared_columns(self) -> list[IntArray]:
        """q + e arrays (B,): the agents of the kept actions, then those that are counted."""
        return list(np.ascontiguousarray(self.shared.T))

    @property
    def shared_sizes(self) -> tuple[int, ...]:
        """q + e sizes of their action spaces."""
        return (*self.kept_sizes, *self.member_sizes[self.members.shape[1] :])

    @property
    def links(self) -> tuple[Link, ...]:
        """What joins hidden axes to counted parents."""
        return () if self.factors is None else self.factors.links

    @property
    def kept_sizes(self) -> tuple[int, ...]:
        """Sizes of the kept actions."""
        return tuple(self.local.n_actions[k] for k in self.kept)

    @property
    def tail(self) -> tuple[int, ...]:
        """Sizes of the axes after the actions: (*hidden, S_j) of a kernel, () of a reward term."""
        local = self.local
        if self.own is not None:
            return ()
        return tuple(local.table.shape[1 + local.n_states + len(local.n_actions) :])

    def _axes(self) -> tuple[Axes, list[Axes], Axes, tuple[int, ...]]:
        """Axes of the table, of each closed law, then of each link of a reward term, and of the averaged form.

        And all sizes.
        """
        local = self.local
        u, q = len(local.sizes), len(local.n_actions)
        if self.own is not None and self.factors is not None:
            p, first = self.own[0], u + q
            table = (*range(p), *range(u, u + self.own[1]))
            table += tuple(first + axis for axis in self.factors.reads)
            parents = [*range(p, local.n_states), *range(u + self.own[1], u + q)]
            operands: list[Axes] = [(*local.scopes[k], u + k) for k in self.closed]
            for link in self.factors.links:
                axes = tuple(first + axis for axis in link.hidden)
                operands.append(axes if link.member is None else (*axes, parents[link.member]))
            sizes = (*local.sizes, *local.n_actions, *self.factors.sizes)
            return table, operands, tuple(range(u)), sizes
        ends = tuple(range(u + q, u + q + len(self.tail)))
        table = (*range(local.n_states), *range(u, u + q), *ends)
        laws = [(*local.scopes[k], u + k) for k in self.closed]
        seen = sorted({*range(local.n_states), *(i for k in self.closed for i in local.scopes[k])})
        out = (*seen, *(u + k for k in self.kept), *ends)
        return table, laws, out, (*local.sizes, *local.n_actions, *self.tail)

    def averaging(self) -> Network:
        """(table, *closed laws, *links of a reward term) → (*read_sizes, *kept_sizes, *tail)."""
        table, others, out, sizes = self._axes()
        return _network((table, *others), out, sizes)

    def attribution(self, *, fixed: bool) -> Network:
        """(derivative in the averaged form, table, *closed laws, *links of a reward term) → a scalar.

        The one that it is a derivative of; its gradient in a law is the derivative in that law.

        Args:
            fixed: The states are given: no operand has axes for them.
        """
        table, others, out, sizes = self._axes()
        u = len(self.local.sizes) if fixed else 0
        operands = tuple(tuple(x for x in axes if x >= u) for axes in (out, table, *others))
        return _network(operands, (), sizes)


def _network(operands: tuple[Axes, ...], out: Axes, sizes: tuple[int, ...]) -> Network:
    return Network.of(operands, out, sizes, len(operands) <= SEARCHED)


class Sites:
    """The closed-loop kernels of a model, looked up by coordinate: structure only, no numbers.

    Args:
        mdp: The model.
        layout: For the scopes.
    """

    def __init__(self, mdp: FactoredMDP, layout: Layout) -> None:
        # A kernel names each of its action parents once.
        self.is_shared = np.bincount(mdp.action_edges()[1], minlength=mdp.n_agents) > 1
        for batch in mdp.kernels:
            if isinstance(batch, CountBatch):
                self.is_shared[batch.counters.actions] = True
        self.classes: list[SiteClass] = []
        self.class_of = np.zeros(mdp.n_coordinates, dtype=np.int64)
        self.row_of = np.zeros(mdp.n_coordinates, dtype=np.int64)
        for batch in (part for kernel in mdp.kernels for part in _held(kernel, layout, mdp)):
            flags = self.is_shared[batch.actions].astype(np.int64)
            counting = batch if isinstance(batch, CountBatch) else None
            factors = None if counting is None else Factors.of(counting)
            own = None if factors is None else factors.own
            for local in local_classes(batch, layout, flags, own):
                kept = [k for k, flag in enumerate(local.flags) if flag]
                coordinates = batch.coordinates[local.rows]
                self.class_of[coordinates] = len(self.classes)
                self.row_of[coordinates] = np.arange(len(coordinates))
                self.classes.append(SiteClass.of(coordinates, local, kept, counting, factors))


def _held(batch: Kernels, layout: Layout, mdp: FactoredMDP) -> Iterable[Kernels]:
    """A batch as it is, or its tables, where own agents see what it counts: then counting saves nothing."""
    if isinstance(batch, KernelBatch) or batch.table_entries > COUNT_ENTRIES:
        return [batch]
    counted, n = batch.counters.states, mdp.n_coordinates
    for agents in batch.actions.T:
        for index in np.unique(layout.group_of[agents]):
            rows = np.flatnonzero(layout.group_of[agents] == index)
            seen = layout.groups[index].scope[layout.row_of[agents[rows]]]
            # Pairs (row, coordinate) as one number each.
            if np.isin(seen + n * rows[:, None], counted[rows] + n * rows[:, None]).any():
                return batch.tables(COUNT_ENTRIES)
    return [batch]


def reward_sites(batch: Rewards, layout: Layout) -> list[SiteClass]:
    """The reward terms of a batch, every action averaged out.

    Raises:
        BudgetError: What a term that counts reads then is too large to be written out.
    """
    if isinstance(batch, RewardBatch):
        return [SiteClass.of(local.rows, local, ()) for local in local_classes(batch, layout)]
    if batch.table_entries <= COUNT_ENTRIES:
        return [site for table in batch.tables() for site in reward_sites(table, layout)]
    factors, sites = Factors.of(batch), []
    used = sorted({link.member for link in factors.links if link.member is not None})
    for local in local_classes(_Read.of(batch, used), layout, own=factors.own):
        entries = math.prod(local.sizes)
        if entries > REWARD_ENTRIES:
            raise BudgetError(
                f"{batch.place(int(local.rows[0]))} counts agents who see {len(local.sizes)} coordinates "
                f"together: averaged over their actions it has {entries} entries, over the budget of "
                f"{REWARD_ENTRIES}; give these agents smaller scopes, or split the term"
            )
        site = SiteClass.of(local.rows, local, ())
        own = (batch.states.shape[1], batch.actions.shape[1])
        sites.append(replace(site, factors=_of_rows(factors, local.rows, used), own=own))
    return sites


@dataclass(frozen=True, eq=False)
class _Read:
    """Everything that terms read, own and counted alike."""

    states: IntArray
    actions: IntArray
    table: FloatArray
    state_shape: tuple[int, ...]
    action_shape: tuple[int, ...]

    @classmethod
    def of(cls, batch: CountRewardBatch, used: Sequence[int]) -> _Read:
        counters, d = batch.counters, batch.counters.states.shape[1]
        states, agents = [m for m in used if m < d], [m - d for m in used if m >= d]
        return cls(
            np.concatenate([batch.states, counters.states[:, states]], axis=1),
            np.concatenate([batch.actions, counters.actions[:, agents]], axis=1),
            batch.table,
            (*batch.state_shape, *(counters.state_sizes[m] for m in states)),
            (*batch.action_shape, *(counters.action_sizes[m] for m in agents)),
        )

    def __len__(self) -> int:
        return len(self.states)


def _of_rows(factors: Factors, rows: IntArray, used: Sequence[int]) -> Factors:
    """The factors of some sites, with members numbered among those that are used."""
    links = []
    for link in factors.links:
        table = link.table if len(link.table) == 1 else link.table[rows]
        member = None if link.member is None else used.index(link.member)
        links.append(replace(link, table=table, member=member))
    return replace(factors, links=tuple(links))
