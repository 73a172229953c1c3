"""Functions on a few coordinates, pulled back through one step of the dynamics: exact work on balls.

A function f of the coordinates V becomes, under T^π, a function of the parents of V: the state
parents of its kernels and the scopes of the agents that act on it. Nothing else of the model is
touched. Functions of equal structure (same kernel shapes, same coincidences among parents, same
scopes) are one batched einsum with one cached path.

Axis letters: B functions of a batch, v coordinates that each reads.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchloc.alike import equal_rows, first_places
from torchloc.closed_loop import PolicyTables
from torchloc.einsum import einsum
from torchloc.errors import BudgetError
from torchloc.mdp import KernelBatch
from torchloc.mdp.checks import IntArray

CHUNK_ENTRIES = 2**22
"""Entries of the result of one einsum at most: larger batches are cut."""
SITE_ENTRIES = 2**26
"""Entries of the result for one function at most."""

_BATCH = "batch"


@dataclass(frozen=True, eq=False)
class LocalFunctions:
    """B functions with equally many coordinates of equal sizes.

    Attributes:
        owner: (B,) whose function it is; carried along.
        scope: (B, v) coordinates, each once a row.
        values: (B or 1, *S_v) float64; leading 1: all have the same values.
    """

    owner: IntArray
    scope: IntArray
    values: Tensor


class Dynamics:
    """Kernels and laws, looked up by coordinate.

    Args:
        kernels: Kernel batches that drive every coordinate once.
        tables: The policy's laws.
        n_coordinates: N.
    """

    def __init__(
        self, kernels: Sequence[KernelBatch], tables: PolicyTables, n_coordinates: int
    ) -> None:
        self.kernels = tuple(kernels)
        self.tables = tables
        self.batch_of = np.zeros(n_coordinates, dtype=np.int64)
        self.row_of = np.zeros(n_coordinates, dtype=np.int64)
        for index, kernel in enumerate(self.kernels):
            self.batch_of[kernel.coordinates] = index
            self.row_of[kernel.coordinates] = np.arange(len(kernel))
        self._torch = [torch.tensor(kernel.table) for kernel in self.kernels]

    def table(self, index: int, rows: IntArray) -> Tensor:
        """(B or 1, *S, *A, S_j) kernels of batch `index` for some of its rows."""
        table = self._torch[index]
        return table if len(table) == 1 else table[torch.from_numpy(rows)]


@dataclass(frozen=True, eq=False)
class Pullback:
    """One class of functions about to be pulled back: T^π f = Σ product of the operands.

    Attributes:
        owner: (B,) as in `LocalFunctions`.
        scope: (B, u) coordinates of the result.
        sizes: u sizes.
        operands: (tensor (B or 1, …), axis names after the batch axis); a coordinate of the result
            has the name ("s", position in `scope`).
    """

    owner: IntArray
    scope: IntArray
    sizes: tuple[int, ...]
    operands: tuple[tuple[Tensor, tuple[Hashable, ...]], ...]

    def contract(self, select: Mapping[int, Tensor] | None = None) -> Tensor:
        """The pulled-back functions.

        Args:
            select: Position in `scope` → values of that coordinate to keep; None keeps all.

        Returns:
            (B or 1, *sizes) float64, with the selected sizes.

        Raises:
            BudgetError: One function's result exceeds the budget.
        """
        select = select or {}
        names = [("s", i) for i in range(len(self.sizes))]
        sizes = [len(select[i]) if i in select else s for i, s in enumerate(self.sizes)]
        entries = math.prod(sizes)
        if entries > SITE_ENTRIES:
            raise BudgetError(
                f"the function of site {int(self.owner[0])} reads {len(sizes)} coordinates after this "
                f"step: {entries} entries, {8 * entries} bytes, over the budget of {SITE_ENTRIES} "
                f"entries; use fewer steps or smaller scopes"
            )
        operands = []
        for tensor, axes in self.operands:
            for at, axis in enumerate(axes):
                if isinstance(axis, tuple) and axis[0] == "s" and axis[1] in select:
                    tensor = tensor.index_select(1 + at, select[axis[1]])
            operands.append((tensor, axes))
        batched = any(len(tensor) > 1 for tensor, _ in operands)
        if not batched:
            return einsum([(t[0], axes) for t, axes in operands], names).unsqueeze(0)
        step = max(1, CHUNK_ENTRIES // max(entries, 1))
        parts = []
        for start in range(0, len(self.owner), step):
            cut = [
                (t[0], axes) if len(t) == 1 else (t[start : start + step], (_BATCH, *axes))
                for t, axes in operands
            ]
            parts.append(einsum(cut, [_BATCH, *names]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def pull_back(functions: LocalFunctions, dynamics: Dynamics) -> Iterator[Pullback]:
    """Sorts functions into classes of equal structure, each ready to be contracted.

    Yields:
        Classes that together hold every function once.
    """
    tables, scope = dynamics.tables, functions.scope
    for kind, rows in equal_rows(dynamics.batch_of[scope]):
        places = [dynamics.row_of[scope[rows, c]] for c in range(scope.shape[1])]
        kernels = [dynamics.kernels[index] for index in kind]
        none = np.zeros((len(rows), 0), dtype=np.int64)
        parents = [none] + [k.states[at] for k, at in zip(kernels, places, strict=True)]
        actions = np.concatenate(
            [none] + [k.actions[at] for k, at in zip(kernels, places, strict=True)], axis=1
        )
        firsts = first_places(actions)
        keys = np.concatenate([firsts, tables.group_of[actions]], axis=1)
        for key, inner in equal_rows(keys):
            first = key[: actions.shape[1]]
            agents = sorted(set(first))
            seen = [
                tables.groups[key[actions.shape[1] + c]].scope[tables.row_of[actions[inner, c]]]
                for c in agents
            ]
            columns = np.concatenate([p[inner] for p in parents] + seen, axis=1)
            for pattern, chosen in equal_rows(first_places(columns)):
                yield _pullback(
                    functions,
                    dynamics,
                    rows[inner[chosen]],
                    kind,
                    first,
                    actions[inner[chosen]],
                    columns[chosen],
                    pattern,
                )


def _pullback(
    functions: LocalFunctions,
    dynamics: Dynamics,
    rows: IntArray,
    kind: list[int],
    first: list[int],
    actions: IntArray,
    columns: IntArray,
    pattern: list[int],
) -> Pullback:
    """The operands of one class: the functions, their kernels, the laws of the agents that act on them."""
    tables = dynamics.tables
    kept = sorted(set(pattern))
    position = {column: i for i, column in enumerate(kept)}
    names: list[tuple[str, int]] = [("s", position[column]) for column in pattern]
    sizes: dict[int, int] = {}
    outs: list[tuple[str, int]] = [("t", c) for c in range(len(kind))]
    values = functions.values
    operands: list[tuple[Tensor, tuple[Hashable, ...]]] = [
        (values if len(values) == 1 else values[torch.from_numpy(rows)], tuple(outs))
    ]
    at, act = 0, 0
    for c, index in enumerate(kind):
        kernel = dynamics.kernels[index]
        p, q = kernel.states.shape[1], kernel.actions.shape[1]
        read = names[at : at + p]
        acted = [("a", first[act + i]) for i in range(q)]
        table = dynamics.table(index, dynamics.row_of[functions.scope[rows, c]])
        operands.append((table, (*read, *acted, ("t", c))))
        sizes.update(zip((name[1] for name in read), kernel.state_shape, strict=True))
        at, act = at + p, act + q
    for column in sorted(set(first)):
        group = tables.groups[int(tables.group_of[actions[0, column]])]
        read = names[at : at + len(group.sizes)]
        operands.append((tables.of_agents(actions[:, column]), (*read, ("a", column))))
        sizes.update(zip((name[1] for name in read), group.sizes, strict=True))
        at += len(group.sizes)
    return Pullback(
        owner=functions.owner[rows],
        scope=columns[:, kept],
        sizes=tuple(sizes[i] for i in range(len(kept))),
        operands=tuple(operands),
    )
