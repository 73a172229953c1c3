"""What an iteration logs, on real runs: complete, finite where it should be, true to its sources."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import fields

import pytest
from recorded import Recorder, cooling, train

import torchloc as tl
from torchloc import environments as env
from torchloc.evaluation.joint import JointEvaluation
from torchloc.improvement import BlockRecord, Improvement
from torchloc.lipschitz import logit_lipschitz
from torchloc.trainer import Evaluation

UNIT = 2.0**-53

RUNS: dict[str, Callable[[], Recorder]] = {
    "sysadmin 3": lambda: train(env.sysadmin(3), iterations=4),
    "sysadmin 4": lambda: train(env.sysadmin(4), schedule=cooling(end=0.02)),
    "ising 4": lambda: train(env.ising(4)),
    "sis 4": lambda: train(env.sis(4), improvement=Improvement(weighting="uniform")),
    "line_msg 4": lambda: train(env.line_msg(4)),
    "hub_spoke 4": lambda: train(env.hub_spoke(4, noise=0.2)),
    "random 3": lambda: train(env.random_mdp(3, states=3, actions=3, seed=1)),
    "random 4, weak coupling": lambda: train(env.random_mdp(4, coupling=0.2, seed=2)),
    "reward objective": lambda: train(
        env.sysadmin(3), improvement=Improvement(objective="reward", prox=0.3)
    ),
    "mlp": lambda: train(env.sis(3), kind="mlp"),
    "discount": lambda: train(env.sis(3), evaluation=Evaluation(discount=0.9)),
    "discount, reward, policy held": lambda: train(
        env.sysadmin(3),
        evaluation=Evaluation(kappa=1, discount=0.7),
        improvement=Improvement(objective="reward"),
        hold="policy",
    ),
    "jacobi": lambda: train(env.sysadmin(3), improvement=Improvement(order="jacobi")),
}


@functools.cache
def run(name: str) -> Recorder:
    return RUNS[name]()


everywhere = pytest.mark.parametrize("name", RUNS)

MEASURED = {
    *(f"reward/{name}" for name in ("average", "per_agent", "objective", "entropy", "solve_width")),
    *(f"schedule/{name}" for name in ("temperature", "kappa")),
    *(f"gap/{name}" for name in ("joint_optimum", "per_agent_and_step")),
    *(
        f"{group}/{rung}"
        for group in ("rho", "norm_rows", "norm_columns")
        for rung in ("coupled", "exact", "span", "paper")
    ),
    *(f"bound/{n}" for n in ("delta_hat", "tail", "tail_sum", "epsilon", "epsilon_paper")),
    *(f"lipschitz/{name}" for name in ("max", "mean", "observed_max", "bounded_agents")),
    *(f"effect/{name}" for name in ("temperature", "updates")),
    *(f"effect/{name}_reward" for name in ("temperature", "updates")),
    "work/ball",
    *(f"seconds/{name}" for name in ("temperature", "improvement", "certificate")),
}
SUMMED = ("prox_gain", "truncation_error", "scope_error", "fit_error", "staleness")
SUMMED = (*SUMMED, "guarantee", "balance", "realised")
LEDGER = {f"ledger/{name}" for name in (*SUMMED, "fit_kl")}
MAY_BE_INFINITE = {
    *("bound/tail", "bound/tail_sum", "bound/epsilon", "bound/epsilon_paper"),
    *("ledger/truncation_error", "ledger/guarantee", "ledger/balance"),
}


@everywhere
def test_every_tag_is_there_in_every_iteration(name: str) -> None:
    wanted = MEASURED | (LEDGER if name != "jacobi" else set())
    for state in run(name).states:
        local = {"gap/deterministic_local"} if state.local_optimum is not None else set()
        assert set(state.metrics) == wanted | local
        assert all(re.fullmatch(r"[a-z_]+/[a-z_]+", tag) for tag in state.metrics)


@everywhere
def test_numbers_are_finite_or_infinite_where_nothing_is_certified(name: str) -> None:
    for state in run(name).states:
        for tag, value in state.metrics.items():
            assert type(value) is float and not math.isnan(value), tag
            assert math.isfinite(value) or tag in MAY_BE_INFINITE, tag
        m, discount = state.metrics, state.values.discount
        for tag, rung in (
            ("tail", "coupled"),
            ("tail_sum", "coupled"),
            ("epsilon", "coupled"),
            ("epsilon_paper", "paper"),
        ):
            assert math.isinf(m[f"bound/{tag}"]) == (discount * m[f"rho/{rung}"] >= 1.0)


@everywhere
def test_rho_rises_along_the_ladder_and_stays_below_its_norms(name: str) -> None:
    for m in run(name).metrics:
        ladder = [m[f"rho/{rung}"] for rung in ("coupled", "exact", "span", "paper")]
        # Each is an upper bound within 1e-6 of its ρ (relative); ρ = 0 is bounded below 1e-9.
        assert all(b >= a * (1 - 1e-6) - 1e-9 for a, b in itertools.pairwise(ladder))
        for rung in ("coupled", "exact", "span", "paper"):
            least = min(m[f"norm_rows/{rung}"], m[f"norm_columns/{rung}"])
            assert m[f"rho/{rung}"] <= least * (1 + 1e-6) + 1e-9


@everywhere
def test_the_certificate_logged_is_that_of_the_policy_reached(name: str) -> None:
    state = run(name).states[-1]
    joint = state.values
    fresh = tl.certify(
        joint.mdp,
        state.policy,
        int(state.metrics["schedule/kappa"]),
        joint.discount,
        objective=joint.objective,
    )
    for rung in ("coupled", "exact", "span", "paper"):
        assert state.metrics[f"rho/{rung}"] == fresh[rung].rho.upper
    assert state.metrics["bound/delta_hat"] == fresh["coupled"].delta_hat.max()
    assert state.metrics["bound/tail"] == fresh.tail.max()
    assert state.metrics["bound/epsilon"] == fresh.epsilon.max()
    assert state.metrics["bound/epsilon_paper"] == fresh["paper"].epsilon.max()


@everywhere
def test_observed_lipschitz_is_below_the_exact_one(name: str) -> None:
    for m in run(name).metrics:
        # The same network on other batches: sums of a few dozen terms in another order.
        assert 0.0 <= m["lipschitz/observed_max"] <= m["lipschitz/max"] * (1 + 256 * UNIT)
        assert m["lipschitz/mean"] <= m["lipschitz/max"]
    state = run(name).states[-1]
    assert state.metrics["lipschitz/max"] == logit_lipschitz(state.policy).max()


@everywhere
def test_no_policy_is_above_the_optimum(name: str) -> None:
    for state in run(name).states:
        joint, optimum = state.values, state.optimum
        assert optimum is not None
        # Half the planner's bracket, and what the solve of d may be off: both in units of max |r|.
        scale = max(1.0, float(joint.plain_reward.abs().max()))
        off = 0.5 * (optimum.upper - optimum.lower) + 1e-9 * scale
        gap = state.metrics["gap/joint_optimum"]
        assert gap >= -off
        horizon = 1.0 / (1.0 - joint.discount) if joint.discount < 1.0 else 1.0
        rate = state.metrics["gap/per_agent_and_step"]
        assert rate == pytest.approx(gap / horizon / joint.mdp.n_agents, rel=1e-12)
        if state.local_optimum is not None:
            found = state.local_optimum.gain - state.metrics["reward/average"]
            assert state.metrics["gap/deterministic_local"] == found
            assert state.local_optimum.gain <= optimum.upper + 1e-9 * scale


@everywhere
def test_the_objective_is_the_reward_with_its_entropies(name: str) -> None:
    for state in run(name).states:
        m, joint = state.metrics, state.values
        per_step = m["reward/average"] + (m["reward/entropy"] if "reward" not in name else 0.0)
        horizon = 1.0 / (1.0 - joint.discount) if joint.discount < 1.0 else 1.0
        # With d T = d + e: |d·r − r̄| ≤ width + ‖e‖₁ span(h), and the sums over the states.
        values = joint.poisson()
        spread = float(values.max() - values.min())
        size = joint.mdp.n_states * UNIT * max(1.0, float(joint.reward.abs().max()))
        off = joint.width + horizon * (joint.stationary_residual * spread + 4 * size)
        assert m["reward/objective"] == pytest.approx(per_step * horizon, abs=off)
        assert m["reward/per_agent"] == m["reward/average"] / joint.mdp.n_agents
        assert 0.0 <= m["reward/solve_width"] <= 1e-8 * horizon
        assert m["reward/entropy"] >= 0.0


@everywhere
def test_the_two_effects_are_the_change_of_the_objective(name: str) -> None:
    recorder = run(name)
    for before, after in itertools.pairwise(recorder.metrics):
        change = after["reward/objective"] - before["reward/objective"]
        size = max(abs(after["reward/objective"]), abs(before["reward/objective"]), 1.0)
        # (b − a) + (c − b) against c − a: four roundings of numbers of this size.
        effects = after["effect/temperature"] + after["effect/updates"]
        assert effects == pytest.approx(change, abs=8 * UNIT * size)


@everywhere
def test_the_ledger_is_the_sum_of_its_blocks(name: str) -> None:
    for state in run(name).states:
        if name == "jacobi":
            assert state.records == []
            continue
        assert [record.agent for record in state.records] == list(range(state.policy.n_agents))
        for term in SUMMED:
            total = math.fsum(getattr(record, term) for record in state.records)
            assert state.metrics[f"ledger/{term}"] == total
        assert state.metrics["ledger/fit_kl"] == max(r.fit_kl for r in state.records)
        size = max(abs(state.metrics["reward/objective"]), 1.0)
        gained = state.metrics["effect/updates"]
        blocks = len(state.records)
        assert state.metrics["ledger/realised"] == pytest.approx(
            gained, abs=4 * blocks * UNIT * size
        )


@everywhere
def test_no_block_gains_less_than_its_guarantee(name: str) -> None:
    for state in run(name).states:
        for record in state.records:
            assert record.guarantee <= record.realised + record.slack
            # Exact terms of size at most that of the ledger's largest, summed in another order.
            largest = max(
                (abs(getattr(record, f.name)) for f in fields(BlockRecord) if f.name != "agent"),
                key=lambda size: size if math.isfinite(size) else 0.0,
            )
            if math.isfinite(record.balance):
                assert record.balance <= record.guarantee + 1e-12 * max(largest, 1.0)
            else:
                assert record.guarantee == record.balance == -math.inf


@everywhere
def test_the_evaluation_kept_is_that_of_the_policy_kept(name: str) -> None:
    state = run(name).states[-1]
    joint = state.values
    fresh = JointEvaluation(
        joint.mdp, state.policy, objective=joint.objective, discount=joint.discount
    )
    assert state.metrics["reward/objective"] == pytest.approx(fresh.value, abs=1e-9)
    assert state.metrics["schedule/temperature"] == float(state.policy.temperature.mean())
