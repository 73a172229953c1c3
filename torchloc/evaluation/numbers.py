"""What a policy's numbers make of the structure of a model: laws, closed-loop kernels, sources.

Every table has its sites as the last axis. Sites with equal numbers are stored once, so what is
computed for one of them is known for all; where most differ, nothing is shared.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchloc.alike import distinct, distinct_numbers
from torchloc.closed_loop import Layout, PolicyTables
from torchloc.contraction.sites import SiteClass, Sites
from torchloc.evaluation.sources import Sources
from torchloc.mdp.checks import IntArray

_SHARED = 0.5
"""Share of distinct rows up to which equal ones are stored once."""


@dataclass(frozen=True, eq=False)
class Columns:
    """B tables of one shape, equal ones stored once.

    Attributes:
        values: (*axes, D).
        ids: (B,) the column of each site; None where site b has column b.
    """

    values: Tensor
    ids: IntArray | None

    def at(self, rows: IntArray) -> Tensor:
        """(*axes, len(rows)) tables of some sites, or (*axes, 1) if there is one for all."""
        if self.values.shape[-1] == 1:
            return self.values
        picked = rows if self.ids is None else self.ids[rows]
        first = int(picked[0])
        # Neighbours in memory are read where they are.
        if int(picked[-1]) - first == len(picked) - 1 and bool((np.diff(picked) == 1).all()):
            return self.values.narrow(-1, first, len(picked))
        return self.values.index_select(-1, as_index(picked, self.values))

    def put(self, rows: IntArray, values: Tensor) -> Columns:
        """The same tables but for some sites, which get (*axes, len(rows)) new ones."""
        if self.ids is None and self.values.shape[-1] > 1:
            return Columns(
                self.values.index_copy(-1, as_index(rows, values), values.contiguous()), None
            )
        new = columns(values)
        ids = np.zeros(int(rows.max()) + 1, dtype=np.int64) if self.ids is None else self.ids.copy()
        stored = np.arange(values.shape[-1]) if new.ids is None else new.ids
        ids[rows] = self.values.shape[-1] + stored
        joined = torch.cat([self.values, new.values], dim=-1)
        if joined.shape[-1] <= len(ids):
            return Columns(joined, ids)
        used, ids = np.unique(ids, return_inverse=True)
        return Columns(joined.index_select(-1, as_index(used, joined)), ids)

    def names(self, rows: IntArray) -> IntArray | None:
        """Equal numbers for sites with equal tables; None where most differ."""
        if self.values.shape[-1] == 1:
            return np.zeros(len(rows), dtype=np.int64)
        return None if self.ids is None else self.ids[rows]


def columns(values: Tensor) -> Columns:
    """Tables (*axes, B) with equal ones stored once, if that is worth it."""
    count = values.shape[-1]
    if count < 2:
        return Columns(values, None)
    # A look at a few tells whether a search through all can pay.
    few = values[..., : min(count, 256)]
    first, _ = distinct_numbers(few.reshape(-1, few.shape[-1]).double().cpu().numpy())
    if len(first) > _SHARED * few.shape[-1]:
        return Columns(values, None)
    first, ids = distinct_numbers(values.reshape(-1, count).double().cpu().numpy())
    if len(first) > _SHARED * count:
        return Columns(values, None)
    return Columns(values.index_select(-1, as_index(first, values)), ids)


def as_index(rows: IntArray, like: Tensor) -> Tensor:
    """Rows as an index on the device of a tensor."""
    return torch.tensor(rows, device=like.device)


class ModelTables:
    """The tables of kernels, links and rewards, sites last: what does not change with the policy."""

    def __init__(
        self, sites: Sites, sources: Sources, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.dtype, self.device = dtype, device
        self.kernels = [self._table(site) for site in sites.classes]
        self.rewards = [self._table(site) for site in sources.rewards]
        self.links = [self._links(site) for site in sites.classes]
        self.reward_links = [self._links(site) for site in sources.rewards]

    def _table(self, site: SiteClass) -> Columns:
        return self._columns(site.local.table)

    def _links(self, site: SiteClass) -> list[Columns]:
        return [self._columns(link.table) for link in site.links]

    def _columns(self, table: Tensor | NDArray) -> Columns:
        """(B or 1, *axes) → (*axes, B or 1) on the device."""
        moved = torch.as_tensor(table).movedim(0, -1).to(self.device, self.dtype)
        return columns(moved.contiguous())


class Numbers:
    """Laws, closed-loop kernels and sources of one policy.

    Args:
        model: Tables of the model.
        sites: Structure of its kernels.
        sources: Structure of its rewards.
        tables: The policy's laws.
        used: Site classes that some ball reads.

    Attributes:
        laws: One (*S_scope, A, G) a policy group.
        kernels: One (*reads, *A_shared, S_j, B) a site class that is used; the others are empty.
        sources: One (*S, B) a source class.
    """

    def __init__(
        self,
        model: ModelTables,
        sites: Sites,
        sources: Sources,
        tables: PolicyTables,
        used: Collection[int],
    ) -> None:
        self.model = model
        self.used = used
        self._sites = sites
        self._sources = sources
        self.layout: Layout = tables
        self.temperature = tables.temperature
        self.laws = [
            columns(law.movedim(0, -1).to(model.device, model.dtype).contiguous())
            for law in tables.laws
        ]
        self.kernels = [
            self._averaged(site, table, np.arange(len(site)))
            if i in used
            else Columns(torch.empty(0, dtype=model.dtype, device=model.device), None)
            for i, (site, table) in enumerate(zip(sites.classes, model.kernels, strict=True))
        ]
        self._functions = [
            expanded(self._averaged(site, table, np.arange(len(site)), links), len(site))
            for site, table, links in zip(
                sources.rewards, model.rewards, model.reward_links, strict=True
            )
        ]
        if sources.entropies:
            self._functions += [
                self._entropy(index, np.arange(len(group)))
                for index, group in enumerate(tables.groups)
            ]
        self.sources = [columns(source.total(self._functions)) for source in sources.classes]

    def closed_laws(self, site: SiteClass, rows: IntArray) -> list[Tensor]:
        """(*S_scope, A, len(rows) or 1) of every agent whose action is averaged out."""
        return [self.laws[group].at(at) for group, at in self._closed(site, rows)]

    def _closed(self, site: SiteClass, rows: IntArray) -> list[tuple[int, IntArray]]:
        """Policy group, and rows in it, of every agent whose action is averaged out."""
        agents = [site.local.agents[rows, k] for k in site.closed]
        return [(int(self.layout.group_of[some[0]]), self.layout.row_of[some]) for some in agents]

    def _averaged(
        self, site: SiteClass, table: Columns, rows: IntArray, links: Sequence[Columns] = ()
    ) -> Columns:
        """The tables of some sites with the private actions averaged out; with the links of a reward term."""
        laws = [(self.laws[group], at) for group, at in self._closed(site, rows)]
        names = [table.names(rows), *(law.names(at) for law, at in laws)]
        names += [link.names(rows) for link in links]
        network = site.averaging()
        if any(name is None for name in names):
            operands = [table.at(rows), *(law.at(at) for law, at in laws)]
            return Columns(network([*operands, *(link.at(rows) for link in links)]), None)
        first, ids = distinct([name for name in names if name is not None])
        operands = [table.at(rows[first]), *(law.at(at[first]) for law, at in laws)]
        return Columns(network([*operands, *(link.at(rows[first]) for link in links)]), ids)

    def _entropy(self, index: int, rows: IntArray) -> Tensor:
        """(*S_scope, len(rows)) τ_k Ent π_k of some agents of a group."""
        law = self.laws[index]
        entropy = torch.special.entr(law.values).sum(dim=-2)
        entropy = expanded(Columns(entropy, law.ids), len(self.layout.groups[index]))
        entropy = entropy.index_select(-1, as_index(rows, entropy))
        agents = self.layout.groups[index].agents[rows]
        return entropy * self.temperature[torch.tensor(agents)].to(entropy)

    def move(self, agents: NDArray[np.bool_], laws: Sequence[Tensor | None]) -> Moved:
        """Takes over new laws of some agents; all else stays as it is.

        Args:
            agents: (K,) which agents moved.
            laws: For each policy group the (b, *S_scope, A) laws of its moved agents, ascending, or
                None.

        Returns:
            What changed.
        """
        for index, (group, new) in enumerate(zip(self.layout.groups, laws, strict=True)):
            rows = np.flatnonzero(agents[group.agents])
            if new is not None and len(rows):
                values = new.movedim(0, -1).to(self.model.device, self.model.dtype)
                self.laws[index] = self.laws[index].put(rows, values.contiguous())
        changed = [self._acted(site, agents) for site in self._sites.classes]
        for i, rows in enumerate(changed):
            if len(rows) and i in self.used:
                site = self._sites.classes[i]
                new = self._averaged(site, self.model.kernels[i], rows)
                self.kernels[i] = self.kernels[i].put(rows, expanded(new, len(rows)))
        for i, site in enumerate(self._sources.rewards):
            rows = self._acted(site, agents)
            if len(rows):
                table, links = self.model.rewards[i], self.model.reward_links[i]
                new = expanded(self._averaged(site, table, rows, links), len(rows))
                self._replace(i, rows, new)
        if self._sources.entropies:
            n_rewards = len(self._sources.rewards)
            for index, group in enumerate(self.layout.groups):
                rows = np.flatnonzero(agents[group.agents])
                if len(rows):
                    self._replace(n_rewards + index, rows, self._entropy(index, rows))
        moved = []
        for i, source in enumerate(self._sources.classes):
            new = columns(source.total(self._functions))
            count = len(source.rows)
            same = expanded(new, count) == expanded(self.sources[i], count)
            moved.append(~same.reshape(-1, count).all(dim=0).cpu().numpy())
            self.sources[i] = new
        return Moved(agents, changed, moved)

    def _acted(self, site: SiteClass, agents: NDArray[np.bool_]) -> IntArray:
        """Rows whose averaged action belongs to one of the agents."""
        return np.flatnonzero(agents[site.local.agents[:, list(site.closed)]].any(axis=1))

    def _replace(self, kind: int, rows: IntArray, values: Tensor) -> None:
        old = self._functions[kind]
        self._functions[kind] = old.index_copy(-1, as_index(rows, old), values.contiguous())


@dataclass(frozen=True, eq=False)
class Moved:
    """What changed with the laws of some agents.

    Attributes:
        agents: (K,) bool.
        kernels: Rows of every site class.
        sources: (B,) bool of every source class.
    """

    agents: NDArray[np.bool_]
    kernels: list[IntArray]
    sources: list[NDArray[np.bool_]]


def expanded(table: Columns, count: int) -> Tensor:
    """(*axes, count): the table of every site."""
    if table.ids is not None:
        return table.values.index_select(-1, as_index(table.ids, table.values))
    return table.values.expand(*table.values.shape[:-1], count)
