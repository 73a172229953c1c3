"""The loop: seeds, schedules, what is held, orders and objectives, references, interrupts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recorded import cooling, parameters, prepare, train, without_seconds

import torchloc as tl
from torchloc import environments as env
from torchloc import measures
from torchloc import trainer as room
from torchloc.callbacks import closing_tables
from torchloc.engine import exact
from torchloc.evaluation import planning
from torchloc.improvement import Improvement
from torchloc.locality import Locality
from torchloc.trainer import Evaluation, Trainer

UNIT = 2.0**-53
MDP = env.sysadmin(3)
PAIR = env.sysadmin(2, topology="line", table="ippc")


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


# Seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tabular", "mlp"])
def test_one_seed_gives_one_run(kind: str) -> None:
    first, second = (train(PAIR, kind=kind, seed=3) for _ in range(2))
    for one, other in zip(first.metrics, second.metrics, strict=True):
        assert without_seconds(one) == without_seconds(other)
        assert len(one) > len(without_seconds(one))
    assert all(map(_same, first.parameters, second.parameters))


def test_a_seed_moves_only_what_is_observed_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    # So few states that not every pair of them is seen under every seed.
    monkeypatch.setattr(measures, "OBSERVED_STATES", 3)
    first, second = (train(PAIR, seed=seed) for seed in (0, 1))
    moved = {
        tag
        for one, other in zip(first.metrics, second.metrics, strict=True)
        for tag, value in without_seconds(one).items()
        if value != other[tag]
    }
    assert moved == {"lipschitz/observed_max"}
    assert all(map(_same, first.parameters, second.parameters))


def test_a_seed_moves_the_networks() -> None:
    first, second = (train(PAIR, kind="mlp", seed=seed) for seed in (0, 1))
    for one, other in zip(first.parameters, second.parameters, strict=True):
        same = {name for name in one if torch.equal(one[name], other[name])}
        assert same == {"temperature"}
    assert first.metrics[-1]["reward/average"] != second.metrics[-1]["reward/average"]


# Temperature ----------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_the_schedule_is_followed_from_its_first_value_to_its_last(iterations: int) -> None:
    schedule = cooling(0.7, 0.1)
    recorder = train(PAIR, schedule=schedule, iterations=iterations)
    wanted = [schedule(i / max(iterations - 1, 1)) for i in range(iterations)]
    for parameter, metrics, tau in zip(recorder.parameters, recorder.metrics, wanted, strict=True):
        assert parameter["temperature"].tolist() == [tau, tau]
        assert metrics["schedule/temperature"] == pytest.approx(tau, rel=4 * UNIT)
    assert [state.iteration for state in recorder.states] == list(range(1, iterations + 1))
    assert wanted[0] == 0.7 and (iterations == 1 or wanted[-1] == 0.1)


def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps that improve nothing: only the temperature is left to act."""
    monkeypatch.setattr(exact, "cyclic_sweep", lambda joint, *_: (joint, []))


@pytest.mark.parametrize("kind", ["tabular", "mlp"])
def test_held_logits_stay_and_the_laws_sharpen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _idle(monkeypatch)
    trainer, recorder = prepare(PAIR, kind=kind, hold="logits")
    with torch.no_grad():
        next(trainer.state.policy.parameters()).normal_(generator=torch.Generator().manual_seed(1))
    logits = trainer.state.policy.logits(0)
    trainer.run()
    policy = trainer.state.policy
    assert torch.equal(policy.logits(0), logits)
    for parameter in recorder.parameters:
        parameter.pop("temperature")
    assert _same(recorder.parameters[0], recorder.parameters[-1])
    torch.testing.assert_close(policy.probabilities(0), torch.softmax(logits / 0.05, dim=-1))
    assert abs(recorder.metrics[-1]["effect/temperature"]) > 1e-4


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("kind", ["tabular", "mlp"])
def test_a_held_policy_stays_and_cooling_costs_no_reward(kind: str, discount: float) -> None:
    """z τ'/τ, divided by τ', is z/τ up to three roundings: each law moves by 3 |z/τ| ulp at most."""
    improvement = Improvement(objective="reward")
    trainer, recorder = prepare(
        PAIR,
        kind=kind,
        hold="policy",
        improvement=improvement,
        evaluation=Evaluation(discount=discount),
    )
    trainer.run()
    horizon = 1.0 / (1.0 - discount) if discount < 1.0 else 1.0
    for state in recorder.states:
        policy, joint = state.policy, state.values
        logits = [policy.logits(k) / policy.temperature[k] for k in range(policy.n_agents)]
        size = max(1.0, max(float(z.abs().max()) for z in logits))
        values = joint.poisson()
        # A law that moves by ε in TV gains ε times the span of its advantages at most; a network's
        # logits are sums of some ten terms.
        spread = 2.0 * (float(values.max() - values.min()) + float(joint.reward.abs().max()))
        off = horizon * policy.n_agents * 32 * size * UNIT * spread + 2.0 * joint.width
        assert abs(state.metrics["effect/temperature"]) <= max(off, 1e-13)
    assert recorder.metrics[-1]["effect/updates"] > 0.0


