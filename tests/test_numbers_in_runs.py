"""Runs that anneal until their numbers break: stopped at the source, in one message; what is harmless goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from recorded import cooling, prepare, train

import torchloc as tl
from torchloc import checkpoint
from torchloc import environments as env
from torchloc import trainer as room
from torchloc.callbacks import Checkpoint
from torchloc.engine.numbers import Rarest, check_numbers
from torchloc.evaluation.joint import JointEvaluation
from torchloc.improvement import Improvement
from torchloc.policy.temperatures import LEAST_TEMPERATURE
from torchloc.schedules import Certified, Tradeoff, certified_temperature
from torchloc.trainer import Evaluation


@pytest.fixture(autouse=True)
def _no_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning the optima takes longer than these runs."""
    monkeypatch.setattr(room, "REFERENCE_PAIRS", 0)


RING = env.sysadmin(3)
PAIR = env.sysadmin(2, topology="line", table="ippc")
SLOW = pytest.mark.slow
GENTLE = Improvement(objective="reward")


def stay(reward: tuple[float, float] = (0.0, 0.0), *, cost: float = 0.1) -> tl.FactoredMDP:
    """Two states; action 0 stays, action 1 moves to the other and costs: who stays has two closed classes."""
    law = np.stack([np.eye(2), np.eye(2)[::-1]], axis=1)
    table = np.add.outer(reward, [0.0, -cost])
    kernel, term = tl.LocalKernel((0,), (0,), law), tl.LocalReward((0,), (0,), table)
    return tl.FactoredMDP([2], [2], [kernel], [term])


def leaving(first: float, second: float) -> tl.SoftmaxPolicy:
    """The policy of `stay` that leaves the two states with these probabilities."""
    laws = [[1.0 - first, first], [1.0 - second, second]]
    return tl.SoftmaxPolicy.from_probabilities(stay(), [[0]], [np.array(laws)])


def broken(folder: Path, mdp: tl.FactoredMDP, **options: Any) -> tuple[str, int]:
    """What a run to its end says, and its iterations; with a checkpoint callback."""
    saving = Checkpoint(folder)
    trainer, recorder = prepare(mdp, callbacks=[saving], **options)
    with pytest.raises(tl.SolveError) as stopped:
        trainer.run()
    assert recorder.error is stopped.value
    return str(stopped.value), trainer.state.iteration


# A chain that falls apart -----------------------------------------------------------------------


@pytest.mark.parametrize("objective", [pytest.param("entropy", marks=SLOW), "reward"])
def test_a_chain_that_falls_apart_while_it_cools_is_told_with_the_last_checkpoint(
    objective: str, tmp_path: Path
) -> None:
    """Moving only costs, so the probability e^(−gap/τ) of it passes rounding before it is 0."""
    message, done = broken(
        tmp_path,
        stay(),
        scopes=[[0]],
        iterations=16,
        schedule=cooling(1.0, 1e-4),
        improvement=Improvement(objective=objective),  # pyright: ignore[reportArgumentType]
    )
    assert 3 < done < 16
    path = checkpoint.saved(tmp_path)[-1]
    assert message.startswith(f"iteration {done + 1}: the chain has parts that it leaves with a ")
    assert "so its average reward depends on the start" in message
    assert "the rarest action is agent 0's, about 10^-" in message and " at τ = " in message
    assert message.endswith(f"; iteration {done} was the last whole one, saved in {path}")
    assert "\n" not in message
    assert checkpoint.load(path).iteration == done


def test_two_classes_that_earn_differently_are_told_before_the_number_is_wrong(
    tmp_path: Path,
) -> None:
    """h is of the size of 1/P(leave): what rounding takes from r̄ is known, and stops the run."""
    message, done = broken(
        tmp_path,
        stay((0.0, 1.0), cost=2.0),
        scopes=[[0]],
        iterations=16,
        schedule=cooling(1.0, 1e-4),
        improvement=GENTLE,
        evaluation=Evaluation(kappa=0),
    )
    assert 0 < done < 16 and message.startswith(f"iteration {done + 1}: ")
    assert (
        "the relative values of the chain are of size" in message or "mixes too slowly" in message
    )


