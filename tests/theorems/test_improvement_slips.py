"""Theory, sections 6 and 9, improvement: every slip with a model where the printed claim fails.

Each test shows two things on one concrete model: the claim as printed is wrong, and what the
package's ledger says holds.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import torchloc as tl
from torchloc.improvement import (
    BlockRecord,
    Improvement,
    block_record,
    block_target,
    cyclic_sweep,
    jacobi_sweep,
    prox_logits,
)
from torchloc.improvement.prox import kl

# Solves on at most 16 states that mix in a few steps.
SOLVE = 1e-10


def step(
    mdp: tl.FactoredMDP,
    policy: tl.SoftmaxPolicy,
    *,
    objective: str = "reward",
    prox: float = 1.0,
    kappa: int | None = None,
    epsilon: float = 0.0,
    misfit: tuple[float, ...] = (0.0, 0.0),
) -> tuple[tl.JointEvaluation, tl.JointEvaluation, BlockRecord]:
    """One update of agent 0, whose network misses its target by `misfit`: before, after, ledger."""
    before = tl.JointEvaluation(mdp, policy, objective=objective)
    target = block_target(before, 0, kappa)
    tau = float(policy.temperature[0])
    tables = [policy.logits(k) for k in range(mdp.n_agents)]
    old = tables[0].reshape(target.average.shape)
    wanted = prox_logits(old, target.average, temperature=tau, prox=prox, objective=objective)
    new = wanted + torch.tensor(misfit, dtype=torch.float64)
    tables[0] = new.reshape(tables[0].shape)
    moved = tl.SoftmaxPolicy.from_logits(mdp, policy.scopes, tables, temperature=policy.temperature)
    after = before.renewed(moved)
    record = block_record(
        before,
        after,
        target,
        old_logits=old,
        wanted_logits=wanted,
        new_logits=new,
        temperature=tau,
        prox=prox,
        epsilon=epsilon,
    )
    record.check()
    return before, after, record


def divergences(
    before: tl.JointEvaluation, after: tl.JointEvaluation
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(new ‖ old) and KL(old ‖ new) of agent 0 at each of its scope states."""
    new, old = after.law(0).log(), before.law(0).log()
    return kl(new, old).reshape(-1), kl(old, new).reshape(-1)


def bandit(rewards: list[float], law: list[float], temperature: float = 1.0):
    """One state, one agent: the model and the policy."""
    nothing = [tl.LocalKernel((), (), [1.0])]
    mdp = tl.FactoredMDP([1], [len(law)], nothing, [tl.LocalReward((), (0,), rewards)])
    return mdp, tl.SoftmaxPolicy.from_probabilities(mdp, [()], [law], temperature=temperature)


def switch(rewards: list[list[float]]) -> tl.FactoredMDP:
    """s' = a; reward (S, A)."""
    moves = [tl.LocalKernel((), (0,), np.eye(2))]
    return tl.FactoredMDP([2], [2], moves, [tl.LocalReward((0,), (0,), rewards)])


# Theorem 14 -------------------------------------------------------------------------------------


def test_the_anchored_objective_gains_the_reversed_divergence() -> None:
    """Printed: r̄ − τE KL(new ‖ old) gains at least τE KL(new ‖ old). It gains τE KL(old ‖ new)."""
    mdp, policy = bandit([0.0, 2.0], [0.9, 0.1])
    before, after, record = step(mdp, policy)
    forward, backward = (float(x) for x in divergences(before, after))
    anchored = record.realised - forward
    assert anchored < forward - 0.1
    assert anchored == pytest.approx(backward, abs=1e-13)
    # For r̄ itself the printed form holds; the ledger has both divergences, and attains the gain.
    assert record.realised > forward
    assert record.prox_gain == pytest.approx(forward + backward, abs=1e-13)
    assert record.balance == pytest.approx(record.realised, abs=1e-13)


def test_the_gain_is_weighed_by_the_new_stationary_law() -> None:
    mdp = switch([[2.0, 2.0], [2.0, -2.0]])
    policy = tl.SoftmaxPolicy.tabular(mdp, [(0,)])
    before, after, record = step(mdp, policy)
    both = sum(divergences(before, after))
    by_old, by_new = (float((joint.stationary * both).sum()) for joint in (before, after))
    assert by_old > 1.87 and record.realised < 1.0
    assert record.prox_gain == pytest.approx(by_new, abs=SOLVE)
    # The agent sees everything and h is exact: nothing is lost, so the ledger attains the gain.
    assert record.scope_error == 0.0
    assert record.balance == pytest.approx(record.realised, abs=SOLVE)


