"""Prices against numerical gradients, the priced step against its objective, dual ascent to its end."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import torchloc as tl
from torchloc.environments import sis
from torchloc.errors import InputError
from torchloc.improvement.prox import entropy, kl, log_law, prox_logits
from torchloc.locality import LocalityPenalty, priced_laws, row_loads, scope_prices
from torchloc.locality.shrinking import UNSEEN
from torchloc.sensitivity import policy_sensitivity, total_variations

Array = np.ndarray
# Sums of some dozen products in float64.
SUMS = 1e-12
# The search ends with steps of 2^-27 from a grid; its cost is flat there.
SEARCHED = 1e-7


def law_tables(seed: int, agents: int = 3, shape: tuple[int, ...] = (2, 3, 2)) -> torch.Tensor:
    """(G, *shape) log laws, the last axis actions."""
    logits = 2.0 * np.random.default_rng(seed).normal(size=(agents, *shape))
    return torch.log_softmax(torch.tensor(logits), dim=-1)


def by_definition(log_laws: Array, alpha: Array, nu: Array) -> Array:
    """S_α π by one sum over all states: every coordinate is kept with probability α_i, or redrawn."""
    sizes = log_laws.shape[:-1]
    marginals = []
    for i, size in enumerate(sizes):
        others = tuple(axis for axis in range(len(sizes)) if axis != i)
        marginals.append((1.0 - UNSEEN) * nu.sum(axis=others) + UNSEEN / size)
    result = np.zeros_like(log_laws)
    for s, t in itertools.product(np.ndindex(*sizes), repeat=2):
        weight = math.prod(
            alpha[i] * (s[i] == t[i]) + (1.0 - alpha[i]) * marginals[i][t[i]]
            for i in range(len(sizes))
        )
        result[s] += weight * np.exp(log_laws[t])
    return result


def priced_cost(log_laws: Array, moved: Array, nu: Array, q: float, charge: float) -> float:
    """q E_ν KL(μ ‖ π*) + charge."""
    gap = (moved * (np.log(moved) - log_laws)).sum(axis=-1)
    return q * float((nu * gap).sum()) + charge


# Prices -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_prices_are_the_gradient_of_the_weighted_loads(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = 5, 3
    state = sp.csr_array(rng.random((n, n)))
    action = sp.csr_array(np.where(rng.random((n, k)) < 0.6, rng.random((n, k)), 0.0))
    weights = np.exp(rng.normal(size=n))
    penalty = LocalityPenalty(n, target=0.9, step=1.0)
    penalty.duals = rng.exponential(size=n)
    prices = penalty.prices(action, weights)
    sensitivity = rng.random((k, n))

    def lagrangian(rows: Array) -> float:
        return float(penalty.duals @ row_loads(state, action, sp.csr_array(rows), weights))

    for agent, i in np.ndindex(k, n):
        moved = sensitivity.copy()
        moved[agent, i] += 0.5
        slope = (lagrangian(moved) - lagrangian(sensitivity)) / 0.5
        assert slope == pytest.approx(prices[agent] * weights[i], rel=SUMS * 100, abs=SUMS * 100)


def test_prices_reach_each_agents_scope_in_its_order() -> None:
    mdp = sis(4)
    scopes = [(0, 1), (2, 1), (3, 2), (0, 3)]
    policy = tl.SoftmaxPolicy.tabular(mdp, scopes)
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    found = scope_prices(policy, np.array([1.0, 10.0, 0.0, 100.0]), weights, 0)
    assert found.tolist() == [[1.0, 2.0], [30.0, 20.0], [0.0, 0.0], [100.0, 400.0]]


def test_duals_rise_where_rows_are_over_and_never_below_zero() -> None:
    penalty = LocalityPenalty(3, target=0.9, step=2.0)
    penalty.ascend(np.array([1.0, 0.9, 0.1]))
    np.testing.assert_allclose(penalty.duals, [0.2, 0.0, 0.0], rtol=SUMS)
    penalty.ascend(np.array([0.85, 1.4, 0.0]))
    np.testing.assert_allclose(penalty.duals, [0.1, 1.0, 0.0], rtol=SUMS)


@pytest.mark.parametrize(("target", "step"), [(0.0, 1.0), (0.9, 0.0), (np.inf, 1.0), (0.9, np.nan)])
def test_settings_out_of_range_are_refused(target: float, step: float) -> None:
    with pytest.raises(InputError):
        LocalityPenalty(3, target=target, step=step)


@pytest.mark.parametrize("loads", [np.ones(2), np.array([1.0, np.inf, 0.0])])
def test_loads_that_are_none_are_refused(loads: Array) -> None:
    with pytest.raises(InputError, match="loads"):
        LocalityPenalty(3, target=0.9, step=1.0).ascend(loads)


# The priced step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("objective", ["reward", "entropy"])
def test_what_another_law_loses_is_the_stiffness_times_its_divergence(
    seed: int, objective: str
) -> None:
    """F(π*) − F(μ) = q KL(μ ‖ π*), state by state, for F = ⟨μ, g⟩ + τ' Ent μ − η KL(μ ‖ π)."""
    rng = np.random.default_rng(seed)
    z, g, other = (torch.tensor(rng.normal(size=(6, 3))) for _ in range(3))
    tau, eta = 0.7, 0.4
    best = log_law(
        prox_logits(z, g, temperature=tau, prox=eta, objective=objective),  # pyright: ignore[reportArgumentType]
        tau,
    )
    weight = tau if objective == "entropy" else 0.0

    def value(law: torch.Tensor) -> torch.Tensor:
        gain = (law.exp() * g).sum(-1) + weight * entropy(law)
        return gain - eta * kl(law, log_law(z, tau))

    mu = torch.log_softmax(other, dim=-1)
    lost = value(best) - value(mu)
    torch.testing.assert_close(lost, (eta + weight) * kl(mu, best), rtol=1e-10, atol=SUMS)


