"""Certificates bound the stored numbers as exact reals: checked against 60-digit arithmetic.

`reference` takes tables of `mpmath` numbers as they are, so its definitions come out right to the
last place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import pytest
import reference as ref
from twins import twin_model, twin_policy

import torchloc as tl
from torchloc.certificate import RungCertificate
from torchloc.sensitivity import RUNGS

Array = np.ndarray
mpmath.mp.dps = 60
# The oracle's own rounding: sums that cancel leave some 1e-60 of their terms, here at most 1e10.
NOTHING = 1e-45


def precise(values: Array) -> Array:
    """The same numbers, exactly, as `mpmath` objects."""
    return np.vectorize(mpmath.mpf, otypes=[object])(values)


def elementwise(function: Any, values: Array) -> Array:
    return np.vectorize(function, otypes=[object])(values)


@dataclass(frozen=True, eq=False)
class PrecisePolicy:
    """What `reference` reads of a policy, in 60 digits."""

    scopes: list[tuple[int, ...]]
    logits: list[Array]
    temperature: Array

    @property
    def probabilities(self) -> list[Array]:
        result = []
        for z, tau in zip(self.logits, self.temperature, strict=True):
            weights = elementwise(mpmath.exp, (z - z.max(-1, keepdims=True)) / tau)
            result.append(weights / weights.sum(-1, keepdims=True))
        return result


def twins(model: ref.Model, policy: ref.Policy) -> tuple[ref.Model, PrecisePolicy]:
    """The same model and policy in 60 digits."""
    kernels, rewards = (
        [(states, actions, precise(table)) for states, actions, table in terms]
        for terms in (model.kernels, model.rewards)
    )
    exact = ref.Model(model.state_sizes, model.action_sizes, kernels, rewards)
    logits = [precise(z) for z in policy.logits]
    return exact, PrecisePolicy(policy.scopes, logits, precise(policy.temperature))


def logit_rung(model: ref.Model, policy: PrecisePolicy, rung: str) -> Array:
    """(K, N) Π on `span`, `tanh` or `paper`."""
    result = np.zeros((model.n_agents, model.n_coordinates), dtype=object)
    for k, i in np.ndindex(result.shape):
        s, t = ref.pairs(model, i)
        z = ref.at_states(model, policy.scopes[k], policy.logits[k])
        z = z - z.sum(-1, keepdims=True) / z.shape[-1]
        gap = z[s] - z[t]
        tau = policy.temperature[k]
        span = (gap.max(-1) - gap.min(-1)).max(initial=mpmath.mpf(0))
        slope = np.abs(gap).max(initial=mpmath.mpf(0))
        result[k, i] = {
            "span": mpmath.tanh(span / (4 * tau)),
            "tanh": mpmath.tanh(slope / (2 * tau)),
            "paper": min(mpmath.mpf(1), slope / (2 * tau)),
        }[rung]
    return result


def influence(model: ref.Model, policy: PrecisePolicy, rung: str) -> Array:
    if rung in ("coupled", "exact", "scope"):
        return ref.influence(model, policy, rung)
    direct, reach = ref.state_sensitivity(model), ref.action_sensitivity(model)
    return direct + precise(reach) @ logit_rung(model, policy, rung)


def oscillations(model: ref.Model, policy: PrecisePolicy, objective: str) -> Array:
    """Σ_m δ(r_m^π) (+ Σ_k τ_k δ(Ent π_k))."""
    joint = ref.product_policy(model, policy)
    parts = [(joint * ref.at_pairs(model, term)).sum(-1) for term in model.rewards]
    if objective == "entropy":
        for k, tau in enumerate(policy.temperature):
            law = ref.agent_policy(model, policy, k)
            parts.append(-tau * elementwise(lambda p: p * mpmath.log(p), law).sum(-1))
    return np.sum([ref.oscillation(model, part) for part in parts], axis=0)


def harsh_case(seed: int) -> tuple[ref.Model, ref.Policy]:
    """Steep logits, rewards of any size, laws that nearly agree: what loses digits."""
    rng = np.random.default_rng(seed)
    model = ref.random_model(rng, n_coordinates=(1, 3), sizes=(1, 3), max_joint=24)
    policy = ref.random_policy(
        rng, model, scale=(1e-17, 1e3), temperature=(0.01, 3.0), full_scopes=seed % 2 == 0
    )
    rewards = [(s, a, table * 10.0 ** rng.integers(-6, 9)) for s, a, table in model.rewards]
    return ref.Model(model.state_sizes, model.action_sizes, model.kernels, rewards), policy


def check_rounding(model: ref.Model, policy: ref.Policy) -> None:
    mdp = twin_model(model)
    exact_model, exact_policy = twins(model, policy)
    for objective in ("reward", "entropy"):
        certificate = tl.certify(mdp, twin_policy(mdp, policy), objective=objective)
        b = oscillations(exact_model, exact_policy, objective)
        assert (certificate["exact"].reward_oscillation >= b - NOTHING).all(), objective
    direct, reach = ref.state_sensitivity(exact_model), ref.action_sensitivity(exact_model)
    assert (certificate.environment.state.toarray() >= direct).all()
    assert (certificate.environment.action.toarray() >= reach).all()
    for rung in RUNGS:
        truth = influence(exact_model, exact_policy, rung)
        assert (certificate[rung].matrix.toarray() >= truth - NOTHING).all(), rung


@pytest.mark.parametrize("seed", range(12))
def test_matrices_and_oscillations_are_rounded_outward(seed: int) -> None:
    check_rounding(*harsh_case(seed))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_rounding_on_hundreds_of_models(block: int) -> None:
    for seed in range(100 + 20 * block, 120 + 20 * block):
        check_rounding(*harsh_case(seed))


def tiny_difference(rewards: list[float], gap: float, level: float = 0.0):
    """A coin, and one agent who sees it: logits (0, level) against (gap, level)."""
    kernels = [((), (0,), np.array([[0.7, 0.3], [0.2, 0.8]]))]
    model = ref.Model((2,), (2,), kernels, [((), (0,), np.array(rewards))])
    logits = np.array([[0.0, level], [gap, level]])
    return model, ref.Policy([(0,)], [logits], np.ones(1))


@pytest.mark.parametrize("gap", [1e-17, 1e-15, 1e-3])
@pytest.mark.parametrize("level", [0.0, 0.3, 30.0])
def test_laws_that_round_to_the_same_numbers_still_differ(gap: float, level: float) -> None:
    check_rounding(*tiny_difference([1e8, -1e8], gap, level))


def certified_tail(rung: RungCertificate, kappa: int) -> Array:
    """(I − M)^{-1} M^{κ+1} b of the rung's own M and b, in 60 digits."""
    size = len(rung.reward_oscillation)
    step = mpmath.matrix(rung.operators[0].toarray().tolist())
    right = step ** (kappa + 1) * mpmath.matrix(rung.reward_oscillation.tolist())
    solution = mpmath.lu_solve(mpmath.eye(size) - step, right)
    return np.array([solution[i] for i in range(size)], dtype=object)


@pytest.mark.parametrize("seed", range(12))
def test_tails_and_sums_are_rounded_outward(seed: int) -> None:
    rng = np.random.default_rng(seed)
    options = {"n_coordinates": (2, 4), "sizes": (2, 3), "max_joint": 200, "unichain": True}
    model = ref.random_model(rng, mixing=0.3, **options)
    policy = ref.random_policy(rng, model)
    mdp = twin_model(model)
    for rung in tl.certify(mdp, twin_policy(mdp, policy), kappa=3).values():
        step = precise(rung.operators[0].toarray())
        term, total = precise(rung.reward_oscillation), 0
        for _ in range(4):
            total, term = total + term, step @ term
        assert (rung.delta_hat >= total).all()
        if rung.certified:
            for kappa in (-1, 0, 3, 30):
                exact = certified_tail(rung, kappa)
                assert (rung.tail_at(kappa) >= exact - NOTHING).all()
                gains = precise(rung.reach.toarray()).T @ precise(rung.tail_at(kappa))
                assert (rung.epsilon_at(kappa) >= gains).all()