def copies(n: int) -> tuple[tl.FactoredMDP, tl.SoftmaxPolicy]:
    """n copies of P(1 | s, a) = .2 + .5 s + .2 a with reward s, their agents blind."""
    up = 0.2 + np.add.outer([0.0, 0.5], [0.0, 0.2])
    law = np.stack([1 - up, up], axis=-1)
    mdp = tl.FactoredMDP(
        [2] * n,
        [2] * n,
        [tl.LocalKernel((j,), (j,), law) for j in range(n)],
        [tl.LocalReward((j,), (), [0.0, 1.0]) for j in range(n)],
    )
    return mdp, tl.SoftmaxPolicy.tabular(mdp, [()] * n, temperature=0.1)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_truncation_bias_of_a_block_does_not_grow_with_the_system(n: int) -> None:
    """Printed: 2‖ĥ − h‖_∞, then n·C·λ^{κ+1}/(1 − λ)·‖δ(r)‖_∞; k feels what its action reaches."""
    mdp, policy = copies(n)
    kappa = 1
    rung = tl.certify(mdp, policy, kappa)["coupled"]
    before, after, record = step(mdp, policy, prox=0.1, kappa=kappa, epsilon=float(rung.epsilon[0]))
    error = before.truncated_value(kappa) - before.poisson()
    uniform_bias = 2 * float(error.abs().max())
    assert uniform_bias == pytest.approx(n * 0.6, abs=SOLVE)
    printed = n * 0.5 ** (kappa + 1) / (1 - 0.5)
    forward, _ = divergences(before, after)
    assert 0.1 * float(forward) - min(uniform_bias, printed) < 0.0  # no gain is promised for any n
    # ε_k is the same for every n, and attained; the guarantee is positive.
    assert rung.epsilon[0] == pytest.approx(0.1, rel=1e-9)
    spans = before.block_logits(0, kappa) - before.block_logits(0)
    assert float((spans.amax(-1) - spans.amin(-1)).max()) == pytest.approx(0.1, abs=SOLVE)
    assert 0.07 < record.guarantee <= record.realised + record.slack


# Equation (1) and Algorithm 1: what an agent does not see ---------------------------------------


def blind(temperature: float) -> tuple[tl.FactoredMDP, tl.SoftmaxPolicy]:
    """s' = a; action 1 pays 2 in state 0 and costs 2 in state 1; the agent sees nothing.

    With q = π(1) the average is 2q(1 − 2q), best at q = ¼; here q = .1.
    """
    mdp = switch([[0.0, 2.0], [0.0, -2.0]])
    laws = [[0.9, 0.1]]
    return mdp, tl.SoftmaxPolicy.from_probabilities(mdp, [()], laws, temperature=temperature)


@pytest.mark.parametrize(("temperature", "prox"), [(1.0, 0.1), (0.1, 0.1)])
def test_a_block_on_a_partial_scope_loses_with_exact_values_and_stationary_weights(
    temperature: float, prox: float
) -> None:
    """Printed, with ĥ = h and η = τ: gain ≥ τE KL(new ‖ old) ≥ 0. The ledger has ω_k, and holds."""
    mdp, policy = blind(temperature)
    before, after, record = step(mdp, policy, prox=prox)
    assert before.average_reward == pytest.approx(0.16, abs=SOLVE)
    assert after.average_reward < -1.9
    forward, _ = divergences(before, after)
    assert record.realised < -2.0 < 0.0 < prox * float(forward)
    assert record.guarantee <= record.realised + record.slack
    assert record.prox_gain > 0.0 and record.truncation_error == record.fit_error == 0.0
    assert record.scope_error == pytest.approx(3.6 * record.total_variation, abs=1e-9)
    assert record.balance <= record.guarantee + SOLVE
    # An agent that sees the state has ω = 0, and gains.
    seeing = tl.SoftmaxPolicy.from_probabilities(
        mdp, [(0,)], [[[0.9, 0.1]] * 2], temperature=temperature
    )
    _, _, record = step(mdp, seeing, prox=prox)
    assert record.scope_error == 0.0
    assert record.realised >= record.prox_gain - SOLVE > 0.0


