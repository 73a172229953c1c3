"""The paper's examples and the numbers of theory, sections 2, 3 and 5, from the package."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oscillations import oscillation

import torchloc as tl
from torchloc.environments import (
    hub_spoke,
    ising,
    leader_follower,
    line_msg,
    sis,
    sleepy,
    sysadmin,
    sysadmin_hand_rule,
)
from torchloc.evaluation.planning import optimal_control
from torchloc.sensitivity import RUNGS, action_sup
from torchloc.spectral import SpectralBound

Array = np.ndarray
POLICY_RUNGS = RUNGS[1:]
# A bracket of ρ is closed to this relative gap.
GAP = 1e-6
# Solves on at most 64 states that mix in a few steps.
SOLVE = 1e-10


def encloses(bound: SpectralBound, value: float, rounding: float = 1e-12) -> bool:
    """Whether a bracket holds a value known to `rounding`, and is as narrow as promised."""
    narrow = bound.upper - bound.lower <= GAP * max(bound.upper, 1e-12)
    return narrow and bound.lower - rounding <= value <= bound.upper + rounding


def second_eigenvalue(joint: tl.JointEvaluation) -> float:
    """|λ₂| of the joint chain, its true rate of forgetting."""
    return float(torch.linalg.eigvals(joint.transition_matrix).abs().sort().values[-2])


def uniform(mdp: tl.FactoredMDP) -> tl.SoftmaxPolicy:
    return tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))


def hand_rule(mdp: tl.FactoredMDP) -> tl.SoftmaxPolicy:
    scopes = tl.neighbourhood_scopes(mdp)
    return tl.SoftmaxPolicy.from_probabilities(mdp, scopes, sysadmin_hand_rule(mdp))


# The sleepy agent (section 3) -------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
def test_sleepy_agent_bounds_the_influence_by_alpha(alpha: float) -> None:
    mdp = sleepy()
    laws = [[[0.5, 0.5], [0.5 - alpha, 0.5 + alpha]], [0.5, 0.5]]
    policy = tl.SoftmaxPolicy.from_probabilities(mdp, [(0,), ()], laws)
    assert tl.state_sensitivity(mdp).nnz == 0
    assert tl.action_sensitivity(mdp).toarray().tolist() == [[0, 0], [1, 0]]
    assert action_sup(mdp).toarray().tolist() == [[0, 0], [1, 0]]
    for rung in ("coupled", "exact"):
        influence = tl.influence(mdp, policy, rung).toarray()
        # The probabilities pass through a logarithm and back.
        np.testing.assert_allclose(influence, [[0, 0], [alpha, 0]], rtol=0, atol=2.0**-50)
    assert tl.influence(mdp, policy, "scope")[1, 0] == 1.0
    certificate = tl.certify(mdp, policy, kappa=0)
    assert all(rung.certified and rung.rho.upper == 0.0 for rung in certificate.values())
    # h = s₁ + π(1 | s₀) up to a constant: the Poisson bound is attained.
    truth = oscillation(tl.JointEvaluation(mdp, policy).poisson())
    np.testing.assert_allclose(truth, [alpha, 1.0], rtol=0, atol=SOLVE)
    np.testing.assert_allclose(certificate["coupled"].poisson, truth, rtol=0, atol=SOLVE)
    np.testing.assert_allclose(certificate["coupled"].tail, [alpha, 0.0], rtol=0, atol=SOLVE)
    assert (certificate["coupled"].tail_at(1) == 0.0).all()


# Leader and follower (E.1) ----------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
def test_leader_and_follower_have_radius_0_at_any_temperature(temperature: float) -> None:
    """E.1 prints ρ(H) ≥ 1 because of the off-diagonal 1; a strictly triangular matrix has ρ = 0."""
    mdp = leader_follower()
    policy = tl.SoftmaxPolicy.tabular(mdp, [(0, 1)] * 2, temperature=temperature, seed=1, scale=1.0)
    certificate = tl.certify(mdp, policy, kappa=1)
    for name, rung in certificate.items():
        assert tl.influence(mdp, policy, name).toarray().tolist() == [[0, 0], [1, 0]]
        assert rung.row_norm >= 1.0 and rung.rho.upper == 0.0 and rung.certified
    # h = s₁ + s₀ up to a constant, and two steps see all of it.
    truth = oscillation(tl.JointEvaluation(mdp, policy).poisson())
    np.testing.assert_allclose(truth, [1.0, 1.0], rtol=0, atol=SOLVE)
    np.testing.assert_allclose(certificate["paper"].poisson, truth, rtol=0, atol=SOLVE)
    assert (certificate["paper"].tail == 0.0).all()


@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
def test_leader_that_follows_the_follower_reaches_radius_1(temperature: float) -> None:
    mdp = leader_follower(mutual=True)
    policy = tl.SoftmaxPolicy.tabular(mdp, [(0, 1)] * 2, temperature=temperature, seed=1, scale=1.0)
    certificate = tl.certify(mdp, policy)
    assert encloses(certificate.floor, 1.0)
    for rung in certificate.values():
        assert encloses(rung.rho, 1.0) and not rung.certified
        assert np.isinf(rung.tail).all() and np.isinf(rung.poisson).all()
        # No action moves a state, and 0 · ∞ = 0.
        assert rung.epsilon.tolist() == [0.0, 0.0]
    discounted = tl.certify(mdp, policy, discount=0.9)
    assert all(encloses(rung.contraction, 0.9) for rung in discounted.values())


# Hub and spokes (E.2) ---------------------------------------------------------------------------


def hub_policy(mdp: tl.FactoredMDP, slopes: Array, temperature: float) -> tl.SoftmaxPolicy:
    """Hub logits ±Σ slope_i s_i, so L_i = slope_i; the spokes are blind."""
    n = mdp.n_coordinates
    level = np.tensordot(np.indices((2,) * n), slopes, axes=(0, 0))
    logits = [np.stack([-level, level], axis=-1), *[np.zeros(2)] * (n - 1)]
    scopes = [tuple(range(n)), *[()] * (n - 1)]
    return tl.SoftmaxPolicy.from_logits(mdp, scopes, logits, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_hub_and_spokes_add_up_the_spokes(temperature: float) -> None:
    mdp, slopes = hub_spoke(4), np.array([3.0, 0.5, 1.0, 2.5])
    certificate = tl.certify(mdp, hub_policy(mdp, slopes, temperature))
    half = slopes[1:] / (2 * temperature)
    assert encloses(certificate["paper"].rho, np.minimum(1.0, half).sum())
    assert encloses(certificate["tanh"].rho, np.tanh(half).sum())
    assert encloses(certificate["span"].rho, np.tanh(half).sum())
    assert encloses(certificate["scope"].rho, 3.0)
    assert certificate.floor.upper == 0.0


@pytest.mark.parametrize("n", [3, 6])
@pytest.mark.parametrize(("factor", "certified"), [(0.999, False), (1.001, True)])
def test_hub_and_spokes_are_certified_above_half_the_spokes_times_l(
    n: int, factor: float, certified: bool
) -> None:
    mdp, slope = hub_spoke(n), 0.8
    threshold = (n - 1) * slope / 2
    policy = hub_policy(mdp, np.full(n, slope), factor * threshold)
    assert tl.certify(mdp, policy)["paper"].certified is certified


def test_hub_that_ignores_its_inputs_has_radius_0() -> None:
    mdp = hub_spoke(4)
    certificate = tl.certify(mdp, hub_policy(mdp, np.zeros(4), 1.0))
    assert all(certificate[rung].rho.upper == 0.0 for rung in RUNGS[:-1])
    assert not certificate["scope"].certified


# Messages on a line -----------------------------------------------------------------------------


def test_line_of_messages_is_certified_by_its_spectrum_and_by_no_norm() -> None:
    n = 5
    mdp = line_msg(n)
    scopes = [(i + 1,) if i + 1 < n else () for i in range(n)]
    pass_on = [np.eye(2) if scope else np.array([0.5, 0.5]) for scope in scopes]
    policy = tl.SoftmaxPolicy.from_probabilities(mdp, scopes, pass_on)
    certificate = tl.certify(mdp, policy, kappa=n - 1)
    assert certificate.floor.upper == 0.0
    for rung in certificate.values():
        assert rung.row_norm >= 1.0 and rung.column_norm >= 1.0
        assert rung.rho.upper == 0.0 and rung.certified
        assert (rung.tail == 0.0).all() and (rung.tail_at(0) > 0.0).any()
    prior = action_sup(mdp)
    assert prior.sum(axis=1).max() >= 1.0 and prior.sum(axis=0).max() >= 1.0
    assert encloses(tl.spectral_radius(prior), 1.0)
    joint = tl.JointEvaluation(mdp, policy)
    error = joint.poisson() - joint.truncated_value(n - 1)
    np.testing.assert_allclose(oscillation(error), 0.0, atol=SOLVE)


def test_line_of_messages_needs_a_small_pi_once_agents_see_themselves() -> None:
    mdp = line_msg(5)
    scopes = [(i, i + 1) if i < 4 else (4,) for i in range(5)]
    logits = [np.array([[[0, 1], [0, 3]], [[0, 2], [0, -2]]], float)] * 4
    logits += [np.array([[0, 2], [0, -2]], float)]

    def certified(temperature: float) -> bool:
        policy = tl.SoftmaxPolicy.from_logits(mdp, scopes, logits, temperature=temperature)
        return tl.certify(mdp, policy)["exact"].certified

    assert certified(10.0) and not certified(0.01)


# SysAdmin (sections 2 and 3) --------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 8, 40])
def test_jair_ring_is_certified_by_coupling_alone(n: int) -> None:
    mdp = sysadmin(n)
    even, best = (tl.certify(mdp, policy) for policy in (uniform(mdp), hand_rule(mdp)))
    assert encloses(even.floor, 1.3775)
    assert encloses(even["coupled"].rho, 0.68875) and even["coupled"].certified
    assert encloses(best["coupled"].rho, 0.1) and best["coupled"].certified
    for rung in POLICY_RUNGS:
        assert encloses(best[rung].rho, 3.3299) and not best[rung].certified
        assert np.isinf(best[rung].epsilon).all()
    for rung in POLICY_RUNGS[:-1]:
        assert encloses(even[rung].rho, 1.3775)
    assert np.isfinite(best.epsilon).all()


def test_jair_ring_forgets_at_least_as_fast_as_coupling_says_and_the_rule_is_optimal() -> None:
    mdp = sysadmin(4)
    for policy, bound in ((uniform(mdp), 0.68875), (hand_rule(mdp), 0.1)):
        assert second_eigenvalue(tl.JointEvaluation(mdp, policy)) <= bound + SOLVE
    gain = tl.JointEvaluation(mdp, hand_rule(mdp)).average_reward
    assert gain / 4 == pytest.approx(0.8877472, abs=5e-8)
    assert optimal_control(mdp).gain == pytest.approx(gain, abs=1e-9)  # the planner's tolerance


@pytest.mark.parametrize("temperature", [1e-3, 0.3, 30.0, 1e6])
def test_no_temperature_certifies_below_the_floor(temperature: float) -> None:
    mdp = sysadmin(5)
    scopes = tl.neighbourhood_scopes(mdp)
    policy = tl.SoftmaxPolicy.tabular(mdp, scopes, temperature=temperature, seed=3, scale=1.0)
    certificate = tl.certify(mdp, policy)
    for rung in POLICY_RUNGS:
        assert certificate[rung].rho.upper >= certificate.floor.lower >= 1.3775 * (1 - GAP)
        assert not certificate[rung].certified


def radii(rung: str, logits: Array, temperatures: list[float]) -> list[float]:
    """ρ on the jair ring as τ falls; everyone has these logits and sees itself only."""
    mdp = sysadmin(3)
    policy = tl.SoftmaxPolicy.from_logits(mdp, [(0,), (1,), (2,)], [logits] * 3)
    result = []
    for tau in temperatures:
        policy.set_temperature(tau)
        result.append(tl.spectral_radius(tl.influence(mdp, policy, rung)).upper)
    return result


def test_coupled_and_exact_radii_are_not_monotone_in_temperature() -> None:
    """Warm, it reboots too seldom to help; cold, it reboots exactly the machines that are off."""
    logits = np.array([[0.0, 1.66], [0.0, -0.52]])  # rows: off, on; columns: wait, reboot
    falling = [100.0, 1.0, 0.01]
    assert radii("coupled", logits, falling) == pytest.approx([0.685, 0.471, 1.0], abs=5e-4)
    # Both rows prefer to reboot: in the limits of τ they are the same law again.
    tied = np.array([[0.0, 1.0], [0.0, 2.0]])
    warm, middle, cold = radii("exact", tied, [10.0, 1.0, 0.05])
    assert middle > max(warm, cold) + 0.1
    for rung in ("span", "tanh", "paper"):
        for table in (logits, tied):
            curve = radii(rung, table, [100.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.01])
            assert (np.diff(curve) >= -GAP * np.array(curve[1:])).all()


@pytest.mark.parametrize(
    ("family", "rates", "truth"),
    [
        ("epidemic", {1: 1.135, 2: 1.054, 3: 1.008, 4: 0.979, 8: 0.926}, 0.872),
        ("magnet", {1: 1.074, 2: 0.858, 3: 0.773, 4: 0.730, 8: 0.666}, 0.607),
    ],
)
def test_more_coupled_steps_approach_the_true_rate(
    family: str, rates: dict[int, float], truth: float
) -> None:
    """Section 3: a supercritical epidemic left alone, and a magnet under its optimal policy."""
    if family == "epidemic":
        mdp = sis(4, infection=(0.4, 0.1), recovery=(0.2, 0.5), outside=0.01)
        policy = uniform(mdp)
    else:
        mdp = ising(4, beta=0.6, field=1.0, cost=0.2, reward="up")
        push = np.eye(2)[np.array([[1, 1], [1, 0]])]  # unless both neighbours are up
        scopes = [((j - 1) % 4, (j + 1) % 4) for j in range(4)]
        policy = tl.SoftmaxPolicy.from_probabilities(mdp, scopes, [push] * 4)
    joint = tl.JointEvaluation(mdp, policy)
    if family == "magnet":
        optimum = optimal_control(mdp).gain
        assert joint.average_reward == pytest.approx(optimum, abs=1e-8)
    certificate = tl.certify(mdp, policy, rungs=("coupled",), steps=max(rates))
    for steps, rate in rates.items():
        rung = certificate["coupled" if steps == 1 else f"coupled_{steps}"]
        assert rung.rate == pytest.approx(rate, abs=5e-4)
        assert rung.certified == (rate < 1.0)
        assert np.isfinite(rung.tail).all() == (rate < 1.0)
    assert second_eigenvalue(joint) == pytest.approx(truth, abs=5e-4)


# The worked example (section 3): 7 hops against 459 ----------------------------------------------


def one_coordinate(law: Array) -> tl.FactoredMDP:
    """One coordinate, one agent; law (S, A, S), reward the state."""
    kernel = tl.LocalKernel((0,), (0,), law)
    return tl.FactoredMDP([2], [2], [kernel], [tl.LocalReward((0,), (), [0.0, 1.0])])


def test_worked_example_needs_7_hops_and_not_459() -> None:
    """γ = .99, ρ = .5, error .01. The paper rounds log .01 / log .99 = 458.2 down to 458 hops."""
    up = 0.5 * np.add.outer([0.0, 1.0], [0.0, 1.0])  # P(1 | s, a): E^s = E^a = ½
    weak = one_coordinate(np.stack([1.0 - up, up], axis=-1))
    flip = np.array([[0.0, 1.0], [1.0, 0.0]])  # s xor a: E^s = E^a = 1
    strong = one_coordinate(np.stack([1.0 - flip, flip], axis=-1))
    hops, hops_with_tail = [], []
    for mdp, rate, coupling in ((weak, 0.495, 0.5), (strong, 0.99, 1.0)):
        blind = tl.SoftmaxPolicy.tabular(mdp, [()])
        rung = tl.certify(mdp, blind, discount=0.99)["exact"]
        assert encloses(rung.contraction, rate)
        hops.append(math.ceil(math.log(0.01) / math.log(rung.contraction.upper)))
        # ε_κ = γ E^a λ^{κ+1} / (1 − λ): the tail rule in terms of ε.
        hops_with_tail.append(rung.kappa_for(0.99 * coupling * 0.01))
    assert hops == [7, 459]
    assert 0.99**458 > 0.01 >= 0.99**459
    assert hops_with_tail == [7, 916]
