"""Batched networks against one agent at a time, shared and bounded ones, and tables."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torchloc as tl
from torchloc.policy import AgentGroup, Tabular, networks
from torchloc.policy.networks import layered

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
    **options: Any,
) -> networks.LayeredNetwork:
    description = networks.described("mlp", hidden=hidden, activation=activation, **options)
    network = networks.built(description, group, dtype, torch.Generator().manual_seed(seed))
    assert isinstance(network, networks.LayeredNetwork)
    return network


def _logits(network: nn.Module, group: AgentGroup) -> Tensor:
    """(G, R, A) at all scope states."""
    return network(group.observations().expand(len(group), -1, -1))


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


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


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_batched_mlp_is_a_stack_of_torch_networks(activation: str) -> None:
    """The 16–16 networks of the benchmark: equal to a loop over `nn.Linear` to 1e-12."""
    group = _group(6, (2, 2, 2), 2)
    network = _mlp(group, (16, 16), activation)
    maps = [layer for layer in network if isinstance(layer, networks.BatchedLinear)]
    batched = _logits(network, group)
    for g in range(6):
        layers: list[nn.Module] = []
        for layer in maps:
            linear = nn.Linear(*layer.weight.shape[1:], dtype=torch.float64)
            linear.weight.data, linear.bias.data = layer.weight.data[g].T, layer.bias.data[g, 0]
            layers += [linear, networks.ACTIVATIONS[activation]()]
        alone = nn.Sequential(*layers[:-1])
        inputs = torch.stack([_one_hot(row, group.sizes) for row in group.observations()])
        torch.testing.assert_close(batched[g], alone(inputs.double()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"embedding": 3}, {"bound": 0.7}])
@pytest.mark.parametrize("alike", [True, False])
def test_chunks_of_agents_change_nothing(
    options: dict[str, Any], alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = _group(11, (2, 3), 3)
    network = _mlp(group, (5, 4), "tanh", **options)
    if alike:
        observations = group.observations().expand(11, -1, -1)
    else:
        observations = torch.stack([group.observations().roll(g, 0)[:4] for g in range(11)])
    weight = torch.randn(11, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def results() -> list[Tensor]:
        logits = network(observations)
        loss = (logits.square() * weight).sum()
        return [logits, *torch.autograd.grad(loss, list(network.parameters()))]

    whole = results()
    calls: list[tuple[int, ...]] = []
    network.register_forward_hook(lambda _, seen, __: calls.append(tuple(seen[0].shape)))
    monkeypatch.setattr(layered, "CHUNK", 3 * observations.shape[1] * 5 * 8)
    assert layered.chunk_size(network, observations.shape[1]) == 3
    for chunked, once in zip(results(), whole, strict=True):
        torch.testing.assert_close(chunked, once, rtol=0, atol=1e-13)
    # The hooks of the network see one whole batch.
    assert calls == [tuple(observations.shape)]


def test_other_parameters_are_tried_past_the_hooks() -> None:
    group = _group(4, (2, 2), 2)
    network = _mlp(group, (3,))
    seen = group.observations().expand(2, -1, -1)
    network.register_forward_hook(lambda *_: pytest.fail("a hook saw what was only tried"))
    own = {name: value[[3, 1]] + 1.0 for name, value in networks.own_state(network).items()}
    tried = networks.applied(network, own, seen)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1.0
    expected = network.forward(group.observations().expand(4, -1, -1))[[3, 1]]
    torch.testing.assert_close(tried, expected, rtol=0, atol=1e-14)


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


# Sharing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)])
def test_shared_networks_commute_with_permutations_of_the_agents(hidden: tuple[int, ...]) -> None:
    group, order = _group(5, (2, 3), 3), torch.tensor([3, 0, 4, 1, 2])
    network = _mlp(group, hidden, "tanh", embedding=4)
    seen = torch.stack([group.observations().roll(g, 0) for g in range(5)])
    logits = network(seen)
    first = network[1]
    assert isinstance(first, networks.EmbeddedLinear)
    first.embedding.data = first.embedding.data[order]
    torch.testing.assert_close(network(seen[order]), logits[order], rtol=0, atol=1e-15)
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("hidden", [(), (6, 5)])
def test_shared_networks_read_the_observation_and_the_embedding(hidden: tuple[int, ...]) -> None:
    group = _group(4, (2, 3), 3)
    network = _mlp(group, hidden, "tanh", embedding=2)
    kinds = (networks.EmbeddedLinear, networks.SharedLinear)
    maps = [layer for layer in network if isinstance(layer, kinds)]
    assert len(maps) == len(hidden) + 1
    logits, embedding = _logits(network, group), network.get_parameter("1.embedding")
    for g, (row, observation) in itertools.product(range(4), enumerate(group.observations())):
        x = torch.cat([_one_hot(observation, group.sizes).double(), embedding[g]])
        for i, layer in enumerate(maps):
            x = (torch.tanh(x) if i else x) @ layer.shared_weight + layer.shared_bias
        torch.testing.assert_close(logits[g, row], x, rtol=0, atol=1e-14)


def test_embeddings_get_their_own_gradients_and_the_rest_a_common_one() -> None:
    group = _group(3, (2, 2), 2)
    network = _mlp(group, (5,), "tanh", embedding=4)
    _logits(network, group)[1].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())
    embedding = network.get_parameter("1.embedding")
    assert embedding.grad is not None
    assert embedding.grad[1].all() and not embedding.grad[[0, 2]].any()
    # Central differences: at h = 1e-5 the third derivative leaves 1e-10, rounding 1e-11.
    step = torch.zeros_like(embedding)
    step[1, 2] = 1e-5
    values = []
    for sign in (1, -1):
        embedding.data += sign * step
        values.append(float(_logits(network, group)[1].detach().square().sum()))
        embedding.data -= sign * step
    slope = (values[0] - values[1]) / 2e-5
    assert float(embedding.grad[1, 2]) == pytest.approx(slope, abs=1e-9)


def test_sharing_costs_one_network_and_an_embedding_an_agent() -> None:
    network = _mlp(_group(50, (2, 2), 2), (8,), embedding=3)
    sizes = {name: value.numel() for name, value in network.named_parameters()}
    assert sizes["1.embedding"] == 150
    assert sum(sizes.values()) == 150 + (4 + 3 + 1) * 8 + (8 + 1) * 2
    group = _group(3, (2, 2), 2)
    alike = _logits(_mlp(group, (8,), embedding=0), group)
    assert torch.equal(alike[0], alike[2])


@pytest.mark.parametrize("options", [{}, {"embedding": 3}, {"embedding": 3, "bound": 1.0}])
@pytest.mark.parametrize("hidden", [(), (6, 5)])
def test_unrolled_layers_are_what_every_agent_computes(
    hidden: tuple[int, ...], options: dict[str, Any]
) -> None:
    group = _group(4, (2, 3), 3)
    network = _mlp(group, hidden, "gelu", **options)
    networks.scale_logits(network, torch.tensor([1.0, 0.5, 3.0, 1.0]))
    layers = networks.unrolled(network)
    assert layers.sizes == group.sizes and len(layers.weights) == len(hidden) + 1
    x = torch.stack([_one_hot(row, group.sizes) for row in group.observations()]).double()
    for i, (weight, bias) in enumerate(zip(layers.weights, layers.biases, strict=True)):
        assert weight.shape[0] == 4 and bias.shape == (4, 1, weight.shape[2])
        x = layers.activation(x) if i and layers.activation is not None else x
        x = x @ weight + bias
    x = x if layers.bounded is None else layers.bounded(x)
    torch.testing.assert_close(x, _logits(network, group), rtol=0, atol=1e-14)


# Bounds ---------------------------------------------------------------------------------------


def _constants(logits: Tensor) -> tuple[Fraction, Fraction]:
    """Exact (L, span) between any two rows of (R, A) logits."""
    rows = [[Fraction(value) for value in row] for row in logits.double().tolist()]
    centred = [[value - sum(row) / len(row) for value in row] for row in rows]
    largest = span = Fraction(0)
    for a, b in itertools.combinations(centred, 2):
        gaps = [x - y for x, y in zip(a, b, strict=True)]
        largest, span = max(largest, *map(abs, gaps)), max(span, max(gaps) - min(gaps))
    return largest, span


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n_actions", [2, 3, 5])
@pytest.mark.parametrize("bound", [1e-3, 0.7, 1.0, 1 / 3, 1e5])
def test_bounds_hold_exactly_whatever_the_weights(
    bound: float, n_actions: int, dtype: torch.dtype
) -> None:
    """No tolerance: the numbers themselves are within L, at weights from small to huge."""
    group, generator = _group(7, (2, 3), n_actions), torch.Generator().manual_seed(n_actions)
    network = _mlp(group, (4,), "tanh", dtype, bound=bound)
    scales = torch.tensor([1e-3, 1.0, 10.0, 1e3, 1e6, 1e15, 1e30], dtype=dtype)[:, None, None]
    with torch.no_grad():
        for parameter in network.parameters():
            draws = torch.randn(parameter.shape, generator=generator, dtype=dtype)
            parameter.copy_(bound * draws * scales)
        logits = _logits(network, group)
    assert torch.isfinite(logits).all()
    for agent in logits:
        largest, span = _constants(agent)
        assert largest <= Fraction(bound)
        assert span <= Fraction(bound) * n_actions / (n_actions - 1)


@pytest.mark.parametrize("n_actions", [2, 3, 5])
def test_bounds_are_attained(n_actions: int) -> None:
    """One coordinate turns logits (ℓ, −ℓ, …) into their negatives: L and span to a part 1e-14."""
    group, bound = _group(1, (2, 2), n_actions), 0.7
    network = _mlp(group, (), bound=bound)
    sign = torch.full((n_actions,), -1.0, dtype=torch.float64)
    sign[0] = 1.0
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        weight = network.get_parameter("1.weight")
        weight[0, 0], weight[0, 1] = 100.0 * sign, -100.0 * sign
    largest, span = _constants(_logits(network, group)[0].detach())
    assert 1 - 1e-14 < float(largest) / bound <= 1
    assert 1 - 1e-14 < float(span) * (n_actions - 1) / (n_actions * bound) <= 1


def test_bounded_logits_are_free_near_zero() -> None:
    """ℓ tanh(y/ℓ) = y + O(y³/ℓ²), |y| ≤ 3 here and ℓ = 1e6 · 3/8."""
    group = _group(3, (2, 2), 3)
    free, kept = _mlp(group, (4,)), _mlp(group, (4,), bound=1e6)
    difference = _centred(_logits(free, group)) - _logits(kept, group)
    assert difference.abs().max() <= 27 / 3.75e5**2 + 1e-14


def test_one_action_is_bounded_too() -> None:
    group = _group(2, (2,), 1)
    assert not _logits(_mlp(group, (4,), bound=1.0), group).any()


# Scales and descriptions -----------------------------------------------------------------------


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


@pytest.mark.parametrize("hidden", [(), (6, 5)])
@pytest.mark.parametrize(
    "options", [{"embedding": 3}, {"bound": 0.5}, {"embedding": 3, "bound": 2}]
)
def test_scaling_reaches_one_agent_of_a_shared_or_bounded_network(
    hidden: tuple[int, ...], options: dict[str, Any]
) -> None:
    group = _group(3, (2, 3), 2)
    network = _mlp(group, hidden, **options)
    before = _logits(network, group).detach()
    factor = torch.tensor([4.0, 1.0, 0.125], dtype=torch.float64)
    networks.scale_logits(network, factor)
    # Powers of two scale every rounding alike.
    assert torch.equal(_logits(network, group).detach(), factor[:, None, None] * before)


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
        ({"kind": "mlp", "embedding": -1}, "embedding is -1; give a whole number from 0"),
        ({"kind": "mlp", "embedding": 2.0}, "embedding is 2.0; give a whole number"),
        ({"kind": "mlp", "bound": 0}, "bound is 0; give a finite number > 0, or none"),
        ({"kind": "mlp", "bound": np.inf}, "bound is inf; give a finite number"),
        ({"kind": "mlp", "bound": "1"}, "bound is '1'; give a finite number"),
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
    described = networks.described("mlp", embedding=np.int64(4), bound=np.float32(0.5))
    expected = {"kind": "mlp", "hidden": [], "activation": "relu", "embedding": 4, "bound": 0.5}
    assert described == expected
    assert type(described["embedding"]) is int and type(described["bound"]) is float
