"""Local functions of state and action with the policy attached.

A kernel or reward term reads state parents and actions; each action is drawn from a policy that
reads a scope. So its closed-loop form is a function of the *union* of the parents and of those
scopes. This room finds the unions of all sites of a batch at once and sorts the sites into classes
of equal structure, so that every class is one batched tensor operation.

Axis letters: B sites of a class, u union coordinates, q action parents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from torchloc.alike import at_rows, coincidences, equal_rows
from torchloc.einsum import einsum
from torchloc.errors import BudgetError
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import FloatArray, IntArray
from torchloc.policy import AgentGroup, SoftmaxPolicy

ENTRY_BUDGET = 100_000_000
"""Entries of one site's closed-loop tensor that are enumerated at most."""


class Layout(Protocol):
    """How a policy's agents are grouped, and what they see: a `SoftmaxPolicy`, or its `PolicyTables`."""

    @property
    def groups(self) -> tuple[AgentGroup, ...]:
        """Agents of equal shape."""
        ...

    @property
    def group_of(self) -> IntArray:
        """(K,) the group of each agent."""
        ...

    @property
    def row_of(self) -> IntArray:
        """(K,) its row there."""
        ...


class Readers(Protocol):
    """Kernels or reward terms of equal shape: a batch of a model, or what stands for one."""

    @property
    def states(self) -> IntArray:
        """(B, p) coordinates that are read."""
        ...

    @property
    def actions(self) -> IntArray:
        """(B, q) agents whose actions are read."""
        ...

    @property
    def table(self) -> FloatArray:
        """(B or 1, *S, *A, …)."""
        ...

    @property
    def state_shape(self) -> tuple[int, ...]:
        """p sizes."""
        ...

    @property
    def action_shape(self) -> tuple[int, ...]:
        """q sizes."""
        ...

    def __len__(self) -> int: ...


class PolicyTables:
    """The laws of all agents at all scope states, looked up by agent: a snapshot of a policy.

    Later changes of the policy do not reach it, so what is computed from it lazily stays
    consistent.

    Args:
        groups: Agents of equal shape; every agent 0 … K − 1 stands in one of them.
        laws: One (G, *S_scope, A) float64 tensor a group; empty for a group that was not read.
        temperature: (K,) float64.

    Attributes:
        read_groups: For every group whether its laws are here.
    """

    def __init__(
        self, groups: Sequence[AgentGroup], laws: Sequence[Tensor], temperature: Tensor
    ) -> None:
        self.groups = tuple(groups)
        self.laws = tuple(laws)
        self.read_groups = tuple(bool(law.numel()) for law in self.laws)
        self.temperature = temperature
        self.group_of = np.zeros(len(temperature), dtype=np.int64)
        self.row_of = np.zeros(len(temperature), dtype=np.int64)
        for index, group in enumerate(self.groups):
            self.group_of[group.agents] = index
            self.row_of[group.agents] = np.arange(len(group))

    @classmethod
    def read(cls, policy: SoftmaxPolicy, *, budget: int | None = None) -> PolicyTables:
        """Enumerates every scope state of every agent, here and now.

        Args:
            policy: The policy.
            budget: Groups with more scope states are left unread; None: they are refused.

        Raises:
            BudgetError: A scope has more states than are enumerated, and no budget was given.
        """
        laws = [
            torch.zeros(0, dtype=torch.float64)
            if budget is not None and group.n_rows > budget
            else group.unflatten(policy.group_probabilities(index))
            for index, group in enumerate(policy.groups)
        ]
        return cls(policy.groups, laws, policy.temperature.clone())

    def holds(self, agents: IntArray) -> bool:
        """Whether the laws of all these agents are here."""
        return all(self.read_groups[int(index)] for index in np.unique(self.group_of[agents]))

    def of_agents(self, agents: IntArray) -> Tensor:
        """(B, *S_scope, A) laws of agents that all belong to one group.

        Raises:
            BudgetError: They were left unread.
        """
        index = int(self.group_of[agents[0]])
        if not self.read_groups[index]:
            self.groups[index].check_enumerable()
        return self.laws[index][torch.tensor(self.row_of[agents])]

    def law(self, k: int) -> Tensor:
        """(*S_scope, A) law of agent k."""
        return self.laws[int(self.group_of[k])][int(self.row_of[k])]


