"""The functions whose powers of T^π make the truncated value: reward terms and entropies.

A function whose coordinates all stand in another one is added to it, so that one ball serves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from torchloc.alike import equal_columns
from torchloc.closed_loop import Layout
from torchloc.contraction.sites import SiteClass, reward_sites
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import IntArray

_CANDIDATES = 16
"""Functions through one coordinate that are tried as hosts of another one at most."""


@dataclass(frozen=True, eq=False)
class Guest:
    """Functions of one class that are added to functions of another.

    Attributes:
        kind: The class they come from.
        rows: (b,) which of its functions.
        hosts: (b,) the functions they are added to.
        axes: Where their coordinates stand among the host's.
    """

    kind: int
    rows: IntArray
    hosts: IntArray
    axes: tuple[int, ...]


@dataclass(eq=False)
class SourceClass:
    """Functions of v coordinates each, and what is added to them.

    Attributes:
        kind: The class whose functions they are.
        rows: (B,) which of its functions; those that are guests elsewhere are left out.
        scope: (B, v) coordinates.
        sizes: v sizes.
        guests: What is added.
    """

    kind: int
    rows: IntArray
    scope: IntArray
    sizes: tuple[int, ...]
    guests: list[Guest] = field(default_factory=list)

    def total(self, functions: Sequence[Tensor]) -> Tensor:
        """(*sizes, B) values of the functions with their guests, from (*sizes, n) a kind."""
        own = functions[self.kind]
        if len(self.rows) != own.shape[-1]:
            own = own.index_select(-1, _index(self.rows, own))
        if not self.guests:
            return own
        total = own.clone()
        for guest in self.guests:
            values = functions[guest.kind]
            values = values.index_select(-1, _index(guest.rows, values))
            order = sorted(range(len(guest.axes)), key=guest.axes.__getitem__)
            values = values.permute(*order, len(order))
            view = tuple(slice(None) if i in guest.axes else None for i in range(len(self.sizes)))
            values = values[(*view, slice(None))].expand(*self.sizes, -1)
            total.index_add_(-1, _index(guest.hosts, total), values)
        return total


@dataclass(frozen=True, eq=False)
class Sources:
    """All sources of a model under an objective.

    Attributes:
        rewards: Closed-loop reward terms: the first classes of functions.
        entropies: Whether each policy group's entropies follow as further classes.
        classes: What is left after functions were added to others.
    """

    rewards: tuple[SiteClass, ...]
    entropies: bool
    classes: tuple[SourceClass, ...]

    @classmethod
    def of(cls, mdp: FactoredMDP, layout: Layout, *, entropies: bool) -> Sources:
        """The sources of a model; only the scopes of the policy are read."""
        rewards = tuple(site for batch in mdp.rewards for site in reward_sites(batch, layout))
        scopes = [(site.reads, site.read_sizes) for site in rewards]
        if entropies:
            scopes += [(group.scope, group.sizes) for group in layout.groups]
        order = sorted(range(len(scopes)), key=lambda i: -scopes[i][0].shape[1])
        classes: list[SourceClass] = []
        for kind in order:
            scope, sizes = scopes[kind]
            rest = np.arange(len(scope))
            for host in classes:
                rest = _received(host, kind, scope, rest, mdp.n_coordinates)
            if len(rest):
                classes.append(SourceClass(kind, rest, scope[rest], sizes))
        return cls(rewards, entropies, tuple(classes))


def _received(
    host: SourceClass, kind: int, scope: IntArray, rows: IntArray, n_coordinates: int
) -> IntArray:
    """Adds to a class what its functions can hold; returns the rows that are left."""
    width = scope.shape[1]
    if width == 0 or not len(rows):
        return rows
    owners = np.repeat(np.arange(len(host.scope)), host.scope.shape[1])
    coordinates = host.scope.reshape(-1)
    order = np.argsort(coordinates, kind="stable")
    owners = owners[order]
    starts = np.searchsorted(coordinates[order], np.arange(n_coordinates + 1))
    leading = scope[rows, 0]
    found = np.full(len(rows), -1)
    for rank in range(_CANDIDATES):
        at = starts[leading] + rank
        open_ = np.flatnonzero((found < 0) & (at < starts[leading + 1]))
        if not len(open_):
            break
        candidates = owners[at[open_]]
        inside = np.ones(len(open_), dtype=np.bool_)
        for c in range(width):
            column = scope[rows[open_], c]
            held = [host.scope[candidates, h] == column for h in range(host.scope.shape[1])]
            inside &= np.logical_or.reduce(held)
        found[open_[inside]] = candidates[inside]
    guests = np.flatnonzero(found >= 0)
    if len(guests):
        hosts = found[guests]
        places = [
            (host.scope[hosts] == scope[rows[guests], c, None]).argmax(axis=1) for c in range(width)
        ]
        for axes, inner in equal_columns(places):
            host.guests.append(Guest(kind, rows[guests[inner]], hosts[inner], tuple(axes)))
    return rows[found < 0]


def _index(rows: IntArray, like: Tensor) -> Tensor:
    return torch.tensor(rows, device=like.device)