def test_a_jump_over_the_slow_temperatures_finds_two_closed_classes(tmp_path: Path) -> None:
    """From τ = 1 to 10⁻⁵ at once probabilities are 0, and the classes are found by their support."""
    message, done = broken(
        tmp_path,
        stay(),
        scopes=[[0]],
        iterations=4,
        schedule=lambda progress: 1.0 if progress < 0.5 else 1e-5,
        improvement=GENTLE,
    )
    assert done == 2 and message.startswith("iteration 3: the chain has 2 closed classes")
    assert "agent 0 has become deterministic: at τ = 1e-05" in message
    assert (
        "0 in float64, and so have 2 of 2 rows of all agents; iteration 2 was the last" in message
    )


def test_a_chain_that_was_never_whole_says_that_there_is_no_checkpoint(tmp_path: Path) -> None:
    message, done = broken(tmp_path, env.leader_follower(mutual=True))
    assert done == 0 and message.startswith("iteration 1: the chain has 3 closed classes")
    assert message.endswith("; no iteration was whole, so there is no checkpoint")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["joint", "local"])
def test_with_a_discount_two_closed_classes_are_no_error(engine: str) -> None:
    recorder = train(
        stay(),
        scopes=[[0]],
        iterations=4,
        schedule=cooling(1.0, 1e-5),
        improvement=GENTLE,
        evaluation=Evaluation(engine=engine, discount=0.9),  # pyright: ignore[reportArgumentType]
    )
    assert recorder.metrics[-1]["policy/underflow"] == 1.0
    # Nobody moves, and moving is all that costs.
    assert recorder.metrics[-1]["reward/average"] == 0.0


@pytest.mark.parametrize("exponent", [3, 5, 7, 9, 11, 13, 15, 16, 20, 200])
def test_an_average_reward_is_within_its_width_or_it_is_refused(exponent: int) -> None:
    """Of `stay`, r̄ = P(leave 0)/(P(leave 0) + P(leave 1)) by hand, whatever the two are."""
    first = 10.0**-exponent
    policy, mdp = leaving(first, 3.0 * first), stay((0.0, 1.0), cost=0.0)
    law = policy.probabilities(0)[:, 1].tolist()
    truth = law[0] / (law[0] + law[1])
    joint = JointEvaluation(mdp, policy)
    try:
        value, width = joint.average_reward, joint.width
    except tl.SolveError:
        assert exponent > 5
        return
    assert exponent < 11 and abs(value - truth) <= 0.5 * width
    # |d·r − r̄| = |(d T − d)·h|.
    spread = 1.0 / (law[0] + law[1])
    assert abs(joint.reward_rate - truth) <= joint.stationary_residual * spread


def test_a_periodic_chain_is_solved() -> None:
    """Two states in turn: no limit law, one stationary law; ρ = 1, no tail, and no error."""
    always = tl.SoftmaxPolicy.from_logits(stay(), [[0]], [[[-math.inf, 0.0], [-math.inf, 0.0]]])
    joint = JointEvaluation(stay((0.0, 1.0), cost=0.0), always)
    assert joint.average_reward == pytest.approx(0.5, abs=joint.width)
    torch.testing.assert_close(joint.stationary, torch.full((2,), 0.5, dtype=torch.float64))
    certificate = tl.certify(stay(), always, kappa=2)
    assert certificate["coupled"].rho.upper >= 1.0 and np.isinf(certificate.tail).all()


# Policies that become deterministic -------------------------------------------------------------

UNICHAIN = {
    "relay 0": env.line_msg(4, relay=0.0),
    "relay 1": env.line_msg(4, relay=1.0),
    "sleepy": env.sleepy(),
    "hub": env.hub_spoke(4),
    "ring": RING,
}


