"""Truncated advantages, steps and training of count batches over parents of any size, by definition."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from counting_models import random_wide
from evaluation.averages import Definition, random_laws
from twins import twin_model, twin_policy

import torchloc as tl
from torchloc.evaluation.simulator import Simulator
from torchloc.interop.stepping import Stepper
from torchloc.schedules import constant

KINDS: list[dict[str, Any]] = [
    {},
    {"private": True, "modes": True},
    {"modes": True},
    {"counted_actions": False},
    {"private": True},
]
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))]
# A few thousand additions of products of probabilities with rewards of size 10 at most.
ATOL = 1e-12

every = pytest.mark.parametrize(
    "kind",
    [*KINDS[:2], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[2:])],
    ids=lambda kind: "-".join(kind) or "plain",
)
seeds = pytest.mark.parametrize("seed", SEEDS)


@every
@pytest.mark.parametrize("written", [False, True])
@seeds
def test_advantages(
    seed: int, written: bool, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By definition, with what counts written out as usual, or nowhere."""
    if not written:
        monkeypatch.setattr("torchloc.contraction.sites.COUNT_ENTRIES", 0)
        monkeypatch.setattr("torchloc.contraction.balls._WRITTEN", 0)
    rng = np.random.default_rng(seed)
    wide = random_wide(rng, **kind)
    plain = ref.random_policy(rng, wide.plain, scale=(0.3, 3.0), max_scope=2)
    policy = twin_policy(wide.counted, plain)
    definition = Definition(wide.plain, plain)
    laws = random_laws(rng, wide.plain.state_sizes)
    product = ref.product_law(wide.plain, laws)
    states = rng.integers(0, wide.plain.state_sizes, size=(7, wide.plain.n_coordinates))
    uniform = ref.uniform_law(wide.plain)
    for kappa in range(3):
        objective = "entropy" if (kappa + seed) % 2 else "reward"
        discount = (1.0, 0.7)[(kappa + seed // 2) % 2]
        setting = (kappa, objective, discount)
        local = tl.LocalEvaluation(
            wide.counted, policy, kappa, objective=objective, discount=discount
        )
        for options, wanted in (
            ({}, definition.averages(setting)),
            ({"weighting": laws}, definition.averages(setting, product)),
            ({"states": torch.tensor(states)}, definition.sampled(setting, states, uniform)),
        ):
            found = local.logits(policy, **options)
            for k in range(wide.plain.n_agents):
                np.testing.assert_allclose(found[k].numpy(), wanted[k], rtol=0, atol=ATOL)


@every
@seeds
def test_open_functions(seed: int, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every function that can wait for its links does, however large it is then."""
    monkeypatch.setattr("torchloc.contraction.sites.COUNT_ENTRIES", 0)
    monkeypatch.setattr("torchloc.contraction.balls._WRITTEN", 0)
    monkeypatch.setattr("torchloc.contraction.balls._OPEN", np.inf)
    rng = np.random.default_rng(50 + seed)
    wide = random_wide(rng, n=4, sizes=(2, 2, 3), counted=2, **kind)
    plain = ref.random_policy(rng, wide.plain, scale=(0.3, 3.0), max_scope=2)
    policy = twin_policy(wide.counted, plain)
    setting = (1, "entropy", 0.8)
    local = tl.LocalEvaluation(wide.counted, policy, 1, objective="entropy", discount=0.8)
    wanted = Definition(wide.plain, plain).averages(setting)
    found = local.logits(policy)
    for k in range(wide.plain.n_agents):
        np.testing.assert_allclose(found[k].numpy(), wanted[k], rtol=0, atol=ATOL)


@every
@seeds
def test_steps(seed: int, kind: dict[str, Any]) -> None:
    """Laws and rewards that a step reads, of many systems and of one, and of all sizes of tables."""
    rng = np.random.default_rng(seed)
    wide = random_wide(rng, **kind)
    mdp, plain = wide.counted, wide.plain
    policy = twin_policy(mdp, ref.random_policy(rng, plain, max_scope=2))
    simulator, stepper = Simulator(mdp, policy), Stepper(mdp)
    states = rng.integers(0, mdp.state_sizes, size=(30, mdp.n_coordinates))
    actions = rng.integers(0, mdp.action_sizes, size=(30, mdp.n_agents))
    s, a = (torch.tensor(x.T.copy()) for x in (states, actions))
    reward = ref.reward(plain)[
        np.ravel_multi_index(tuple(states.T), plain.state_sizes),
        np.ravel_multi_index(tuple(actions.T), plain.action_sizes),
    ]
    np.testing.assert_allclose(simulator.reward(s, a).numpy(), reward, atol=1e-13)
    assert simulator.bound("reward") >= np.abs(reward).max() - 1e-13
    for law, batch in zip(simulator._kernels, mdp.kernels, strict=True):
        rows = law.lookup.rows(s, a)
        assert rows.shape == (len(batch), 30)
        thresholds = law.thresholds.reshape(-1, law.n_values - 1).numpy()
        for row, j in enumerate(batch.coordinates.tolist()):
            sources, agents, table = plain.kernels[j]
            wanted = table[(*states[:, list(sources)].T, *actions[:, list(agents)].T)]
            found = thresholds[rows[row].long().numpy()]
            np.testing.assert_allclose(
                found, np.broadcast_to(wanted.cumsum(axis=-1)[..., :-1], found.shape), atol=1e-14
            )
    for one in range(5):
        terms = stepper.terms(states[one], actions[one])
        np.testing.assert_allclose(terms.sum(), reward[one], atol=1e-13)
    following, _ = simulator.step(s.to(simulator.dtype), torch.Generator().manual_seed(0))
    assert (following.numpy().T < mdp.state_sizes).all()


def test_sites_that_read_nothing_and_share_a_table() -> None:
    """Two kernels without any parent, one table, one counter that no one moves."""
    batch = tl.CountBatch([0, 1], [[], []], [[], []], [[], []], [[], []],
                          [[[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]]])  # fmt: skip
    reward = tl.CountRewardBatch([[], []], [[], []], [[], []], [[], []], [[1.5, 4.0]])
    mdp = tl.FactoredMDP([2, 2], [2], [batch], [reward])
    policy = tl.SoftmaxPolicy.tabular(mdp, [(0,)])
    simulator = Simulator(mdp, policy)
    states, _ = simulator.step(
        torch.zeros(2, 4000, dtype=simulator.dtype), torch.Generator().manual_seed(0)
    )
    # Independent draws of probability 0.75: five standard deviations of the mean and of a product.
    assert (states.double().mean(dim=1) - 0.75).abs().max() < 0.035
    both = (states[0] * states[1]).double().mean()
    assert abs(float(both) - 0.75**2) < 0.04
    assert simulator.reward(states, states[:1]).tolist() == [3.0] * 4000
    assert not tl.local_logits(mdp, policy, 2)[0].any()


def test_a_counter_of_more_levels_than_a_byte() -> None:
    """Levels (1, 256, 1) and no other parent: rows fill a byte."""
    table = np.stack([np.linspace(0, 1, 256), np.linspace(1, 0, 256)], axis=-1)
    kernel = tl.CountKernel(
        (), (), (0, 1), table.reshape(1, 256, 1, 2), weights=[[[0, 9]] * 2, [[0, 200]] * 2, [[0, 1]] * 2]
    )  # fmt: skip
    mdp = tl.FactoredMDP([2, 2], [], [kernel] * 2, [])
    simulator = Simulator(mdp, tl.SoftmaxPolicy.tabular(mdp, []))
    states = torch.tensor([[0, 1, 1], [0, 0, 1]], dtype=torch.uint8)
    rows = simulator._kernels[0].lookup.rows(states, states[:0])
    assert rows.tolist() == [[0, 200, 255]] * 2


@pytest.mark.parametrize(
    "kind",
    [KINDS[1], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[2:])],
    ids="-".join,
)
def test_joint_and_trained(kind: dict[str, Any]) -> None:
    """The joint values, and the policies that the local engine trains, are those of the tables.

    Weighted uniformly: simulations of the two draw their numbers in the order of their batches.
    """
    rng = np.random.default_rng(1)
    wide = random_wide(rng, n=4, sizes=(2, 2, 3), **kind)
    tables = twin_model(wide.plain)
    plain = ref.random_policy(rng, wide.plain, max_scope=2)
    policy = twin_policy(tables, plain)
    mine, other = (
        tl.JointEvaluation(mdp, policy, discount=0.8).poisson() for mdp in (wide.counted, tables)
    )
    np.testing.assert_allclose(mine.numpy(), other.numpy(), atol=1e-11)
    trained = []
    for mdp in (wide.counted, tables):
        policy = tl.SoftmaxPolicy.tabular(mdp, plain.scopes, temperature=0.3)
        tl.Trainer(
            mdp, policy, schedule=partial(constant, value=0.3),
            evaluation=tl.Evaluation(engine="local", kappa=1),
            improvement=tl.Improvement(order="chromatic", weighting="uniform"), iterations=2,
        ).run()  # fmt: skip
        trained.append([policy.probabilities(k) for k in range(mdp.n_agents)])
    for mine, other in zip(*trained, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), atol=1e-10)


def test_all_count_all_and_balls_fit() -> None:
    """Open functions over six coordinates of four values would take 1.5 GB, written ones 32 MB."""
    rng = np.random.default_rng(0)
    kernels = [
        tl.CountKernel(
            (j,), (j,), [i for i in range(6) if i != j],
            rng.dirichlet(np.ones(4), size=(4, 2, 6)), weights=rng.integers(0, 3, size=4),
        )
        for j in range(6)
    ]  # fmt: skip
    mdp = tl.FactoredMDP([4] * 6, [2] * 6, kernels, [tl.LocalReward((0,), (), range(4))])
    policy = tl.SoftmaxPolicy.tabular(mdp, [(j,) for j in range(6)])
    found, wanted = (tl.LocalEvaluation(m, policy, 2) for m in (mdp, mdp.tabulated()))
    for mine, other in zip(found.logits(policy), wanted.logits(policy), strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=0, atol=ATOL)