def test_holding_the_policy_or_the_logits_are_different_runs() -> None:
    held = [train(PAIR, hold=hold).metrics[-1]["reward/average"] for hold in ("logits", "policy")]
    assert held[0] != held[1]


# Settings -------------------------------------------------------------------------------------


def test_jacobi_moves_all_agents_from_one_baseline_and_keeps_no_ledger() -> None:
    runs = {
        order: train(MDP, iterations=1, improvement=Improvement(order=order))
        for order in ("cyclic", "jacobi")
    }
    tables = {order: run.states[0].policy for order, run in runs.items()}
    assert torch.equal(tables["cyclic"].logits(0), tables["jacobi"].logits(0))
    assert not torch.equal(tables["cyclic"].logits(2), tables["jacobi"].logits(2))
    # The ring is symmetric and so is the uniform start; jacobi keeps that. Agent 0 sees (0, 2).
    for k in (1, 2):
        mine = tables["jacobi"].logits(k)
        first = tables["jacobi"].logits(0)
        torch.testing.assert_close(mine, first if k == 0 else first.transpose(0, 1))
    tags = {order: set(run.metrics[0]) for order, run in runs.items()}
    assert tags["jacobi"] < tags["cyclic"]
    assert all(tag.startswith("ledger/") for tag in tags["cyclic"] - tags["jacobi"])
    assert [record.agent for record in runs["cyclic"].states[0].records] == [0, 1, 2]
    assert runs["jacobi"].states[0].records == []


def test_the_objective_decides_what_is_climbed() -> None:
    runs = {
        objective: train(
            PAIR,
            schedule=lambda progress: 0.5,
            iterations=3,
            improvement=Improvement(objective=objective),
        ).metrics
        for objective in ("reward", "entropy")
    }
    for m in runs["reward"]:
        assert m["reward/objective"] == pytest.approx(m["reward/average"], abs=1e-9)
        assert m["effect/temperature"] == 0.0
    for m in runs["entropy"]:
        bonus = m["reward/average"] + m["reward/entropy"]
        assert m["reward/objective"] == pytest.approx(bonus, abs=1e-9)
    # At τ = .5 the regularised optimum is far from the best reward; L grows only without entropy.
    assert runs["reward"][-1]["reward/average"] > runs["entropy"][-1]["reward/average"] + 0.1
    assert runs["entropy"][-1]["reward/objective"] > runs["reward"][-1]["reward/objective"]
    assert runs["reward"][-1]["lipschitz/max"] > 2.0 * runs["entropy"][-1]["lipschitz/max"]


def test_the_weighting_matters_on_partial_scopes_alone() -> None:
    def last(hops: int, weighting: str) -> dict[str, float]:
        scopes = tl.neighbourhood_scopes(MDP, hops=hops)
        improvement = Improvement(weighting=weighting)
        return train(MDP, scopes=scopes, iterations=1, improvement=improvement).metrics[-1]

    partial = [last(1, weighting) for weighting in ("stationary", "uniform")]
    full = [last(2, weighting) for weighting in ("stationary", "uniform")]
    assert abs(partial[0]["reward/average"] - partial[1]["reward/average"]) > 1e-6
    assert full[0]["ledger/scope_error"] == full[1]["ledger/scope_error"] == 0.0
    assert full[0]["reward/average"] == pytest.approx(full[1]["reward/average"], abs=1e-12)


