"""Exact L and span by enumeration of all scope states."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from torchloc.errors import BudgetError
from torchloc.policy import SoftmaxPolicy
from torchloc.policy.groups import ROW_BUDGET
from torchloc.shapes import Float


def centred(logits: Float[Tensor, "*rows A"]) -> Float[Tensor, "*rows A"]:
    """(…, A) logits minus their mean over the finite ones; −∞ stays −∞.

    The largest is taken out first, so that what is common to all actions costs no digits.
    """
    logits = logits - logits.amax(dim=-1, keepdim=True)
    finite = torch.isfinite(logits)
    total = torch.where(finite, logits, 0.0).sum(dim=-1, keepdim=True)
    return logits - total / finite.sum(dim=-1, keepdim=True)


def logit_spreads(table: Float[Tensor, "G *scope A"], *, span: bool) -> Float[Tensor, "G m"]:
    """L (or span) of enumerated logits for every coordinate of the scope.

    Args:
        table: (G, *S_scope, A) float64 logits.
        span: Give span instead of L.

    Returns:
        (G, m) float64: exact up to rounding in float64, ∞ where an action is forbidden on one side
        only.
    """
    m = table.ndim - 2
    result = torch.zeros(table.shape[0], m, dtype=table.dtype)
    if m == 0:
        return result
    finite = torch.isfinite(table)
    if span:
        both = finite[..., :, None] & finite[..., None, :]
        values = torch.where(both, table[..., :, None] - table[..., None, :], 0.0)
    else:
        values = torch.where(finite, centred(table), 0.0)
    for i in range(m):
        spread = (
            (values.amax(dim=i + 1) - values.amin(dim=i + 1)).reshape(len(table), -1).amax(dim=1)
        )
        mixed = (finite.any(dim=i + 1) != finite.all(dim=i + 1)).reshape(len(table), -1)
        result[:, i] = torch.where(mixed.any(dim=1), torch.inf, spread)
    return result


def scope_matrix(policy: SoftmaxPolicy, entries: list[Tensor]) -> sp.csr_array:
    """(K, N) CSR from one (G, m) tensor a group: agent k, coordinate scope_k[i] ← entries[group][row, i].

    Zeros are dropped.
    """
    agents = [np.repeat(group.agents, len(group.sizes)) for group in policy.groups]
    columns = [group.scope.reshape(-1) for group in policy.groups]
    values = [entry.reshape(-1).numpy() for entry in entries]
    none = np.zeros(0, dtype=np.int64)
    matrix = sp.csr_array(
        (
            np.concatenate([none.astype(np.float64), *values]),
            (np.concatenate([none, *agents]), np.concatenate([none, *columns])),
        ),
        shape=(policy.n_agents, len(policy.state_sizes)),
    )
    matrix.eliminate_zeros()
    return matrix


def logit_lipschitz(policy: SoftmaxPolicy) -> sp.csr_array:
    """Exact L by enumeration: (K, N) CSR, in units of the logits (not divided by τ).

    Raises:
        BudgetError: A scope with more joint states than are enumerated.
    """
    return _enumerated(policy, span=False)


def logit_span(policy: SoftmaxPolicy) -> sp.csr_array:
    """Exact span by enumeration: (K, N) CSR, in units of the logits (not divided by τ).

    Raises:
        BudgetError: A scope with more joint states than are enumerated.
    """
    return _enumerated(policy, span=True)


def _enumerated(policy: SoftmaxPolicy, *, span: bool) -> sp.csr_array:
    groups = range(len(policy.groups))
    return scope_matrix(policy, [group_spreads(policy, index, span=span) for index in groups])


def group_spreads(policy: SoftmaxPolicy, index: int, *, span: bool) -> Float[Tensor, "G m"]:
    """L (or span) of the agents of one group, by enumeration, without gradient.

    Raises:
        BudgetError: More scope states than are enumerated.
    """
    group = policy.groups[index]
    if group.n_rows > ROW_BUDGET:
        raise BudgetError(
            f"agent {int(group.agents[0])} sees {len(group.sizes)} coordinates with {group.n_rows} "
            f"joint states, over the budget of {ROW_BUDGET} states that are enumerated; take upper "
            f"bounds (logit_bounds), or give it a smaller scope"
        )
    with torch.no_grad():
        table = group.unflatten(policy.group_logits(index).double())
    return logit_spreads(table, span=span)