@pytest.mark.parametrize("seed", range(6))
def test_the_step_is_the_definition_and_is_worth_its_price(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = law_tables(seed)
    law = torch.tensor(rng.dirichlet(np.ones(6), size=3).reshape(3, 2, 3))
    stiffness = torch.tensor(rng.uniform(0.1, 1.0, size=3))
    prices = torch.tensor(rng.exponential(size=(3, 2)) * 0.3)
    found, alpha = priced_laws(x, stiffness=stiffness, prices=prices, law=law, sweeps=4)
    assert ((alpha >= 0) & (alpha <= 1)).all()
    old, new = total_variations(x.exp()), total_variations(found.exp())
    assert (new <= alpha * old + SUMS).all()
    for g in range(3):
        nu, table, a = law[g].numpy(), x[g].numpy(), alpha[g].numpy()
        np.testing.assert_allclose(found[g].exp(), by_definition(table, a, nu), rtol=SUMS * 10)
        tv, price, q = old[g].numpy(), prices[g].numpy(), float(stiffness[g])

        def cost(
            at: Array,
            table: Array = table,
            nu: Array = nu,
            tv: Array = tv,
            price: Array = price,
            q: float = q,
        ) -> float:
            charge = float((price * at * tv).sum())
            return priced_cost(table, by_definition(table, at, nu), nu, q, charge)

        mine = cost(a)
        # The guarantee: with Π itself in place of its bound the left side is smaller still.
        assert mine <= cost(np.ones(2)) + SUMS
        real = priced_cost(
            table, found[g].exp().numpy(), nu, q, float((price * new[g].numpy()).sum())
        )
        assert real <= cost(np.ones(2)) + SUMS
        # Neither coordinate alone could do better.
        for i, value in itertools.product(range(2), np.linspace(0.0, 1.0, 21)):
            assert mine <= cost(np.where(np.arange(2) == i, value, a)) + SEARCHED


def test_no_price_keeps_every_bit_and_a_high_one_makes_blind() -> None:
    x = law_tables(0)
    prices = torch.tensor([[0.0, 0.0], [1e6, 0.0], [1e6, 1e6]])
    found, alpha = priced_laws(x, stiffness=torch.ones(3), prices=prices)
    assert torch.equal(found[0], x[0])
    assert alpha.tolist() == [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    seen = total_variations(found.exp())
    assert seen[1, 0] <= SUMS and seen[2].max() <= SUMS and seen[1, 1] > 0.1


def test_what_is_forbidden_in_some_states_is_not_averaged() -> None:
    x = law_tables(1, agents=1)
    x[0, 1, :, 0] = -torch.inf  # says coordinate 0, not coordinate 1
    x = torch.log_softmax(x, dim=-1)
    found, alpha = priced_laws(x, stiffness=torch.ones(1), prices=torch.full((1, 2), 1e6))
    assert alpha.tolist() == [[1.0, 0.0]]
    assert torch.equal(found.isneginf(), x.isneginf())
    assert total_variations(found.exp())[0, 1] <= SUMS


def test_laws_that_underflow_forbid_nothing() -> None:
    logits = torch.tensor([[[0.0, -2000.0], [0.0, -3000.0]]], dtype=torch.float64)
    x = torch.log_softmax(logits, dim=-1)
    found, _ = priced_laws(x, stiffness=torch.ones(1), prices=torch.ones(1, 1))
    assert torch.isfinite(found).all()


# Dual ascent --------------------------------------------------------------------------------------


def test_dual_ascent_ends_at_the_target_with_complementary_duals() -> None:
    """Three agents on a ring, each acting on its own coordinate and seeing the one before."""
    rng = np.random.default_rng(0)
    n = 3
    action, state = sp.csr_array(np.eye(n) * [1.0, 0.9, 0.5]), sp.csr_array(np.eye(n) * 0.3)
    weights = np.array([1.0, 1.5, 0.8])
    steep = np.array([3.0, 2.5, 0.3])
    logits = np.zeros((n, 2, 2))
    logits[:, 1, 1] = steep
    x = torch.log_softmax(torch.tensor(logits + 0.1 * rng.normal(size=logits.shape)), dim=-1)
    before = np.roll(np.arange(n), 1)
    penalty = LocalityPenalty(n, target=0.6, step=0.3)
    loads = np.zeros(n)
    for _ in range(60):
        prices = penalty.prices(action, weights)
        charge = torch.tensor(prices * weights[before])[:, None]
        found, _ = priced_laws(x, stiffness=torch.ones(n), prices=charge, sweeps=1)
        entries = total_variations(found.exp())[:, 0].numpy()
        sensitivity = sp.csr_array((entries, (np.arange(n), before)), shape=(n, n))
        loads = row_loads(state, action, sensitivity, weights)
        penalty.ascend(loads)
    assert loads.max() <= 0.6 + 1e-3
    assert np.abs(penalty.duals * (loads - 0.6)).max() <= 1e-3
    assert (penalty.duals > 0).any() and not (penalty.duals > 0).all()


def test_a_policys_own_sensitivity_is_what_the_step_prices() -> None:
    mdp = sis(4)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=2.0, seed=1)
    laws = policy.groups[0].unflatten(policy.group_probabilities(0))
    exact = policy_sensitivity(policy, "exact").toarray()
    mine = total_variations(laws)
    for row, agent in enumerate(policy.groups[0].agents):
        np.testing.assert_allclose(exact[agent, policy.groups[0].scope[row]], mine[row], rtol=SUMS)
