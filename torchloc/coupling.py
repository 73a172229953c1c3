"""The several-step coupled certificate K^(m): the coupling of K^π, run m times.

Two copies (s, t) of the system make one coupled step: private actions are averaged out, shared ones
coupled by J = diag(min(p, q)) + (p − min)(q − min)ᵀ / TV(p, q) independently across agents, and
given them the next coordinates are coupled maximally and independently. With

    D_0(s, t)_j = 1{s_j ≠ t_j},    D_{q+1}(s, t) = E[D_q(S', T')],
    K^(m)[j, i] = sup over s, t that differ in coordinate i alone of D_m(s, t)_j,

δ((T^π)^m f) ≤ (K^(m))ᵀ δ(f), so the decay rate per step is ρ(K^(m))^{1/m}, and K^(1) = K^π. The two
copies are one system of pairs with product structure, so D_m(·, ·)_j is a pull-back on the m-step
backward cone of j: local.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from torchloc.closed_loop import PolicyTables, local_classes
from torchloc.contraction import Dynamics, LocalFunctions, Pullback, pull_back
from torchloc.errors import BudgetError, InputError
from torchloc.mdp import CountBatch, FactoredMDP, KernelBatch
from torchloc.policy import AgentGroup
from torchloc.sensitivity import couple, entries_matrix, shared_agents

PAIR_ENTRIES = 2**24
"""Entries of the pair kernel of one coordinate at most."""
AUTO_ENTRIES = 2**24
"""Entries of all D_m together up to which another step is taken where m is chosen by budget."""
AUTO_STEPS = 8
"""Steps taken at most where m is chosen by budget."""


@dataclass(frozen=True, eq=False)
class CoupledSteps:
    """K^(1), …, K^(m).

    Attributes:
        matrices: (N, N) CSR each, rows influenced.
        cones: For each, the largest number of coordinates summed over its steps: a factor of its
            rounding.
    """

    matrices: tuple[sp.csr_array, ...]
    cones: tuple[int, ...]


def coupled_steps(mdp: FactoredMDP, tables: PolicyTables, steps: int | None) -> CoupledSteps:
    """K^(1), …, K^(m), by pulling indicator functions of pairs back along cones.

    Args:
        mdp: The model.
        tables: The policy's laws.
        steps: m ≥ 1; None takes steps while all D_m together stay within `AUTO_ENTRIES`, at most
            `AUTO_STEPS` of them; none where a kernel that counts is too large to be written out.

    Raises:
        InputError: m < 1.
        BudgetError: A cone is too large; the message gives the size. Where m is chosen by budget, only if
            the pair kernels of a single step are.
    """
    if steps is not None and steps < 1:
        raise InputError(f"steps is {steps}; it must be a whole number ≥ 1")
    if steps is None and any(
        isinstance(batch, CountBatch) and batch.table_entries > PAIR_ENTRIES
        for batch in mdp.kernels
    ):
        return CoupledSteps((), ())
    dynamics = pair_dynamics(mdp, tables)
    functions = [
        LocalFunctions(
            owner=np.flatnonzero(mdp.state_sizes == size),
            scope=np.flatnonzero(mdp.state_sizes == size)[:, None],
            values=(1.0 - torch.eye(size, dtype=torch.float64)).reshape(1, -1),
        )
        for size in np.unique(mdp.state_sizes).tolist()
    ]
    matrices, cones, width = [], [], 0
    while len(matrices) < (AUTO_STEPS if steps is None else steps):
        try:
            pullbacks = [back for function in functions for back in pull_back(function, dynamics)]
            parts = [(back.owner, back.scope, _single_causes(mdp, back)) for back in pullbacks]
        except BudgetError:
            if steps is None and matrices:
                break
            raise
        width += max(function.scope.shape[1] for function in functions)
        cones.append(width)
        matrices.append(entries_matrix(parts, (mdp.n_coordinates, mdp.n_coordinates)))
        entries = sum(len(back.owner) * math.prod(back.sizes) for back in pullbacks)
        if len(matrices) == steps or (steps is None and entries > AUTO_ENTRIES):
            break
        functions = [LocalFunctions(back.owner, back.scope, back.contract()) for back in pullbacks]
    return CoupledSteps(tuple(matrices), tuple(cones))


def _single_causes(mdp: FactoredMDP, pullback: Pullback) -> np.ndarray:
    """(B or 1, u) sup over pairs of states that differ in one coordinate of the scope alone."""
    sizes = mdp.state_sizes[pullback.scope[0]].tolist() if len(pullback.scope) else []
    columns: list[Tensor] = []
    for cause, size in enumerate(sizes):
        high, low = torch.triu_indices(size, size, 1)
        if len(high) == 0:
            columns.append(torch.zeros(1, dtype=torch.float64))
            continue
        select = {i: torch.arange(other) * (other + 1) for i, other in enumerate(sizes)}
        select[cause] = high * size + low
        values = pullback.contract(select)
        columns.append(values.reshape(len(values), -1).amax(dim=1))
    count = max((len(column) for column in columns), default=1)
    result = np.zeros((count, len(columns)))
    for cause, column in enumerate(columns):
        result[:, cause] = column.clamp(0.0, 1.0).numpy()
    return result


def pair_dynamics(mdp: FactoredMDP, tables: PolicyTables) -> Dynamics:
    """The system of pairs: coordinate j has S_j² values (s_j, t_j), row-major; agents are the shared ones.

    Raises:
        BudgetError: A coordinate's pair kernel is too large to enumerate.
    """
    shared = shared_agents(mdp)
    number = np.cumsum(shared) - 1
    return Dynamics(
        list(_pair_kernels(mdp, tables, shared, number)),
        _pair_laws(tables, shared, number),
        mdp.n_coordinates,
    )


def _pair_kernels(
    mdp: FactoredMDP, tables: PolicyTables, shared: np.ndarray, number: np.ndarray
) -> Iterator[KernelBatch]:
    for batch in mdp.tabulated(PAIR_ENTRIES).kernels:
        for local in local_classes(batch, tables, shared[batch.actions].astype(np.int64)):
            keep = [k for k, flag in enumerate(local.flags) if flag]
            law = local.averaged(tables, keep)
            u = len(local.sizes)
            read = [i for i in range(u) if law.shape[1 + i] == local.sizes[i]]
            axes = [*(local.sizes[i] for i in read), *(local.n_actions[k] for k in keep)]
            n_out = law.shape[-1]
            entries = int(np.prod([size**2 for size in (*axes, n_out)], dtype=np.float64))
            if entries > PAIR_ENTRIES:
                raise BudgetError(
                    f"the pair kernel of coordinate {int(batch.coordinates[local.rows[0]])} has "
                    f"{entries} entries, {8 * entries} bytes, over the budget of {PAIR_ENTRIES} entries; "
                    f"use the one-step coupled rung"
                )
            law = law.reshape(len(law), *axes, n_out)
            interleaved = [len(law)]
            for size in axes:
                interleaved += [size, 1]
            first = law.reshape(*interleaved, n_out)
            second = law.reshape(len(law), *(x for size in axes for x in (1, size)), n_out)
            joint = couple(*torch.broadcast_tensors(first, second))
            yield KernelBatch(
                batch.coordinates[local.rows],
                local.union[:, read],
                number[local.agents[:, keep]],
                joint.reshape(len(law), *(size**2 for size in axes), n_out**2).numpy(),
            )


def _pair_laws(tables: PolicyTables, shared: np.ndarray, number: np.ndarray) -> PolicyTables:
    groups, laws = [], []
    for group, law in zip(tables.groups, tables.laws, strict=True):
        rows = np.flatnonzero(shared[group.agents])
        if len(rows) == 0:
            continue
        members = law[torch.from_numpy(rows)]
        first = members.reshape(len(rows), *(x for s in group.sizes for x in (s, 1)), -1)
        second = members.reshape(len(rows), *(x for s in group.sizes for x in (1, s)), -1)
        joint = couple(*torch.broadcast_tensors(first, second))
        sizes = tuple(size**2 for size in group.sizes)
        groups.append(
            AgentGroup(number[group.agents[rows]], group.scope[rows], sizes, group.n_actions**2)
        )
        laws.append(joint.reshape(len(rows), *sizes, group.n_actions**2))
    return PolicyTables(groups, laws, torch.ones(int(shared.sum()), dtype=torch.float64))
