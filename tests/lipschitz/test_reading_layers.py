"""Which networks the certified bound reads, that it reads them right, and that it refuses the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from batches import batch, of_modules
from torch import Tensor, nn
from torch.nn import functional

import torchloc as tl
from torchloc.lipschitz import logit_bounds, logit_lipschitz
from torchloc.lipschitz.layers import read_chains
from torchloc.policy import AgentGroup
from torchloc.policy.networks import BatchedLinear, LayeredNetwork, OneHot

SIZES, ACTIONS, AGENTS = (2, 3, 2), 3, 6


def _linear(n_inputs: int, n_outputs: int, seed: int = 0) -> BatchedLinear:
    generator = torch.Generator().manual_seed(seed)
    return BatchedLinear(AGENTS, n_inputs, n_outputs, generator, torch.float64)


def _policy(*modules: nn.Module, network: type[nn.Module] = nn.Sequential) -> tl.SoftmaxPolicy:
    return of_modules(AGENTS, SIZES, ACTIONS, lambda _: network(*modules))


def _hot() -> OneHot:
    return OneHot(SIZES, torch.float64)


class Residual(nn.Module):
    """A residual sum around a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _linear(5, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.relu(self.inner(inputs))


class Functional(nn.Sequential):
    """A Sequential that applies a functional activation on the way."""

    def forward(self, input: Tensor) -> Tensor:
        hot, first, last = self
        return last(functional.relu(first(hot(input))))


class Doubled(nn.Tanh):
    """An activation that is not what its base class is."""

    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * super().forward(input)


READABLE: dict[str, Callable[[], tuple[nn.Module, ...]]] = {
    "in-place ReLU": lambda: (_hot(), _linear(7, 5), nn.ReLU(inplace=True), _linear(5, 3)),
    "nested": lambda: (nn.Sequential(_hot(), _linear(7, 5)), nn.Sequential(nn.Tanh(), _linear(5, 3))),
    "dropout in eval mode": lambda: (_hot(), _linear(7, 5), nn.GELU(), nn.Dropout().eval(), _linear(5, 3)),
    "dropout of nothing": lambda: (_hot(), _linear(7, 5), nn.Tanh(), nn.Dropout(0.0), _linear(5, 3)),
    "identity": lambda: (nn.Identity(), _hot(), _linear(7, 5), nn.Identity(), nn.ReLU(), _linear(5, 3)),
    "two affine layers in a row": lambda: (_hot(), _linear(7, 5), _linear(5, 6), nn.ReLU(), _linear(6, 3)),
    "an activation last": lambda: (_hot(), _linear(7, 5), nn.ReLU(), _linear(5, 3), nn.Tanh()),
    "different activations": lambda: (
        _hot(), _linear(7, 5), nn.ReLU(), _linear(5, 4), nn.Tanh(), _linear(4, 4), nn.GELU(), _linear(4, 3),
    ),
    "torch's own Linear": lambda: (
        _hot(), nn.Linear(7, 5, dtype=torch.float64), nn.ReLU(), nn.Linear(5, 3, False, dtype=torch.float64),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READABLE)
def test_chains_compute_what_their_modules_do(name: str) -> None:
    policy = _policy(*READABLE[name]())
    (group,), (network,) = policy.groups, policy.networks
    rows = torch.tensor([4, 1])
    ((_, chain),) = read_chains(network, group, rows, 2, "network")
    seen = group.observations()
    want = network(seen.expand(AGENTS, -1, -1)).detach()[rows]
    # A few sums of at most 7 terms of size one.
    torch.testing.assert_close(chain(seen.expand(2, -1, -1)), want, rtol=0, atol=1e-14)
    exact = logit_lipschitz(policy).toarray()
    bound = logit_bounds(policy, branches=1, steps=1).toarray()
    assert (exact <= bound).all() and (bound <= 20 * exact + 1e-9).all()


@pytest.mark.parametrize("options", [{"embedding": 3}, {"embedding": 0}, {"bound": 0.5}, {}])
def test_the_networks_of_the_package_are_read(options: dict[str, float]) -> None:
    policy = batch(7, SIZES, 4, (6, 5), "tanh", **options)
    (group,), (network,) = policy.groups, policy.networks
    torch.nn.init.normal_(next(network.parameters()))
    policy.set_temperature(
        np.linspace(0.5, 2.0, 7), hold="policy"
    )  # rescales logits agent by agent
    rows = torch.tensor([6, 0, 3])
    ((_, chain),) = read_chains(network, group, rows, 3, "network")
    seen = group.observations()
    want = network(seen.expand(7, -1, -1)).detach()[rows]
    torch.testing.assert_close(chain(seen.expand(3, -1, -1)), want, rtol=0, atol=1e-13)


def _bad_number() -> tuple[nn.Module, ...]:
    layer = _linear(7, 3)
    with torch.no_grad():
        layer.weight[2, 1, 0] = torch.nan
    return _hot(), layer


REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, ...]], str]] = {
    "residual": (
        lambda: (_hot(), _linear(7, 5), Residual(), _linear(5, 3)),
        r"networks\.0\.2 is Residual, which cannot be read; certified bounds read nn\.Sequential of",
    ),
    "subclass": (
        lambda: (_hot(), _linear(7, 5), Doubled(), _linear(5, 3)),
        r"networks\.0\.2 is Doubled, which cannot be read",
    ),
    "batch norm": (
        lambda: (_hot(), _linear(7, 5), nn.BatchNorm1d(12), nn.ReLU(), _linear(5, 3)),
        r"networks\.0\.2 is BatchNorm1d, which cannot be read",
    ),
    "unknown": (
        lambda: (_hot(), _linear(7, 5), nn.Softplus(), _linear(5, 3)),
        r"networks\.0\.2 is Softplus, which cannot be read",
    ),
    "dropout": (
        lambda: (_hot(), _linear(7, 5), nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), _linear(5, 3)),
        r"networks\.0\.2\.1 is a Dropout in training mode, .* call eval\(\)",
    ),
    "other GELU": (
        lambda: (_hot(), _linear(7, 5), nn.GELU("tanh"), _linear(5, 3)),
        r"networks\.0\.2 is a GELU with approximate='tanh'",
    ),
    "two activations": (
        lambda: (_hot(), _linear(7, 5), nn.ReLU(), nn.Tanh(), _linear(5, 3)),
        r"networks\.0\.3 \(Tanh\) does not follow an affine layer",
    ),
    "no encoding": (
        lambda: (_linear(7, 5), nn.ReLU(), _linear(5, 3)),
        r"networks\.0\.0 is BatchedLinear, but .* starts with OneHot",
    ),
    "wrong encoding": (
        lambda: (OneHot((3, 2, 2), torch.float64), _linear(7, 3)),
        r"networks\.0\.0 encodes coordinates of sizes \(3, 2, 2\), but the scope has \(2, 3, 2\)",
    ),
    "NaN": (_bad_number, r"networks\.0\.1 of agent 2 holds NaN or ∞"),
    "half precision": (
        lambda: (_hot().to(torch.bfloat16), _linear(7, 3).to(torch.bfloat16)),
        r"networks\.0 has parameters of \['torch\.bfloat16'\]; rounding is bounded for one dtype",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused(name: str) -> None:
    modules, message = REFUSED[name]
    built = modules()
    if name == "half precision":
        built[0].dtype = torch.bfloat16  # type: ignore[assignment]
    with pytest.raises(tl.InputError, match=message):
        logit_bounds(_policy(*built))


def test_a_forward_pass_of_the_users_own_is_refused_but_enumerated() -> None:
    policy = _policy(_hot(), _linear(7, 5), _linear(5, 3), network=Functional)
    with pytest.raises(tl.InputError, match=r"networks\.0 is Functional, but a network whose"):
        logit_bounds(policy)
    assert logit_lipschitz(policy).nnz == AGENTS * len(SIZES)


def test_code_outside_the_layers_is_caught_by_the_replay() -> None:
    policy = _policy(_hot(), _linear(7, 5), nn.ReLU(), _linear(5, 3))
    logit_bounds(policy, branches=0, steps=0)
    handle = policy.networks[0][1].register_forward_hook(lambda _, __, output: 1.01 * output)
    with pytest.raises(tl.InputError, match=r"networks\.0 does not compute what its layers say"):
        logit_bounds(policy)
    handle.remove()
    policy.networks[0][2].forward = torch.tanh
    with pytest.raises(tl.InputError, match="does not compute what its layers say"):
        logit_bounds(policy)


def test_reduced_precision_products_are_refused() -> None:
    policy = batch(2, SIZES, ACTIONS, (5,), dtype=torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(tl.InputError, match="set it to 'highest'"):
            logit_bounds(policy)
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_large_scope_that_cannot_be_read_says_what_to_do() -> None:
    class Own(nn.Module):
        def forward(self, observations: Tensor) -> Tensor:
            return observations[..., :3].double()

    policy = of_modules(2, (2,) * 30, 3, lambda _: Own())
    with pytest.raises(tl.InputError, match=r"networks\.0 is Own, .* small enough to enumerate"):
        tl.LipschitzMonitor(policy).certified()


def test_layered_networks_are_read_only_as_themselves() -> None:
    class Other(LayeredNetwork):
        """Might compute anything."""

    def build(_: AgentGroup) -> nn.Module:
        return Other(_hot(), _linear(7, 3))

    with pytest.raises(tl.InputError, match=r"networks\.0 is Other"):
        logit_bounds(of_modules(AGENTS, SIZES, ACTIONS, build))
