"""The local engine held against its definition, and against itself run otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import reference as ref
import torch
from evaluation.averages import Definition, Setting, random_laws
from twins import draw, twin_model, twin_policy

import torchloc as tl
from torchloc.evaluation.local import LocalEvaluation, LocalLogits

# A few thousand additions of products of probabilities with rewards and entropies of size 10 at
# most, κ + 1 times: below 1e4 roundings of 1e-16.
ATOL = 1e-12
# The same sums in another order.
SAME = 1e-13
OBJECTIVES = ("reward", "entropy")
DISCOUNTS = (1.0, 0.7)
SETTINGS: list[Setting] = list(itertools.product((0, 1, 2), OBJECTIVES, DISCOUNTS))


def evaluation(
    mdp: tl.FactoredMDP, policy: tl.SoftmaxPolicy, setting: Setting, **options: Any
) -> LocalEvaluation:
    kappa, objective, discount = setting
    return LocalEvaluation(mdp, policy, kappa, objective=objective, discount=discount, **options)


def assert_equal(
    found: LocalLogits, expected: Sequence[Any], atol: float, agents: Sequence[int] | None = None
) -> None:
    assert len(found) == len(expected)
    for k in range(len(expected)) if agents is None else agents:
        np.testing.assert_allclose(
            found[k].numpy(), np.asarray(expected[k]), rtol=0, atol=atol, strict=True
        )


def check(
    model: ref.Model,
    policy: ref.Policy,
    settings: Sequence[Setting],
    seed: int = 0,
    mdp: tl.FactoredMDP | None = None,
) -> None:
    """Every setting under the uniform law, a product law, and given states with either behind."""
    mdp = mdp or twin_model(model)
    twin = twin_policy(mdp, policy)
    exact = Definition(model, policy)
    rng = np.random.default_rng(seed)
    laws = random_laws(rng, model.state_sizes)
    law = ref.product_law(model, laws)
    count = int(rng.integers(1, 9))
    states = np.stack([rng.integers(size, size=count) for size in model.state_sizes], axis=1)
    given = torch.from_numpy(states)
    for at, setting in enumerate(settings):
        local = evaluation(mdp, twin, setting)
        assert_equal(local.logits(twin), exact.averages(setting), ATOL)
        assert_equal(local.logits(twin, weighting=laws), exact.averages(setting, law), ATOL)
        if at % 2:
            found = local.logits(twin, states=given, weighting=laws)
            assert_equal(found, exact.sampled(setting, states, law), ATOL)
        else:
            found = local.logits(twin, states=given)
            assert_equal(found, exact.sampled(setting, states), ATOL)


WIDE = {"max_joint": 1500}
MODELS: list[dict[str, Any]] = [
    {},
    {"n_coordinates": (3, 6), "n_agents": (2, 4), **WIDE},
    {"structure": "nilpotent", "n_coordinates": (2, 6), **WIDE},
    {"n_coordinates": (2, 4), "n_agents": (3, 5), "sizes": (1, 2), **WIDE},
    {"n_coordinates": (1, 2), "n_agents": (2, 4), "sizes": (1, 4), "n_rewards": (3, 8), **WIDE},
    {"max_parents": 1, "n_coordinates": (3, 6), **WIDE},
]
POLICIES: list[dict[str, Any]] = [
    {},
    {"minus_infinity": 0.4},
    {"max_scope": 1},
    {"full_scopes": True},
    {"minus_infinity": 1.0},
]
SEEDS = range(16, 28)
"""Few models that together show every feature."""


def drawn(seed: int) -> tuple[ref.Model, ref.Policy]:
    options = MODELS[seed % len(MODELS)]
    return draw(seed, policy=POLICIES[seed % len(POLICIES)], **options)[:2]


def ring(
    n: int,
    *,
    tables: int | None = None,
    reads: Sequence[int] = (-1, 0, 1),
    shared: bool = False,
    order: Sequence[int] | None = None,
    seed: int = 0,
) -> tl.FactoredMDP:
    """Binary, two-way by default, reward on every site; `tables` different ones, by default n.

    Agent j acts on site j; `shared`, also on the next one. `order` is that of the kernels' batch.
    """
    rng, sites = np.random.default_rng(seed), np.arange(n)
    kernels = rng.dirichlet(np.ones(2), (tables or n,) + (2,) * (len(reads) + 1 + shared))
    values = rng.normal(size=(tables or n, 2))
    if 1 < len(kernels) < n:
        which = np.where(sites == 0, 0, 1 + sites % (len(kernels) - 1))
        kernels, values = kernels[which], values[which]
    driven = sites if order is None else np.array(order)
    near = np.stack([(driven + d) % n for d in reads], axis=1)
    acting = np.stack([driven, (driven - 1) % n], axis=1)[:, : 1 + shared]
    batch = tl.KernelBatch(driven, near, acting, kernels)
    rewards = tl.RewardBatch(sites[:, None], np.zeros((n, 0), int), values)
    return tl.FactoredMDP([2] * n, [2] * n, [batch], [rewards])


def ring_policy(
    mdp: tl.FactoredMDP,
    *,
    sees: Sequence[int] = (-1, 0, 1),
    equal: bool = False,
    odd: int | None = None,
    seed: int = 0,
) -> tl.SoftmaxPolicy:
    """Three sites are seen, by default {j - 1, j, j + 1}; `equal` logits but at site `odd`."""
    n, rng = mdp.n_agents, np.random.default_rng(seed)
    logits = rng.normal(size=(n, 2, 2, 2, 2))
    if equal:
        own = logits[0].copy()
        logits[np.arange(n) != odd] = own
    scopes = [tuple((j + d) % n for d in sees) for j in range(n)]
    tau = np.full(n, 0.8) if equal else rng.uniform(0.5, 2.0, n)
    return tl.SoftmaxPolicy.from_logits(mdp, scopes, list(logits), temperature=tau)


def as_plain(policy: tl.SoftmaxPolicy) -> ref.Policy:
    logits = [policy.logits(k).detach().numpy() for k in range(policy.n_agents)]
    return ref.Policy(list(policy.scopes), logits, policy.temperature.numpy())


def assert_same(
    local: LocalEvaluation, policy: tl.SoftmaxPolicy, before: list[LocalLogits]
) -> None:
    for old, new in zip(before, variants(local, policy), strict=True):
        assert_equal(new, list(old), SAME)


def variants(local: LocalEvaluation, policy: tl.SoftmaxPolicy) -> list[LocalLogits]:
    """Uniform, by a product law that is equal at all sites, and over given states."""
    n = local.mdp.n_coordinates
    states = torch.from_numpy(np.random.default_rng(0).integers(2, size=(5, n)))
    return [
        local.logits(policy),
        local.logits(policy, weighting=[[0.3, 0.7]] * n),
        local.logits(policy, states=states),
    ]
