"""Agents of equal shape, gathered so that one tensor operation serves them all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchloc.errors import BudgetError
from torchloc.graphs import Scopes
from torchloc.mdp.checks import IntArray, frozen

ROW_BUDGET = 10_000_000
"""Scope states of one agent that are enumerated at most."""


@dataclass(frozen=True, eq=False)
class AgentGroup:
    """G agents whose m scope coordinates and whose actions have the same sizes.

    Attributes:
        agents: (G,) agent indices, ascending.
        scope: (G, m) the coordinates that each sees, in scope order.
        sizes: m sizes of these coordinates.
        n_actions: A.
    """

    agents: IntArray
    scope: IntArray
    sizes: tuple[int, ...]
    n_actions: int

    def __len__(self) -> int:
        return len(self.agents)

    @property
    def n_rows(self) -> int:
        """R, the number of scope states."""
        return math.prod(self.sizes)

    def equals(self, other: AgentGroup) -> bool:
        """Whether both hold the same agents with the same scopes and sizes."""
        return (
            (self.sizes, self.n_actions) == (other.sizes, other.n_actions)
            and np.array_equal(self.agents, other.agents)
            and np.array_equal(self.scope, other.scope)
        )

    def check_enumerable(self) -> None:
        """Refuses scopes whose states cannot be enumerated.

        Raises:
            BudgetError: R is over `ROW_BUDGET`; the message names the first agent of the group.
        """
        if self.n_rows > ROW_BUDGET:
            entries = self.n_rows * self.n_actions
            raise BudgetError(
                f"agent {int(self.agents[0])} sees {len(self.sizes)} coordinates with "
                f"{self.n_rows} joint states ({8 * entries} bytes for a table over them and "
                f"{self.n_actions} actions), over the budget of {ROW_BUDGET} states; give it a "
                f"smaller scope"
            )

    def observations(self) -> Tensor:
        """(R, m) int64: all scope states, the last coordinate running fastest.

        Raises:
            BudgetError: R is over `ROW_BUDGET`.
        """
        self.check_enumerable()
        if not self.sizes:
            return torch.zeros((1, 0), dtype=torch.int64)
        axes = [torch.arange(size) for size in self.sizes]
        return torch.cartesian_prod(*axes).reshape(self.n_rows, len(self.sizes))

    def unflatten(self, rows: Tensor) -> Tensor:
        """(G, R, …) as (G, *S_scope, …)."""
        return rows.reshape(rows.shape[0], *self.sizes, *rows.shape[2:])


def agent_groups(
    scopes: Scopes, state_sizes: IntArray, action_sizes: IntArray
) -> tuple[AgentGroup, ...]:
    """All agents, grouped by (sizes of the scope's coordinates, number of actions)."""
    groups = []
    for length in np.unique(scopes.lengths):
        agents = np.flatnonzero(scopes.lengths == length)
        scope = scopes.rows(agents)
        shapes = np.concatenate([state_sizes[scope], action_sizes[agents, None]], axis=1)
        kinds, kind = np.unique(shapes, axis=0, return_inverse=True)
        kind = kind.reshape(-1)
        for index, shape in enumerate(kinds.tolist()):
            members = np.flatnonzero(kind == index)
            groups.append(
                AgentGroup(
                    frozen(agents[members]), frozen(scope[members]), tuple(shape[:-1]), shape[-1]
                )
            )
    return tuple(groups)
