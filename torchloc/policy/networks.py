"""Batched logit networks: G agents of one shape in one module.

Axis letters: G agents, B observations an agent, m scope coordinates, R scope states, A actions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchloc.errors import InputError
from torchloc.mdp.checks import first
from torchloc.policy.checks import check_logits
from torchloc.policy.groups import AgentGroup

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
WIDEST = 2**20
"""Units of a hidden layer at most: two such layers already have 2^40 weights an agent."""


class OneHot(nn.Module):
    """(G, B, m) integer observations → (G, B, Σ sizes) concatenated indicators."""

    def __init__(self, sizes: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.dtype = dtype

    def forward(self, observations: Tensor) -> Tensor:
        parts = [
            functional.one_hot(observations[..., i], size) for i, size in enumerate(self.sizes)
        ]
        if not parts:
            return torch.zeros(*observations.shape[:-1], 0, dtype=self.dtype)
        return torch.cat(parts, dim=-1).to(self.dtype)


class BatchedLinear(nn.Module):
    """G affine maps at once: x_g W_g + b_g, weights (G, in, out), biases (G, 1, out)."""

    def __init__(
        self,
        n_agents: int,
        n_inputs: int,
        n_outputs: int,
        generator: torch.Generator | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        scale = 1.0 / math.sqrt(max(n_inputs, 1))

        def uniform(*shape: int) -> nn.Parameter:
            if generator is None:
                return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
            return nn.Parameter(
                (2.0 * torch.rand(*shape, generator=generator, dtype=dtype) - 1.0) * scale
            )

        self.weight = uniform(n_agents, n_inputs, n_outputs)
        self.bias = uniform(n_agents, 1, n_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, inputs, self.weight)


class Tabular(nn.Module):
    """One free logit for every agent, scope state and action: a (G, R, A) parameter."""

    def __init__(self, sizes: Sequence[int], table: Tensor) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.table = nn.Parameter(table)

    def forward(self, observations: Tensor) -> Tensor:
        row = torch.zeros(observations.shape[:-1], dtype=torch.int64)
        for i, size in enumerate(self.sizes):
            row = row * size + observations[..., i]
        index = row.unsqueeze(-1).expand(*row.shape, self.table.shape[-1])
        return self.table.gather(1, index)


LogitNetwork = nn.Module
"""(G, B, m) int64 observations → (G, B, A) logits, agent g of the group reading row g only."""


def described(kind: str, *, hidden: Sequence[int] = (), activation: str = "relu") -> dict[str, Any]:
    """The description of a kind of network that `built` reads and files keep; plain JSON values.

    Args:
        kind: `tabular` or `mlp`.
        hidden: Widths of the hidden layers of an MLP; none makes it linear.
        activation: A key of `ACTIVATIONS`.

    Raises:
        InputError: An unknown kind or activation, or a width that is no whole number ≥ 1.
    """
    if kind == "tabular":
        return {"kind": kind}
    if kind != "mlp":
        raise InputError(f"the kind of network is {kind!r}; choose tabular or mlp")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise InputError(f"activation is {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    if not isinstance(hidden, Iterable):
        raise InputError(f"hidden is {hidden!r}; give a list of widths, one a layer")
    for layer, width in enumerate(hidden):
        whole = isinstance(width, Integral) and not isinstance(width, bool)
        if not whole or not 1 <= width <= WIDEST:
            raise InputError(
                f"hidden: layer {layer} has width {width!r}; give whole numbers from 1 to {WIDEST}, "
                f"or an empty list for a linear network"
            )
    return {"kind": kind, "hidden": [int(width) for width in hidden], "activation": activation}


def built(
    description: dict[str, Any],
    group: AgentGroup,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    scale: float = 0.0,
) -> nn.Module:
    """The network of a group, freshly drawn.

    Args:
        description: From `described`.
        group: Its agents.
        dtype: Of the parameters.
        generator: Source of the initial parameters; None gives parameters without numbers (on the
            meta device), to be replaced.
        scale: Standard deviation of tabular logits; 0 gives the uniform policy.

    Raises:
        BudgetError: A table with more rows than are enumerated.
    """
    if description["kind"] == "tabular":
        return tabular(group, generator, dtype, scale)
    return mlp(group, generator, dtype, description["hidden"], description["activation"])


def tabular(
    group: AgentGroup, generator: torch.Generator | None, dtype: torch.dtype, scale: float
) -> Tabular:
    """Normal logits of standard deviation `scale`; 0 gives the uniform policy."""
    group.check_enumerable()
    shape = (len(group), group.n_rows, group.n_actions)
    if generator is None:
        return Tabular(group.sizes, torch.empty(shape, dtype=dtype, device="meta"))
    return Tabular(group.sizes, scale * torch.randn(shape, generator=generator, dtype=dtype))


def mlp(
    group: AgentGroup,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    hidden: Sequence[int],
    activation: str,
) -> nn.Sequential:
    """One-hot inputs, hidden layers of the given widths, linear logits; no hidden layer: linear."""
    widths = [sum(group.sizes), *hidden, group.n_actions]
    layers: list[nn.Module] = [OneHot(group.sizes, dtype)]
    for i, (n_inputs, n_outputs) in enumerate(itertools.pairwise(widths)):
        if i:
            layers.append(ACTIVATIONS[activation]())
        layers.append(BatchedLinear(len(group), n_inputs, n_outputs, generator, dtype))
    return nn.Sequential(*layers)


def scale_logits(network: nn.Module, factor: Tensor) -> None:
    """Multiplies all logits of agent g by factor[g], (G,): the table, or the last affine layer."""
    last = network if isinstance(network, Tabular) else list(network.children())[-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(factor[:, None, None].to(parameter.dtype))


def common_dtype(parameters: Mapping[str, Tensor]) -> torch.dtype:
    """The floating dtype that all parameters share; float64 where there are none.

    Raises:
        InputError: They differ, or hold no floating numbers.
    """
    dtypes = {value.dtype for value in parameters.values()} or {torch.float64}
    dtype = next(iter(dtypes))
    if len(dtypes) > 1 or not dtype.is_floating_point:
        raise InputError(
            f"the network parameters have dtypes {sorted(map(str, dtypes))}; one floating dtype is "
            f"needed"
        )
    return dtype


def fill(
    modules: nn.ModuleList, groups: Sequence[AgentGroup], parameters: Mapping[str, Tensor]
) -> None:
    """Gives networks that were built without numbers their parameters, which they keep.

    Args:
        modules: One network a group.
        groups: Their agents.
        parameters: By name, as in the state of `modules`.

    Raises:
        InputError: A parameter is missing, not needed or of another shape, or holds numbers that no
            policy has.
    """
    needed = modules.state_dict()
    for name in sorted({*needed, *parameters}):
        have = tuple(parameters[name].shape) if name in parameters else "missing"
        want = tuple(needed[name].shape) if name in needed else "absent"
        if have != want:
            raise InputError(
                f"network parameter {name} is {have}, but kind, scopes and sizes need {want}"
            )
    modules.load_state_dict(dict(parameters), assign=True)
    for group, network in zip(groups, modules, strict=True):
        agents = group.agents.tolist()
        if isinstance(network, Tabular):
            tables = group.unflatten(network.table.detach().double()).numpy()
            check_logits(tables, lambda b, agents=agents: f"logits of agent {agents[b]}")
            continue
        for name, value in network.named_parameters():
            broken = ~torch.isfinite(value.detach())
            if bool(broken.any()):
                agent = agents[first(broken.numpy())[0]]
                raise InputError(f"parameter {name} of agent {agent} holds NaN or ∞")
