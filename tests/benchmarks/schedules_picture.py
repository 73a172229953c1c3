"""Draws every schedule for the README: `python tests/benchmarks/schedules_picture.py .github/schedules.png`.

Fixed ones are functions of the progress alone. Adaptive ones are shown in runs on the subcritical Ising torus
(3×3, β = .2, 16 cyclic sweeps, κ certified, up to 8), with the bound on ρ that they read.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from matplotlib.figure import Figure

import torchloc as tl
from torchloc import schedules
from torchloc.environments import ising

ITERATIONS = 16
ENDS = {"start": 1.0, "end": 0.02}
FIXED = {
    "constant": partial(schedules.constant, value=0.1),
    "linear": partial(schedules.linear, **ENDS),
    "geometric": partial(schedules.geometric, **ENDS),
    "cosine": partial(schedules.cosine, **ENDS),
    "staircase": partial(schedules.staircase, stairs=4, **ENDS),
}
ADAPTIVE = {
    "certified, coupled ≤ .95": (schedules.Certified(**ENDS), "coupled"),
    "certified, paper ≤ .95": (schedules.Certified(rung="paper", **ENDS), "paper"),
    "tradeoff": (schedules.Tradeoff(**ENDS), "coupled"),
}
COLOURS = ("#0b6e4f", "#c8553d", "#2a78b5", "#8f6bb3", "#c8a03d")


class Watch(tl.Callback):
    """Keeps τ and ρ of every iteration."""

    def __init__(self, rung: str) -> None:
        self.rung = rung
        self.taus: list[float] = []
        self.rhos: list[float] = []

    def on_iteration_end(self, trainer: tl.Trainer, state: tl.TrainState) -> None:
        self.taus.append(state.metrics["schedule/temperature"])
        self.rhos.append(state.metrics[f"rho/{self.rung}"])


def main() -> None:
    """Writes the picture."""
    torch.set_num_threads(1)
    figure = Figure(figsize=(9.2, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    steps = range(1, ITERATIONS + 1)
    for colour, (name, schedule) in zip(COLOURS, FIXED.items(), strict=True):
        taus = [schedule(i / (ITERATIONS - 1)) for i in range(ITERATIONS)]
        left.plot(steps, taus, color=colour, label=name, marker="o", markersize=2.5)
    for colour, (name, (schedule, rung)) in zip(COLOURS, ADAPTIVE.items(), strict=False):
        mdp, watch = ising(9, lattice="torus", beta=0.2), Watch(rung)
        tl.Trainer(
            mdp,
            tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp)),
            schedule=schedule,
            evaluation=tl.Evaluation(kappa="certified", kappa_most=8),
            iterations=ITERATIONS,
            callbacks=[watch],
        ).run()
        middle.plot(steps, watch.taus, color=colour, label=name, marker="o", markersize=2.5)
        right.plot(steps, watch.rhos, color=colour, label=rung, marker="o", markersize=2.5)
    for axes, title in ((left, "fixed"), (middle, "adaptive")):
        axes.set(xlabel="iteration", ylabel="temperature τ", yscale="log", title=title)
    right.axhline(0.95, color="#444444", linewidth=1, linestyle="--")
    right.set(xlabel="iteration", ylabel="ρ after the sweep", title="what adaptive ones read")
    for axes in (left, middle):
        axes.legend(frameon=False, fontsize=7.5)
    figure.savefig(sys.argv[1], dpi=130)


if __name__ == "__main__":
    main()
