"""The layers that logit networks are made of: G agents at once, or one set of weights for all of them.

Axis letters: G agents, B observations an agent, m scope coordinates, R scope states, A actions.

**Bounded logits.** `Bounded` maps finite raw outputs y to z = ℓ tanh((y − ȳ)/u), ȳ the mean over actions,
so |z_a| ≤ ℓ whatever the weights are. Centred, z̃_a = (1 − 1/A) z_a − (1/A) Σ_{b≠a} z_b is a sum whose
coefficients have absolute sum 2(A − 1)/A, so |z̃_a| ≤ 2ℓ(A − 1)/A, and for any two scope states s, s'

    ‖z̃(s) − z̃(s')‖_∞ ≤ 4ℓ(A − 1)/A = L            with ℓ = L A / (4(A − 1)),
    max_a (z_a(s) − z_a(s')) − min_a (…) ≤ 4ℓ = L A/(A − 1) ≤ 2L.

So L_{k←i} ≤ L and span_{k←i} ≤ L A/(A − 1) for every coordinate i (upper bounds, in units of logits
before the division by τ), and both are the best possible: z(s) = ℓ(1, −1, …, −1) = −z(s') is a limit of
such outputs and attains them. In floating point |ℓ t| ≤ ℓ holds exactly for |t| ≤ 1, to which the tanh is
clamped, and ℓ is rounded down, so they hold for the numbers that come out, not only up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class OneHot(nn.Module):
    """(G, B, m) integer observations → (G, B, Σ sizes) concatenated indicators."""

    def __init__(self, sizes: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.dtype = dtype

    def forward(self, observations: Tensor) -> Tensor:
        # All agents see the same rows: one encoding serves them.
        alike = len(observations) > 1 and observations.stride(0) == 0
        seen = observations[:1] if alike else observations
        parts = [functional.one_hot(seen[..., i], size) for i, size in enumerate(self.sizes)]
        if not parts:
            return torch.zeros(*observations.shape[:-1], 0, dtype=self.dtype)
        return torch.cat(parts, dim=-1).to(self.dtype).expand(len(observations), -1, -1)


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
        self.weight = _uniform((n_agents, n_inputs, n_outputs), n_inputs, generator, dtype)
        self.bias = _uniform((n_agents, 1, n_outputs), n_inputs, generator, dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        # An expanded operand is slower here than its copy.
        return torch.baddbmm(self.bias, inputs.contiguous(), self.weight)


class SharedLinear(nn.Module):
    """One affine map for G agents: (x_g W + b) scale_g.

    Attributes:
        shared_weight, shared_bias: (in, out) and (out,) parameters.
        scale: (G, 1, 1) buffer where `scaled`, ones at first: what rescales the logits of one agent
            alone; else None.
        weight, bias: The same map as `BatchedLinear` keeps it, (G, in, out) and (G, 1, out), views
            that carry gradients.
    """

    scale: Tensor | None

    def __init__(
        self,
        n_agents: int,
        n_inputs: int,
        n_outputs: int,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        *,
        scaled: bool,
    ) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.shared_weight = _uniform((n_inputs, n_outputs), n_inputs, generator, dtype)
        self.shared_bias = _uniform((n_outputs,), n_inputs, generator, dtype)
        self.register_buffer("scale", torch.ones(n_agents, 1, 1, dtype=dtype) if scaled else None)

    @property
    def weight(self) -> Tensor:
        """(G, in, out)."""
        weight = self.shared_weight.expand(self.n_agents, -1, -1)
        return weight if self.scale is None else weight * self.scale

    @property
    def bias(self) -> Tensor:
        """(G, 1, out)."""
        bias = self.shared_bias.expand(self.n_agents, 1, -1)
        return bias if self.scale is None else bias * self.scale

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = inputs @ self.shared_weight + self.shared_bias
        return outputs if self.scale is None else outputs * self.scale


class EmbeddedLinear(nn.Module):
    """One affine map for G agents that reads (x_g, e_g), e_g a learned vector of agent g.

    As x_g W' + (e_g W'' + b), it is an affine map of x whose bias is the agent's own.

    Attributes:
        embedding: (G, d) parameter, standard normal at first.
        shared_weight, shared_bias: (in + d, out) and (out,) parameters.
        scale: As in `SharedLinear`.
        weight, bias: The map of x alone as `BatchedLinear` keeps it, (G, in, out) and (G, 1, out),
            with gradients.
    """

    scale: Tensor | None

    def __init__(
        self,
        n_agents: int,
        n_inputs: int,
        n_outputs: int,
        width: int,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        *,
        scaled: bool,
    ) -> None:
        super().__init__()
        self.n_inputs = n_inputs
        n_read = n_inputs + width
        self.shared_weight = _uniform((n_read, n_outputs), n_read, generator, dtype)
        self.shared_bias = _uniform((n_outputs,), n_read, generator, dtype)
        if generator is None:
            embedding = torch.empty(n_agents, width, dtype=dtype, device="meta")
        else:
            embedding = torch.randn(n_agents, width, generator=generator, dtype=dtype)
        self.embedding = nn.Parameter(embedding)
        self.register_buffer("scale", torch.ones(n_agents, 1, 1, dtype=dtype) if scaled else None)

    @property
    def weight(self) -> Tensor:
        """(G, in, out)."""
        weight = self.shared_weight[: self.n_inputs].expand(len(self.embedding), -1, -1)
        return weight if self.scale is None else weight * self.scale

    @property
    def bias(self) -> Tensor:
        """(G, 1, out)."""
        own = self.embedding @ self.shared_weight[self.n_inputs :] + self.shared_bias
        return own[:, None] if self.scale is None else own[:, None] * self.scale

    def forward(self, inputs: Tensor) -> Tensor:
        alike = len(inputs) > 1 and inputs.stride(0) == 0
        outputs = (inputs[:1] if alike else inputs) @ self.shared_weight[: self.n_inputs]
        own = self.embedding @ self.shared_weight[self.n_inputs :] + self.shared_bias
        outputs = outputs + own[:, None]
        return outputs if self.scale is None else outputs * self.scale


class Bounded(nn.Module):
    """(G, B, A) raw outputs → logits whose Lipschitz constants are at most L, whatever the weights.

    Attributes:
        unit: u, what the raw outputs are divided by: ℓ as it was built, so that small logits pass
            unchanged.
        limit: (G, 1, 1) buffer ℓ. Rescaling the logits of an agent rescales it, and its L with it.
    """

    limit: Tensor

    def __init__(self, n_agents: int, n_actions: int, bound: float, dtype: torch.dtype) -> None:
        super().__init__()
        limit = torch.tensor(_limit(bound, n_actions), dtype=dtype)
        if float(limit) > _limit(bound, n_actions):
            limit = torch.nextafter(limit, torch.zeros_like(limit))
        self.unit = float(limit)
        self.register_buffer("limit", limit.expand(n_agents, 1, 1).clone())

    def forward(self, raw: Tensor) -> Tensor:
        squashed = torch.tanh((raw - raw.mean(dim=-1, keepdim=True)) / self.unit)
        return self.limit * squashed.clamp(-1.0, 1.0)


def _limit(bound: float, n_actions: int) -> float:
    """ℓ for L, a little below, so that 4ℓ(A − 1)/A ≤ L in spite of two roundings; L for one action."""
    return bound * n_actions / (4 * (n_actions - 1)) * (1 - 2.0**-50) if n_actions > 1 else bound


class Tabular(nn.Module):
    """One free logit for every agent, scope state and action: a (G, R, A) parameter."""

    def __init__(self, sizes: Sequence[int], table: Tensor) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.table = nn.Parameter(table)

    def row(self, observations: Tensor) -> Tensor:
        """(G, B) rows of the table for (G, B, m) observations."""
        row = torch.zeros(observations.shape[:-1], dtype=torch.int64)
        for i, size in enumerate(self.sizes):
            row = row * size + observations[..., i]
        return row

    def forward(self, observations: Tensor) -> Tensor:
        row = self.row(observations)
        index = row.unsqueeze(-1).expand(*row.shape, self.table.shape[-1])
        return self.table.gather(1, index)


def _uniform(
    shape: tuple[int, ...], n_inputs: int, generator: torch.Generator | None, dtype: torch.dtype
) -> nn.Parameter:
    """Uniform in ±1/√inputs; on the meta device, without numbers, where there is no generator."""
    if generator is None:
        return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
    scale = 1.0 / math.sqrt(max(n_inputs, 1))
    return nn.Parameter((2.0 * torch.rand(*shape, generator=generator, dtype=dtype) - 1.0) * scale)
