"""Shrinking a policy: which family of laws a scale moves along, and how it is written into the policy.

With a scale 0 < α_k ≤ 1 an agent,

    `temperature`   τ_k ↦ τ_k / α_k                     logits stay; an entropy objective then weighs τ_k more
    `logits`        z_k ↦ α_k z_k                       the same law at the same τ_k
    `centre`        z_k ↦ c_k + α_k (z_k − c_k)         c_k(a) the mean of z_k(·, a) over what the agent sees

All multiply span_k and L_k by α_k. The first two go to the uniform law as α_k → 0, the last to
softmax(c_k/τ_k): what an agent prefers whatever it sees costs no locality, and stays.

The mean is over a product law of the coordinates, such as the marginals of a simulation, mixed with a
little of the uniform law; or uniform. Any mean is as good for locality, only the reward differs.

`centre` needs tables, or networks whose last affine layer is each agent's own: c_k goes into its biases.
"""

from __future__ import annotations

from typing import Literal, get_args

import scipy.sparse as sp
import torch
from torch import Tensor

from torchloc.closed_loop import PolicyTables
from torchloc.errors import InputError
from torchloc.lipschitz import scope_matrix
from torchloc.mdp.checks import FloatArray, IntArray, first
from torchloc.policy import AgentGroup, SoftmaxPolicy, Tabular, networks, scaled_logits
from torchloc.sensitivity import total_variations

How = Literal["temperature", "logits", "centre"]
HOWS: tuple[How, ...] = get_args(How)
UNSEEN = 1e-3
"""Share of the uniform law in a mean: states that are never seen have some say."""


def check_how(policy: SoftmaxPolicy, how: str) -> None:
    """Refuses an unknown way, or one that the policy does not know.

    Raises:
        InputError: Likewise.
    """
    if how not in HOWS:
        raise InputError(f"how is {how!r}; choose {', '.join(HOWS)}")
    if how == "centre":
        for network in policy.networks:
            _own_offset(network)


def checked_marginals(marginals: Tensor | None, sizes: IntArray) -> Tensor | None:
    """(N, S) float64 laws of the coordinates, rows of smaller coordinates padded with 0, normalised.

    Raises:
        InputError: Another shape, a negative or infinite entry, or a coordinate without mass.
    """
    if marginals is None:
        return None
    laws = torch.as_tensor(marginals).detach().cpu().double()
    if laws.ndim != 2 or len(laws) != len(sizes) or laws.shape[1] < int(sizes.max()):
        raise InputError(
            f"marginals has shape {tuple(laws.shape)}; give ({len(sizes)}, {int(sizes.max())}): one law "
            f"a coordinate"
        )
    inside = torch.arange(laws.shape[1]) < torch.tensor(sizes)[:, None]
    laws = torch.where(inside, laws, 0.0)
    total = laws.sum(dim=1, keepdim=True)
    bad = ~(torch.isfinite(laws) & (laws >= 0.0)).all(dim=1) | (total[:, 0] <= 0.0)
    if bool(bad.any()):
        (i,) = first(bad.numpy())
        raise InputError(f"marginals: row {i} is {laws[i].tolist()}; give nonnegative numbers")
    return (1.0 - UNSEEN) * laws / total + UNSEEN * inside / inside.sum(dim=1, keepdim=True)


def scope_laws(group: AgentGroup, marginals: Tensor | None) -> Tensor:
    """(G or 1, R) float64 law of what each agent of a group sees, product of marginals; None: uniform.

    Raises:
        BudgetError: More scope states than are enumerated.
    """
    group.check_enumerable()
    if marginals is None:
        return torch.full((1, group.n_rows), 1.0 / group.n_rows, dtype=torch.float64)
    law = torch.ones(len(group), 1, dtype=torch.float64)
    for place, size in enumerate(group.sizes):
        factor = marginals[torch.tensor(group.scope[:, place]), :size]
        law = (law[:, :, None] * factor[:, None, :]).reshape(len(group), -1)
    return law


def centres(policy: SoftmaxPolicy, marginals: Tensor | None = None) -> list[Tensor]:
    """One (G, 1, A) float64 a group: the mean of the logits over what each agent sees.

    An action that is forbidden in some states is averaged over the others; 0 where in all.

    Args:
        policy: The policy.
        marginals: (N, S) laws of the coordinates (`checked_marginals`); None: uniform.

    Raises:
        BudgetError: More scope states than are enumerated.
    """
    result = []
    for index, group in enumerate(policy.groups):
        law = scope_laws(group, marginals)[..., None]
        with torch.no_grad():
            logits = policy.group_logits(index).double()
        finite = torch.isfinite(logits)
        mass = (law * finite).sum(dim=1, keepdim=True)
        total = (law * torch.where(finite, logits, 0.0)).sum(dim=1, keepdim=True)
        result.append(torch.where(mass > 0.0, total / mass, 0.0))
    return result


