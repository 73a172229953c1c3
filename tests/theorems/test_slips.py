"""Theory, section 9, evaluation: every slip with a model where the printed claim fails.

Each test shows two things on one concrete model: the claim as printed is wrong, and what the
package computes holds.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import reference as ref
import torch
from oscillations import oscillation
from twins import twin_model, twin_policy

import torchloc as tl
from torchloc.closed_loop import PolicyTables
from torchloc.environments import leader_follower, sleepy
from torchloc.sensitivity import coupled_influence

Array = np.ndarray
# Solves on at most 256 states that mix in a few steps.
SOLVE = 1e-10
RADIUS = 1e-6


def blind(mdp: tl.FactoredMDP) -> tl.SoftmaxPolicy:
    return tl.SoftmaxPolicy.tabular(mdp, [()] * mdp.n_agents)


def chain(law: list[list[float]]) -> tl.FactoredMDP:
    """An uncontrolled chain on one coordinate; the reward is its state."""
    rewards = [tl.LocalReward((0,), (), np.arange(len(law), dtype=float))]
    return tl.FactoredMDP([len(law)], [1], [tl.LocalKernel((0,), (), law)], rewards)


# Section 2, B.3: C^π ----------------------------------------------------------------------------


def exclusive_or() -> tuple[ref.Model, ref.Policy]:
    """s'_0 = a_0, s'_1 = a_0 xor a_1; agent 0 tosses a coin, agent 1 copies s_0, equality pays."""
    xor = np.zeros((2, 2, 2))
    for a, b in itertools.product(range(2), repeat=2):
        xor[a, b, a ^ b] = 1.0
    kernels = [((), (0,), np.eye(2)), ((), (0, 1), xor)]
    model = ref.Model((2, 2), (2, 2), kernels, [((0, 1), (), np.eye(2))])
    copies = np.where(np.eye(2) > 0, 0.0, -np.inf)
    return model, ref.Policy([(), (0,)], [np.zeros(2), copies], np.ones(2))


def test_marginal_influence_governs_no_oscillation_but_the_coupled_matrix_does() -> None:
    model, plain = exclusive_or()
    mdp = twin_model(model)
    policy = twin_policy(mdp, plain)
    joint = tl.JointEvaluation(mdp, policy)
    marginal = coupled_influence(mdp, PolicyTables.read(policy), all_private=True)
    assert marginal.nnz == 0  # so B.3 gives δ(T f) = 0 for every f, and δ(h) ≤ δ(r) = (1, 1)
    moved = (joint.transition_matrix @ joint.reward.reshape(-1)).reshape(2, 2)
    assert oscillation(joint.reward).tolist() == [1.0, 1.0]
    assert oscillation(moved).tolist() == [1.0, 0.0]
    truth = oscillation(joint.poisson())
    np.testing.assert_allclose(truth, [2.0, 1.0], rtol=0, atol=SOLVE)
    for rung in tl.certify(mdp, policy).values():
        assert (oscillation(moved) <= rung.operators[0] @ oscillation(joint.reward)).all()
        assert (truth <= rung.poisson + SOLVE).all()


def test_marginal_influence_governs_one_coordinate_at_a_time() -> None:
    """B.6: with one coordinate moving a step, the package certifies by C^π, and it holds."""
    model, plain = exclusive_or()
    mdp = twin_model(model)
    sites = np.array([0.3, 0.7])
    policy = twin_policy(mdp, plain)
    rung = tl.certify(mdp, policy, dynamics="asynchronous", site_law=sites)["coupled"]
    np.testing.assert_allclose(rung.operators[0].toarray(), np.diag([0.7, 0.3]), atol=1e-13)
    moves = ref.asynchronous_transition(model, sites)
    step = ref.policy_transition(moves, ref.product_policy(model, plain))
    for f in np.random.default_rng(0).normal(size=(50, 4)):
        moved, was = ref.oscillation(model, step @ f), ref.oscillation(model, f)
        assert (moved <= rung.operators[0] @ was + 1e-15 * np.abs(f).max()).all()


# Section 3 against Theorem 7, B.4: which of H and its transpose -----------------------------------


def test_oscillations_move_by_the_transpose() -> None:
    mdp = sleepy()
    laws = [[[0.5, 0.5], [0.2, 0.8]], [0.5, 0.5]]
    policy = tl.SoftmaxPolicy.from_probabilities(mdp, [(0,), ()], laws)
    rung = tl.certify(mdp, policy)["exact"]
    joint = tl.JointEvaluation(mdp, policy)
    moved = (joint.transition_matrix @ joint.reward.reshape(-1)).reshape(2, 2)
    before, after = oscillation(joint.reward), oscillation(moved)
    np.testing.assert_allclose(after, [0.3, 0.0], rtol=0, atol=1e-15)
    assert (rung.matrix @ before < after).any()
    assert (rung.operators[0] @ before >= after).all()
    assert (rung.operators[0].toarray() == rung.matrix.toarray().T).all()
    np.testing.assert_allclose(rung.operators[0] @ before, after, rtol=0, atol=1e-14)


# Theorems 3 and 7: ‖H^t‖ ≤ C ρ^t ------------------------------------------------------------------


def jordan(rate: float, coupling: float) -> tl.FactoredMDP:
    """P(s'_0 = 1) = rate·s_0 + coupling·s_1, P(s'_1 = 1) = rate·s_1; reward s_0."""
    first = rate * np.array([[0.0, 0.0], [1.0, 1.0]]) + coupling * np.array(
        [[0.0, 1.0], [0.0, 1.0]]
    )
    second = rate * np.array([0.0, 1.0])
    kernels = [
        tl.LocalKernel((0, 1), (), np.stack([1 - first, first], axis=-1)),
        tl.LocalKernel((1,), (), np.stack([1 - second, second], axis=-1)),
    ]
    return tl.FactoredMDP([2, 2], [1], kernels, [tl.LocalReward((0,), (), [0.0, 1.0])])


def test_powers_of_a_jordan_block_outgrow_every_multiple_of_its_radius() -> None:
    mdp = jordan(0.5, 0.5)
    rung = tl.certify(mdp, blind(mdp))["exact"]
    bound = rung.contraction
    assert abs(bound.upper - 0.5) < RADIUS
    powers = [np.linalg.matrix_power(rung.operators[0].toarray(), t) for t in range(120)]
    norms = np.array([np.abs(power).sum(axis=1).max() for power in powers])
    growth = norms / 0.5 ** np.arange(120)
    # ‖M^t‖ = ρ^t + t ρ^{t−1}/2 = ρ^t (1 + t): no C serves every t, and the chain itself does so.
    np.testing.assert_allclose(growth, 1.0 + np.arange(120), rtol=1e-9)
    joint = tl.JointEvaluation(mdp, blind(mdp))
    values = joint.reward.reshape(-1)
    reached = []
    for _ in range(40):
        reached.append(float(oscillation(values.reshape(2, 2))[1]))
        values = joint.transition_matrix @ values
    np.testing.assert_allclose(reached, np.arange(40) * 0.5 ** np.arange(40), rtol=1e-12)
    # What holds: an explicit C with a λ above ρ, from checked weights or from powers.
    weight, rate = bound.weights, bound.weighted_rate
    assert 0.5 < rate < 1.0
    assert (rung.operators[0] @ weight <= rate * weight).all()
    pairs = [(weight.max() / weight.min(), rate)]
    pairs += [(pair.constant, pair.rate) for pair in bound.candidates]
    assert len(pairs) > 1
    for constant, rate in pairs:
        assert 0.5 < rate < 1.0 and (norms <= constant * rate ** np.arange(120)).all()


# Theorem 7 --------------------------------------------------------------------------------------


def test_delta_hat_does_not_approach_delta_h() -> None:
    """Theorem 7.1 prints ‖δ(h) − δ̂^(κ)‖ ≤ tail; only δ(h) ≤ δ̂^(κ) + tail holds."""
    mdp = chain([[0.25, 0.75], [0.75, 0.25]])
    rung = tl.certify(mdp, blind(mdp))["coupled"]
    truth = oscillation(tl.JointEvaluation(mdp, blind(mdp)).poisson())
    assert truth[0] == pytest.approx(2 / 3, abs=SOLVE)
    assert rung.poisson[0] == pytest.approx(2.0, rel=1e-9)
    for kappa in (1, 3, 10, 40):
        tight = tl.certify(mdp, blind(mdp), kappa)["coupled"]
        assert tight.tail[0] == pytest.approx(2.0**-kappa, rel=1e-9)
        assert abs(truth[0] - tight.delta_hat[0]) > tight.tail[0]
        assert truth[0] <= tight.delta_hat[0] + tight.tail[0] + SOLVE
    assert tight.delta_hat[0] == pytest.approx(2.0, abs=1e-9)


def test_bias_needs_the_one_norm_of_the_tail() -> None:
    """Theorem 7.3 prints C/(2(1 − λ)) λ^{κ+1} ‖δ(r)‖₁ with the ∞-norm's C: .071 for a true .571."""
    n = 8
    mean = np.indices((2,) * n).mean(axis=0)
    kernels = [tl.LocalKernel(tuple(range(n)), (), np.stack([1 - mean, mean], axis=-1))]
    kernels += [tl.LocalKernel((), (), [0.5, 0.5])] * (n - 1)
    mdp = tl.FactoredMDP([2] * n, [1], kernels, [tl.LocalReward((0,), (), [0.0, 1.0])])
    joint = tl.JointEvaluation(mdp, blind(mdp))
    error = float((joint.poisson() - joint.truncated_value(0)).abs().max())
    assert error == pytest.approx(4 / 7, abs=SOLVE)
    rung = tl.certify(mdp, blind(mdp), kappa=0)["coupled"]
    matrix = rung.operators[0].toarray()
    rate = 1 / n  # ‖M^t‖_∞ = λ^t exactly, so C = 1
    for t in range(5):
        power = np.linalg.matrix_power(matrix, t)
        assert np.abs(power).sum(axis=1).max() == pytest.approx(rate**t, rel=1e-12)
    printed = rate / (2 * (1 - rate)) * rung.reward_oscillation.sum()
    assert printed == pytest.approx(1 / 14, rel=1e-12) and printed < error / 7
    half = rung.bias / 2
    assert error <= half + SOLVE and half == pytest.approx(4 / 7, rel=1e-9)
    assert half == pytest.approx(n * printed, rel=1e-9)  # n‖b‖_∞ in place of ‖b‖₁


