"""Training under a target: with projections the rung stays below it, without it does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

import torchloc as tl
from torchloc.environments import hub_spoke, ising, sis
from torchloc.locality import Locality, project
from torchloc.schedules import geometric

TARGET = 0.9


class Keeper(tl.Callback):
    """Projects after every iteration where `keep`, and notes ρ of the rung."""

    def __init__(self, rung: str, how: str, *, keep: bool) -> None:
        self.rung, self.how, self.keep = rung, how, keep
        self.rho: list[float] = []
        self.rewards: list[float] = []
        self._weights = None

    def _note(self, trainer: tl.Trainer, state: tl.TrainState) -> None:
        if self.keep:
            joint = tl.JointEvaluation(trainer.mdp, state.policy)
            axes = range(joint.stationary.ndim)
            marginals = [joint.stationary.sum(dim=[a for a in axes if a != i]) for i in axes]
            report = project(
                trainer.environment,
                state.policy,
                target=TARGET,
                rung=self.rung,
                how=self.how,  # pyright: ignore[reportArgumentType]
                weights=self._weights,
                marginals=torch.stack(marginals),
            )
            self._weights = report.weights
        certificate = tl.certify(
            trainer.mdp, state.policy, rungs=(self.rung,), environment=trainer.environment
        )
        self.rho.append(certificate[self.rung].rho.upper)
        self.rewards.append(tl.JointEvaluation(trainer.mdp, state.policy).average_reward)

    def on_run_start(self, trainer: tl.Trainer, state: tl.TrainState) -> None:
        self._note(trainer, state)

    def on_iteration_end(self, trainer: tl.Trainer, state: tl.TrainState) -> None:
        self._note(trainer, state)


MODELS: dict[str, Callable[[], tl.FactoredMDP]] = {
    "hub_spoke": lambda: hub_spoke(3, noise=0.1),
    "ising": lambda: ising(3, beta=0.35),
    "sis": lambda: sis(3, infection=(0.1, 0.02), recovery=(0.4, 0.7)),
}


@pytest.mark.parametrize(
    ("name", "kind", "rung", "how"),
    [
        ("hub_spoke", "tabular", "span", "centre"),
        ("ising", "tabular", "span", "centre"),
        pytest.param("sis", "tabular", "paper", "centre", marks=pytest.mark.slow),
        pytest.param("hub_spoke", "mlp", "span", "logits", marks=pytest.mark.slow),
        pytest.param("ising", "mlp", "span", "centre", marks=pytest.mark.slow),
        pytest.param("sis", "mlp", "exact", "centre", marks=pytest.mark.slow),
    ],
)
def test_the_rung_stays_under_the_target_throughout(
    name: str, kind: str, rung: str, how: str
) -> None:
    kept, free = (run(name, kind, rung, how, keep=keep) for keep in (True, False))
    assert max(kept.rho) <= TARGET
    assert max(free.rho) > TARGET + 0.01
    # Locality is paid for, but training still gains.
    assert kept.rewards[-1] > kept.rewards[0]


def run(name: str, kind: str, rung: str, how: str, *, keep: bool) -> Keeper:
    """Three sweeps while τ falls; hub_spoke with the reward objective, under which noise stays."""
    mdp = MODELS[name]()
    scopes = tl.neighbourhood_scopes(mdp)
    if kind == "tabular":
        policy = tl.SoftmaxPolicy.tabular(mdp, scopes, scale=1.0, seed=1)
    else:
        policy = tl.SoftmaxPolicy.mlp(mdp, scopes, hidden=(6,), seed=1)
    objective = "reward" if name == "hub_spoke" else "entropy"
    keeper = Keeper(rung, how, keep=keep)
    tl.Trainer(
        mdp,
        policy,
        schedule=partial(geometric, start=0.5, end=0.02),
        improvement=tl.Improvement(objective=objective, order="jacobi"),
        iterations=3,
        callbacks=(keeper,),
    ).run()
    return keeper


def test_a_price_leaves_less_for_the_projection_and_earns_more() -> None:
    """Both end under the target; the steps that pay need less shrinking, and keep more reward."""
    mdp = sis(3, infection=(0.1, 0.02), recovery=(0.4, 0.7))
    found = {}
    for price in (None, 0.1):
        policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
        trainer = tl.Trainer(
            mdp,
            policy,
            schedule=partial(geometric, start=1.0, end=0.02),
            iterations=8,
            locality=Locality(target=1.0, price=price),
        )
        state = trainer.run()
        assert state.metrics["rho/exact"] <= 1.0
        found[price] = state.metrics
        assert ("locality/duals" in state.metrics) == (price is not None)
    assert found[0.1]["locality/duals"] > 0.0
    assert found[0.1]["locality/rho_before"] < found[None]["locality/rho_before"]
    assert found[0.1]["reward/average"] > found[None]["reward/average"]


@pytest.mark.parametrize("order", ["jacobi", "chromatic", "cyclic"])
@pytest.mark.parametrize("engine", ["joint", "local"])
def test_every_order_and_engine_pays(order: str, engine: str) -> None:
    mdp = sis(4, infection=(0.1, 0.02), recovery=(0.4, 0.7))
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    state = tl.Trainer(
        mdp,
        policy,
        schedule=partial(geometric, start=1.0, end=0.05),
        improvement=tl.Improvement(order=order),  # pyright: ignore[reportArgumentType]
        evaluation=tl.Evaluation(engine=engine, kappa=1),  # pyright: ignore[reportArgumentType]
        iterations=5,
        locality=Locality(target=1.0, price=0.2),
    ).run()
    assert state.metrics["rho/exact"] <= 1.0
    assert state.metrics["locality/duals"] > 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"price": 0.0}, "price is 0.0; it must be finite and > 0, or null"),
        ({"price": 1.0, "rung": "coupled"}, "price is 1.0 with rung=coupled, whose rows are not"),
    ],
)
def test_prices_are_checked(options: dict, message: str) -> None:
    with pytest.raises(tl.InputError, match=message):
        Locality(**options)
