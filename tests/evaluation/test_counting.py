"""Truncated advantages and steps of models that count, against the same models written out."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from counting_models import random_counted

import torchloc as tl
from torchloc.contraction.factors import Factors
from torchloc.evaluation.simulator import Simulator
from torchloc.mdp import CountBatch
from torchloc.schedules import constant

KINDS = [
    {},
    {"count_actions": True},
    {"shared": True, "count_actions": True},
    {"noisy": True},
    {"noisy": True, "shared": True},
]
ATOL = 1e-12


def random_policy(mdp: tl.FactoredMDP, hops: int, seed: int) -> tl.SoftmaxPolicy:
    rng = np.random.default_rng(100 + seed)
    scopes = [tuple(scope) for scope in tl.neighbourhood_scopes(mdp, hops=hops)]
    tables = [
        rng.normal(size=(*mdp.state_sizes[list(scope)], mdp.action_sizes[k]))
        for k, scope in enumerate(scopes)
    ]
    return tl.SoftmaxPolicy.from_logits(mdp, scopes, tables)


def same(found: tl.LocalEvaluation, wanted: tl.LocalEvaluation, policy, **options) -> None:
    mine, other = found.logits(policy, **options), wanted.logits(policy, **options)
    for k in range(found.mdp.n_agents):
        np.testing.assert_allclose(mine[k].numpy(), other[k].numpy(), rtol=0, atol=ATOL)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind) or "plain")
@pytest.mark.parametrize("written", [0, 2**10])
@pytest.mark.parametrize("seed", range(3))
def test_advantages(
    seed: int, written: int, kind: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions and reward terms written out, and kept open from the first counted parent on."""
    monkeypatch.setattr("torchloc.contraction.balls._WRITTEN", written)
    monkeypatch.setattr("torchloc.contraction.balls._OPEN", 1.0 if written else np.inf)
    monkeypatch.setattr("torchloc.contraction.sites.COUNT_ENTRIES", written)
    models = random_counted(np.random.default_rng(seed), **kind)
    rng = np.random.default_rng(seed)
    policy = random_policy(models.tables, seed % 2, seed)
    law = [rng.dirichlet(np.ones(size)) for size in models.tables.state_sizes]
    states = torch.from_numpy(rng.integers(0, models.tables.state_sizes, size=(7, 5)))
    for kappa in range(3):
        objective = "entropy" if kappa == 1 else "reward"
        discount = 0.7 if kappa == 2 else 1.0
        found, wanted = (
            tl.LocalEvaluation(m, policy, kappa, objective=objective, discount=discount)
            for m in (models.counted, models.tables)
        )
        same(found, wanted, policy)
        same(found, wanted, policy, weighting=law)
        same(found, wanted, policy, states=states)


@pytest.mark.parametrize("seed", range(4))
def test_open_functions_are_used(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchloc.contraction.balls._WRITTEN", 0)
    monkeypatch.setattr("torchloc.contraction.balls._OPEN", np.inf)
    models = random_counted(np.random.default_rng(seed), n=6, k=6)
    policy = random_policy(models.tables, 0, seed)
    local = tl.LocalEvaluation(models.counted, policy, 2)
    assert any(step.open for ball in local.balls for step in ball.steps)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind) or "plain")