def test_half_the_tail_bounds_the_error_up_to_the_best_constant_only() -> None:
    """Theory's own slip: with d·h = 0 the error can exceed ½‖tail‖₁; half its span never does."""
    mdp = chain([[0.9, 0.1], [0.5, 0.5]])
    joint = tl.JointEvaluation(mdp, blind(mdp))
    error = joint.poisson() - joint.truncated_value(0)
    bias = tl.certify(mdp, blind(mdp), kappa=0)["coupled"].bias
    half = bias / 2
    assert float(error.abs().max()) <= bias + SOLVE
    assert half == pytest.approx(1 / 3, rel=1e-9)
    assert float(error.abs().max()) == pytest.approx(5 / 9, abs=SOLVE)
    span = float(error.max() - error.min())
    assert span / 2 == pytest.approx(1 / 3, abs=SOLVE) and span / 2 <= half + SOLVE
    shifted = error - (error.max() + error.min()) / 2
    assert float(shifted.abs().max()) <= half + SOLVE


# Lemma 8 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", [2, 5])
def test_softmax_bound_is_attained_by_the_tanh_and_by_the_line_in_the_limit_only(
    actions: int,
) -> None:
    mdp = tl.FactoredMDP([2], [actions], [tl.LocalKernel((), (0,), np.full((actions, 2), 0.5))], [])
    ratios = []
    for spread in (4.0, 1.0, 0.1, 1e-3):
        # Two actions at odds e^{±c/2}, the others never taken.
        table = np.full((2, actions), -np.inf)
        table[0, :2] = spread / 4, -spread / 4
        table[1, :2] = -spread / 4, spread / 4
        policy = tl.SoftmaxPolicy.from_logits(mdp, [(0,)], [0.7 * table], temperature=0.7)
        exact, span, tanh, paper = (
            tl.policy_sensitivity(policy, rung)[0, 0] for rung in ("exact", "span", "tanh", "paper")
        )
        assert exact == pytest.approx(math.tanh(spread / 4), rel=1e-12)
        assert span == pytest.approx(exact, rel=1e-12) and tanh == pytest.approx(exact, rel=1e-12)
        assert exact < paper <= 1.0
        ratios.append(exact / paper)
    assert (np.diff(ratios) > 0).all() and 1 - 1e-6 < ratios[-1] < 1