@pytest.mark.parametrize(
    "name", [n if n == "sleepy" else pytest.param(n, marks=SLOW) for n in UNICHAIN]
)
def test_a_deterministic_policy_of_a_chain_that_stays_whole_is_no_error(name: str) -> None:
    """Its number is logged, its ledger holds, and its certificate is that of the law itself."""
    mdp = UNICHAIN[name]
    recorder = train(mdp, iterations=8, schedule=cooling(1.0, 1e-5), improvement=GENTLE)
    first, last = recorder.metrics[0], recorder.metrics[-1]
    assert "policy/underflow" not in first and 0.0 < last["policy/underflow"] <= 1.0
    state = recorder.states[-1]
    for record in state.records:
        assert record.guarantee <= record.realised + record.slack
    laws = [state.policy.probabilities(k) for k in range(mdp.n_agents)]
    given = tl.SoftmaxPolicy.from_probabilities(mdp, state.policy.scopes, laws)
    assert state.certificate is not None
    theirs = tl.certify(mdp, given, kappa=state.certificate.kappa)
    for rung in ("coupled", "exact"):
        ours = state.certificate[rung].matrix.toarray()
        assert np.abs(ours - theirs[rung].matrix.toarray()).max() <= 1e-12


def test_certificates_of_deterministic_policies_hold() -> None:
    """By enumeration: δ_i(T f) ≤ (Hᵀ δ(f))_i for every f, here for the indicators of coordinates."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        model = ref.random_model(rng)
        policy = ref.random_policy(rng, model)
        policy = ref.Policy(policy.scopes, policy.logits, policy.temperature * 1e-8)
        mdp_kernels = [tl.LocalKernel(*kernel) for kernel in model.kernels]
        terms = [tl.LocalReward(*term) for term in model.rewards]
        mdp = tl.FactoredMDP(model.state_sizes, model.action_sizes, mdp_kernels, terms)
        mine = tl.SoftmaxPolicy.from_logits(
            mdp, policy.scopes, policy.logits, temperature=policy.temperature
        )
        assert Rarest.of(mine).lost
        step = JointEvaluation(mdp, mine).operator()
        certificate = tl.certify(mdp, mine)
        shape = tuple(model.state_sizes)
        for j, size in enumerate(shape):
            axes = [1] * len(shape)
            axes[j] = size
            f = torch.zeros(size, dtype=torch.float64)
            f[0] = 1.0
            moved = step(f.reshape(axes).expand(shape).contiguous())
            for i in range(len(shape)):
                swing = float((moved.amax(dim=i) - moved.amin(dim=i)).max())
                for rung in ("coupled", "exact", "span", "tanh", "paper", "scope"):
                    assert swing <= certificate[rung].matrix[j, i] + 1e-12, (seed, rung)


def test_what_underflow_has_forgotten_comes_back_with_the_temperature() -> None:
    """Laws forget, logits do not: the same logits at τ = 1 have the same laws as before."""
    policy = tl.SoftmaxPolicy.tabular(RING, tl.neighbourhood_scopes(RING), scale=1.0)
    before = [policy.probabilities(k) for k in range(3)]
    policy.set_temperature(1e-12)
    rarest = Rarest.of(policy)
    assert rarest.lost == rarest.rows == 12 and rarest.exponent > 745
    policy.set_temperature(1.0)
    assert Rarest.of(policy).lost == 0
    assert all(torch.equal(policy.probabilities(k), law) for k, law in enumerate(before))


def test_forbidden_actions_are_no_underflow() -> None:
    always = tl.SoftmaxPolicy.from_logits(stay(), [[0]], [[[-math.inf, 0.0], [0.0, -math.inf]]])
    check_numbers(always)
    rarest = Rarest.of(always)
    assert (rarest.lost, rarest.rows, rarest.exponent, rarest.told()) == (0, 2, 0.0, "")


# Temperatures and logits out of range -----------------------------------------------------------


def test_temperatures_too_low_for_float64_are_refused_before_the_run() -> None:
    message = r"temperature is 1e-300; below 1.21e-268 logits divided by it leave the range"
    with pytest.raises(tl.InputError, match=message):
        prepare(PAIR, schedule=cooling(1.0, 1e-300))
    for adaptive in (Certified(end=1e-300), Tradeoff(end=1e-300)):
        with pytest.raises(tl.InputError, match=message):
            prepare(PAIR, schedule=adaptive)
    policy = tl.SoftmaxPolicy.tabular(PAIR, tl.neighbourhood_scopes(PAIR))
    with pytest.raises(tl.InputError, match="temperature is 0; it must be finite and > 0"):
        policy.set_temperature(0.0)
    # Laws alone are right at any temperature.
    policy.set_temperature([1.0, 5e-324])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("objective", ["reward", "entropy"])
def test_the_least_temperature_works(objective: str, dtype: torch.dtype) -> None:
    policy = tl.SoftmaxPolicy.tabular(PAIR, tl.neighbourhood_scopes(PAIR), dtype=dtype)
    state = tl.Trainer(
        PAIR,
        policy,
        schedule=cooling(1.0, LEAST_TEMPERATURE),
        improvement=Improvement(objective=objective),  # pyright: ignore[reportArgumentType]
        iterations=4,
    ).run()
    assert all(math.isfinite(value) for tag, value in state.metrics.items() if tag[:3] == "rho")


def test_a_temperature_that_falls_out_of_range_in_the_run_keeps_what_was_done(
    tmp_path: Path,
) -> None:
    message, done = broken(
        tmp_path,
        PAIR,
        iterations=4,
        schedule=lambda progress: 1e-300 if 0.5 < progress < 1.0 else 1.0,
    )
    assert done == 2 and message.startswith("iteration 3: temperature is 1e-300; below 1.21e-268")
    assert message.endswith(f"saved in {checkpoint.saved(tmp_path)[-1]}")


def test_held_laws_that_underflow_in_short_weights_are_refused() -> None:
    scopes = tl.neighbourhood_scopes(PAIR)
    policy = tl.SoftmaxPolicy.tabular(PAIR, scopes, dtype=torch.float32, scale=1.0)
    law = policy.probabilities(0)
    with pytest.raises(
        tl.InputError, match=r"hold='policy', and .* underflow in weights of float32"
    ):
        policy.set_temperature(1e-60, hold="policy")
    torch.testing.assert_close(policy.probabilities(0), law, rtol=0.0, atol=0.0)
    wide = tl.SoftmaxPolicy.tabular(PAIR, scopes, scale=1.0)
    wide.set_temperature(1e-60, hold="policy")


@pytest.mark.parametrize("engine", ["joint", "local"])
@pytest.mark.parametrize(
    ("dtype", "prox", "value"),
    [
        (torch.float32, 1e-200, "inf"),
        (torch.float16, 1e-30, "inf"),
        (torch.float64, 1e-307, "reach"),
    ],
)
def test_logits_beyond_the_range_of_their_weights_stop_with_the_agent(
    dtype: torch.dtype, prox: float, value: str, engine: str, tmp_path: Path
) -> None:
    """z + (τ/η) g with a tiny η; said of the logits, and not of the chain that they make."""
    policy = tl.SoftmaxPolicy.tabular(RING, tl.neighbourhood_scopes(RING), dtype=dtype)
    trainer = tl.Trainer(
        RING,
        policy,
        schedule=cooling(1.0, 0.1),
        iterations=8,
        improvement=Improvement(objective="reward", prox=prox),
        evaluation=Evaluation(engine=engine, kappa=1),  # pyright: ignore[reportArgumentType]
        callbacks=[Checkpoint(tmp_path)],
    )
    with pytest.raises(tl.SolveError) as stopped:
        trainer.run()
    message, done = str(stopped.value), trainer.state.iteration
    assert message.startswith(f"iteration {done + 1}: the logits of agent ")
    assert value in message and "raise prox, or the lowest temperature" in message
    assert ("so there is no checkpoint" in message) == (done == 0)


def test_logits_that_forbid_every_action_stop_with_the_agent() -> None:
    policy = tl.SoftmaxPolicy.tabular(RING, tl.neighbourhood_scopes(RING))
    with torch.no_grad():
        next(policy.parameters())[1, 0] = -math.inf
    agent = int(policy.groups[0].agents[1])
    with pytest.raises(tl.SolveError, match=f"agent {agent} have become −∞ for every action"):
        check_numbers(policy)


def test_bisection_works_where_a_product_of_temperatures_underflows() -> None:
    tau = certified_temperature(
        1e-180,
        lambda t: 1e-200 / t,
        start=1e-170,
        end=1e-220,
        target=0.5,
        fall=1e-40,
        monotone=True,
    )
    assert tau == pytest.approx(2e-200, rel=2e-3)


def test_an_interrupt_stays_one_where_the_numbers_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = prepare(PAIR)

    def stopped(*_: object) -> None:
        with torch.no_grad():
            next(trainer.state.policy.parameters()).fill_(math.nan)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.engine, "sweep", stopped)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