def test_discounted_runs_climb_the_value_of_the_first_state() -> None:
    recorder = train(
        PAIR,
        evaluation=Evaluation(kappa=8, discount=0.9),
        schedule=cooling(0.5, 0.01),
        iterations=5,
    )
    state = recorder.states[-1]
    assert "gap/deterministic_local" not in state.metrics and state.optimum is not None
    # V ≤ V* and, per agent and step, within what τ log 2 of entropy can cost.
    gap = state.metrics["gap/joint_optimum"]
    assert -1e-8 <= gap <= PAIR.n_agents * 0.01 * math.log(2.0) / (1.0 - 0.9)
    assert gap < 0.2 * recorder.metrics[0]["gap/joint_optimum"]
    assert state.metrics["reward/average"] > recorder.metrics[0]["reward/average"]


# References -----------------------------------------------------------------------------------


def test_an_optimum_that_depends_on_the_start_is_no_reference_and_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In state 1 action 0 stays (and is paid) for ever, action 1 leaves for ever: softmax leaves."""
    monkeypatch.setattr(planning, "_SWEEPS", 100)
    law = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    reward = tl.LocalReward((0,), (), [0.0, 1.0])
    mdp = tl.FactoredMDP([2], [2], [tl.LocalKernel((0,), (0,), law)], [reward])
    recorder = train(mdp, scopes=[[0]], iterations=1)
    assert recorder.states[0].optimum is None
    (reason,) = recorder.states[0].missing
    assert reason.startswith("no joint optimum: ") and "depends on the start" in reason
    table, _ = closing_tables(SimpleNamespace(mdp=mdp), recorder.states[0])
    assert table.caption == reason
    assert not [tag for tag in recorder.metrics[0] if tag == "gap/joint_optimum"]


def test_references_are_left_out_where_planning_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of 4 machines with all in sight there are 2^64 deterministic policies.
    scopes = [range(4)] * 4
    state = train(env.sysadmin(4), scopes=scopes, iterations=1).states[0]
    assert state.optimum is not None and state.local_optimum is None
    monkeypatch.setattr(room, "REFERENCE_PAIRS", 0)
    assert not [tag for tag in train(PAIR, iterations=1).metrics[0] if tag.startswith("gap/")]


# Interrupts -----------------------------------------------------------------------------------


def test_an_interrupt_anywhere_in_an_iteration_leaves_all_of_it_or_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "REFERENCE_PAIRS", 0)
    code = Trainer._iterate.__code__
    numbers = {line for *_, line in code.co_lines() if line}
    stopped = 0
    for line in sorted(numbers - {code.co_firstlineno}):
        mdp = tl.FactoredMDP(
            [2],
            [2],
            [tl.LocalKernel((0,), (0,), [[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.3, 0.7]]])],
            [tl.LocalReward((0,), (0,), [[0.0, -0.1], [1.0, 0.9]])],
        )
        trainer, recorder = prepare(mdp, scopes=[[0]], iterations=1)
        initial, table = trainer.state, trainer.state.policy.logits(0)

        def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
            if frame.f_code is not code:
                return None
            if event == "line" and frame.f_lineno == line:  # noqa: B023
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with suppress(KeyboardInterrupt):
                trainer.run()
        finally:
            sys.settrace(before)
        if isinstance(recorder.error, KeyboardInterrupt):
            stopped += 1
            assert trainer.state is initial and initial.snapshot.iteration == 0
            assert initial.metrics == {} and initial.certificate is None
            saved = initial.snapshot.tensors["networks.0.table"].reshape(table.shape)
            assert torch.equal(saved, table)
        else:
            assert trainer.state.iteration == trainer.state.snapshot.iteration == 1
    # All lines but those of the other order.
    assert stopped >= len(numbers) - 4


def test_a_sweep_broken_off_leaves_the_snapshot_of_the_whole_iteration_before() -> None:
    whole = train(PAIR, kind="mlp")
    trainer, recorder = prepare(PAIR, kind="mlp")
    calls = []

    def epsilon(policy: tl.SoftmaxPolicy) -> torch.Tensor:
        calls.append(0)
        if len(calls) == 4:  # the second block of the second sweep
            raise KeyboardInterrupt
        return torch.from_numpy(trainer.certify(policy, rungs=("coupled",)).epsilon)

    trainer._epsilon = epsilon  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    state = trainer.state
    assert state.iteration == state.snapshot.iteration == 1
    assert not _same(parameters(state.policy), recorder.parameters[0])
    kept = {n: v for n, v in state.snapshot.tensors.items() if n in recorder.parameters[0]}
    assert _same(kept, recorder.parameters[0])
    assert _same(recorder.parameters[0], whole.parameters[0])


# Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations is 0; it must be ≥ 1"),
        ({"hold": "both"}, "hold is 'both'; choose logits or policy"),
        ({"schedule": lambda progress: -1.0}, "temperature"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(tl.InputError, match=message):
        prepare(MDP, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": -1}, "kappa is -1"),
        ({"kappa": 1.5}, "kappa is 1.5; it must be a whole number"),
        ({"discount": 0.0}, "discount is 0.0"),
        ({"discount": 1.5}, "discount is 1.5"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"tolerance": math.nan}, "tolerance is nan"),
    ],
)
def test_evaluation_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(tl.InputError, match=message):
        Evaluation(**options)


def test_a_model_without_agents_is_refused() -> None:
    mdp = tl.FactoredMDP([2], [], [tl.LocalKernel((), (), [0.5, 0.5])], [])
    with pytest.raises(tl.InputError, match="no agents"):
        prepare(mdp, scopes=[])


@pytest.mark.parametrize(
    "other",
    [env.sysadmin(4), env.ising(3, control="both"), env.random_mdp(3, states=3)],
    ids=["agents", "actions", "states"],
)
def test_a_policy_for_another_model_is_refused(other: tl.FactoredMDP) -> None:
    policy = tl.SoftmaxPolicy.tabular(other, tl.neighbourhood_scopes(other))
    with pytest.raises(tl.InputError):
        Trainer(MDP, policy, schedule=cooling())


@pytest.mark.parametrize("how", ["logits", "centre", "temperature"])
def test_a_rung_is_kept_under_its_target(how: str) -> None:
    """Free, this run leaves .9 on the exact rung; kept, no iteration does, and the reward it pays shows."""
    mdp = env.ising(6, beta=0.35)
    worst = {}
    for locality in (None, Locality(target=0.9, rung="exact", how=how)):  # type: ignore[arg-type]
        recorder = train(mdp, iterations=8, schedule=cooling(1.0, 0.02), locality=locality)
        worst[locality] = max(m["rho/exact"] for m in recorder.metrics)
        last = recorder.metrics[-1]
    assert worst[None] > 0.9
    assert max(value for key, value in worst.items() if key is not None) <= 0.9 + 8 * UNIT
    assert last["locality/agents_changed"] > 0 and last["locality/smallest_scale"] < 1.0
    assert last["locality/rho_before"] > 0.9 and last["effect/locality"] < 0.0


@pytest.mark.parametrize("engine", ["joint", "local"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_stop_the_run_with_iteration_and_agent(
    value: float, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a sweep leaves is looked at before anything is computed from it; the snapshot before is whole."""
    policy = tl.SoftmaxPolicy.tabular(MDP, tl.neighbourhood_scopes(MDP))
    trainer = Trainer(
        MDP,
        policy,
        schedule=cooling(),
        iterations=3,
        evaluation=Evaluation(engine=engine, kappa=1),  # pyright: ignore[reportArgumentType]
    )
    sweep = trainer.engine.sweep

    def poisoned(*arguments: object) -> object:
        result = sweep(*arguments)  # pyright: ignore[reportArgumentType]
        if trainer.state.iteration == 1:
            with torch.no_grad():
                policy.networks[0].table[-1, 0, 1] = value  # pyright: ignore[reportArgumentType]
        return result

    monkeypatch.setattr(trainer.engine, "sweep", poisoned)
    agent = int(policy.groups[0].agents[-1])
    with pytest.raises(
        tl.SolveError, match=f"iteration 2: the logits of agent {agent} have become"
    ):
        trainer.run()
    assert trainer.state.iteration == trainer.state.snapshot.iteration == 1