class Family:
    """The laws of a policy at every scale, from logits that are read once.

    Args:
        policy: The policy; scope states are enumerated.
        how: The way that it is shrunk.
        marginals: (N, S) laws of the coordinates (`checked_marginals`); None: uniform.

    Raises:
        InputError: The policy does not know this way.
        BudgetError: More scope states than are enumerated.
    """

    def __init__(self, policy: SoftmaxPolicy, how: How, marginals: Tensor | None = None) -> None:
        check_how(policy, how)
        self._policy = policy
        self._temperature = policy.temperature.clone()
        self._middles: list[Tensor | None] = [None] * len(policy.groups)
        if how == "centre":
            self._middles = list(centres(policy, marginals))
        with torch.no_grad():
            indices = range(len(policy.groups))
            self._logits = [policy.group_logits(index).double() for index in indices]

    def laws(self, scale: FloatArray) -> list[Tensor]:
        """One (G, *S_scope, A) float64 tensor a group: the laws at scales (K,) in [0, 1]."""
        result = []
        groups = self._policy.groups
        for group, z, middle in zip(groups, self._logits, self._middles, strict=True):
            agents = torch.tensor(group.agents)
            factor = torch.tensor(scale)[agents][:, None, None]
            finite = torch.isfinite(z)
            kept = factor * torch.where(finite, z, 0.0)
            if middle is not None:
                kept = kept + (1.0 - factor) * middle
            moved = torch.where(finite, kept, -torch.inf)
            scaled = scaled_logits(moved, self._temperature[agents][:, None, None])
            result.append(group.unflatten(torch.softmax(scaled, dim=-1)))
        return result

    def tables(self, scale: FloatArray) -> PolicyTables:
        """The policy at scales (K,), as `coupled_influence` reads it."""
        return PolicyTables(self._policy.groups, self.laws(scale), self._temperature)

    def sensitivity(self, scale: FloatArray) -> sp.csr_array:
        """(K, N) CSR Π of the `exact` rung at scales (K,), right to rounding."""
        return scope_matrix(self._policy, [total_variations(law) for law in self.laws(scale)])


def shrink(
    policy: SoftmaxPolicy, scale: FloatArray, how: How, marginals: Tensor | None = None
) -> None:
    """Shrinks a policy in place; agents of scale 1 keep every bit.

    Args:
        policy: The policy.
        scale: (K,) α in (0, 1].
        how: See above.
        marginals: (N, S) laws of the coordinates (`checked_marginals`); None: uniform.

    Raises:
        InputError: A scale is out of range, or the policy does not know this way.
    """
    check_how(policy, how)
    bad = ~((scale > 0.0) & (scale <= 1.0))
    if bad.any():
        (agent,) = first(bad)
        raise InputError(f"scale of agent {agent} is {scale[agent]}; it must lie in (0, 1]")
    factor = torch.tensor(scale, dtype=torch.float64)
    if how == "temperature":
        policy.set_temperature(policy.temperature / factor)
        return
    middles = centres(policy, marginals) if how == "centre" else None
    for index, (group, network) in enumerate(zip(policy.groups, policy.networks, strict=True)):
        part = factor[torch.tensor(group.agents)]
        networks.scale_logits(network, part)
        if middles is not None:
            offset = _own_offset(network)
            rows = torch.nonzero(part < 1.0)[:, 0]
            added = (1.0 - part[rows])[:, None, None] * middles[index][rows]
            with torch.no_grad():
                offset[rows] += added.to(offset.dtype)


def _own_offset(network: torch.nn.Module) -> Tensor:
    """(G, R or 1, A) what is added to each agent's logits alone: its table, or its last bias."""
    if isinstance(network, Tabular):
        return network.table
    last = list(network.children())[-1:]
    if last and isinstance(last[0], networks.BatchedLinear):
        return last[0].bias
    raise InputError(
        "how is 'centre', which needs tables, or networks whose last affine layer is each agent's own "
        "and is followed by nothing; choose logits or temperature"
    )
