"""Many small networks in one policy: one group of K agents is K networks in one batched module."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchloc.graphs import Scopes
from torchloc.policy import AgentGroup, SoftmaxPolicy, networks


def batch(
    n_agents: int,
    sizes: tuple[int, ...],
    n_actions: int,
    hidden: tuple[int, ...],
    activation: str = "relu",
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    gain: float = 1.0,
    **options: Any,
) -> SoftmaxPolicy:
    """Networks that all see all coordinates; `gain` multiplies every initial parameter."""
    generator = torch.Generator().manual_seed(seed)
    description = networks.described("mlp", hidden=hidden, activation=activation, **options)

    def build(group: AgentGroup) -> nn.Module:
        return networks.built(description, group, dtype, generator)

    policy = of_modules(n_agents, sizes, n_actions, build)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(gain)
    return policy


def of_modules(n_agents: int, sizes: tuple[int, ...], n_actions: int, build: Any) -> SoftmaxPolicy:
    m = len(sizes)
    scopes = Scopes(np.arange(n_agents + 1) * m, np.tile(np.arange(m), n_agents))
    return SoftmaxPolicy(
        scopes, np.array(sizes), np.full(n_agents, n_actions), build, {"kind": "module"}
    )


def train(policy: SoftmaxPolicy, *, steps: int, seed: int = 0) -> SoftmaxPolicy:
    """Fits every network to a smooth random function of the scope by Adam; returns the policy."""
    (group,), (network,) = policy.groups, policy.networks
    generator = torch.Generator().manual_seed(seed)
    if math.prod(group.sizes) <= 4096:
        states = group.observations()
    else:
        columns = [torch.randint(size, (1024,), generator=generator) for size in group.sizes]
        states = torch.stack(columns, dim=1)
    levels = [torch.linspace(-1.0, 1.0, size).double() for size in group.sizes]
    inputs = torch.stack([level[states[:, i]] for i, level in enumerate(levels)], dim=1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    m, n_agents = len(group.sizes), len(group)
    waves = torch.sin(inputs @ normal(n_agents, m, 8) * 2 / math.sqrt(m) + normal(n_agents, 1, 8))
    target = waves @ normal(n_agents, 8, group.n_actions)
    seen = states.expand(n_agents, -1, -1)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        (network(seen).double() - target).square().mean(dim=(1, 2)).sum().backward()
        optimiser.step()
    return policy


def searched(
    policy: SoftmaxPolicy, *, span: bool, starts: int, rounds: int, seed: int = 0
) -> NDArray[np.float64]:
    """(K, m) lower bounds for binary coordinates: coordinate ascent over states from random ones."""
    (group,), (network,) = policy.groups, policy.networks
    generator = torch.Generator().manual_seed(seed)
    n_agents, m = len(group), len(group.sizes)
    result = torch.zeros(n_agents, m, dtype=torch.float64)

    def change(states: Tensor, i: int) -> Tensor:
        ends = []
        for value in (0, 1):
            copy = states.clone()
            copy[..., i] = value
            ends.append(network(copy).double())
        moved = ends[1] - ends[0]
        if span:
            return moved.amax(dim=-1) - moved.amin(dim=-1)
        return (moved - moved.mean(dim=-1, keepdim=True)).abs().amax(dim=-1)

    with torch.no_grad():
        for i in range(m):
            states = torch.randint(2, (n_agents, starts, m), generator=generator)
            best = change(states, i)
            for _ in range(rounds):
                for j in torch.randperm(m, generator=generator).tolist():
                    flipped = states.clone()
                    flipped[..., j] = 1 - flipped[..., j]
                    value = change(flipped, i)
                    states = torch.where((value > best)[..., None], flipped, states)
                    best = torch.maximum(best, value)
            result[:, i] = best.amax(dim=1)
    return result.numpy()
