"""Certificates where scopes are too large to enumerate: sound, above the enumerated ones, and named so."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference as ref
import scipy.sparse as sp
from twins import draw

import torchloc as tl
from torchloc.certificate import Certificate
from torchloc.environments import sis, sysadmin

# Bounds and enumerated values carry the rounding of logits of size ten or so.
ROUNDING = 1e-11
OPTIONS = [
    {},
    {"objective": "entropy"},
    {"discount": 0.9, "objective": "entropy"},
    {"dynamics": "asynchronous"},
]


def networks(seed: int) -> tuple[tl.FactoredMDP, tl.SoftmaxPolicy, ref.Model, ref.Policy]:
    """A random model with small networks on its random scopes, and the oracle's view of both."""
    model, _, mdp, twin = draw(seed, unichain=True, mixing=0.3)
    policy = tl.SoftmaxPolicy.mlp(
        mdp, twin.scopes, hidden=(6,), activation="tanh", temperature=0.7, seed=seed
    )
    logits = [policy.logits(k).detach().numpy() for k in range(model.n_agents)]
    scopes = [tuple(int(i) for i in scope) for scope in policy.scopes]
    return mdp, policy, model, ref.Policy(scopes, logits, policy.temperature.numpy())


def certified(seed: int, budget: int, **options: object) -> tuple[Certificate, Certificate]:
    """Enumerated, and with networks bounded whose scopes have more than `budget` states."""
    mdp, policy, _, _ = networks(seed)
    return tuple(
        tl.certify(mdp, policy, 0, budget=size, **options)  # pyright: ignore[reportArgumentType]
        for size in (10**7, budget)
    )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", range(6))
def test_bounded_rungs_are_above_the_enumerated_ones(seed: int, options: dict) -> None:
    for budget in (0, 2, 3):
        exact, bounded = certified(seed, budget, **options)
        assert not exact.bounded.any()
        for rung in ("coupled", "exact", "span", "tanh", "paper", "scope"):
            gap = (bounded[rung].matrix - exact[rung].matrix).toarray()
            assert gap.min(initial=0.0) >= -ROUNDING, rung
            assert (bounded[rung].delta_hat >= exact[rung].delta_hat - ROUNDING).all()


@pytest.mark.parametrize("seed", range(6))
def test_the_bounded_ladder_is_sound_against_the_definitions(seed: int) -> None:
    """δ(T^π f) ≤ Hᵀ δ(f) of random f, and b ≥ δ(r^π) with entropies, by enumeration."""
    mdp, policy, model, twin = networks(seed)
    certificate = tl.certify(mdp, policy, 0, objective="entropy", budget=2)
    chain = ref.chain(model, twin, twin.temperature)
    rng = np.random.default_rng(seed)
    for f in rng.normal(size=(16, len(chain.matrix))):
        moved = ref.oscillation(model, chain.matrix @ f)
        for rung, found in certificate.items():
            assert (moved <= found.matrix.T @ ref.oscillation(model, f) + ROUNDING).all(), rung
    b = certificate["exact"].delta_hat
    assert (ref.oscillation(model, chain.reward) <= b + ROUNDING).all()


def test_rungs_keep_their_order() -> None:
    for seed in range(6):
        _, found = certified(seed, 2)
        ladder = [found[rung].matrix for rung in ("coupled", "exact", "span", "tanh", "paper")]
        for sharp, blunt in itertools.pairwise(ladder):
            assert sp.csr_array(blunt - sharp).toarray().min(initial=0.0) >= -ROUNDING


def test_only_the_agents_that_were_not_enumerated_are_bounded() -> None:
    mdp = sis(6)
    scopes = [[0, 1, 2, 3], [1], [2], [3], [4], [5]]
    policy = tl.SoftmaxPolicy.mlp(mdp, scopes, hidden=(4,))
    found = tl.certify(mdp, policy, budget=8)
    enumerated = tl.certify(mdp, policy)
    assert found.bounded.tolist() == [True, False, False, False, False, False]
    for rung in ("coupled", "exact"):
        ours, theirs = found[rung].matrix.toarray(), enumerated[rung].matrix.toarray()
        np.testing.assert_array_equal(ours[1:], theirs[1:])
    assert (found["coupled"].matrix.toarray()[0] >= enumerated["coupled"].matrix.toarray()[0]).all()


def test_machines_that_see_forty_others_each() -> None:
    """2⁴⁰ observations an agent: nothing here is enumerated."""
    mdp = sysadmin(n=40, topology="ring")
    scopes = [range(40) if k < 4 else [k - 1, k] for k in range(40)]
    policy = tl.SoftmaxPolicy.mlp(mdp, scopes, hidden=(8,), temperature=5.0)
    found = tl.certify(mdp, policy)
    assert found.bounded.tolist() == [True] * 4 + [False] * 36
    rho = [found[rung].rho.upper for rung in ("coupled", "exact", "span", "tanh", "paper", "scope")]
    assert rho == sorted(rho)
    assert rho[1] < 2.0 < rho[-1]
    with pytest.raises(tl.BudgetError, match="agent 0 sees 40 coordinates"):
        tl.certify(mdp, policy, steps=2)


def test_a_network_that_cannot_be_read_is_refused() -> None:
    import torch

    class Odd(torch.nn.Module):
        def __init__(self, count: int, actions: int) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.ones(count, 1, actions, dtype=torch.float64))

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return observations.double().sum(-1, keepdim=True).sin() * self.slope

    mdp = sis(4)
    policy = tl.SoftmaxPolicy.from_module(
        mdp, tl.neighbourhood_scopes(mdp), lambda group: Odd(len(group), group.n_actions)
    )
    with pytest.raises(tl.InputError, match="Odd"):
        tl.certify(mdp, policy, budget=2)
