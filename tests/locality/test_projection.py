"""Projections: sound by definition on every rung, the least that is needed, honest where there is none."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from twins import draw

import torchloc as tl
from torchloc.certificate import Environment, Ladder
from torchloc.environments import hub_spoke, ising, line_msg, random_mdp, sis, sysadmin
from torchloc.errors import InputError, SolveError
from torchloc.locality import HOWS, PROJECTED, Locality, project, sensitivity_at, spreads
from torchloc.locality.rows import ExplicitRows, linear_scales
from torchloc.locality.scales import MONOTONE
from torchloc.spectral import spectral_radius

Array = np.ndarray
# Eigenvalues of a nearly defective block are off by the root of the rounding.
EIGENVALUE = 1e-7
# Sums and quotients of up to a dozen nonnegative terms, and TVs of laws, in the oracle.
ORACLE = 1e-12
# Rows are filled to 2e-6 below the target, and the grid of `exact` and `coupled` ends within 1e-5.
CLOSE = 1e-4


def plain(model: ref.Model, policy: tl.SoftmaxPolicy) -> ref.Policy:
    """The definition's policy with the logits and temperatures of the package's."""
    logits = [policy.logits(k).double().numpy() for k in range(policy.n_agents)]
    scopes = [tuple(policy.scopes[k]) for k in range(policy.n_agents)]
    return ref.Policy(scopes, logits, policy.temperature.numpy().copy())


def bounds(environment: Environment, policy: tl.SoftmaxPolicy, rung: str) -> tuple[float, float]:
    """Upper bounds of ρ at scale near 0 and now."""
    flat = copy.deepcopy(policy)
    flat.set_temperature(1e9 * policy.temperature.numpy())
    return tuple(
        spectral_radius(Ladder(environment, it).matrix(rung)).upper for it in (flat, policy)
    )  # pyright: ignore[reportReturnType]


def state_of(policy: tl.SoftmaxPolicy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def assert_same(policy: tl.SoftmaxPolicy, before: dict[str, torch.Tensor]) -> None:
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name]), name


# Soundness ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", PROJECTED)
@pytest.mark.parametrize("seed", [1, 3, 4])
def test_the_definition_keeps_the_target_after_a_projection(seed: int, rung: str) -> None:
    check_soundness(seed, rung)


@pytest.mark.slow
@pytest.mark.parametrize("rung", PROJECTED)
@pytest.mark.parametrize("seed", range(40))
def test_the_definition_keeps_the_target_after_many_projections(seed: int, rung: str) -> None:
    check_soundness(seed, rung, rounds=6, max_joint=200)


def check_soundness(seed: int, rung: str, rounds: int = 2, max_joint: int = 40) -> None:
    options: dict[str, Any] = {"minus_infinity": 0.2 if seed % 5 == 4 else 0.0}
    model, _, mdp, twin = draw(seed, policy=options, max_joint=max_joint)
    environment = Environment(mdp)
    floor, now = bounds(environment, twin, rung)
    if not floor + 1e-3 < now:
        return  # nothing to project: independent of the policy, or nilpotent
    target = floor + 0.4 * (now - floor)
    # At scale 0 all ways but `centre` come to the uniform law, whose ρ on `coupled` was looked at.
    how = HOWS[seed % (2 if rung == "coupled" else 3)]
    report = project(environment, twin, target=target, rung=rung, how=how, rounds=rounds)
    after = ref.influence(model, plain(model, twin), rung)
    assert ref.spectral_radius(after) <= report.rho * (1 + EIGENVALUE) + EIGENVALUE
    assert report.rho <= target < report.before
    # The weights prove it without any eigenvalue.
    loads = (after @ report.weights) / report.weights
    np.testing.assert_allclose(loads, report.loads, rtol=1e-9, atol=1e-9)
    assert loads.max() <= max(report.loads.max(), target) * (1 + ORACLE)
    assert report.changed >= 1 and report.rounds >= 1
    assert tl.certify(mdp, twin, rungs=(rung,))[rung].rho.upper <= target


MODELS = {
    "ising": ising(6, beta=0.35),
    "sis": sis(5, infection=(0.1, 0.02), recovery=(0.4, 0.7)),
    "hub_spoke": hub_spoke(4, noise=0.1),
    "random": random_mdp(5, coupling=0.3, actions=3, states=2),
}


@pytest.mark.parametrize("rung", PROJECTED)
@pytest.mark.parametrize("name", MODELS)
def test_the_target_is_reached_and_not_undercut(name: str, rung: str) -> None:
    how = HOWS[(len(name) + len(rung)) % 3]
    mdp = MODELS[name]
    rng = np.random.default_rng(7)
    policy = tl.SoftmaxPolicy.tabular(
        mdp,
        tl.neighbourhood_scopes(mdp),
        scale=2.0,
        seed=2,
        temperature=rng.uniform(0.5, 1.5, size=mdp.n_agents),
    )
    before = state_of(policy)
    marginals = torch.tensor(rng.dirichlet(np.ones(2), size=mdp.n_coordinates))
    report = project(
        Environment(mdp),
        policy,
        target=0.9,
        rung=rung,
        how=how,
        marginals=marginals if how == "centre" else None,
    )
    assert report.rho <= 0.9
    if report.before <= 0.9:
        assert_same(policy, before)
    elif rung in MONOTONE:
        assert report.rho >= 0.9 * (1 - CLOSE)
    # Agents that were not shrunk keep every bit.
    for k in np.flatnonzero(report.scales == 1.0):
        group, row = int(policy.group_of[k]), int(policy.row_of[k])
        assert torch.equal(
            policy.networks[group].table[row], before[f"networks.{group}.table"][row]
        )
        assert policy.temperature[k] == before["temperature"][k]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", HOWS)
def test_networks_are_projected_in_their_own_precision(how: str, dtype: torch.dtype) -> None:
    mdp = MODELS["ising"]
    policy = tl.SoftmaxPolicy.mlp(
        mdp, tl.neighbourhood_scopes(mdp), hidden=(6,), temperature=0.02, seed=1, dtype=dtype
    )
    report = project(Environment(mdp), policy, target=0.9, rung="span", how=how)  # pyright: ignore[reportArgumentType]
    assert report.before > 1.0 and 0.9 * (1 - CLOSE) <= report.rho <= 0.9
    assert tl.certify(mdp, policy, rungs=("span",))["span"].rho.upper <= 0.9


# Minimality ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", MONOTONE)
@pytest.mark.parametrize("seed", range(3))
def test_no_agent_that_was_shrunk_could_keep_a_millionth_more(seed: int, rung: str) -> None:
    mdp = random_mdp(6, coupling=0.3, seed=seed)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=4.0, seed=seed)
    environment = Environment(mdp)
    state, action, x = environment.state, environment.action, spreads(policy, rung)
    found = spectral_radius(state).weights_at(0.9)
    assert found is not None
    w = found.weights
    scale, used, made = linear_scales(
        environment, ExplicitRows(x, rung), rung=rung, target=0.9, weights=w, rounds=1
    )
    assert made == 1 and np.array_equal(used, w)

    def worst(at: Array) -> float:
        return float(((state @ w + action @ (sensitivity_at(x, at, rung) @ w)) / w).max())

    limit = 0.9 * (1 - 1e-6)
    assert worst(scale) <= limit * (1 + ORACLE)
    assert (scale < 1.0).any()
    for agent in np.flatnonzero(scale < 1.0):
        more = scale.copy()
        more[agent] *= 1 + 1e-6
        assert worst(more) > limit


@pytest.mark.parametrize("rung", ["span", pytest.param("paper", marks=pytest.mark.slow)])
def test_more_rounds_raise_every_scale(rung: str) -> None:
    mdp = random_mdp(20, graph="random_regular", degree=3, coupling=0.15)
    environment = Environment(mdp)
    policy = tl.SoftmaxPolicy.mlp(
        mdp, tl.neighbourhood_scopes(mdp), hidden=(8, 8), seed=1, temperature=0.02
    )
    scales = []
    for rounds in (1, 2, 6):
        report = project(environment, copy.deepcopy(policy), target=0.9, rung=rung, rounds=rounds)
        scales.append(report.scales)
    for fewer, more in itertools.pairwise(scales):
        assert (more >= fewer * (1 - ORACLE)).all()
    assert np.log(scales[-1]).mean() > np.log(scales[0]).mean() + 1e-3


def test_on_the_symmetric_ring_the_scale_is_the_closed_form() -> None:
    """E^s + E^a Π has row sum ρ(E^s) + e (Π_left + Π_right + Π_own), alike at all sites."""
    mdp = ising(6, beta=0.35)
    table = np.zeros((2, 2, 2, 2))
    table[..., 1] = np.arange(2)[:, None, None] * 6.0 + np.arange(2)[:, None] * 6.0
    policy = tl.SoftmaxPolicy.from_logits(mdp, tl.neighbourhood_scopes(mdp), [table] * 6)
    environment = Environment(mdp)
    report = project(environment, policy, target=0.9, rung="span")
    strength = environment.action.toarray().max()
    left = (0.9 - environment.floor.upper) / (2 * strength)
    # span is 6 in each of two coordinates; the target is missed by 2e-6 at most.
    np.testing.assert_allclose(report.scales, 4 * np.arctanh(left) / 6.0, rtol=1e-4)


@pytest.mark.parametrize("rung", ["exact", pytest.param("coupled", marks=pytest.mark.slow)])
def test_enumerated_rungs_keep_at_least_what_blunter_ones_do(rung: str) -> None:
    mdp = MODELS["random"]
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=2.0, seed=2)
    environment = Environment(mdp)
    sharp = project(environment, copy.deepcopy(policy), target=0.9, rung=rung)
    blunt = project(environment, copy.deepcopy(policy), target=0.9, rung="span")
    assert np.log(sharp.scales).mean() > np.log(blunt.scales).mean()


# Frozen weights -----------------------------------------------------------------------------------


def test_frozen_weights_are_used_where_they_leave_everyone_something() -> None:
    mdp = MODELS["ising"]
    environment = Environment(mdp)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=2.0, seed=2)
    first = project(environment, copy.deepcopy(policy), target=0.9, rung="span")
    again = project(
        environment, copy.deepcopy(policy), target=0.9, rung="span", weights=first.weights, rounds=1
    )
    assert again.rounds == 1 and again.rho <= 0.9
    # Weights under which a row of E^s alone is over the target are given up for others.
    poor = np.ones(6)
    poor[0] = 1e-3
    assert ((environment.state @ poor) / poor).max() > 0.9
    other = project(
        environment, copy.deepcopy(policy), target=0.9, rung="span", weights=poor, rounds=6
    )
    np.testing.assert_allclose(other.scales, first.scales, rtol=1e-6)


# What needs nothing, and what cannot be -----------------------------------------------------------


@pytest.mark.parametrize("rung", PROJECTED)
@pytest.mark.parametrize("how", HOWS)
def test_a_policy_that_is_there_keeps_every_bit(rung: str, how: str) -> None:
    mdp = MODELS["ising"]
    policy = tl.SoftmaxPolicy.mlp(
        mdp, tl.neighbourhood_scopes(mdp), hidden=(6,), temperature=0.3, seed=1
    )
    before = state_of(policy)
    report = project(Environment(mdp), policy, target=0.9, rung=rung, how=how)  # pyright: ignore[reportArgumentType]
    assert_same(policy, before)
    assert report.rounds == 0 and report.changed == 0 and report.rho == report.before <= 0.9
    np.testing.assert_array_equal(report.loads, report.wished)


def test_a_nilpotent_matrix_needs_nothing_at_any_target() -> None:
    mdp = line_msg(5)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.parent_scopes(mdp), scale=3.0, seed=1)
    report = project(Environment(mdp), policy, target=1e-3, rung="paper")
    assert report.rho == 0.0 and report.changed == 0
    assert report.loads.max() <= 1e-3 * (1 + 1e-9)


@pytest.mark.parametrize("rung", [*MONOTONE, "exact"])
def test_a_floor_above_the_target_is_named(rung: str) -> None:
    mdp = sysadmin(4)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=2.0)
    before = state_of(policy)
    with pytest.raises(InputError, match=r"floor ρ\(E\^s\) = 1\.3775 .*coupled"):
        project(Environment(mdp), policy, target=0.9, rung=rung)
    assert_same(policy, before)


def test_a_floor_made_of_forbidden_actions_is_told_apart() -> None:
    mdp = hub_spoke(4)
    table = np.zeros((2, 2, 2, 2, 2))
    table[:, 1, :, :, 0] = -np.inf  # the hub must act where spoke 1 is up
    scopes = [(0, 1, 2, 3), (), (), ()]
    others = [np.zeros(2)] * 3
    policy = tl.SoftmaxPolicy.from_logits(mdp, scopes, [table, *others])
    with pytest.raises(InputError, match="forbidden"):
        project(Environment(mdp), policy, target=0.9, rung="span")
    # The laws themselves are half as far apart.
    assert project(Environment(mdp), policy, target=0.9, rung="exact").changed == 0


def test_the_coupled_rung_says_how_low_it_got() -> None:
    """Supercritical: uniform and near-uniform policies are less local than the target."""
    mdp = sis(4, infection=(0.4, 0.1), recovery=(0.2, 0.5))
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=0.1)
    with pytest.raises(InputError, match="least ρ that was found is 1"):
        project(Environment(mdp), policy, target=0.9, rung="coupled")


@pytest.mark.parametrize("seed", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_coupled_rung_is_projected_where_small_scales_do_not_help(seed: int) -> None:
    """The policy is over the target, and so is the uniform one: a scale in between is not."""
    mdp = sis(3, infection=(0.4, 0.1), recovery=(0.2, 0.5))
    treat = np.zeros((2, 2, 2, 2))
    treat[..., 1] = 6.0
    rng = np.random.default_rng(seed)
    tables = [treat + 8.0 * rng.normal(size=treat.shape) for _ in range(3)]
    policy = tl.SoftmaxPolicy.from_logits(mdp, tl.neighbourhood_scopes(mdp), tables)
    environment = Environment(mdp)
    assert min(bounds(environment, policy, "coupled")) > 1.09
    report = project(environment, policy, target=1.06, rung="coupled", rounds=1)
    assert report.rho <= 1.06 and (report.scales > 0.0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rung": "scope"}, "rung"),
        ({"how": "colder"}, "how"),
        ({"target": 0.0}, "target"),
        ({"target": np.inf}, "target"),
        ({"target": np.nan}, "target"),
        ({"rounds": 0}, "rounds"),
        ({"weights": np.zeros(6)}, "weights"),
        ({"marginals": torch.zeros(6, 2), "how": "centre"}, "marginals"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    mdp = MODELS["ising"]
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=2.0)
    with pytest.raises(InputError, match=message):
        project(Environment(mdp), policy, **{"target": 0.9, "rung": "span", **options})


@pytest.mark.parametrize(
    "options", [{"rung": "scope"}, {"how": "colder"}, {"target": -1.0}, {"rounds": 1.5}]
)
def test_settings_are_checked_when_they_are_made(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Locality(**options)


def test_settings_project_as_they_say() -> None:
    mdp = MODELS["ising"]
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=2.0)
    settings = Locality(target=0.85, rung="tanh", how="centre", rounds=2)
    report = settings.keep(Environment(mdp), policy)
    assert (report.target, report.rung, report.how) == (0.85, "tanh", "centre")
    assert report.rho <= 0.85 and report.rounds <= 2


def test_a_policy_of_another_model_is_refused() -> None:
    mdp = ising(5, beta=0.2)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    with pytest.raises(InputError):
        project(Environment(MODELS["ising"]), policy, target=0.9)


def test_rounding_that_hides_the_target_is_said() -> None:
    """One agent's logits of 1e16 τ leave no digits for any difference, and it acts on nothing."""
    mdp = hub_spoke(4)
    tables = [np.zeros((2, 2)), np.array([[0.0, 1e16], [1e16, 0.0]]), np.zeros(2), np.zeros(2)]
    tables[0][1, 1] = 5.0
    policy = tl.SoftmaxPolicy.from_logits(mdp, [(1,), (1,), (), ()], tables)
    with pytest.raises(SolveError, match="rounding"):
        project(Environment(mdp), policy, target=0.5, rung="span")
