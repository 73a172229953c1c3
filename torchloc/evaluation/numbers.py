"""What a policy's numbers make of the structure of a model: laws, closed-loop kernels, sources.

Every table has its sites as the last axis. Sites with equal numbers are stored once, so what is
computed for one of them is known for all; where most differ, nothing is shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchloc.alike import distinct, distinct_numbers
from torchloc.closed_loop import PolicyTables
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
    """The tables of kernels and rewards, sites last: what does not change with the policy."""

    def __init__(
        self, sites: Sites, sources: Sources, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.dtype, self.device = dtype, device
        self.kernels = [self._table(site) for site in sites.classes]
        self.rewards = [self._table(site) for site in sources.rewards]

    def _table(self, site: SiteClass) -> Columns:
        table = site.local.table.movedim(0, -1).to(self.device, self.dtype)
        return columns(table.contiguous())


class Numbers:
    """Laws, closed-loop kernels and sources of one policy.

    Attributes:
        laws: One (*S_scope, A, G) a policy group.
        kernels: One (*reads, *A_shared, S_j, B) a site class.
        sources: One (*S, B) a source class.
    """

    def __init__(
        self, model: ModelTables, sites: Sites, sources: Sources, tables: PolicyTables
    ) -> None:
        self.tables = tables
        self.laws = [
            columns(law.movedim(0, -1).to(model.device, model.dtype).contiguous())
            for law in tables.laws
        ]
        self.kernels = [
            self.averaged(site, table)
            for site, table in zip(sites.classes, model.kernels, strict=True)
        ]
        functions = [
            expanded(self.averaged(site, table), len(site))
            for site, table in zip(sources.rewards, model.rewards, strict=True)
        ]
        if sources.entropies:
            functions += [
                self._entropy(group.agents, law)
                for group, law in zip(tables.groups, self.laws, strict=True)
            ]
        self.sources = [columns(source.total(functions)) for source in sources.classes]

    def closed_laws(self, site: SiteClass, rows: IntArray) -> list[Tensor]:
        """(*S_scope, A, len(rows) or 1) of every agent whose action is averaged out."""
        return [law.at(at) for law, at in self._laws_of(site, rows)]

    def _laws_of(self, site: SiteClass, rows: IntArray) -> list[tuple[Columns, IntArray]]:
        found = []
        for k in site.closed:
            agents = site.local.agents[rows, k]
            group = int(self.tables.group_of[site.local.agents[0, k]])
            found.append((self.laws[group], self.tables.row_of[agents]))
        return found

    def averaged(self, site: SiteClass, table: Columns) -> Columns:
        """The tables of a class with the private actions averaged out."""
        rows = np.arange(len(site))
        laws = self._laws_of(site, rows)
        names = [table.names(rows), *(law.names(at) for law, at in laws)]
        network = site.averaging()
        if any(name is None for name in names):
            operands = (table.at(rows), *(law.at(at) for law, at in laws))
            return Columns(network(operands), None)
        first, ids = distinct([name for name in names if name is not None])
        operands = (table.at(rows[first]), *(law.at(at[first]) for law, at in laws))
        return Columns(network(operands), ids)

    def _entropy(self, agents: IntArray, law: Columns) -> Tensor:
        entropy = torch.special.entr(law.values).sum(dim=-2)
        if law.ids is not None:
            entropy = entropy.index_select(-1, as_index(law.ids, entropy))
        return entropy * self.tables.temperature[torch.tensor(agents)].to(entropy)


def expanded(table: Columns, count: int) -> Tensor:
    """(*axes, count): the table of every site."""
    if table.ids is not None:
        return table.values.index_select(-1, as_index(table.ids, table.values))
    return table.values.expand(*table.values.shape[:-1], count)
