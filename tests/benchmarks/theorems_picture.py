"""Draws theorems 7 and 14 beside what happens: `python tests/benchmarks/theorems_picture.py .github/theorems.png`.

Left, for a trained policy of each model: the largest oscillation of h − ĥ_κ by enumeration, and its tail
certified on the coupled rung. (The paper's own form C λ^{κ+1} max b/(1 − λ) with that rung's constants cannot be
told from it.) Middle: the largest span of ĝ_k − g_k over agents, beside ε_k. Right: every block of the runs that
led there, realised gain against guarantee: above the diagonal is a defect.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

import torchloc as tl
from torchloc.environments import ising, sis, sysadmin
from torchloc.improvement import BlockRecord
from torchloc.schedules import geometric

KAPPAS = range(11)
MODELS = {
    "sysadmin ring n=6": (sysadmin(6), "#0b6e4f"),
    "sis ring n=6": (sis(6), "#c8553d"),
    "ising ring n=6, β=.35": (ising(6, beta=0.35), "#2a78b5"),
}


class Ledger(tl.Callback):
    """Keeps the records of every iteration."""

    def __init__(self) -> None:
        self.records: list[BlockRecord] = []

    def on_iteration_end(self, trainer: tl.Trainer, state: tl.TrainState) -> None:
        self.records += state.records


def oscillation(values: torch.Tensor) -> float:
    """max_i δ_i of a function on joint states."""
    spreads = [(values.amax(dim=i) - values.amin(dim=i)).max() for i in range(values.ndim)]
    return float(torch.stack(spreads).max())


def span_error(joint: tl.JointEvaluation, kappa: int) -> float:
    """max over agents and states of span_a(ĝ_k − g_k)."""
    gaps = []
    for k in range(joint.policy.n_agents):
        gap = joint.block_logits(k, kappa) - joint.block_logits(k, None)
        gaps.append(float((gap.amax(dim=-1) - gap.amin(dim=-1)).max()))
    return max(gaps)


def main() -> None:
    """Writes the picture."""
    torch.set_num_threads(1)
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    tails, errors, gains = figure.subplots(1, 3)
    for name, (mdp, colour) in MODELS.items():
        policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
        ledger = Ledger()
        tl.Trainer(
            mdp,
            policy,
            schedule=partial(geometric, start=1.0, end=0.05),
            evaluation=tl.Evaluation(kappa=6),
            iterations=10,
            callbacks=[ledger],
        ).run()
        joint = tl.JointEvaluation(mdp, policy)
        rung = tl.certify(mdp, policy, rungs=("coupled",))["coupled"]
        exact = joint.poisson()
        found = [oscillation(exact - joint.truncated_value(kappa)) for kappa in KAPPAS]
        tails.plot(KAPPAS, found, color=colour, marker="o", markersize=3, label=name)
        tails.plot(KAPPAS, [rung.tail_at(k).max() for k in KAPPAS], color=colour, linestyle="--")
        found = [span_error(joint, kappa) for kappa in KAPPAS]
        errors.plot(KAPPAS, found, color=colour, marker="o", markersize=3)
        errors.plot(
            KAPPAS, [rung.epsilon_at(k).max() for k in KAPPAS], color=colour, linestyle="--"
        )
        finite = [r for r in ledger.records if np.isfinite(r.guarantee)]
        gains.plot(
            [r.realised for r in finite],
            [r.guarantee for r in finite],
            ".",
            color=colour,
            markersize=4,
        )
    tails.set(xlabel="κ", yscale="log", title="δ(h − ĥ_κ), true and certified", ylim=(1e-9, None))
    errors.set(xlabel="κ", yscale="log", title="span(ĝ − g), true and certified", ylim=(1e-9, None))
    ends = np.array([-1e-3, -1e-5, 0.0, 1e-5, 1e-3, 1e-1])
    gains.plot(ends, ends, color="#444444", linewidth=1)
    gains.set_xscale("symlog", linthresh=1e-5)
    gains.set_yscale("symlog", linthresh=1e-5)
    gains.set_xticks([-1e-3, 0.0, 1e-4, 1e-2])
    gains.set(
        xlabel="realised gain of a block", ylabel="guaranteed gain", title="every block update"
    )
    tails.plot([], [], color="#444444", linestyle="--", label="certified")
    tails.legend(frameon=False, fontsize=7)
    figure.savefig(sys.argv[1], dpi=130)


if __name__ == "__main__":
    main()