def test_equation_1_names_no_update_until_a_weighting_is_named() -> None:
    """g_k(s, ·) differs between states that look alike to k: two weightings, opposite moves."""
    mdp, policy = blind(1.0)
    joint = tl.JointEvaluation(mdp, policy)
    advantage = joint.block_logits(0)
    gaps = advantage[:, 1] - advantage[:, 0]
    np.testing.assert_allclose(gaps, [1.6, -2.4], rtol=0, atol=SOLVE)
    by = {name: block_target(joint, 0, None, name) for name in ("stationary", "uniform")}
    moves = {name: float(x.average[0, 1] - x.average[0, 0]) for name, x in by.items()}
    assert moves["stationary"] == pytest.approx(1.2, abs=SOLVE)
    assert moves["uniform"] == pytest.approx(-0.4, abs=SOLVE)
    assert float(by["stationary"].scope_error) == pytest.approx(3.6, abs=SOLVE)
    assert float(by["uniform"].scope_error) == pytest.approx(2.0, abs=SOLVE)


def test_algorithm_1_as_printed_is_jacobi_and_loses_where_cyclic_gains() -> None:
    """Two agents are paid for differing. From one baseline both turn to 1; in turns they part."""
    nothing = [tl.LocalKernel((), (), [1.0])]
    differ = tl.LocalReward((), (0, 1), 1.0 - np.eye(2))
    mdp = tl.FactoredMDP([1], [2, 2], nothing, [differ])

    def start() -> tl.SoftmaxPolicy:
        laws = [[0.6, 0.4]] * 2
        return tl.SoftmaxPolicy.from_probabilities(mdp, [(), ()], laws, temperature=0.01)

    policy = start()
    joint = tl.JointEvaluation(mdp, policy)
    assert joint.average_reward == pytest.approx(0.48, abs=SOLVE)
    printed, _ = jacobi_sweep(joint, policy, Improvement(order="jacobi", objective="reward"), None)
    assert printed.average_reward < 1e-6
    policy = start()
    settings = Improvement(objective="reward")
    cyclic, records = cyclic_sweep(
        joint, policy, settings, 0, lambda p: torch.from_numpy(tl.certify(mdp, p, 0).epsilon)
    )
    # Corollary 15: everything is seen, nothing is truncated.
    assert all(r.scope_error == 0.0 and r.truncation_error == 0.0 for r in records)
    assert cyclic.average_reward > 1 - 1e-6
    total = sum(record.prox_gain for record in records)
    assert cyclic.average_reward - joint.average_reward >= total - SOLVE > 0.0


# The fit error (theory's own slip) --------------------------------------------------------------


def test_fit_error_of_the_entropy_objective_weighs_prox_and_temperature() -> None:
    """Theory printed span(e)·η/τ; an error e of the target is worth e(η + τ)/τ in ḡ."""
    mdp, policy = bandit([0.0, 0.0], [0.5, 0.5])
    _, _, record = step(mdp, policy, objective="entropy", misfit=(0.5, 0.0))
    assert record.realised == pytest.approx(-0.030300, abs=5e-7)
    printed = record.prox_gain - record.fit_error / 2  # η/τ of (η + τ)/τ at η = τ
    assert printed == pytest.approx(0.030930, abs=5e-7)
    assert printed > record.realised + 0.06
    assert record.balance == pytest.approx(record.realised, abs=1e-14)


@pytest.mark.parametrize("prox", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("objective", ["reward", "entropy"])
def test_fit_error_factor_is_attained_at_every_prox_weight(objective: str, prox: float) -> None:
    mdp, policy = bandit([0.0, 0.3], [0.5, 0.5], temperature=0.7)
    _, _, record = step(mdp, policy, objective=objective, prox=prox, misfit=(0.0, 0.5))
    assert record.fit_error > 0.0
    assert record.balance == pytest.approx(record.realised, abs=1e-13)
    weight = prox / (prox + 0.7)
    printed = record.prox_gain - (weight if objective == "entropy" else 1.0) * record.fit_error
    assert (printed > record.realised + 1e-3) == (objective == "entropy")
