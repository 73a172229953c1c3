"""The local engine against its definition, by enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
import reference as ref
import torch
from environments.oracle import as_reference
from evaluation.against import (
    ATOL,
    DISCOUNTS,
    OBJECTIVES,
    SAME,
    SEEDS,
    SETTINGS,
    as_plain,
    assert_equal,
    check,
    drawn,
    evaluation,
    ring,
    ring_policy,
)
from evaluation.averages import Definition, Setting, random_laws
from twins import twin_model, twin_policy

import torchloc as tl
from torchloc import environments as families
from torchloc.closed_loop import PolicyTables
from torchloc.evaluation import local as room
from torchloc.evaluation.local import LocalEvaluation, local_logits
from torchloc.evaluation.radius import largest_kappa

# Random models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_random_models(seed: int) -> None:
    settings = [SETTINGS[(seed + 5 * i) % len(SETTINGS)] for i in range(2)]
    check(*drawn(seed), settings, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(28, 172))
def test_many_random_models(seed: int) -> None:
    settings = list(itertools.product((0, 1, 2, 3), OBJECTIVES, DISCOUNTS))
    check(*drawn(seed), settings, seed)


def test_the_random_models_show_every_feature() -> None:
    found = [drawn(seed) for seed in SEEDS]
    models = [model for model, _ in found]
    readers = [
        [sum(k in kernel[1] for kernel in model.kernels) for k in range(model.n_agents)]
        for model in models
    ]
    assert any(
        sum(counts[k] == 1 for k in kernel[1]) > 1
        for model, counts in zip(models, readers, strict=True)
        for kernel in model.kernels
    )
    pairs = zip(models, readers, strict=True)
    terms = [(counts, term) for model, counts in pairs for term in model.rewards]
    assert any(max(counts) > 1 for counts in readers)
    assert any(0 in counts for counts in readers)
    assert any(model.n_coordinates < model.n_agents for model in models)
    assert any(model.n_coordinates > model.n_agents for model in models)
    assert any(1 in model.state_sizes for model in models)
    assert any(1 in model.action_sizes for model in models)
    assert any(not kernel[0] for model in models for kernel in model.kernels)
    assert any(j not in model.kernels[j][0] for model in models for j in range(len(model.kernels)))
    assert any(not states for _, (states, _, _) in terms)
    assert any(len(agents) > 1 for _, (_, agents, _) in terms)
    assert any(counts[k] == 0 for counts, (_, agents, _) in terms for k in agents)
    scopes = [(model, k, scope) for model, p in found for k, scope in enumerate(p.scopes)]
    assert any(not scope for _, _, scope in scopes)
    assert any(
        set(scope) - {i for states, agents, _ in model.kernels if k in agents for i in states}
        for model, k, scope in scopes
    )
    assert any(np.isneginf(z).any() for _, policy in found for z in policy.logits)


def crowd() -> tuple[ref.Model, list[tuple[int, ...]]]:
    """Three private agents on coordinate 0 with overlapping scopes, one on 1, one on nothing.

    No coordinate is its own parent, so no power of T^π reads what the one before it read.
    """
    rng = np.random.default_rng(5)
    shapes = [((1,), (0, 2, 1)), ((2,), (3,)), ((3,), ()), ((), ())]
    sizes, actions = (3, 2, 2, 3), (2, 2, 3, 2, 2)
    kernels = [
        (
            states,
            agents,
            rng.dirichlet(
                np.ones(sizes[j]), [sizes[i] for i in states] + [actions[k] for k in agents]
            ),
        )
        for j, (states, agents) in enumerate(shapes)
    ]
    rewards = [
        ((0,), (), rng.normal(size=3)),
        ((2, 1), (4, 0), rng.normal(size=(2, 2, 2, 2))),
        ((), (4,), rng.normal(size=2)),
        ((), (), rng.normal(size=())),
    ]
    scopes = [(2, 1), (), (1, 3), (0, 1), (3, 2)]
    return ref.Model(sizes, actions, kernels, rewards), scopes


@pytest.mark.parametrize("deterministic", [False, True])
def test_private_crowds_and_powers_of_their_own(deterministic: bool) -> None:
    model, scopes = crowd()
    rng = np.random.default_rng(1)
    policy = ref.random_policy(rng, model, scopes=scopes)
    if deterministic:
        tables = [rng.integers(z.shape[-1], size=z.shape[:-1]) for z in policy.logits]
        policy = ref.greedy_policy(model, scopes, tables)
    mdp = twin_model(model)
    balls = LocalEvaluation(mdp, twin_policy(mdp, policy), 2).balls
    assert not all(ball.carried for ball in balls)
    check(model, policy, [(1, "entropy", 0.7), (3, "reward", 1.0)])


IDLE = tl.LocalKernel((0,), (), [[0.3, 0.7], [0.9, 0.1]])


def test_nothing_to_earn() -> None:
    idle = tl.FactoredMDP([2], [2], [IDLE], [])
    policy = tl.SoftmaxPolicy.tabular(idle, [(0,)], scale=1.0)
    for objective in OBJECTIVES:
        assert not local_logits(idle, policy, 2, objective=objective)[0].any()


@pytest.mark.parametrize("kappa", [2, "auto"])
def test_nobody_acts(kappa: Any) -> None:
    mdp = tl.FactoredMDP([2], [], [IDLE], [tl.LocalReward((0,), (), [0.0, 1.0])])
    assert len(local_logits(mdp, tl.SoftmaxPolicy.tabular(mdp, []), kappa)) == 0


# Families -----------------------------------------------------------------------------------------

FAMILIES: dict[str, Callable[[], tl.FactoredMDP]] = {
    "sysadmin ring": lambda: families.sysadmin(n=4),
    "sysadmin star": lambda: families.sysadmin(n=4, topology="star", table="ippc"),
    "sysadmin three legs": lambda: families.sysadmin(n=4, topology="three_leg", table="ippc"),
    "sis ring": lambda: families.sis(n=4),
    "sis line": lambda: families.sis(n=4, graph="line"),
    "sis grid": lambda: families.sis(n=4, graph="grid"),
    "ising ring": lambda: families.ising(n=4),
    "ising grid": lambda: families.ising(n=4, lattice="grid", control="both"),
    "line_msg": lambda: families.line_msg(n=4),
    "line_msg sink": lambda: families.line_msg(n=4, reward="sink"),
    "hub_spoke": lambda: families.hub_spoke(n=4),
    "hub_spoke noise": lambda: families.hub_spoke(n=3, noise=0.2),
    "leader_follower": families.leader_follower,
    "leader_follower mutual": lambda: families.leader_follower(mutual=True),
    "sleepy": families.sleepy,
    "random ring": lambda: families.random_mdp(4, seed=1),
    "random three states": lambda: families.random_mdp(3, states=3, actions=3, seed=2),
    "random star": lambda: families.random_mdp(4, graph="star", seed=3),
}


VARIATIONS = {
    "sysadmin three legs",
    "sis line",
    "ising grid",
    "line_msg sink",
    "hub_spoke noise",
    "leader_follower mutual",
    "random star",
}
"""Families that stand for themselves elsewhere too."""


def family_policies(mdp: tl.FactoredMDP, seed: int) -> list[ref.Policy]:
    """Neighbourhood scopes; and parents only, with forbidden actions."""
    model, rng = as_reference(mdp), np.random.default_rng(seed)
    return [
        ref.random_policy(rng, model, scopes=list(tl.neighbourhood_scopes(mdp))),
        ref.random_policy(rng, model, scopes=list(tl.parent_scopes(mdp)), minus_infinity=0.3),
    ]


EACH = [name for name in FAMILIES if name not in VARIATIONS]


@pytest.mark.parametrize("name", EACH)
def test_families(name: str) -> None:
    mdp = FAMILIES[name]()
    near, parents = family_policies(mdp, 0)
    check(as_reference(mdp), near, [(3, "entropy", 0.7)], mdp=mdp)
    check(as_reference(mdp), parents, [(1, "reward", 1.0)], 1, mdp)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_at_every_setting(name: str) -> None:
    mdp = FAMILIES[name]()
    settings = list(itertools.product((0, 1, 2, 3), OBJECTIVES, DISCOUNTS))
    for seed, policy in enumerate(family_policies(mdp, 1)):
        check(as_reference(mdp), policy, settings, seed, mdp)


# Rings and graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 6))])
@pytest.mark.parametrize("equal", [False, True])
def test_balls_that_overlap_themselves(n: int, equal: bool) -> None:
    mdp = ring(n, tables=1 if equal else None)
    policy = ring_policy(mdp, equal=equal)
    settings: list[Setting] = [(1, "reward", 0.7), (3, "entropy", 1.0)]
    check(as_reference(mdp), as_plain(policy), settings, mdp=mdp)


@pytest.mark.parametrize("reads", [(-1, 0, 1), (1, 2)])
def test_sites_in_another_order(reads: tuple[int, ...]) -> None:
    """Rows of the batch that are neighbours at its ends only."""
    mdp = ring(5, order=[0, 2, 1, 3, 4], reads=reads)
    check(as_reference(mdp), as_plain(ring_policy(mdp)), [(1, "entropy", 0.7)], mdp=mdp)


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [0, 1, 2, 3])
def test_a_ring_of_seven_against_the_joint_engine(kappa: int) -> None:
    mdp = ring(7)
    policy = ring_policy(mdp)
    joint = tl.JointEvaluation(mdp, policy, objective="entropy")
    found = local_logits(mdp, policy, kappa, objective="entropy")
    for k in range(7):
        mean = joint.over_scope(k, joint.block_logits(k, kappa)).mean(dim=1)
        mean = (mean - mean.mean(dim=-1, keepdim=True)).reshape(found[k].shape)
        torch.testing.assert_close(found[k], mean, rtol=0, atol=ATOL)


def irregular(n: int, seed: int) -> tl.FactoredMDP:
    """Every site reads itself and up to three neighbours in a random graph."""
    rng = np.random.default_rng(seed)
    graph = nx.gnm_random_graph(n, n, seed=seed)
    nx.add_cycle(graph, range(n))
    kernels, rewards, known = [], [], {}
    for j in range(n):
        near = [j, *rng.permutation(list(graph[j]))[:3].tolist()]
        if len(near) not in known or j % 2:
            known[len(near)] = rng.dirichlet(np.ones(2), (2,) * (len(near) + 1))
        kernels.append(tl.LocalKernel(near, (j,), known[len(near)]))
        rewards.append(tl.LocalReward((j, near[1]), (), rng.normal(size=(2, 2))))
    return tl.FactoredMDP([2] * n, [2] * n, kernels, rewards)


def test_a_large_irregular_graph_holds_the_small_ones_numbers() -> None:
    """A graph beside a second one: neither sees the other, so its advantages are its own."""
    one, two = irregular(7, 0), irregular(20, 1)
    models = [as_reference(one), as_reference(two)]
    kernels, rewards = [], []
    for model, shift in zip(models, (0, 7), strict=True):
        kernels += [
            ([i + shift for i in states], [k + shift for k in agents], table)
            for states, agents, table in model.kernels
        ]
        rewards += [([i + shift for i in s], list(a), table) for s, a, table in model.rewards]
    whole = tl.FactoredMDP(
        [2] * 27,
        [2] * 27,
        [tl.LocalKernel(*kernel) for kernel in kernels],
        [tl.LocalReward(*term) for term in rewards],
    )
    policy = tl.SoftmaxPolicy.tabular(whole, [(k,) for k in range(27)], scale=1.0, seed=3)
    alone = tl.SoftmaxPolicy.from_logits(
        one, [(k,) for k in range(7)], [policy.logits(k).detach().numpy() for k in range(7)]
    )
    for kappa in (0, 1):
        found = local_logits(whole, policy, kappa, objective="entropy")
        small = local_logits(one, alone, kappa, objective="entropy")
        joint = tl.JointEvaluation(one, alone, objective="entropy")
        assert_equal(found, [*small, *([None] * 20)], SAME, range(7))
        for k in range(7):
            mean = joint.over_scope(k, joint.block_logits(k, kappa)).mean(dim=1)
            mean = mean - mean.mean(dim=-1, keepdim=True)
            torch.testing.assert_close(found[k].reshape(mean.shape), mean, rtol=0, atol=ATOL)


# Agents, κ and plans ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6, 10))
def test_selected_agents_have_the_full_answer(seed: int) -> None:
    model, policy = drawn(seed)
    mdp = twin_model(model)
    twin, rng = twin_policy(mdp, policy), np.random.default_rng(seed)
    local = evaluation(mdp, twin, (1, "entropy", 0.9))
    states = torch.from_numpy(
        np.stack([rng.integers(size, size=3) for size in model.state_sizes], axis=1)
    )
    weightings: list[dict[str, Any]] = [
        {},
        {"weighting": random_laws(rng, model.state_sizes)},
        {"states": states},
    ]
    full = [local.logits(twin, **options) for options in weightings]
    for size in range(1, model.n_agents + 1):
        agents = rng.permutation(model.n_agents)[:size].tolist()
        selection = local.select([*agents, agents[0]])
        assert np.flatnonzero(selection.agents).tolist() == sorted(agents)
        for options, whole in zip(weightings, full, strict=True):
            part = local.logits(twin, selection=selection, **options)
            assert_equal(part, list(whole), SAME, agents)
            for k in set(range(model.n_agents)) - set(agents):
                with pytest.raises(IndexError, match=f"agent {k} is not among those"):
                    part[k]


def test_a_plan_serves_every_policy_on_its_scopes() -> None:
    model, first = drawn(1)
    mdp = twin_model(model)
    local = evaluation(mdp, twin_policy(mdp, first), (2, "entropy", 1.0))
    some = local.select([model.n_agents - 1])
    everyone = local.select()
    rng = np.random.default_rng(0)
    for inside in (0.0, 0.5, 0.0):
        policy = ref.random_policy(rng, model, scopes=first.scopes, minus_infinity=inside)
        twin = twin_policy(mdp, policy)
        expected = Definition(model, policy).averages((2, "entropy", 1.0))
        assert_equal(local.logits(twin, selection=everyone), expected, ATOL)
        assert_equal(local.logits(PolicyTables.read(twin)), expected, ATOL)
        chosen = local.logits(twin, selection=some)
        assert_equal(chosen, expected, ATOL, [model.n_agents - 1])
        fresh = evaluation(mdp, twin, (2, "entropy", 1.0)).logits(twin)
        assert all(torch.equal(x, y) for x, y in zip(fresh, local.logits(twin), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_one_kappa_an_agent(seed: int) -> None:
    model, policy = drawn(seed)
    mdp = twin_model(model)
    twin, rng = twin_policy(mdp, policy), np.random.default_rng(seed)
    kappas = rng.integers(4, size=model.n_agents)
    exact = Definition(model, policy)
    expected = [exact.averages((int(kappa), "reward", 0.9))[k] for k, kappa in enumerate(kappas)]
    assert_equal(local_logits(mdp, twin, kappas, discount=0.9), expected, ATOL)
    some = [model.n_agents - 1, 0]
    part = local_logits(mdp, twin, kappas, agents=some, discount=0.9)
    assert_equal(part, expected, ATOL, some)
    assert part.known.sum() == len(set(some))


def test_the_largest_kappa_that_fits() -> None:
    mdp = ring(8)
    policy = ring_policy(mdp)
    budget = 2**12
    kappa = largest_kappa(mdp, policy, ball_bytes=budget, at_most=6)
    assert 0 < kappa < 6
    auto = local_logits(mdp, policy, "auto", ball_bytes=budget)
    assert_equal(auto, list(local_logits(mdp, policy, kappa)), 0.0)


def test_logits_are_a_sequence_of_centred_views() -> None:
    model, policy = crowd()[0], ref.random_policy(np.random.default_rng(0), crowd()[0])
    mdp = twin_model(model)
    found = local_logits(mdp, twin_policy(mdp, policy), 1)
    assert len(list(found)) == len(found) == model.n_agents
    for k, logits in enumerate(found):
        assert logits.shape == policy.logits[k].shape
        assert logits.mean(dim=-1).abs().max() <= SAME
        assert any(
            logits.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
            for values in found.values
        )
    for k in (-1, model.n_agents):
        with pytest.raises(IndexError, match=f"agent {k} is not among those"):
            found[k]


def test_some_agents_are_not_all_of_a_sequence() -> None:
    """A loop over an answer for some agents does not end early in silence."""
    mdp = ring(4)
    part = local_logits(mdp, ring_policy(mdp), 1, agents=[0, 2])
    assert part[2].shape == (2, 2, 2, 2)
    with pytest.raises(tl.InputError, match="agent 1 is not among those"):
        list(part)


# Given and simulated states -----------------------------------------------------------------------


def test_rollout_averages_over_simulated_states(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = families.random_mdp(5, seed=4)
    plain = family_policies(mdp, 2)[1]
    policy = twin_policy(mdp, plain)
    rollouts = []
    simulate = room.simulate
    monkeypatch.setattr(
        room, "simulate", lambda *a, **o: rollouts.append(simulate(*a, **o)) or rollouts[-1]
    )
    options: dict[str, Any] = {"weighting": "rollout", "objective": "entropy"}
    first = local_logits(mdp, policy, 1, seed=7, **options)
    again = local_logits(mdp, policy, 1, seed=7, **options)
    other = local_logits(mdp, policy, 1, seed=8, **options)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(first, other, strict=True))
    states = rollouts[0].states.T
    assert states.shape == (room.SAMPLES, 5)
    expected = Definition(as_reference(mdp), plain).sampled((1, "entropy", 1.0), states.numpy())
    assert_equal(first, expected, ATOL)
    assert_equal(local_logits(mdp, policy, 1, states=states, **options), list(first), 0.0)


def test_rollout_approaches_the_stationary_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are frequencies of R independent states, whose errors fall like 1/√R."""
    mdp = ring(4)
    policy = ring_policy(mdp)
    plain = as_plain(policy)
    exact = Definition(as_reference(mdp), plain)
    law = ref.stationary(exact.matrix)
    expected = exact.averages((1, "reward", 1.0), law)
    count = 4_000
    monkeypatch.setattr(room, "SAMPLES", count)
    found = local_logits(mdp, policy, 1, weighting="rollout", seed=1)
    for k, scope in enumerate(plain.scopes):
        g = exact.blocks((1, "reward", 1.0))[k]
        seen = ref.at_states(exact.model, scope, np.arange(8).reshape(2, 2, 2))
        mass = np.bincount(seen, law, minlength=8).reshape(2, 2, 2)
        # Five standard deviations of a mean of numbers within the span of g, at every s_O.
        width = 5 * (g.max() - g.min()) / np.sqrt(count * mass)
        assert (np.abs(found[k].numpy() - expected[k]).max(axis=-1) <= width).all()
        assert np.abs(found[k].numpy() - exact.averages((1, "reward", 1.0))[k]).max() > 1e-6


