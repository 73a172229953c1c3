"""How much a logit moves when one coordinate of its scope moves.

With z̃ the logits centred to zero mean over the actions (a constant per state changes no policy),

    L_{k←i}    = max over pairs of scope states that differ in i alone of ‖z̃_k(s) − z̃_k(s')‖_∞,
    span_{k←i} = max over the same pairs of max_a − min_a of z_k(s) − z_k(s').

(Paper, Definitions 5 and 9; the span is the sharper quantity: span ≤ 2 L.) No pairs need to be
formed: L is the largest max_{s_i} − min_{s_i} of one centred logit, span the largest of one
difference of logits. An action that is −∞ on both sides of a pair is dropped; −∞ on one side only
makes the entry ∞.

Two kinds of number stand here, never under one name: *exact* ones by enumeration of all scope
states, which a certificate may use, and *observed* ones from the batches that pass a forward hook,
lower estimates to watch.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchloc.policy import SoftmaxPolicy
from torchloc.shapes import Float, Int


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
    """Exact L by enumeration: (K, N) CSR, in units of the logits (not divided by τ)."""
    return scope_matrix(policy, _enumerated(policy, span=False))


def logit_span(policy: SoftmaxPolicy) -> sp.csr_array:
    """Exact span by enumeration: (K, N) CSR, in units of the logits (not divided by τ)."""
    return scope_matrix(policy, _enumerated(policy, span=True))


def _enumerated(policy: SoftmaxPolicy, *, span: bool) -> list[Tensor]:
    result = []
    for index, group in enumerate(policy.groups):
        with torch.no_grad():
            table = group.unflatten(policy.group_logits(index).double())
        result.append(logit_spreads(table, span=span))
    return result


class LipschitzMonitor:
    """Forward hooks on a policy's networks that keep a running lower estimate of L.

    Every batch that passes a network is searched for pairs of observations that differ in one
    coordinate. What was observed is a *lower* estimate for the networks that produced it: to watch,
    never to certify. `exact` enumerates instead.

    Args:
        policy: The policy to watch.

    Example:
        >>> import torch, torchloc as tl
        >>> from torchloc.environments import sysadmin
        >>> mdp = sysadmin(n=3)
        >>> policy = tl.SoftmaxPolicy.mlp(mdp, tl.neighbourhood_scopes(mdp), seed=1)
        >>> with LipschitzMonitor(policy) as monitor:
        ...     _ = policy.act(torch.tensor([[0, 0, 0], [0, 1, 0]]), torch.Generator())
        >>> bool(monitor.observed()[1, 1] <= monitor.exact()[1, 1] + 1e-12)
        True
    """

    def __init__(self, policy: SoftmaxPolicy) -> None:
        self.policy = policy
        self._handles: list[RemovableHandle] = []
        self.reset()
        for index, network in enumerate(policy.networks):
            self._handles.append(network.register_forward_hook(self._hook(index)))

    def _hook(self, index: int):
        def observe(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            estimate = observed_spreads(inputs[0], output.detach().double())
            self._seen[index] = torch.maximum(self._seen[index], estimate)

        return observe

    def reset(self) -> None:
        """Forgets everything observed."""
        self._seen = [
            torch.zeros(len(group), len(group.sizes), dtype=torch.float64)
            for group in self.policy.groups
        ]

    def observed(self) -> sp.csr_array:
        """(K, N) CSR: lower estimate of L over all batches since the last reset."""
        return scope_matrix(self.policy, self._seen)

    def exact(self) -> sp.csr_array:
        """(K, N) CSR: L of the networks as they are now, by enumeration of all scope states."""
        seen = list(self._seen)
        result = logit_lipschitz(self.policy)
        self._seen = seen
        return result

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> LipschitzMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def observed_spreads(
    observations: Int[Tensor, "G B m"], logits: Float[Tensor, "G B A"]
) -> Float[Tensor, "G m"]:
    """Largest change of a centred logit among the pairs in a batch that differ in one coordinate.

    Args:
        observations: (G, B, m) integers.
        logits: (G, B, A) float64.

    Returns:
        (G, m) float64, a lower bound on L; 0 where the batch holds no such pair.
    """
    n_agents, n_rows, m = observations.shape
    result = torch.zeros(n_agents, m, dtype=logits.dtype)
    if n_rows < 2 or m == 0:
        return result
    finite = torch.isfinite(logits)
    values = torch.where(finite, centred(logits), 0.0)
    agent = torch.arange(n_agents)[:, None].expand(n_agents, n_rows)
    for i in range(m):
        others = [agent] + [observations[..., j] for j in range(m) if j != i]
        key = torch.zeros_like(agent)
        for column in others:
            _, key = torch.unique(key * (int(column.max()) + 1) + column, return_inverse=True)
        n_keys = int(key.max()) + 1
        index = key.reshape(-1, 1).expand(-1, values.shape[-1])
        flat = values.reshape(-1, values.shape[-1])
        open_ = finite.reshape(-1, values.shape[-1]).to(values.dtype)
        high, low = (_reduce(flat, index, n_keys, how) for how in ("amax", "amin"))
        mixed = _reduce(open_, index, n_keys, "amax") != _reduce(open_, index, n_keys, "amin")
        spread = torch.where(mixed, torch.inf, high - low).amax(dim=-1)
        owner = torch.zeros(n_keys, dtype=torch.int64).scatter(
            0, key.reshape(-1), agent.reshape(-1)
        )
        result[:, i] = result[:, i].scatter_reduce(0, owner, spread, "amax")
    return result


def _reduce(values: Tensor, index: Tensor, n_keys: int, how: str) -> Tensor:
    empty = torch.zeros(n_keys, values.shape[-1], dtype=values.dtype)
    return empty.scatter_reduce(0, index, values, how, include_self=False)
