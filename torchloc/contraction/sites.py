"""The kernels of all coordinates with their private actions averaged out under the policy.

An action is *private* if it enters the kernel of one coordinate only; averaged there, it leaves

    Q_j(s'_j | s_{reads(j)}, a_shared(j)),       reads(j) = parents(j) ∪ scopes of the private agents of j,

and T^π is a product of these and of the laws of the shared agents. The derivative of any number in
Q_j gives its derivative in the law of every private agent of j through one small network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from torchloc.closed_loop import Layout, LocalClass, local_classes
from torchloc.contraction.network import Axes, Network
from torchloc.mdp import FactoredMDP, RewardBatch
from torchloc.mdp.checks import IntArray


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
        shared: (B, q) agents of the kept actions.
    """

    rows: IntArray
    local: LocalClass
    closed: tuple[int, ...]
    kept: tuple[int, ...]
    reads: IntArray
    read_sizes: tuple[int, ...]
    shared: IntArray

    @classmethod
    def of(cls, rows: IntArray, local: LocalClass, kept: Sequence[int]) -> SiteClass:
        """A class with the actions at positions `kept` left open."""
        closed = [k for k in range(len(local.n_actions)) if k not in kept]
        seen = sorted({*range(local.n_states), *(i for k in closed for i in local.scopes[k])})
        return cls(
            rows,
            local,
            tuple(closed),
            tuple(kept),
            local.union[:, seen],
            tuple(local.sizes[i] for i in seen),
            local.agents[:, list(kept)],
        )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def read_columns(self) -> list[IntArray]:
        """p arrays (B,): the coordinates that are read."""
        return list(np.ascontiguousarray(self.reads.T))

    @cached_property
    def shared_columns(self) -> list[IntArray]:
        """q arrays (B,): the agents of the kept actions."""
        return list(np.ascontiguousarray(self.shared.T))

    @property
    def kept_sizes(self) -> tuple[int, ...]:
        """Sizes of the kept actions."""
        return tuple(self.local.n_actions[k] for k in self.kept)

    @property
    def tail(self) -> tuple[int, ...]:
        """Sizes of the axes after the actions: (S_j,) of a kernel, () of a reward term."""
        local = self.local
        return tuple(local.table.shape[1 + local.n_states + len(local.n_actions) :])

    def _axes(self) -> tuple[Axes, list[Axes], Axes, tuple[int, ...]]:
        """Axes of the table, of each closed law and of the averaged form, and all sizes."""
        local = self.local
        u, q = len(local.sizes), len(local.n_actions)
        ends = tuple(range(u + q, u + q + len(self.tail)))
        table = (*range(local.n_states), *range(u, u + q), *ends)
        laws = [(*local.scopes[k], u + k) for k in self.closed]
        seen = sorted({*range(local.n_states), *(i for k in self.closed for i in local.scopes[k])})
        out = (*seen, *(u + k for k in self.kept), *ends)
        return table, laws, out, (*local.sizes, *local.n_actions, *self.tail)

    def averaging(self) -> Network:
        """(table, *closed laws) → (*read_sizes, *kept_sizes, *tail)."""
        table, laws, out, sizes = self._axes()
        return Network.of((table, *laws), out, sizes)

    def attribution(self, *, fixed: bool) -> Network:
        """(derivative in the averaged form, table, *closed laws) → the scalar it is a derivative of.

        Its gradient in a law is the derivative in that law.

        Args:
            fixed: The states are given: no operand has axes for them.
        """
        table, laws, out, sizes = self._axes()
        u = len(self.local.sizes) if fixed else 0
        operands = tuple(tuple(x for x in axes if x >= u) for axes in (out, table, *laws))
        return Network.of(operands, (), sizes)


class Sites:
    """The closed-loop kernels of a model, looked up by coordinate: structure only, no numbers.

    Args:
        mdp: The model.
        layout: For the scopes.
    """

    def __init__(self, mdp: FactoredMDP, layout: Layout) -> None:
        # A kernel names each of its action parents once.
        self.is_shared = np.bincount(mdp.action_edges()[1], minlength=mdp.n_agents) > 1
        self.classes: list[SiteClass] = []
        self.class_of = np.zeros(mdp.n_coordinates, dtype=np.int64)
        self.row_of = np.zeros(mdp.n_coordinates, dtype=np.int64)
        for batch in mdp.kernels:
            flags = self.is_shared[batch.actions].astype(np.int64)
            for local in local_classes(batch, layout, flags):
                kept = [k for k, flag in enumerate(local.flags) if flag]
                coordinates = batch.coordinates[local.rows]
                self.class_of[coordinates] = len(self.classes)
                self.row_of[coordinates] = np.arange(len(coordinates))
                self.classes.append(SiteClass.of(coordinates, local, kept))


def reward_sites(batch: RewardBatch, layout: Layout) -> list[SiteClass]:
    """The reward terms of a batch, every action averaged out."""
    return [SiteClass.of(local.rows, local, ()) for local in local_classes(batch, layout)]
