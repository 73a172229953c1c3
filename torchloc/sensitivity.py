"""Sensitivities of the environment and the policy, and the influence matrices they make.

Orientation: rows are influenced, columns are the cause. TV is ½‖·‖₁. Every matrix that `influence`
returns is a sound H or K for δ(T^π f) ≤ (·)ᵀ δ(f); down the list below each is entrywise at most
the one after it:

    coupled   K^π: private actions averaged, shared ones coupled, one coupling for all rows  (sharper than the paper)
    exact     E^s + E^a Π, Π by enumeration of TV(π_k(·|s), π_k(·|s'))          (paper, Proposition 1 and Lemma 2)
    span      E^s + E^a tanh(span / (4τ))
    tanh      E^s + E^a tanh(L / (2τ))
    paper     E^s + E^a min{1, L / (2τ)}                                        (paper, Lemmas 6, 8 and 10)
    scope     E^s + E^a 1{i ∈ O_k}                                   (holds for every policy on these scopes)

Values computed by subtracting probabilities (E^s, E^a, exact, coupled) are exact up to the rounding
of their sums; `torchloc.certificate` adds that rounding outward before it certifies anything.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from torchloc.alike import equal_rows, first_places
from torchloc.closed_counts import counted_influence, joint_influence
from torchloc.closed_loop import (
    ENTRY_BUDGET,
    LocalClass,
    PolicyTables,
    local_classes,
)
from torchloc.errors import BudgetError, InputError
from torchloc.lipschitz import certified_spreads, scope_matrix
from torchloc.mdp import CountBatch, FactoredMDP, KernelBatch
from torchloc.mdp.checks import IntArray
from torchloc.mdp.gathering import Kernels
from torchloc.policy import SoftmaxPolicy
from torchloc.shapes import Float

COUNT_ENTRIES = 2**14
"""Entries of a kernel that counts up to which it is written out where its actions are coupled."""

Rung = Literal["coupled", "exact", "span", "tanh", "paper", "scope"]
RUNGS: tuple[Rung, ...] = ("coupled", "exact", "span", "tanh", "paper", "scope")


def state_sensitivity(mdp: FactoredMDP) -> sp.csr_array:
    """E^s: entry (j, i) is the sup of TV(P_j(·|s, a), P_j(·|s', a)) over s, s' that differ in i alone.

    Returns:
        (N, N) CSR without stored zeros (paper, Section 2).
    """
    parts = [(b.coordinates, b.state_parents, b.state_influence()) for b in mdp.kernels]
    return entries_matrix(parts, (mdp.n_coordinates, mdp.n_coordinates))


def action_sensitivity(mdp: FactoredMDP) -> sp.csr_array:
    """E^a: entry (j, k) is the sup of TV(P_j(·|s, a), P_j(·|s, a')) over a, a' that differ in k alone.

    Returns:
        (N, K) CSR without stored zeros (paper, Section 2).
    """
    parts = [(b.coordinates, b.action_parents, b.action_influence()) for b in mdp.kernels]
    return entries_matrix(parts, (mdp.n_coordinates, mdp.n_agents))


def entries_matrix(
    parts: list[tuple[IntArray, IntArray, np.ndarray]], shape: tuple[int, int]
) -> sp.csr_array:
    """CSR from (influenced (B,), causes (B, c), values (B or 1, c)) parts."""
    none = np.zeros(0, dtype=np.int64)
    rows = [none] + [np.repeat(sites, causes.shape[1]) for sites, causes, _ in parts]
    columns = [none] + [causes.ravel() for _, causes, _ in parts]
    values = [none.astype(np.float64)]
    values += [np.broadcast_to(value, causes.shape).ravel() for _, causes, value in parts]
    entries = np.concatenate(values)
    matrix = sp.csr_array((entries, (np.concatenate(rows), np.concatenate(columns))), shape=shape)
    matrix.eliminate_zeros()
    return matrix


def policy_sensitivity(policy: SoftmaxPolicy, rung: str = "exact") -> sp.csr_array:
    """Π: entry (k, i) bounds TV(π_k(·|s), π_k(·|s')) over s, s' that differ in coordinate i alone.

    Args:
        policy: The policy. `exact` enumerates scope states; `span`, `tanh` and `paper` do where these are
            not too many, and take certified bounds of the networks elsewhere.
        rung: `exact`, `span`, `tanh`, `paper` or `scope`, from sharp to blunt.

    Returns:
        (K, N) CSR without stored zeros. All but `exact` are upper bounds.

    Raises:
        InputError: Another rung (`coupled` has no Π of its own).
    """
    if rung == "exact":
        laws = PolicyTables.read(policy).laws
        return scope_matrix(policy, [total_variations(law) for law in laws])
    if rung == "scope":
        ones = [torch.ones(len(g), len(g.sizes), dtype=torch.float64) for g in policy.groups]
        return scope_matrix(policy, ones)
    if rung not in ("span", "tanh", "paper"):
        raise InputError(
            f"rung is {rung!r}; the policy's sensitivity has the rungs {', '.join(RUNGS[1:])}"
        )
    matrix, _ = certified_spreads(policy, span=rung == "span")
    return spread_sensitivity(matrix, rung, policy.temperature)


def spread_sensitivity(spreads: sp.csr_array, rung: str, temperature: Tensor) -> sp.csr_array:
    """Π of `span`, `tanh` or `paper` from the logits' spans (`span`) or Lipschitz constants (the others).

    Args:
        spreads: (K, N) CSR, in units of the logits.
        rung: Which.
        temperature: (K,) τ.
    """
    divisor = (4.0 if rung == "span" else 2.0) * temperature.numpy()
    scaled = spreads.data / np.repeat(divisor, np.diff(spreads.indptr))
    result = spreads.copy()
    result.data = np.minimum(scaled, 1.0) if rung == "paper" else np.tanh(scaled)
    return result


def total_variations(laws: Tensor) -> Tensor:
    """(G, *S, A) laws → (G, m) largest TV between two that differ along one axis."""
    m = laws.ndim - 2
    result = torch.zeros(len(laws), m, dtype=laws.dtype)
    for i in range(m):
        for x, y in itertools.combinations(laws.unbind(dim=i + 1), 2):
            distance = 0.5 * (x - y).abs().sum(dim=-1)
            result[:, i] = torch.maximum(result[:, i], distance.reshape(len(laws), -1).amax(dim=1))
    return result.clamp(max=1.0)


def influence(mdp: FactoredMDP, policy: SoftmaxPolicy, rung: str = "coupled") -> sp.csr_array:
    """A matrix H with δ(T^π f) ≤ Hᵀ δ(f) for every f: the rungs of the module docstring.

    Args:
        mdp: The model.
        policy: A policy on the model's scopes.
        rung: `coupled`, `exact`, `span`, `tanh`, `paper` or `scope`, from sharp to blunt.

    Returns:
        (N, N) CSR; entry (j, i) bounds the influence of coordinate i on the next value of
        coordinate j.

    Raises:
        InputError: Unknown rung.
        BudgetError: `coupled` would enumerate more than the budget.
    """
    if rung not in RUNGS:
        raise InputError(f"rung is {rung!r}; choose one of {', '.join(RUNGS)}")
    policy.check(mdp)
    if rung == "coupled":
        matrix = coupled_influence(mdp, PolicyTables.read(policy))
        rest = sp.diags_array((~coupled_rows(mdp)).astype(np.float64))
        return sp.csr_array(matrix + rest @ influence(mdp, policy, "exact"))
    product = action_sensitivity(mdp) @ policy_sensitivity(policy, rung)
    return sp.csr_array(state_sensitivity(mdp) + product)


def action_sup(mdp: FactoredMDP) -> sp.csr_array:
    """Prior work's matrix: the sup of TV(P_j) when state *and* action of agent i = coordinate i change together.

    Returns:
        (N, N) CSR, entries ≤ 1; policy-independent (Qu et al. 2020; theory: outside the ladder's
        order).

    Raises:
        InputError: N ≠ K, where agents and coordinates do not correspond.
    """
    if mdp.n_coordinates != mdp.n_agents:
        raise InputError(
            f"action_sup needs one agent a coordinate, but the model has {mdp.n_coordinates} "
            f"coordinates and {mdp.n_agents} agents"
        )
    parts = []
    for batch in mdp.kernels:
        if isinstance(batch, CountBatch):
            parts += list(joint_influence(batch))
            continue
        causes = np.concatenate([batch.states, batch.actions], axis=1)
        for pattern, members in equal_rows(first_places(causes)):
            table = batch.table if len(batch.table) == 1 else batch.table[members]
            for column in sorted(set(pattern)):
                axes = [1 + c for c, at in enumerate(pattern) if at == column]
                merged = np.moveaxis(table, axes, range(1, 1 + len(axes)))
                n_values = math.prod(merged.shape[1 : 1 + len(axes)])
                flat = merged.reshape(len(table), n_values, -1, table.shape[-1])
                worst = np.zeros((len(table), 1))
                for x, y in itertools.combinations(range(n_values), 2):
                    distance = 0.5 * np.abs(flat[:, x] - flat[:, y]).sum(axis=-1)
                    np.maximum(worst[:, 0], distance.max(axis=1), out=worst[:, 0])
                sites, cause = batch.coordinates[members], causes[members, column, None]
                parts.append((sites, cause, np.minimum(worst, 1.0)))
    return entries_matrix(parts, (mdp.n_coordinates, mdp.n_coordinates))


def coupled_influence(
    mdp: FactoredMDP,
    tables: PolicyTables,
    *,
    all_private: bool = False,
) -> sp.csr_array:
    """K^π, the coupled matrix: sound for δ(T^π f) ≤ (K^π)ᵀ δ(f), and entrywise at most E^s + E^a Π.

    An action is *private* if E^a says that it moves at most one coordinate, else *shared*. Private
    actions are averaged out; for s, s' that differ in coordinate i each shared action is coupled by
    J = diag(min(p, q)) + (p − min)(q − min)ᵀ / TV(p, q), independently across agents, the same for
    every row j. Entry (j, i) is the sup over such pairs of E_{(A, A')~J} TV(P̃_j(·|s, A),
    P̃_j(·|s', A')).

    Args:
        mdp: The model.
        tables: The policy's laws; rows that need laws that were not read are left empty, and so are
            those of `coupled_rows`.
        all_private: Average every action out. The result is then C^π, which is sound in place of
            K^π only where one coordinate moves per step.

    Returns:
        (N, N) CSR without stored zeros.

    Raises:
        BudgetError: Some coordinate's closed loop is too large to enumerate; the message gives the
            size.
    """
    shared = np.zeros(mdp.n_agents, dtype=np.bool_) if all_private else shared_agents(mdp)
    parts = []
    for batch in mdp.kernels:
        how = _coupling(batch, shared)
        if how == "counted" and isinstance(batch, CountBatch):
            parts += list(counted_influence(batch, tables))
        for table in _tables(batch) if how == "table" else ():
            for local in local_classes(table, tables, shared[table.actions].astype(np.int64)):
                if not tables.holds(local.agents[0]):
                    continue
                causes, values = _coupled_class(local, tables)
                parts.append((table.coordinates[local.rows], causes, values.numpy()))
    return entries_matrix(parts, (mdp.n_coordinates, mdp.n_coordinates))


def coupled_rows(mdp: FactoredMDP, *, all_private: bool = False) -> np.ndarray:
    """(N,) bool: coordinates whose rows `coupled_influence` finds.

    It leaves out kernels that count, read shared or counted actions, and are too large to be written
    out. There the row of `exact` stands in: with every shared action coupled maximally and
    independently, it bounds what that same coupling gives.
    """
    shared = np.zeros(mdp.n_agents, dtype=np.bool_) if all_private else shared_agents(mdp)
    rows = np.zeros(mdp.n_coordinates, dtype=np.bool_)
    for batch in mdp.kernels:
        rows[batch.coordinates] = _coupling(batch, shared) != "left"
    return rows


def _coupling(batch: Kernels, shared: np.ndarray) -> Literal["table", "counted", "left"]:
    if isinstance(batch, KernelBatch):
        return "table"
    if not batch.counters.actions.shape[1] and not shared[batch.actions].any():
        return "counted"
    return "table" if batch.table_entries <= COUNT_ENTRIES else "left"


def _tables(batch: Kernels) -> Iterable[KernelBatch]:
    return [batch] if isinstance(batch, KernelBatch) else batch.tables(COUNT_ENTRIES)


def shared_agents(mdp: FactoredMDP) -> np.ndarray:
    """(K,) bool: whether E^a says that the agent's action moves more than one coordinate."""
    return np.bincount(action_sensitivity(mdp).indices, minlength=mdp.n_agents) > 1


def _coupled_class(local: LocalClass, tables: PolicyTables) -> tuple[IntArray, Tensor]:
    """(B, u) causes and (B or 1, u) entries of K^π for one class of sites."""
    keep = [k for k, flag in enumerate(local.flags) if flag]
    law = local.averaged(tables, keep)
    n_joint = math.prod(local.n_actions[k] for k in keep)
    if math.prod(local.sizes) * n_joint**2 > ENTRY_BUDGET:
        raise BudgetError(
            f"the coupled rung pairs {n_joint} joint shared actions over "
            f"{math.prod(local.sizes)} states at agents {local.agents[0, keep].tolist()}: "
            f"{8 * math.prod(local.sizes) * n_joint**2} bytes a site, over the budget of "
            f"{8 * ENTRY_BUDGET}; shrink the scopes, or use the exact rung"
        )
    u = len(local.sizes)
    laws = {}
    for k in keep:
        read = tables.of_agents(local.agents[:, k])
        axes = [0, *(1 + i for i in local.scopes[k]), 1 + u]
        order = sorted(range(len(axes)), key=axes.__getitem__)
        shape = [len(read)]
        shape += [local.sizes[i] if i in local.scopes[k] else 1 for i in range(u)]
        laws[k] = read.permute(order).reshape(*shape, -1)
    columns = [_coupled_entry(local, law, laws, keep, i) for i in range(u)]
    count = max(len(column) for column in columns) if columns else 1
    stacked = torch.zeros(count, u, dtype=torch.float64)
    for i, column in enumerate(columns):
        stacked[:, i] = column
    return local.union, stacked.clamp(max=1.0)


def _coupled_entry(
    local: LocalClass, law: Tensor, laws: dict[int, Tensor], keep: list[int], i: int
) -> Tensor:
    """(B or 1,) entries for cause i: sup over pairs of values of coordinate i and over the other coordinates.

    `law` is (B or 1, *S or 1, *A_keep, S_j), `laws[k]` (B, *S or 1, A_k). Shared actions whose
    agent does not see coordinate i are equal on both sides; the others are coupled.
    """
    u = len(local.sizes)
    held = [k for k in keep if i not in local.scopes[k]]
    moved = [k for k in keep if i in local.scopes[k]]
    place = {k: 1 + u + position for position, k in enumerate(keep)}
    order = [*range(1 + u), *(place[k] for k in held), *(place[k] for k in moved), law.ndim - 1]
    law = law.permute(order)
    n_moved = math.prod(local.n_actions[k] for k in moved)
    law = law.reshape(*law.shape[: 1 + u + len(held)], n_moved, law.shape[-1])
    best: Tensor | None = None
    for x, y in itertools.combinations(range(local.sizes[i]), 2):
        first, second = (_at(law, 1 + i, value) for value in (x, y))
        distance = 0.5 * (first.unsqueeze(-2) - second.unsqueeze(-3)).abs().sum(dim=-1)
        for k in reversed(moved):
            p, q = (_at(laws[k], 1 + i, value) for value in (x, y))
            coupling = couple(p, q)
            size = local.n_actions[k]
            rows, columns = distance.shape[-2] // size, distance.shape[-1] // size
            split = distance.reshape(*distance.shape[:-2], rows, size, columns, size)
            for _ in held:
                coupling = coupling.unsqueeze(-3)
            weight = coupling[..., None, :, None, :]
            distance = (split * weight).sum(dim=(-3, -1))
        distance = distance[..., 0, 0]
        for k in reversed(held):
            weight = _at(laws[k], 1 + i, 0)
            for _ in held[: held.index(k)]:
                weight = weight.unsqueeze(-2)
            distance = (distance * weight).sum(dim=-1)
        worst = distance.reshape(len(distance), -1).amax(dim=1)
        best = worst if best is None else torch.maximum(best, worst)
    return torch.zeros(1, dtype=torch.float64) if best is None else best


def _at(tensor: Tensor, axis: int, value: int) -> Tensor:
    """The slice at a value of an axis, kept as size 1; where the axis is not read, the tensor itself."""
    return tensor if tensor.shape[axis] == 1 else tensor.narrow(axis, value, 1)


def couple(p: Float[Tensor, "*rows A"], q: Float[Tensor, "*rows A"]) -> Float[Tensor, "*rows A A"]:
    """The maximal coupling J = diag(min(p, q)) + (p − min)(q − min)ᵀ / TV(p, q).

    Args:
        p: (…, A) laws.
        q: (…, A) laws.

    Returns:
        (…, A, A) joint laws with marginals p and q and P(A ≠ A') = TV(p, q).
    """
    common = torch.minimum(p, q)
    rest_p, rest_q = p - common, q - common
    gap = rest_q.sum(dim=-1, keepdim=True)
    outer = rest_p.unsqueeze(-1) * torch.where(gap > 0, rest_q / gap, 0.0).unsqueeze(-2)
    return torch.diag_embed(common) + outer