# E.1 and B.3 ------------------------------------------------------------------------------------


def test_an_off_diagonal_one_does_not_break_decay() -> None:
    """E.1 prints that it makes ρ(H) ≥ 1; it takes a cycle, here the leader that follows."""
    follower, mutual = leader_follower(), leader_follower(mutual=True)
    one_way = tl.certify(follower, blind(follower))["exact"]
    both = tl.certify(mutual, blind(mutual))["exact"]
    assert one_way.matrix.max() >= 1.0 and one_way.rho.upper == 0.0
    assert abs(both.rho.upper - 1.0) < RADIUS and both.rho.lower > 1.0 - RADIUS
    joint = tl.JointEvaluation(follower, blind(follower))
    error = joint.poisson() - joint.truncated_value(1)
    np.testing.assert_allclose(oscillation(error), 0.0, atol=SOLVE)


def test_the_centre_of_the_poisson_equation_is_the_stationary_average() -> None:
    """B.3 takes r̄ to be any constant; the series then drifts by d·r − c a step for ever."""
    mdp = chain([[0.9, 0.1], [0.5, 0.5]])
    joint = tl.JointEvaluation(mdp, blind(mdp))
    average = joint.average_reward
    assert average == pytest.approx(float((joint.stationary * joint.reward).sum()), abs=SOLVE)
    wrong = average + 0.1
    term, total, means = joint.reward - wrong, torch.zeros(2, dtype=torch.float64), []
    for _ in range(50):
        total = total + term
        means.append(float((joint.stationary * total).sum()))
        term = joint.transition_matrix @ term
    np.testing.assert_allclose(means, -0.1 * np.arange(1, 51), rtol=0, atol=SOLVE)
    settled = joint.truncated_value(49) - joint.poisson()
    np.testing.assert_allclose(settled, 0.0, atol=SOLVE)
    # Odoni: r + T h − h is never constant but for the constant r̄, whatever h.
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        h = torch.randn(2, generator=generator, dtype=torch.float64)
        drift = joint.reward + joint.transition_matrix @ h - h
        assert float(drift.min()) - 1e-14 <= average <= float(drift.max()) + 1e-14
    low, high = joint.average_reward_bounds
    assert high - low <= SOLVE


# Section 5: the entropy objective ---------------------------------------------------------------


def test_the_plain_reward_does_not_bound_the_entropy_objective() -> None:
    coin = [tl.LocalKernel((), (), [0.5, 0.5])]
    mdp = tl.FactoredMDP([2], [2], coin, [])
    policy = tl.SoftmaxPolicy.from_logits(mdp, [(0,)], [[[0.0, 0.0], [0.0, 2.0]]])
    truth = oscillation(tl.JointEvaluation(mdp, policy, objective="entropy").poisson())
    plain, whole = (
        tl.certify(mdp, policy, objective=objective)["coupled"].poisson
        for objective in ("reward", "entropy")
    )
    assert plain[0] == 0.0 < 0.1 < truth[0]
    assert truth[0] <= whole[0] + SOLVE
    assert whole[0] == pytest.approx(truth[0], abs=SOLVE)
