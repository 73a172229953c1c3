"""Prints what a bound on ρ costs: training with and without a target, and reward against the target.

Run by hand: `python tests/benchmarks/locality_tradeoff.py` (a quarter of an hour on one core; `--quick`: the
first table on tables only). 12 cyclic sweeps, κ = 3, τ from 1 to .02, neighbourhood scopes.

The first table: the largest ρ of the rung after any sweep, and the reward in the end, without a target and with
0.9 kept by `logits` and by `centre` (means under the marginals of the iterate). The second: reward against the
target on tables, for all ways to shrink, and what a price alone comes to. `hub_spoke` rewards a constant action:
from noisy logits, which the reward objective keeps while τ falls, locality is lost for nothing. `alternating` is
the same model with a reward for every spoke that the hub's action differs from, which needs to see them all.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

import torchloc as tl
from torchloc import environments as envs
from torchloc.certificate import Environment, Ladder
from torchloc.evaluation.planning import optimal_control
from torchloc.improvement import block_target, fit_logits, prox_logits
from torchloc.locality import How, LocalityPenalty, priced_laws, project, scope_prices
from torchloc.schedules import geometric
from torchloc.spectral import spectral_radius

TARGET, SWEEPS = 0.9, 12
COOL = partial(geometric, start=1.0, end=0.02)
PRICE_STEP = 0.05


def alternating(n: int, noise: float) -> tl.FactoredMDP:
    """`hub_spoke` with one point for every spoke that differs from the hub's action."""
    mdp = envs.hub_spoke(n, noise=noise)
    spokes = np.arange(1, n)[:, None]
    differs = tl.RewardBatch(spokes, np.zeros_like(spokes), [[[0.0, 1.0], [1.0, 0.0]]])
    return tl.FactoredMDP(mdp.state_sizes, mdp.action_sizes, list(mdp.kernels), [differs])


@dataclass(frozen=True)
class Study:
    """A model, the rung that is kept, the objective, and the targets of its curve."""

    mdp: tl.FactoredMDP
    rung: str = "exact"
    objective: Literal["entropy", "reward"] = "entropy"
    targets: tuple[float, ...] = ()

    def starts(self) -> dict[str, tl.SoftmaxPolicy]:
        """The first policies; tables with noise where the objective is to keep it."""
        scopes = tl.neighbourhood_scopes(self.mdp)
        noise = 1.0 if self.objective == "reward" else 0.0
        return {
            "tabular": tl.SoftmaxPolicy.tabular(self.mdp, scopes, scale=noise, seed=1),
            "mlp": tl.SoftmaxPolicy.mlp(self.mdp, scopes, hidden=(8, 8), seed=1),
        }


STUDIES = {
    "hub_spoke n=6": Study(envs.hub_spoke(6, noise=0.1), "span", "reward"),
    "alternating n=6": Study(alternating(6, 0.1), targets=(0.1, 0.3, 0.6, 0.9, 1.5, 2.5)),
    "ising ring n=6, β=.35": Study(envs.ising(6, beta=0.35), targets=(0.7, 0.75, 0.8, 0.85, 0.9)),
    "sis ring n=6, β .1/.02, δ .4/.7": Study(
        envs.sis(6, infection=(0.1, 0.02), recovery=(0.4, 0.7)),
        targets=(0.8, 0.85, 0.9, 1.0, 1.2, 1.4),
    ),
}


class Keeper(tl.Callback):
    """Projects after every sweep, if there is a target, and keeps the largest ρ seen."""

    def __init__(self, rung: str, target: float, how: How) -> None:
        self.rung, self.target, self.how = rung, target, how
        self.worst = 0.0
        self.warmth: torch.Tensor | float = 1.0
        self._weights: np.ndarray | None = None

    def on_run_start(self, trainer: tl.Trainer, state: tl.TrainState) -> None:
        self.on_iteration_end(trainer, state)

    def on_iteration_end(self, trainer: tl.Trainer, state: tl.TrainState) -> None:
        policy, environment = state.policy, trainer.environment
        if math.isinf(self.target):
            radius = spectral_radius(Ladder(environment, policy).matrix(self.rung)).upper
        else:
            base = COOL(max(state.iteration - 1, 0) / (SWEEPS - 1))
            if self.how == "temperature":
                policy.set_temperature(base)  # what an earlier projection added may not be needed
            report = project(
                environment,
                policy,
                target=self.target,
                rung=self.rung,
                how=self.how,
                weights=self._weights,
                marginals=marginals(state.values),
            )
            radius, self._weights = report.rho, report.weights
            self.warmth = policy.temperature / base if self.how == "temperature" else 1.0
        self.worst = max(self.worst, radius)


class Warm(tl.Trainer):
    """A trainer whose agents keep the factors by which a projection raised their temperatures."""

    def __init__(self, keeper: Keeper, *args: Any, **options: Any) -> None:
        self.keeper = keeper
        super().__init__(*args, **options)

    def temperature(self, iteration: int) -> float:
        return super().temperature(iteration) * self.keeper.warmth  # type: ignore[return-value]


