"""Batched logit networks: G agents of one shape in one module.

Axis letters: G agents, B observations an agent, m scope coordinates, R scope states, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchloc.errors import InputError
from torchloc.policy.groups import AgentGroup

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


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
        generator: torch.Generator,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        scale = 1.0 / math.sqrt(max(n_inputs, 1))

        def uniform(*shape: int) -> nn.Parameter:
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


def tabular(group: AgentGroup, generator: torch.Generator, dtype: torch.dtype, scale: float) -> Tabular:
    """Normal logits of standard deviation `scale`; 0 gives the uniform policy."""
    shape = (len(group), group.n_rows, group.n_actions)
    return Tabular(group.sizes, scale * torch.randn(shape, generator=generator, dtype=dtype))


def mlp(
    group: AgentGroup,
    generator: torch.Generator,
    dtype: torch.dtype,
    hidden: Sequence[int],
    activation: str,
) -> nn.Sequential:
    """One-hot inputs, hidden layers of the given widths, linear logits; no hidden layer: linear.

    Raises:
        InputError: A width below 1, or an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise InputError(f"activation is {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    if any(width < 1 for width in hidden):
        raise InputError(f"hidden is {list(hidden)}; every width must be at least 1")
    widths = [sum(group.sizes), *hidden, group.n_actions]
    layers: list[nn.Module] = [OneHot(group.sizes, dtype)]
    for i, (n_inputs, n_outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        if i:
            layers.append(ACTIVATIONS[activation]())
        layers.append(BatchedLinear(len(group), n_inputs, n_outputs, generator, dtype))
    return nn.Sequential(*layers)
