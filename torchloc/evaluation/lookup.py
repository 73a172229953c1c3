"""Where each of B sites reads in a flat table, for many replicas at once.

Axis letters: B sites, p coordinates and q agents that a site reads one by one, R replicas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import IntArray
from torchloc.mdp.counting import Counters


def small(count: int) -> torch.dtype:
    """The smallest integer type that holds 0 … count − 1."""
    for dtype, limit in ((torch.uint8, 2**8), (torch.int16, 2**15), (torch.int32, 2**31)):
        if count <= limit:
            return dtype
    return torch.int64


def index_of(numbers: IntArray, count: int, device: torch.device) -> Tensor | None:
    """An index on the device; None for 0 … count − 1 in order, which needs no gather."""
    if len(numbers) == count and (numbers == np.arange(count)).all():
        return None
    return torch.tensor(numbers, device=device)


@dataclass(frozen=True, eq=False)
class Lookup:
    """Rows of a flat table, by what each of B sites reads.

    Attributes:
        n_sites: B.
        columns: For each variable read: whether it is an action, (B,) where it stands (None: all in
            order), its size. Sizes 1 are left out.
        local: Integer type that holds the rows of one site.
        kind: Integer type that holds places in the flat table.
        base: (B, 1) first row of each site; None for a table shared by all.
    """

    n_sites: int
    columns: tuple[tuple[bool, Tensor | None, int], ...]
    local: torch.dtype
    kind: torch.dtype
    base: Tensor | None
    sums: tuple[_Sum, ...] = ()

    @classmethod
    def of(
        cls,
        mdp: FactoredMDP,
        states: IntArray,
        actions: IntArray,
        table: Sequence[int],
        device: torch.device,
        counters: Counters | None = None,
    ) -> Lookup:
        """For sites that read (B, p) coordinates and (B, q) agents in a table (B or 1, *S, *A, …).

        With counters the next axes of the table are theirs.
        """
        columns = []
        for position in range(states.shape[1] + actions.shape[1]):
            of_action = position >= states.shape[1]
            read = actions[:, position - states.shape[1]] if of_action else states[:, position]
            count = mdp.n_agents if of_action else mdp.n_coordinates
            if table[1 + position] > 1:
                columns.append((of_action, index_of(read, count, device), table[1 + position]))
        sums = () if counters is None else tuple(_sums(counters, device))
        n_rows = math.prod(size for *_, size in columns) * math.prod(one.size for one in sums)
        kind = torch.int32 if math.prod(table) < 2**31 else torch.int64
        base = None
        if table[0] > 1:
            base = torch.arange(len(states), device=device).mul_(n_rows).to(kind)[:, None]
        return cls(len(states), tuple(columns), small(n_rows), kind, base, sums)

    def rows(self, states: Tensor, actions: Tensor) -> Tensor:
        """(B, R) rows, mixed radix with the last variable running fastest."""
        local = None
        for of_action, index, size in self.columns:
            values = actions if of_action else states
            read = (values if index is None else values.index_select(0, index)).to(self.local)
            local = read if local is None else torch.add(read, local, alpha=size)
        for one in self.sums:
            read = one.counts(states, actions).to(self.local)
            local = read if local is None else torch.add(read, local, alpha=one.size)
        if local is None:
            shape = (self.n_sites, states.shape[1])
            local = torch.zeros(shape, dtype=torch.uint8, device=states.device)
        # Counters that count nothing have one row for all sites.
        local = local.expand(self.n_sites, -1)
        return local.to(self.kind) if self.base is None else self.base + local


@dataclass(frozen=True, eq=False)
class _Sum:
    """One counter of B sites.

    Attributes:
        size: Its levels.
        parts: For coordinates, then agents: whether agents, (d, B) where the counted parents stand,
            (d, B or 1, X) what each value adds, or None where it adds itself.
    """

    size: int
    parts: tuple[tuple[bool, Tensor, Tensor | None], ...]

    def counts(self, states: Tensor, actions: Tensor) -> Tensor:
        """(B, R) counts, parent by parent: no tensor of all parents' values is formed."""
        total: Tensor | None = None
        for of_action, index, weights in self.parts:
            values = actions if of_action else states
            for m in range(len(index)):
                read = values.index_select(0, index[m]).to(torch.int64)
                if weights is not None:
                    read = torch.gather(weights[m].expand(len(read), -1), 1, read)
                total = read if total is None else total.add_(read)
        if total is None:
            return torch.zeros(1, states.shape[1], dtype=torch.int64, device=states.device)
        return total.clamp_(max=self.size - 1)


def _sums(counters: Counters, device: torch.device) -> Iterator[_Sum]:
    """The counters of sites, the last one running fastest; those of one level are left out."""
    for i, size in enumerate(counters.levels):
        if size == 1:
            continue
        parts = []
        for of_action, members, weights in (
            (False, counters.states, counters.state_weights),
            (True, counters.actions, counters.action_weights),
        ):
            if members.shape[1]:
                index = torch.tensor(np.ascontiguousarray(members.T), device=device)
                own = weights[:, i]
                plain = (own == np.arange(own.shape[-1])).all()
                most = np.moveaxis(np.minimum(own, size - 1), 1, 0)  # no count goes further
                adds = None if plain else torch.tensor(most, device=device)
                parts.append((of_action, index, adds))
        yield _Sum(size, tuple(parts))
