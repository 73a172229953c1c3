"""Batched networks against one agent at a time, and the indexing of tables."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torchloc as tl
from torchloc.policy import AgentGroup, Tabular, networks

ACTIVATIONS = {"relu": functional.relu, "tanh": torch.tanh, "gelu": functional.gelu}
# Three layers of dot products with at most 8 terms of size about 1, one rounding a term and product.
ATOL = {dtype: 50 * torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32)}


def _group(n_agents: int, sizes: tuple[int, ...], n_actions: int) -> AgentGroup:
    scope = np.tile(np.arange(len(sizes)), (n_agents, 1))
    return AgentGroup(np.arange(n_agents), scope, sizes, n_actions)


def _mlp(
    group: AgentGroup,
    hidden: tuple[int, ...],
    activation: str = "relu",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> nn.Module:
    description = networks.described("mlp", hidden=hidden, activation=activation)
    return networks.built(description, group, dtype, torch.Generator().manual_seed(seed))


def _one_hot(observation: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """(Σ sizes,) indicators, written by hand."""
    x = torch.zeros(sum(sizes))
    for start, value in zip(np.cumsum([0, *sizes]), observation.tolist(), strict=False):
        x[start + value] = 1.0
    return x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("hidden", [(), (5,), (7, 4)])
@pytest.mark.parametrize("sizes", [(3,), (2, 3, 1)])
def test_batched_mlp_is_one_network_an_agent(
    sizes: tuple[int, ...], hidden: tuple[int, ...], activation: str, dtype: torch.dtype
) -> None:
    group = _group(4, sizes, 3)
    network = _mlp(group, hidden, activation, dtype)
    observations = torch.stack([group.observations().roll(g, 0) for g in range(4)])
    batched = network(observations)
    assert batched.shape == (4, group.n_rows, 3) and batched.dtype == dtype
    layers = [layer for layer in network if isinstance(layer, networks.BatchedLinear)]
    assert len(layers) == len(hidden) + 1
    for g, row in itertools.product(range(4), range(group.n_rows)):
        x = _one_hot(observations[g, row], sizes).to(dtype)
        for i, layer in enumerate(layers):
            x = ACTIVATIONS[activation](x) if i else x
            x = functional.linear(x, layer.weight[g].T, layer.bias[g, 0])
        torch.testing.assert_close(batched[g, row], x, rtol=0, atol=ATOL[dtype])


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_no_agent_touches_the_weights_of_another(hidden: tuple[int, ...]) -> None:
    group = _group(3, (2, 2), 2)
    network = _mlp(group, hidden, "tanh")
    network(group.observations().expand(3, -1, -1))[1].sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[[0, 2]].any() and parameter.grad[1].any()


@pytest.mark.parametrize("hidden", [(), (4, 4)])
def test_blind_agents_have_one_law(hidden: tuple[int, ...]) -> None:
    group = _group(3, (), 4)
    logits = _mlp(group, hidden)(group.observations().expand(3, 5, 0))
    assert logits.shape == (3, 5, 4) and torch.isfinite(logits).all()
    assert torch.equal(logits, logits[:, :1].expand_as(logits))


def test_initial_weights_come_from_the_generator_and_shrink_with_the_inputs() -> None:
    group = _group(50, (2, 3), 2)
    first, again, other = (_mlp(group, (9,), seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
    for layer, n_inputs in zip([first[1], first[3]], [5, 9], strict=True):
        for parameter in layer.parameters():
            size = parameter.abs().max()
            assert 0.9 / n_inputs**0.5 < size <= 1.0 / n_inputs**0.5


@pytest.mark.parametrize("sizes", [(), (3,), (2, 3), (3, 1, 2)])
def test_tables_are_indexed_with_the_last_coordinate_fastest(sizes: tuple[int, ...]) -> None:
    table = torch.arange(2 * int(np.prod(sizes)) * 2, dtype=torch.float64).reshape(2, -1, 2)
    group = _group(2, sizes, 2)
    observations = torch.stack([group.observations(), group.observations().flip(0)])
    logits = Tabular(sizes, table)(observations)
    for g, row in itertools.product(range(2), range(group.n_rows)):
        place = tuple(observations[g, row].tolist())
        flat = int(np.ravel_multi_index(place, sizes)) if sizes else 0
        assert torch.equal(logits[g, row], table[g, flat])
        assert torch.equal(logits[g, row], group.unflatten(table)[(g, *place)])


def test_tabular_scale() -> None:
    group, description = _group(400, (2, 2), 3), networks.described("tabular")
    generator = torch.Generator().manual_seed(0)
    table = networks.built(description, group, torch.float64, generator, 2.5).table.detach()
    # 4,800 normal draws: the mean is within 5 of its standard errors, so is the variance.
    n = table.numel()
    assert abs(float(table.mean())) < 5 * 2.5 / n**0.5
    assert abs(float(table.var()) / 2.5**2 - 1.0) < 5 * (2 / n) ** 0.5
    assert not networks.built(description, group, torch.float64, generator).table.any()


@pytest.mark.parametrize("hidden", [None, (), (6, 5)])
def test_scaling_logits_scales_each_agent_by_its_own_factor(hidden: tuple | None) -> None:
    group, generator = _group(3, (2, 3), 2), torch.Generator().manual_seed(4)
    if hidden is None:
        network = networks.tabular(group, generator, torch.float64, 1.0)
    else:
        network = _mlp(group, hidden)
    observations = group.observations().expand(3, -1, -1)
    before = network(observations).detach()
    factor = torch.tensor([2.0, 1.0, 0.125], dtype=torch.float64)
    networks.scale_logits(network, factor)
    # Powers of two scale every term and every rounding alike.
    assert torch.equal(network(observations).detach(), factor[:, None, None] * before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cnn"}, "the kind of network is 'cnn'; choose tabular or mlp"),
        ({"kind": "mlp", "activation": "elu"}, "activation is 'elu'; choose one of relu, tanh"),
        ({"kind": "mlp", "activation": ["relu"]}, r"activation is \['relu'\]; choose one of"),
        ({"kind": "mlp", "hidden": 32}, "hidden is 32; give a list of widths"),
        ({"kind": "mlp", "hidden": (8, 0)}, "layer 1 has width 0; give whole numbers from 1"),
        ({"kind": "mlp", "hidden": (2.5,)}, "layer 0 has width 2.5; give whole numbers"),
        ({"kind": "mlp", "hidden": (True,)}, "layer 0 has width True; give whole numbers"),
        ({"kind": "mlp", "hidden": (2**20 + 1,)}, "width 1048577; .* from 1 to 1048576"),
        ({"kind": "mlp", "hidden": "32"}, "layer 0 has width '3'; give whole numbers"),
    ],
)
def test_descriptions_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(tl.InputError, match=message):
        networks.described(**options)


def test_descriptions_are_plain() -> None:
    assert networks.described("tabular") == {"kind": "tabular"}
    described = networks.described("mlp", hidden=np.array([4, 2]), activation="tanh")
    assert described == {"kind": "mlp", "hidden": [4, 2], "activation": "tanh"}
    assert all(type(width) is int for width in described["hidden"])