def test_repeated_and_reordered_states_change_nothing() -> None:
    mdp = ring(9)
    policy = ring_policy(mdp)
    rng = np.random.default_rng(0)
    states = torch.from_numpy(rng.integers(2, size=(6, 9)))
    local = LocalEvaluation(mdp, policy, 1)
    once = list(local.logits(policy, states=states))
    for rows in (rng.permutation(6), np.tile(np.arange(6), 3)):
        assert_equal(local.logits(policy, states=states[rows]), once, SAME)
    narrow = local.logits(policy, states=states.to(torch.int32))
    assert_equal(narrow, once, 0.0)


# float32 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_float32_is_as_accurate_as_its_numbers(seed: int) -> None:
    """Some hundred roundings of 6e-8, of sums as large as the largest value."""
    model, policy = drawn(seed)
    mdp = twin_model(model)
    twin = twin_policy(mdp, policy)
    setting: Setting = (2, "entropy", 1.0)
    exact = Definition(model, policy)
    scale = 1.0 + np.abs(exact.value(setting)).max() + np.abs(ref.reward(model)).max()
    local = evaluation(mdp, twin, setting, dtype=torch.float32)
    states = torch.zeros(2, model.n_coordinates, dtype=torch.int64)
    laws = random_laws(np.random.default_rng(seed), model.state_sizes)
    law = ref.product_law(model, laws)
    for found, expected in (
        (local.logits(twin), exact.averages(setting)),
        (local.logits(twin, weighting=laws), exact.averages(setting, law)),
        (local.logits(twin, states=states), exact.sampled(setting, states.numpy())),
    ):
        assert all(values.dtype == torch.float32 for values in found.values)
        for k in range(model.n_agents):
            assert np.abs(found[k].numpy() - expected[k]).max() <= 1e-5 * scale


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": -1}, "kappa is -1; it must be a whole number"),
        ({"kappa": 1.5}, "kappa is 1.5; it must be a whole number"),
        ({"kappa": float("nan")}, "kappa is nan; it must be a whole number"),
        ({"kappa": float("inf")}, "kappa is inf; it must be a whole number"),
        ({"kappa": True}, "kappa is True; it must be a whole number"),
        ({"kappa": "all"}, "kappa is 'all'; give a whole number"),
        ({"kappa": np.array([1, 1])}, r"kappa has shape \(2,\); give one number, or one for each"),
        ({"kappa": np.full(4, 0.5)}, "kappa"),
        ({"kappa": np.full(4, -1)}, "kappa is -1; it must be a whole number"),
        ({"objective": "value"}, "objective is 'value'; choose reward or entropy"),
        ({"discount": 0.0}, r"discount is 0.0; it must lie in \(0, 1\]"),
        ({"discount": 1.1}, r"discount is 1.1; it must lie in \(0, 1\]"),
        ({"discount": float("nan")}, r"discount is nan; it must lie in \(0, 1\]"),
        ({"ball_bytes": 7}, "ball_bytes is 7; it must be a whole number"),
        ({"ball_bytes": 1e6}, "ball_bytes is 1000000.0; it must be a whole number"),
        ({"agents": [0, 4]}, "agents names 4; the model has 4 agents, numbered from 0"),
        ({"agents": [-1]}, "agents names -1; the model has 4 agents, numbered from 0"),
        ({"agents": [0.5]}, "agents"),
        ({"agents": np.array([True, False, False, True])}, "agents"),
        (
            {"agents": [4], "kappa": np.full(4, 1)},
            "agents names 4; the model has 4 agents, numbered from 0",
        ),
        ({"agents": [], "kappa": np.full(4, 1)}, "agents is empty; name at least one"),
        ({"weighting": "stationary"}, "weighting is 'stationary'; choose uniform or rollout"),
        ({"states": torch.zeros(1, 4)}, "states goes with weighting=rollout only"),
        (
            {"states": torch.zeros(2, 3), "weighting": "rollout"},
            r"states has shape \(2, 3\); it must be \(R, 4\)",
        ),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    mdp = ring(4)
    settings = {"kappa": 1, **options}
    with pytest.raises(tl.InputError, match=message):
        local_logits(mdp, ring_policy(mdp), **settings)


def test_policies_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(tl.InputError):
        LocalEvaluation(ring(4), ring_policy(ring(5)), 1)


@pytest.mark.parametrize("sees", [(0, -1, 1), (1, 2, 3), None], ids=["order", "others", "agents"])
def test_policies_that_do_not_fit_the_plan_are_refused(sees: tuple[int, ...] | None) -> None:
    mdp = ring(4)
    local = LocalEvaluation(mdp, ring_policy(mdp), 1)
    other = ring_policy(ring(5)) if sees is None else ring_policy(mdp, sees=sees)
    for policy in (other, PolicyTables.read(other)):
        with pytest.raises(tl.InputError):
            local.logits(policy)