@dataclass(frozen=True, eq=False)
class LocalClass:
    """B sites of a batch whose closed-loop functions have the same structure.

    Attributes:
        rows: (B,) rows of the batch.
        union: (B, u) coordinates that the closed-loop function reads; the state parents come first.
        sizes: u sizes of these coordinates.
        table: (B or 1, *S_parents, *A, …) float64 the batch's tables for these rows.
        n_states: p, the number of state parents.
        agents: (B, q) the agents whose actions are read.
        n_actions: q sizes of their action spaces.
        scopes: q tuples: where the scope of each agent stands in the union.
        flags: q integers that were asked to be equal in a class.
    """

    rows: IntArray
    union: IntArray
    sizes: tuple[int, ...]
    table: Tensor
    n_states: int
    agents: IntArray
    n_actions: tuple[int, ...]
    scopes: tuple[tuple[int, ...], ...]
    flags: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def averaged(
        self, tables: PolicyTables, keep: Sequence[int] = (), align: bool = True
    ) -> Tensor:
        """The table with all actions but those of `keep` averaged out under the policy.

        Args:
            tables: The policy's laws.
            keep: Positions among the q agents whose actions stay axes, in this order.
            align: Give every union coordinate an axis, of size 1 where nothing reads it.

        Returns:
            (B or 1, *S_union, *A_keep, …): with `align`, sizes are S_i or 1.

        Raises:
            BudgetError: The result has more entries a site than are enumerated.
        """
        q, u = len(self.n_actions), len(self.sizes)
        tail = self.table.ndim - 1 - self.n_states - q
        batch, ends = u + q + 1, [u + q + 2 + i for i in range(tail)]
        axes = [batch, *range(self.n_states), *range(u, u + q), *ends]
        operands: list[tuple[Tensor, list[int]]] = []
        seen = set(range(self.n_states))
        for k, scope in enumerate(self.scopes):
            if k in keep:
                continue
            operands.append((tables.of_agents(self.agents[:, k]), [batch, *scope, u + k]))
            seen.update(scope)
        self._check_budget(seen, keep, self.table.shape[1 + self.n_states + q :])
        out = [batch, *sorted(seen), *(u + k for k in keep), *ends]
        if not operands:
            result = self.table.permute([axes.index(axis) for axis in out])
        elif len(self.table) == 1:
            result = einsum([(self.table[0], axes[1:]), *operands], out)
        else:
            result = einsum([(self.table, axes), *operands], out)
        if align:
            shape = [self.sizes[i] if i in seen else 1 for i in range(u)]
            result = result.reshape(result.shape[0], *shape, *result.shape[1 + len(seen) :])
        return result

    def _check_budget(self, seen: set[int], keep: Sequence[int], ends: Sequence[int]) -> None:
        sizes = [*(self.sizes[i] for i in seen), *(self.n_actions[k] for k in keep), *ends]
        entries = math.prod(sizes)
        if entries > ENTRY_BUDGET:
            agents = [k for at, k in enumerate(self.agents[0].tolist()) if at not in keep]
            raise BudgetError(
                f"averaging the actions of agents {agents} out of row {int(self.rows[0])} of a batch "
                f"gives a table over {len(seen)} coordinates: {entries} entries, {8 * entries} "
                f"bytes, over the budget of {ENTRY_BUDGET} entries; shrink the scopes of these agents"
            )


def local_classes(
    batch: Readers,
    tables: Layout,
    flags: IntArray | None = None,
    own: FloatArray | None = None,
) -> Iterator[LocalClass]:
    """Sorts the sites of a batch into classes of equal closed-loop structure.

    Args:
        batch: Kernels or reward terms.
        tables: Gives the scopes.
        flags: (B, q) integers that must be equal within a class; None for none.
        own: (B or 1, *S, *A, …) what stands in place of the batch's table: of parents that are counted,
            only own ones have axes.

    Yields:
        Classes that together hold every row once.
    """
    actions = batch.actions
    table = batch.table if own is None else own
    groups = tables.group_of[actions]
    kinds = groups if flags is None else np.concatenate([groups, flags], axis=1)
    for kind, rows in equal_rows(kinds):
        q = actions.shape[1]
        members = [tables.groups[index] for index in kind[:q]]
        acting = at_rows(actions, rows)
        seen = [member.scope[tables.row_of[acting[:, k]]] for k, member in enumerate(members)]
        columns = list(np.concatenate([at_rows(batch.states, rows), *seen], axis=1).T.copy())
        sizes = np.array([*batch.state_shape, *(s for member in members for s in member.sizes)])
        for pattern, inner in _patterns(columns, len(rows)):
            kept = [c for c, at in enumerate(pattern) if at == c]
            place = [kept.index(at) for at in pattern]
            union = [at_rows(columns[c], inner) for c in kept]
            starts = np.cumsum([batch.states.shape[1], *(s.shape[1] for s in seen)])
            picked = at_rows(rows, inner)
            yield LocalClass(
                rows=picked,
                union=np.stack(union, axis=1) if union else np.zeros((len(inner), 0), np.int64),
                sizes=tuple(int(sizes[c]) for c in kept),
                table=torch.tensor(
                    # All rows as they are: a plain copy is much faster than a gather.
                    table if len(table) == 1 or len(picked) == len(batch) else table[picked]
                ),
                n_states=batch.states.shape[1],
                agents=at_rows(actions, picked),
                n_actions=batch.action_shape,
                scopes=tuple(tuple(place[start:end]) for start, end in itertools.pairwise(starts)),
                flags=tuple(kind[q:]),
            )


def _patterns(columns: list[IntArray], count: int) -> Iterator[tuple[list[int], IntArray]]:
    if columns:
        yield from coincidences(columns)
    else:
        yield [], np.arange(count)


def reward_terms(mdp: FactoredMDP, tables: PolicyTables) -> Iterator[tuple[IntArray, Tensor]]:
    """The closed-loop reward r^π term by term.

    Yields:
        (B, u) coordinates and (B or 1, *S) values; sizes 1 mark coordinates that are not read.
    """
    for batch in mdp.rewards:
        for local in local_classes(batch, tables):
            yield local.union, local.averaged(tables)


def entropy_terms(tables: PolicyTables) -> Iterator[tuple[IntArray, Tensor]]:
    """τ_k Ent π_k agent by agent, in nats times the unit of τ; groups that were not read are left out.

    Yields:
        (G, m) coordinates and (G, *S_scope) values, a group at a time.
    """
    for group, laws in zip(tables.groups, tables.laws, strict=True):
        if not laws.numel():
            continue
        entropy = torch.special.entr(laws).sum(dim=-1)
        tau = tables.temperature[torch.tensor(group.agents)]
        yield group.scope, tau.reshape(-1, *(1,) * len(group.sizes)) * entropy
