"""Modules of the user's own: what the interface takes, and one clear error a way to break it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchloc as tl
from torchloc.policy import AgentGroup
from torchloc.policy.networks import BatchedLinear, OneHot

MDP = tl.FactoredMDP(
    [2, 3, 4],
    [2, 3, 2],
    [tl.LocalKernel((), (), np.full(size, 1 / size)) for size in (2, 3, 4)],
    [],
)
SCOPES = [(2, 0), (1,), (2, 0)]


class Slopes(nn.Module):
    """Logits linear in the values of the coordinates."""

    def __init__(self, n_agents: int, m: int, n_actions: int) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.randn(n_agents, m, n_actions, dtype=torch.float64))

    def forward(self, observations: Tensor) -> Tensor:
        return observations.double() @ self.slopes


def slopes(group: AgentGroup) -> nn.Module:
    return Slopes(len(group), len(group.sizes), group.n_actions)


class Shared(nn.Module):
    """One torch network for all agents of a group."""

    def __init__(self, group: AgentGroup) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(len(group.sizes), 5), nn.Tanh(), nn.Linear(5, group.n_actions)
        )

    def forward(self, observations: Tensor) -> Tensor:
        return self.body(observations.float())


def test_logits_are_the_modules_in_scope_order() -> None:
    policy = tl.SoftmaxPolicy.from_module(MDP, SCOPES, slopes, temperature=0.5, seed=2)
    assert [len(group) for group in policy.groups] == [1, 2]
    for k, scope in enumerate(SCOPES):
        network = policy.networks[int(policy.group_of[k])]
        table = policy.logits(k)
        assert table.dtype == torch.float64 and not table.requires_grad
        for place in np.ndindex(*table.shape[:-1]):
            expected = np.array(place) @ network.slopes[int(policy.row_of[k])].detach().numpy()
            np.testing.assert_allclose(table[place], expected, rtol=0, atol=1e-15)
        law = torch.softmax(table / 0.5, dim=-1)
        torch.testing.assert_close(policy.probabilities(k), law, rtol=0, atol=1e-15)
        assert table.shape[:-1] == tuple(MDP.state_sizes[list(scope)])
    states = torch.randint(2, (7, 3), generator=torch.Generator().manual_seed(0))
    assert policy.act(states, torch.Generator().manual_seed(1)).shape == (7, 3)
    for index, group in enumerate(policy.groups):
        assert set(policy.own_state(index)) == {"slopes"} and not policy.shares(index)
        policy.group_logits(index).sum().backward()
        assert policy.networks[index].slopes.grad.shape[0] == len(group)


def test_one_seed_gives_one_module_and_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    policies = [tl.SoftmaxPolicy.from_module(MDP, SCOPES, slopes, seed=s) for s in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    first, again, other = (policy.logits(0) for policy in policies)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_shared_modules() -> None:
    policy = tl.SoftmaxPolicy.from_module(MDP, SCOPES, Shared, shared=True)
    assert torch.equal(policy.logits(0), policy.logits(2))
    index = int(policy.group_of[0])
    assert policy.own_state(index) == {} and policy.shares(index)
    policy.check(MDP)
    assert tl.SoftmaxPolicy.mlp(MDP, SCOPES, sharing=True).shares(index)
    assert not tl.SoftmaxPolicy.mlp(MDP, SCOPES).shares(index)
    assert not tl.SoftmaxPolicy.tabular(MDP, SCOPES).shares(index)


def test_modules_may_be_made_of_the_packages_layers() -> None:
    def build(group: AgentGroup) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        shape = (len(group), sum(group.sizes), group.n_actions)
        affine = BatchedLinear(*shape, generator, torch.float64)
        return nn.Sequential(OneHot(group.sizes, torch.float64), affine)

    policy = tl.SoftmaxPolicy.from_module(MDP, SCOPES, build)
    before = policy.probabilities(2)
    policy.set_temperature([0.25, 1.0, 4.0], hold="policy")
    assert torch.equal(policy.probabilities(2), before)


def test_other_modules_cannot_be_rescaled() -> None:
    policy = tl.SoftmaxPolicy.from_module(MDP, SCOPES, slopes)
    with pytest.raises(tl.InputError, match="of type Slopes cannot be rescaled, which hold=policy"):
        policy.set_temperature(0.5, hold="policy")
    policy.set_temperature(0.5)


class Odd(Slopes):
    """`Slopes` with something wrong."""

    def __init__(self, group: AgentGroup, wrong: Callable[[Odd, Tensor], Any]) -> None:
        super().__init__(len(group), len(group.sizes), group.n_actions)
        self.wrong = wrong
        self.calls = 0

    def forward(self, observations: Tensor) -> Any:
        self.calls += 1
        return self.wrong(self, super().forward(observations))


def _odd(wrong: Callable[[Odd, Tensor], Any]) -> Callable[[AgentGroup], nn.Module]:
    return lambda group: Odd(group, wrong)


ERRORS: dict[str, tuple[Callable[[AgentGroup], Any], list[str]]] = {
    "no module": (lambda group: 3, ["is int; return a torch.nn.Module"]),
    "no agents": (
        lambda group: Slopes(len(group) + 1, len(group.sizes), group.n_actions),
        ["parameter slopes has shape (2, 1, 3)", "the 1 agents", "shared=True"],
    ),
    "shared": (Shared, ["parameter body.0.weight has shape (5, 1)", "shared=True"]),
    "shape": (_odd(lambda _, z: z[..., :1]), ["returned (1, 2, 1)", "(G, B, A) = (1, 2, 3)"]),
    "none": (_odd(lambda _, z: None), ["returned NoneType"]),
    "integers": (_odd(lambda _, z: z.long()), ["returned torch.int64; floating"]),
    "nan": (_odd(lambda _, z: z / 0.0), ["returned NaN or ∞"]),
    "state": (_odd(lambda me, z: z + me.calls), ["two answers to one observation", "dropout"]),
    "batch statistics": (
        _odd(lambda _, z: z - z.mean(dim=1, keepdim=True)),
        ["mixes observations", "batch statistics off"],
    ),
    "agents": (
        _odd(lambda _, z: z - z.mean(dim=0, keepdim=True)),
        ["2 agents from agent 0 on mixes agents", "row g of the parameters"],
    ),
    "all at once": (
        _odd(lambda _, z: z + z[[0, 1]] if z.shape[-1] == 2 else z),
        ["needs all agents at once", "row g of the parameters"],
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_breaks_the_interface_is_named(case: str) -> None:
    build, parts = ERRORS[case]
    with pytest.raises(tl.InputError) as caught:
        tl.SoftmaxPolicy.from_module(MDP, SCOPES, build)
    message = str(caught.value)
    assert message.startswith("build's module for the ")
    assert all(part in message for part in parts), message
