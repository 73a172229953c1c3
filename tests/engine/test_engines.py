"""Runs on balls and by simulation, beside runs by enumeration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import torchloc as tl
from torchloc.callbacks import closing_tables
from torchloc.engine import Evaluation, JointEngine, LocalEngine, SimulatedValues
from torchloc.environments import random_mdp, sysadmin
from torchloc.evaluation.planning import optimal_control
from torchloc.improvement import Improvement
from torchloc.schedules import geometric
from torchloc.trainer import Trainer


def run(
    mdp: tl.FactoredMDP,
    *,
    iterations: int = 6,
    end: float = 0.02,
    seed: int = 0,
    improvement: Improvement | None = None,
    **evaluation: object,
) -> tuple[Trainer, tl.TrainState]:
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    trainer = Trainer(
        mdp,
        policy,
        schedule=lambda t: geometric(t, start=1.0, end=end),
        improvement=improvement or Improvement(order="chromatic", weighting="uniform"),
        evaluation=Evaluation(**evaluation),  # type: ignore[arg-type]
        iterations=iterations,
        seed=seed,
    )
    return trainer, trainer.run()


@pytest.mark.parametrize("order", ["cyclic", "chromatic"])
@pytest.mark.parametrize("weighting", ["uniform", "marginal", "stationary"])
def test_the_optimum_of_a_small_ring_is_reached_without_enumeration(
    order: str, weighting: str
) -> None:
    """The trained policy, evaluated exactly; its simulated reward is within four intervals of it."""
    mdp = sysadmin(n=6)
    improvement = Improvement(order=order, weighting=weighting)  # type: ignore[arg-type]
    trainer, state = run(mdp, improvement=improvement, engine="local", kappa=2, steps=200)
    exact = tl.JointEvaluation(mdp, state.policy).average_reward
    assert exact >= optimal_control(mdp).gain - 1e-4
    assert isinstance(state.values, SimulatedValues)
    assert abs(state.values.reward_rate - exact) <= 4 * state.values.width
    assert state.metrics["reward/half_width"] == state.values.rollout.half_width
    low, high = (state.metrics[f"reward/per_agent_{end}"] for end in ("low", "high"))
    assert low < state.metrics["reward/per_agent"] < high
    assert isinstance(trainer.engine, LocalEngine) and state.records == []


def test_jacobi_moves_all_at_once() -> None:
    improvement = Improvement(order="jacobi", weighting="uniform")
    trainer, _ = run(sysadmin(n=6), improvement=improvement, engine="local", kappa=1, iterations=1)
    assert isinstance(trainer.engine, LocalEngine) and len(trainer.engine.colours) == 1


def test_auto_enumerates_where_it_can() -> None:
    small, _ = run(sysadmin(n=3), iterations=1, kappa=1)
    large, state = run(sysadmin(n=60), iterations=1, kappa=1, steps=20, burn_in=5)
    assert isinstance(small.engine, JointEngine) and isinstance(large.engine, LocalEngine)
    assert state.certificate is not None and state.certificate.kappa == 1


def test_the_joint_engine_moves_colours_and_reaches_the_optimum() -> None:
    mdp = sysadmin(n=6)
    _, state = run(mdp, engine="joint", kappa=1)
    assert state.metrics["gap/joint_optimum"] < 1e-4
    assert "effect/updates" in state.metrics


def test_a_discounted_run_without_enumeration() -> None:
    mdp = sysadmin(n=5)
    _, state = run(mdp, engine="local", kappa=3, discount=0.9, replicas=400, end=0.05)
    exact = tl.JointEvaluation(mdp, state.policy, discount=0.9, objective="entropy")
    assert abs(state.values.value - exact.value) <= 4 * state.values.width
    assert (
        abs(state.values.reward_rate - exact.reward_rate) <= 4 * state.metrics["reward/half_width"]
    )
    assert state.values.entropy_rate == pytest.approx(exact.entropy_rate, abs=0.02)


def test_kappa_auto_fits_the_budget() -> None:
    mdp = random_mdp(n=12)
    trainer, state = run(mdp, engine="local", kappa="auto", ball_bytes=2**8, iterations=1)
    assert state.metrics["schedule/kappa"] == trainer.engine.kappa >= 1
    with pytest.raises(tl.BudgetError, match=rf"kappa={trainer.engine.kappa} fits"):
        run(mdp, engine="local", kappa=trainer.engine.kappa + 1, ball_bytes=2**8)


def test_float32_advantages_find_the_same_policy() -> None:
    mdp = sysadmin(n=15)
    _, double = run(mdp, engine="local", kappa=2, iterations=3)
    _, single = run(mdp, engine="local", kappa=2, iterations=3, dtype="float32")
    for k in range(15):
        torch.testing.assert_close(
            single.policy.probabilities(k), double.policy.probabilities(k), rtol=0, atol=1e-4
        )


def test_a_run_is_determined_by_its_seed() -> None:
    mdp = sysadmin(n=30)
    improvement = Improvement(order="chromatic", weighting="stationary")
    options = {"engine": "local", "kappa": 1, "iterations": 2, "improvement": improvement}
    first, again, other = (run(mdp, seed=seed, **options)[1] for seed in (1, 1, 2))
    same = {k: v for k, v in first.metrics.items() if not k.startswith("seconds")}
    assert same == {k: v for k, v in again.metrics.items() if not k.startswith("seconds")}
    assert first.metrics["reward/average"] != other.metrics["reward/average"]


def test_the_closing_table_shows_the_interval() -> None:
    trainer, state = run(sysadmin(n=40), engine="local", kappa=1, iterations=1)
    reward = closing_tables(trainer, state)[0]
    assert "± (95 % interval)" in list(reward.columns[0].cells)


def test_checkpoints_of_simulated_runs_load(tmp_path: Path) -> None:
    from torchloc.callbacks import Checkpoint

    mdp = sysadmin(n=40)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    saving = Checkpoint(tmp_path)
    Trainer(
        mdp,
        policy,
        schedule=lambda _: 0.2,
        improvement=Improvement(weighting="uniform"),
        evaluation=Evaluation(kappa=1, steps=20),
        iterations=1,
        callbacks=[saving],
    ).run()
    assert saving.saved is not None
    assert torch.equal(tl.SoftmaxPolicy.load(saving.saved).logits(7), policy.logits(7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "exact"}, "engine is 'exact'; choose auto, joint or local"),
        ({"kappa": "max"}, "kappa is 'max'; it must be a whole number ≥ 0, or auto"),
        ({"kappa": -1}, "kappa is -1"),
        ({"kappa": 1.5}, "kappa is 1.5"),
        ({"discount": 0.0}, "discount is 0.0"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"steps": 0}, "steps is 0; it must be a whole number ≥ 1"),
        ({"burn_in": -1}, "burn_in is -1"),
        ({"replicas": 0}, "replicas is 0"),
        ({"ball_bytes": 1}, "ball_bytes is 1"),
        ({"steps": 1, "replicas": 1}, "an interval needs at least 2"),
        ({"dtype": "half"}, "dtype is 'half'; choose float64 or float32"),
    ],
)
def test_settings_are_checked(options: dict, message: str) -> None:
    with pytest.raises(tl.InputError, match=message.replace("(", r"\(")):
        Evaluation(**options)
