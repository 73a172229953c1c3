"""Sweeps: the ledger against the oracle's, guarantees against realised gains, monotone where proved."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from twins import draw

import torchloc as tl
from torchloc.evaluation.joint import JointEvaluation
from torchloc.improvement import (
    BlockRecord,
    Improvement,
    block_record,
    block_target,
    cyclic_sweep,
    jacobi_sweep,
    prox_logits,
)

ATOL = 1e-10


def _certified(mdp: tl.FactoredMDP, kappa: int, objective: str, discount: float = 1.0):
    def epsilon(policy: tl.SoftmaxPolicy) -> torch.Tensor:
        certificate = tl.certify(
            mdp, policy, kappa, discount, objective=objective, rungs=("coupled",)
        )
        return torch.from_numpy(certificate.epsilon)

    return epsilon


@pytest.mark.parametrize("objective", ["reward", "entropy"])
@pytest.mark.parametrize("seed", range(25))
def test_record_matches_the_oracles_ledger(seed: int, objective: str) -> None:
    """One block with a misfit network, a random ε, partial scopes."""
    rng = np.random.default_rng(seed)
    model, policy, mdp, twin = draw(seed, unichain=True)
    kappa, prox, epsilon = 1, float(rng.uniform(0.3, 2.0)), float(rng.uniform(0, 1))
    before = JointEvaluation(mdp, twin, objective=objective)
    k = int(rng.integers(model.n_agents))
    tau = float(policy.temperature[k])
    target = block_target(before, k, kappa, "stationary")
    old = torch.tensor(policy.logits[k]).reshape(target.average.shape)
    wanted = prox_logits(old, target.average, temperature=tau, prox=prox, objective=objective)
    misfit = torch.from_numpy(rng.normal(size=wanted.shape) * 0.1)
    new = wanted + misfit
    moved = policy.replace(k, new.numpy().reshape(policy.logits[k].shape))
    after = before.renewed(
        tl.SoftmaxPolicy.from_logits(mdp, moved.scopes, moved.logits, temperature=moved.temperature)
    )
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
    bonus = policy.temperature if objective == "entropy" else 0.0
    chain, then = (ref.chain(model, p, bonus) for p in (policy, moved))
    value = chain.truncated(kappa)
    advantages = ref.advantage(model, chain.kernel, value, chain.average)
    g = ref.block_values(model, policy, advantages, k)
    scope = policy.scopes[k]
    average = ref.scope_average(model, scope, g, chain.stationary)
    logs = [ref.at_states(model, scope, p.log_probabilities[k]) for p in (moved, policy)]
    omega = ref.scope_error(model, scope, g, average)
    named = ref.named_ledger(
        then.stationary,
        *logs,
        prox=prox,
        temperature=tau,
        objective=objective,
        epsilon=epsilon,
        omega=ref.at_states(model, scope, omega),
        fit=ref.at_states(model, scope, misfit.numpy().reshape(policy.logits[k].shape)),
    )
    direct = ref.direct_ledger(
        then.stationary,
        *logs,
        g,
        entropy=tau if objective == "entropy" else 0.0,
        epsilon=epsilon,
    )
    assert record.realised == pytest.approx(then.average - chain.average, abs=ATOL)
    assert record.guarantee == pytest.approx(direct, abs=ATOL)
    assert record.balance == pytest.approx(named["guarantee"], abs=ATOL)
    for term in ("prox_gain", "truncation_error", "scope_error", "fit_error"):
        assert getattr(record, term) == pytest.approx(named[term], abs=ATOL), term
    assert record.balance <= record.guarantee + ATOL


@pytest.mark.parametrize("order", ["reward", "entropy"])
@pytest.mark.parametrize("seed", range(12))
def test_no_guarantee_is_above_its_gain(seed: int, order: str) -> None:
    """`check` runs inside the sweep; here the records are also compared one by one."""
    _, _, mdp, twin = draw(seed, unichain=True, mixing=0.3)
    joint = JointEvaluation(mdp, twin, objective=order)
    epsilon = _certified(mdp, 2, order)
    final, records = cyclic_sweep(joint, twin, Improvement(objective=order), 2, epsilon)
    total = sum(record.realised for record in records)
    assert final.value - joint.value == pytest.approx(total, abs=1e-12)
    for record in records:
        assert record.balance <= record.guarantee + 1e-12
        assert record.guarantee <= record.realised + record.slack


@pytest.mark.parametrize("seed", range(10))
def test_discounted_sweeps_keep_their_guarantees(seed: int) -> None:
    _, _, mdp, twin = draw(seed)
    joint = JointEvaluation(mdp, twin, objective="entropy", discount=0.9)
    _, records = cyclic_sweep(joint, twin, Improvement(), 4, _certified(mdp, 4, "entropy", 0.9))
    assert all(record.guarantee <= record.realised + record.slack for record in records)


@pytest.mark.parametrize("objective", ["reward", "entropy"])
@pytest.mark.parametrize("seed", range(12))
def test_full_scopes_and_exact_advantages_never_lose(seed: int, objective: str) -> None:
    """Corollary 15: with ω = 0, ε = 0, no fit error, every block gains at least its prox gain."""
    _, _, mdp, twin = draw(seed, unichain=True, policy={"full_scopes": True})
    joint = JointEvaluation(mdp, twin, objective=objective)
    for _ in range(3):
        joint, records = cyclic_sweep(
            joint, twin, Improvement(objective=objective), None, lambda p: torch.zeros(p.n_agents)
        )
        for record in records:
            assert record.scope_error <= ATOL
            assert record.realised >= record.prox_gain - record.scope_error - record.slack
            assert record.prox_gain >= 0


def test_jacobi_moves_every_agent_from_the_same_baseline() -> None:
    model, policy, mdp, twin = draw(4, unichain=True, n_agents=(3, 3), sizes=(2, 2))
    joint = JointEvaluation(mdp, twin, objective="reward")
    wanted = []
    for k in range(model.n_agents):
        target = block_target(joint, k, 1, "uniform")
        tau = float(policy.temperature[k])
        wanted.append(
            prox_logits(
                twin.logits(k).reshape(target.average.shape),
                target.average,
                temperature=tau,
                prox=tau,
                objective="reward",
            )
        )
    settings = Improvement(order="jacobi", objective="reward", weighting="uniform")
    after, _ = jacobi_sweep(joint, twin, settings, 1)
    for k, logits in enumerate(wanted):
        torch.testing.assert_close(twin.logits(k).reshape(logits.shape), logits)
    assert after.value == pytest.approx(JointEvaluation(mdp, twin).value, abs=1e-12)


def test_a_false_guarantee_stops_the_run() -> None:
    record = BlockRecord(
        agent=3,
        realised=0.1,
        guarantee=0.2,
        prox_gain=0.2,
        truncation_error=0.0,
        scope_error=0.0,
        fit_error=0.0,
        staleness=0.0,
        epsilon=0.0,
        total_variation=0.1,
        fit_kl=0.0,
        slack=1e-9,
    )
    with pytest.raises(tl.SolveError, match=r"guarantee of agent 3's update, 0\.2, is above"):
        record.check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "random"}, "order is 'random'; choose one of cyclic, chromatic, jacobi"),
        ({"objective": "both"}, "objective is 'both'"),
        ({"weighting": "rollout"}, "weighting is 'rollout'"),
        ({"prox": -1.0}, "prox is -1.0"),
        ({"prox": 0.0, "objective": "reward"}, "prox is 0.0"),
        ({"fit_steps": 0}, "fit_steps is 0"),
        ({"fit_tolerance": 0.0}, "fit_tolerance is 0.0"),
    ],
)
def test_settings_are_checked(options: dict, message: str) -> None:
    with pytest.raises(tl.InputError, match=message):
        Improvement(**options)
