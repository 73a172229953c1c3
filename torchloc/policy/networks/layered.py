"""Networks that are a chain of layers, and any network under other parameters than its own.

Many agents pass through a chain in chunks whose intermediate values stay in the processor's cache;
a chunk costs as much as a larger one, and all of them no more memory than one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from torchloc.policy.networks.layers import (
    BatchedLinear,
    Bounded,
    EmbeddedLinear,
    OneHot,
    SharedLinear,
    Tabular,
)

LogitNetwork = nn.Module
"""(G, B, m) int64 observations → (G, B, A) logits, agent g of the group reading row g only."""
CHUNK = 2**21
"""Bytes of what the widest layer gives at once, where agents pass in chunks."""


class LayeredNetwork(nn.Sequential):
    """`OneHot`, then affine layers with activations between them, then `Bounded` where asked for.

    (G, B, m) observations → (G, B, A) logits. Hooks of the network see whole batches; hooks of its
    layers see them in chunks of agents where there are many.
    """

    def forward(self, input: Tensor) -> Tensor:
        size = chunk_size(self, input.shape[1])
        if len(input) <= size:
            return super().forward(input)
        own = own_state(self)
        # One split each: its gradient is one concatenation, that of a slice is as long as the whole.
        pieces = zip(*(value.split(size) for value in own.values()), strict=True)
        parts = [
            applied(self, dict(zip(own, piece, strict=True)), seen)
            for piece, seen in zip(pieces, input.split(size), strict=True)
        ]
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class Unrolled:
    """A layered network as each of its agents computes it.

    z = bounded(W_L σ(… σ(x W_1 + b_1) …) + b_L), x the concatenated indicators of the observation.

    Attributes:
        sizes: Of the coordinates that x indicates.
        weights: (G, in, out) a layer, views of the parameters that carry gradients.
        biases: (G, 1, out) a layer.
        activation: σ, elementwise; None where there is one layer.
        bounded: What closes the chain; None: logits as they are.
    """

    sizes: tuple[int, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: nn.Module | None
    bounded: Bounded | None


def unrolled(network: LayeredNetwork) -> Unrolled:
    """The weights of every agent, whether it owns or shares them."""
    layers = list(network.children())
    affine = [x for x in layers if isinstance(x, BatchedLinear | SharedLinear | EmbeddedLinear)]
    last = layers[-1]
    return Unrolled(
        cast(OneHot, layers[0]).sizes,
        tuple(layer.weight for layer in affine),
        tuple(layer.bias for layer in affine),
        layers[2] if len(affine) > 1 else None,
        last if isinstance(last, Bounded) else None,
    )


def chunk_size(network: LayeredNetwork, n_rows: int) -> int:
    """Agents whose B = `n_rows` observations pass at once: their widest layer gives `CHUNK` bytes."""
    widest = 1
    for layer in network:
        if isinstance(layer, BatchedLinear):
            widest = max(widest, layer.weight.shape[-1] * layer.weight.element_size())
        elif isinstance(layer, SharedLinear | EmbeddedLinear):
            weight = layer.shared_weight
            widest = max(widest, weight.shape[-1] * weight.element_size())
    return max(1, CHUNK // (max(1, n_rows) * widest))


def own_state(network: nn.Module, *, shared: bool = False) -> dict[str, Tensor]:
    """Parameters and buffers by name whose row g is agent g's alone; the others are the group's.

    Args:
        network: Of a group.
        shared: Whether a module that is not of this package has none of these, or only these.
    """
    if not isinstance(network, LayeredNetwork | Tabular):
        return {} if shared else dict(network.named_parameters())
    result = {}
    for prefix, module in network.named_modules():
        for name in _OWN.get(type(module), ()):
            value = getattr(module, name)
            if value is not None:
                result[f"{prefix}.{name}" if prefix else name] = value
    return result


_OWN: dict[type[nn.Module], tuple[str, ...]] = {
    BatchedLinear: ("weight", "bias"),
    SharedLinear: ("scale",),
    EmbeddedLinear: ("embedding", "scale"),
    Bounded: ("limit",),
    Tabular: ("table",),
}


def applied(network: nn.Module, state: Mapping[str, Tensor], observations: Tensor) -> Tensor:
    """(G', B, A) logits of a network with other parameters and buffers, past its own hooks.

    Args:
        network: Of a group of G agents.
        state: By name; what is not named stays. G' rows where a row is an agent's.
        observations: (G', B, m) integers.
    """
    named = {f"network.{name}": value for name, value in state.items()}
    return functional_call(_Unhooked(network), named, (observations,))


class _Unhooked(nn.Module):
    """A network whose hooks do not fire: what a fit tries out is no batch that the policy answered."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor) -> Tensor:
        return self.network.forward(observations)
