"""Watching the Lipschitz constants of a policy's networks while it acts and learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchloc.lipschitz.bound import (
    BRANCHES,
    STEPS,
    certified_sources,
    certified_spreads,
    logit_bounds,
)
from torchloc.lipschitz.enumeration import centred, logit_lipschitz, logit_span, scope_matrix
from torchloc.policy import SoftmaxPolicy
from torchloc.policy.groups import ROW_BUDGET
from torchloc.shapes import Float, Int

_KEYS = 2**62


class LipschitzMonitor:
    """Forward hooks on a policy's networks that keep a running lower estimate of L, and what certifies.

    Three kinds of number, never under one name:

    - `observed`: every batch that passes a network is searched for pairs of observations that differ in
      one coordinate. A *lower* estimate, for the networks that produced it: to watch, never to certify.
    - `exact`: enumeration of all scope states of the networks as they are now.
    - `bound`: certified upper bounds for scopes too large to enumerate (`logit_bounds`).

    A certificate takes `exact` where the scope states are within the budget and `bound` elsewhere, never
    `observed`: `certified` gives these, `sources` says which for every group. What these three compute
    on the way is not observed.

    Args:
        policy: The policy to watch; its hooks see whole batches of a group's network, whatever the
            network is made of.
        budget: Scope states of an agent at most for `exact` to be what a certificate takes.

    Example:
        >>> import torch, torchloc as tl
        >>> from torchloc.environments import sysadmin
        >>> mdp = sysadmin(n=3)
        >>> policy = tl.SoftmaxPolicy.mlp(mdp, tl.neighbourhood_scopes(mdp), seed=1)
        >>> with LipschitzMonitor(policy) as monitor:
        ...     _ = policy.act(torch.tensor([[0, 0, 0], [0, 1, 0]]), torch.Generator())
        >>> bool(monitor.observed()[1, 1] <= monitor.exact()[1, 1] + 1e-12)
        True
        >>> bool(monitor.exact()[1, 1] <= monitor.bound()[1, 1])
        True
        >>> monitor.sources
        ('exact',)
    """

    def __init__(self, policy: SoftmaxPolicy, *, budget: int = ROW_BUDGET) -> None:
        self.policy = policy
        self.budget = budget
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

    def exact(self, *, span: bool = False) -> sp.csr_array:
        """(K, N) CSR: L, or span, of the networks as they are now, by enumeration of all scope states.

        Raises:
            BudgetError: A scope with more joint states than are enumerated; `bound` has no such limit.
        """
        with self._unseen():
            return logit_span(self.policy) if span else logit_lipschitz(self.policy)

    def bound(
        self, *, span: bool = False, branches: int = BRANCHES, steps: int = STEPS
    ) -> sp.csr_array:
        """(K, N) CSR: certified upper bounds on L, or span, of the networks as they are now.

        Raises:
            InputError: A network that cannot be read layer by layer; `logit_bounds` says which can.
        """
        with self._unseen():
            return logit_bounds(self.policy, span=span, branches=branches, steps=steps)

    def certified(
        self, *, span: bool = False, branches: int = BRANCHES, steps: int = STEPS
    ) -> sp.csr_array:
        """(K, N) CSR: what a certificate may use, from the sources that `sources` names."""
        with self._unseen():
            return certified_spreads(
                self.policy, span=span, budget=self.budget, branches=branches, steps=steps
            )[0]

    @property
    def sources(self) -> tuple[str, ...]:
        """For every group of the policy what a certificate takes: `exact` or `bound`."""
        return certified_sources(self.policy, budget=self.budget)

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """What passes the networks meanwhile is not observed."""
        seen = list(self._seen)
        try:
            yield
        finally:
            self._seen = seen

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
        observations: (G, B, m) integers ≥ 0.
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
    flat = values.reshape(-1, values.shape[-1])
    open_ = finite.reshape(-1, values.shape[-1]).to(values.dtype)
    agent = torch.arange(n_agents)[:, None].expand(n_agents, n_rows)
    for i in range(m):
        key = _keys(agent, [observations[..., j] for j in range(m) if j != i])
        n_keys = int(key.max()) + 1
        index = key.reshape(-1, 1).expand(-1, values.shape[-1])
        high, low = (_reduce(flat, index, n_keys, how) for how in ("amax", "amin"))
        mixed = _reduce(open_, index, n_keys, "amax") != _reduce(open_, index, n_keys, "amin")
        spread = torch.where(mixed, torch.inf, high - low).amax(dim=-1)
        owner = torch.zeros(n_keys, dtype=torch.int64).scatter(
            0, key.reshape(-1), agent.reshape(-1)
        )
        result[:, i] = result[:, i].scatter_reduce(0, owner, spread, "amax")
    return result


def _keys(agent: Tensor, columns: list[Tensor]) -> Tensor:
    """(G, B) numbers 0 … n − 1, equal where the agent and all columns are."""
    key, held = agent, agent.shape[0]
    for column in columns:
        size = int(column.max()) + 1
        if held * size >= _KEYS:
            _, key = torch.unique(key, return_inverse=True)
            held = key.numel()
        key, held = key * size + column, held * size
    return torch.unique(key, return_inverse=True)[1]


def _reduce(values: Tensor, index: Tensor, n_keys: int, how: str) -> Tensor:
    empty = torch.zeros(n_keys, values.shape[-1], dtype=values.dtype)
    return empty.scatter_reduce(0, index, values, how, include_self=False)
