"""Training with asynchronous dynamics, and with a discount, through the same loop."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
from recorded import Recorder

import torchloc as tl
from torchloc.environments import hub_spoke, ising, sis, sysadmin
from torchloc.schedules import Certified, geometric

MODELS = {
    "sysadmin": lambda: sysadmin(3),
    "sis": lambda: sis(3),
    "ising": lambda: ising(4, beta=0.4),
    "hub_spoke": lambda: hub_spoke(4, noise=0.2),
}


def train(mdp: tl.FactoredMDP, **options) -> Recorder:
    recorder = Recorder()
    options = {
        "schedule": partial(geometric, start=1.0, end=0.05),
        "iterations": 5,
        "dynamics": "asynchronous",
        "evaluation": tl.Evaluation(kappa=8),
        **options,
    }
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    tl.Trainer(mdp, policy, callbacks=[recorder], **options).run()
    return recorder


@pytest.mark.parametrize("discount", [1.0, 0.95])
@pytest.mark.parametrize("name", MODELS)
def test_an_asynchronous_run_improves_up_to_its_optimum(name: str, discount: float) -> None:
    mdp = MODELS[name]()
    recorder = train(mdp, evaluation=tl.Evaluation(kappa=8, discount=discount))
    state = recorder.states[-1]
    assert state.certificate is not None and state.certificate.dynamics == "asynchronous"
    values = [m["reward/average"] for m in recorder.metrics]
    assert values[-1] >= values[0] - 1e-12
    assert state.optimum is not None
    assert state.metrics["gap/joint_optimum"] >= -1e-8
    # Each record was checked inside the run; they speak of the chain in which one coordinate moves.
    assert all(r.guarantee <= r.realised + r.slack for r in state.records)
    fresh = tl.JointEvaluation(mdp, state.policy, dynamics="asynchronous", discount=discount)
    assert fresh.reward_rate == pytest.approx(values[-1], abs=1e-9)


@pytest.mark.parametrize("order", ["cyclic", "chromatic", "jacobi"])
def test_every_order_and_an_adaptive_schedule(order: str) -> None:
    recorder = train(
        sysadmin(3),
        schedule=Certified(target=0.9),
        improvement=tl.Improvement(order=order),  # pyright: ignore[reportArgumentType]
    )
    taus = [m["schedule/temperature"] for m in recorder.metrics]
    assert all(after < before for before, after in itertools.pairwise(taus))


def test_what_is_not_trained_is_refused() -> None:
    with pytest.raises(tl.InputError, match="dynamics is 'asynchronous', which only the joint"):
        train(sysadmin(3), evaluation=tl.Evaluation(engine="local"))
    with pytest.raises(tl.InputError, match="dynamics is 'sometimes'; choose synchronous or"):
        train(sysadmin(3), dynamics="sometimes")


@pytest.mark.parametrize("discount", [0.5, 0.95])
def test_a_discounted_run_reaches_the_discounted_optimum(discount: float) -> None:
    """SysAdmin ring: the scope {predecessor, self} is optimal, discounted too."""
    recorder = train(
        sysadmin(3),
        dynamics="synchronous",
        evaluation=tl.Evaluation(kappa=12, discount=discount),
        schedule=partial(geometric, start=0.5, end=0.005),
        iterations=12,
    )
    state = recorder.states[-1]
    assert state.optimum is not None
    # In units of discounted reward: the optimum is some 3/(1 − γ).
    assert 0.0 <= state.metrics["gap/joint_optimum"] + 1e-8 <= 0.01 / (1.0 - discount)
