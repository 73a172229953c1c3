"""Ways to shrink a policy: the laws that come out, what stays to the bit, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from twins import draw

import torchloc as tl
from torchloc.environments import sis
from torchloc.errors import InputError
from torchloc.lipschitz import logit_lipschitz, logit_span
from torchloc.locality import HOWS, centres, shrink
from torchloc.locality.shrinking import UNSEEN, Family, checked_marginals
from torchloc.sensitivity import policy_sensitivity

Array = np.ndarray
# Affine maps of logits up to 150 τ in float64, divided and exponentiated.
ROUNDING = 1e-11


def policies() -> dict[str, tl.SoftmaxPolicy]:
    """Tables and networks on one model, with a temperature for each agent."""
    mdp = sis(5)
    scopes = tl.neighbourhood_scopes(mdp)
    tau = [0.3, 0.7, 1.0, 1.5, 0.2]
    return {
        "tabular": tl.SoftmaxPolicy.tabular(mdp, scopes, temperature=tau, scale=1.0, seed=3),
        "linear": tl.SoftmaxPolicy.linear(mdp, scopes, temperature=tau, seed=3),
        "mlp": tl.SoftmaxPolicy.mlp(mdp, scopes, hidden=(6,), temperature=tau, seed=3),
        "shared": tl.SoftmaxPolicy.mlp(
            mdp, scopes, hidden=(6,), sharing=True, temperature=tau, seed=3
        ),
        "bounded": tl.SoftmaxPolicy.mlp(
            mdp, scopes, hidden=(6,), bound=2.0, temperature=tau, seed=3
        ),
    }


POLICIES = policies()
OWN = ("tabular", "linear", "mlp")
CASES = [(kind, how) for kind in POLICIES for how in HOWS if how != "centre" or kind in OWN]
SCALE = np.array([1.0, 0.5, 0.01, 1.0, 0.9])


def shrunk(kind: str, how: str) -> tuple[tl.SoftmaxPolicy, tl.SoftmaxPolicy]:
    before = copy.deepcopy(POLICIES[kind])
    after = copy.deepcopy(before)
    shrink(after, SCALE, how)  # pyright: ignore[reportArgumentType]
    return before, after


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_spreads_over_temperature_are_multiplied_by_the_scale(kind: str, how: str) -> None:
    before, after = shrunk(kind, how)
    for measure in (logit_span, logit_lipschitz):
        old = measure(before).toarray() / before.temperature.numpy()[:, None]
        new = measure(after).toarray() / after.temperature.numpy()[:, None]
        np.testing.assert_allclose(new, SCALE[:, None] * old, rtol=1e-9, atol=ROUNDING)


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_the_policy_is_the_familys_law_and_scale_one_keeps_every_bit(kind: str, how: str) -> None:
    before, after = shrunk(kind, how)
    family = Family(before, how)  # pyright: ignore[reportArgumentType]
    for index, laws in enumerate(family.laws(SCALE)):
        group = before.groups[index]
        mine = group.unflatten(after.group_probabilities(index))
        torch.testing.assert_close(mine, laws, rtol=ROUNDING, atol=ROUNDING)
    exact = policy_sensitivity(after, "exact").toarray()
    np.testing.assert_allclose(family.sensitivity(SCALE).toarray(), exact, atol=ROUNDING)
    for agent in np.flatnonzero(SCALE == 1.0):
        assert torch.equal(before.logits(int(agent)), after.logits(int(agent)))
        assert before.temperature[agent] == after.temperature[agent]
    if how != "temperature":
        assert torch.equal(before.temperature, after.temperature)


@pytest.mark.parametrize("kind", POLICIES)
def test_raising_the_temperature_and_scaling_the_logits_are_one_law(kind: str) -> None:
    _, warmer = shrunk(kind, "temperature")
    _, smaller = shrunk(kind, "logits")
    for agent in range(5):
        torch.testing.assert_close(
            warmer.probabilities(agent), smaller.probabilities(agent), rtol=ROUNDING, atol=ROUNDING
        )


@pytest.mark.parametrize("kind", OWN)
def test_the_centre_is_the_mean_over_what_is_seen(kind: str) -> None:
    policy = POLICIES[kind]
    rng = np.random.default_rng(1)
    laws = torch.tensor(rng.dirichlet(np.ones(2), size=5))
    found = centres(policy, checked_marginals(laws, policy.state_sizes))[0][:, 0]
    mixed = (1.0 - UNSEEN) * laws.numpy() + UNSEEN / 2
    group = policy.groups[0]
    for row, agent in enumerate(group.agents):
        z = policy.logits(int(agent)).numpy()
        weight = np.ones(())
        for i in group.scope[row]:
            weight = np.multiply.outer(weight, mixed[i])
        np.testing.assert_allclose(
            found[row].numpy(), (weight[..., None] * z).sum((0, 1, 2)), atol=ROUNDING
        )
    # At scales near 0, every law is that of the centre.
    after = copy.deepcopy(policy)
    shrink(after, np.full(5, 1e-9), "centre", checked_marginals(laws, policy.state_sizes))
    for row, agent in enumerate(group.agents):
        one = torch.softmax(found[row] / policy.temperature[agent], dim=-1)
        many = after.probabilities(int(agent)).reshape(-1, 2)
        torch.testing.assert_close(many, one.expand_as(many), rtol=0, atol=1e-7)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("seed", range(4))
def test_forbidden_actions_stay_forbidden(seed: int, how: str) -> None:
    _, _, _, twin = draw(seed, policy={"minus_infinity": 0.3})
    after = copy.deepcopy(twin)
    shrink(after, np.full(twin.n_agents, 0.25), how)  # pyright: ignore[reportArgumentType]
    for k in range(twin.n_agents):
        assert torch.equal(twin.logits(k).isneginf(), after.logits(k).isneginf())
        assert not bool(after.logits(k).isnan().any())


def test_what_does_not_fit_is_refused() -> None:
    for kind in ("shared", "bounded"):
        with pytest.raises(InputError, match="centre"):
            shrink(copy.deepcopy(POLICIES[kind]), SCALE, "centre")
    policy = copy.deepcopy(POLICIES["tabular"])
    with pytest.raises(InputError, match="how"):
        shrink(policy, SCALE, "colder")  # pyright: ignore[reportArgumentType]
    for bad in (0.0, 1.5, np.nan):
        with pytest.raises(InputError, match="scale of agent 2"):
            shrink(policy, np.array([1.0, 1.0, bad, 1.0, 1.0]), "logits")


def test_a_module_of_the_users_own_can_be_made_warmer_only() -> None:
    class Own(nn.Module):
        def __init__(self, n_agents: int) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.randn(n_agents, 1, 2, dtype=torch.float64))

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return observations.sum(-1, keepdim=True) * self.slope

    mdp = sis(5)
    policy = tl.SoftmaxPolicy.from_module(
        mdp, tl.neighbourhood_scopes(mdp), lambda group: Own(len(group))
    )
    shrink(policy, SCALE, "temperature")
    np.testing.assert_allclose(policy.temperature.numpy(), 1.0 / SCALE, rtol=1e-15)
    for how in ("logits", "centre"):
        with pytest.raises(InputError):
            shrink(policy, SCALE, how)


@pytest.mark.parametrize(
    "marginals",
    [torch.ones(4, 2), torch.ones(5, 1), torch.ones(5), -torch.ones(5, 2), torch.zeros(5, 2)],
    ids=["rows", "columns", "axes", "negative", "nothing"],
)
def test_marginals_that_are_none_are_refused(marginals: torch.Tensor) -> None:
    with pytest.raises(InputError, match="marginals"):
        checked_marginals(marginals, np.full(5, 2))