def test_factors_are_the_kernel(kind: dict[str, bool]) -> None:
    """Σ over hidden axes of the product is the table, and links turn units into 1."""
    for seed in range(4):
        mdp = random_counted(np.random.default_rng(seed), **kind).counted
        for batch in mdp.kernels:
            assert isinstance(batch, CountBatch)
            factors = Factors.of(batch)
            written = {int(t.coordinates[0]): t for t in batch.tables()} if len(batch) == 1 else {}
            p, q = batch.states.shape[1], batch.actions.shape[1]
            d, e = batch.counters.states.shape[1], batch.counters.actions.shape[1]
            for row, site in enumerate(batch.coordinates.tolist()):
                at = lambda t, row=row: t[row if len(t) > 1 else 0]  # noqa: E731
                first = p + d + q + e
                hidden = {axis: first + axis for axis in range(len(factors.sizes))}
                members = [*range(p, p + d), *range(p + d + q, first)]
                own = [*range(p), *range(p + d, p + d + q)]
                operands: list = []
                last = first + len(factors.sizes)
                own += [*(hidden[x] for x in factors.reads), last]
                for link in factors.links:
                    axes = [hidden[x] for x in link.hidden]
                    axes += [] if link.member is None else [members[link.member]]
                    operands += [at(link.table), axes]
                for m in set(members) - {x for axes in operands[1::2] for x in axes}:
                    operands += [np.ones(2), [m]]  # counted with weight 0
                out = [*range(first), last]
                full = np.einsum(at(factors.own), own, *operands, out)
                if site in written:
                    np.testing.assert_allclose(full, written[site].table[0], atol=1e-14)
                units = [x for axis, unit in zip(factors.reads, factors.units, strict=True)
                         for x in (unit, [hidden[axis]])]  # fmt: skip
                read = sorted({x for axes in operands[1::2] for x in axes if x < first})
                if units:
                    np.testing.assert_allclose(np.einsum(*operands, *units, read), 1.0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind) or "plain")
def test_steps(kind: dict[str, bool]) -> None:
    """Where every law is a certainty, a step of either form goes to the same state."""
    rng = np.random.default_rng(3)
    models = random_counted(rng, **kind)
    policy = random_policy(models.tables, 1, 3)
    simulators = [Simulator(m, policy) for m in (models.counted, models.tables)]
    states = torch.from_numpy(rng.integers(0, models.tables.state_sizes, size=(64, 5)).T.copy())
    actions = torch.from_numpy(rng.integers(0, models.tables.action_sizes, size=(64, 3)).T.copy())
    laws = [
        {
            int(j): law.thresholds.reshape(-1, law.n_values - 1)[
                law.lookup.rows(states, actions)[row].long()
            ]
            for law, batch in zip(simulator._kernels, mdp.kernels, strict=True)
            for row, j in enumerate(batch.coordinates)
        }
        for simulator, mdp in zip(simulators, (models.counted, models.tables), strict=True)
    ]
    for j in range(5):
        np.testing.assert_allclose(laws[0][j].numpy(), laws[1][j].numpy(), atol=1e-14)
    mine, other = (simulator.reward(states, actions) for simulator in simulators)
    np.testing.assert_allclose(mine.numpy(), other.numpy(), atol=1e-13)


def test_a_parent_that_counts_nothing_is_not_read() -> None:
    """Weights of 0 leave no axis behind, whatever the law that is averaged over."""
    table = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    kernels = [
        tl.CountKernel((), (), (0, 1, 2), table, weights=[[[0, 1], [0, 0], [0, 1]]]),
        *(tl.LocalKernel((i,), (i - 1,), [[[0.8, 0.2], [0.3, 0.7]]] * 2) for i in (1, 2)),
    ]
    mdp = tl.FactoredMDP([2] * 3, [2] * 2, kernels, [tl.LocalReward((0,), (), [0.0, 1.0])])
    policy = random_policy(mdp, 1, 0)
    law = [[0.2, 0.8]] * 3
    for kappa in (0, 1, 2):
        found, wanted = (tl.LocalEvaluation(m, policy, kappa) for m in (mdp, mdp.tabulated()))
        same(found, wanted, policy, weighting=law)
        same(found, wanted, policy)


def test_a_trained_model_that_counts() -> None:
    """The joint and the local engine train it, to the same policies as its tables."""
    models = random_counted(np.random.default_rng(5))
    results = []
    for mdp in (models.counted, models.tables):
        policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), temperature=0.3)
        tl.Trainer(
            mdp, policy, schedule=partial(constant, value=0.3), evaluation=tl.Evaluation(engine="local", kappa=1),
            improvement=tl.Improvement(order="chromatic"), iterations=3,
        ).run()  # fmt: skip
        results.append([policy.probabilities(k) for k in range(mdp.n_agents)])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), atol=1e-10)