def marginals(values: object) -> torch.Tensor:
    """(N, 2) stationary laws of binary coordinates."""
    law = values.stationary  # type: ignore[attr-defined]
    axes = range(law.ndim)
    return torch.stack([law.sum(dim=[a for a in axes if a != i]) for i in axes])


def train(
    study: Study, start: tl.SoftmaxPolicy, target: float = math.inf, how: How = "logits"
) -> tuple[float, float]:
    """(largest ρ after any sweep, reward in the end)."""
    policy, keeper = copy.deepcopy(start), Keeper(study.rung, target, how)
    trainer = Warm(
        keeper,
        study.mdp,
        policy,
        schedule=COOL,
        improvement=tl.Improvement(objective=study.objective),
        iterations=SWEEPS,
        callbacks=(keeper,),
    )
    trainer.run()
    return keeper.worst, tl.JointEvaluation(study.mdp, policy).average_reward


def train_priced(study: Study, start: tl.SoftmaxPolicy, target: float) -> tuple[float, float]:
    """(ρ, reward) in the end with prices alone, for the entropy objective: nothing holds the rows by force."""
    mdp, policy, environment = study.mdp, copy.deepcopy(start), Environment(study.mdp)
    penalty = LocalityPenalty(mdp.n_coordinates, target=target, step=PRICE_STEP)
    weights, radius = np.ones(mdp.n_coordinates), math.inf
    joint = tl.JointEvaluation(mdp, policy, objective="entropy")
    for sweep in range(SWEEPS):
        tau = COOL(sweep / (SWEEPS - 1))
        policy.set_temperature(tau)
        joint = joint.renewed(policy)
        prices = penalty.prices(environment.action, weights)
        for k in range(policy.n_agents):
            index, row = int(policy.group_of[k]), int(policy.row_of[k])
            sizes = policy.groups[index].sizes
            block = block_target(joint, k, 3)
            old = policy.logits(k).reshape(block.average.shape)
            wanted = prox_logits(old, block.average, temperature=tau, prox=tau, objective="entropy")
            laws, _ = priced_laws(
                torch.log_softmax(wanted / tau, dim=-1).reshape(1, *sizes, -1),
                stiffness=torch.tensor([2.0 * tau]),
                prices=scope_prices(policy, prices, weights, index)[row, None],
                law=joint.over_scope(k, joint.stationary).sum(dim=1).reshape(1, *sizes),
            )
            fit_logits(policy, index, torch.tensor([row]), tau * laws.reshape(1, *wanted.shape))
            joint = joint.renewed(policy)
        matrix = Ladder(environment, policy).matrix(study.rung)
        bound = spectral_radius(matrix)
        radius = bound.upper
        if bound.weights is not None:
            weights = bound.weights
        penalty.ascend((matrix @ weights) / weights)
    return radius, tl.JointEvaluation(mdp, policy).average_reward


def print_runs(*, quick: bool) -> None:
    """The first table."""
    print(f"without a target, and kept under {TARGET}; reward a step of the whole system\n")
    print("| environment | rung | policy | ρ(E^s) | optimum | free: ρ, reward | logits | centre |")
    print("|---|---|---|---|---|---|---|---|")
    for name, study in STUDIES.items():
        floor, best = Environment(study.mdp).floor.upper, optimal_control(study.mdp).gain
        for kind, start in study.starts().items():
            if quick and kind == "mlp":
                continue
            runs = [train(study, start)]
            runs += [train(study, start, TARGET, how) for how in ("logits", "centre")]
            cells = " | ".join(f"{rho:.4f}, {reward:.4f}" for rho, reward in runs)
            shown = f"{name} | {study.rung} | {kind} | {floor:.3f} | {best:.4f}"
            print(f"| {shown} | {cells} |", flush=True)


def print_curves() -> None:
    """The second table, one a model."""
    hows: tuple[How, ...] = ("temperature", "logits", "centre")
    for name, study in STUDIES.items():
        if not study.targets:
            continue
        start = study.starts()["tabular"]
        radius, reward = train(study, start)
        uniform = tl.JointEvaluation(study.mdp, start).average_reward
        print(f"\n{name}: uniform {uniform:.4f}, without a target {reward:.4f} at ρ {radius:.3f}\n")
        print("| target | temperature | logits | centre | price alone: ρ, reward |")
        print("|---|---|---|---|---|")
        for target in study.targets:
            cells = " | ".join(f"{train(study, start, target, how)[1]:.4f}" for how in hows)
            radius, reward = train_priced(study, start, target)
            print(f"| {target} | {cells} | {radius:.3f}, {reward:.4f} |", flush=True)


def main() -> None:
    """Prints both tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first table, on tables only")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print_runs(quick=quick)
    if not quick:
        print_curves()


if __name__ == "__main__":
    main()
