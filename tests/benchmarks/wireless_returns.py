"""The 24-user wireless grid: returns by the published definition, and LPI trained on it at κ = 0.

    python tests/benchmarks/wireless_returns.py [SWEEPS]

Mean over agents of Σ_{t < 10} .7^t r_i(t) from a fresh start, with 95 % intervals, beside the published
.2414 of localized actor-critic after 120,000 iterations. A sweep moves the 24 users one after another.
"""

from __future__ import annotations

import sys
import time

import torch

import torchloc as tl
from torchloc.environments import wireless, wireless_aloha
from torchloc.evaluation.simulator import Simulator
from torchloc.schedules import geometric

REPLICAS = 20_000
DISCOUNT = 0.7


def returns(mdp: tl.FactoredMDP, policy: tl.SoftmaxPolicy) -> str:
    """Estimate and half-width of its 95 % interval."""
    simulator, generator = Simulator(mdp, policy), torch.Generator().manual_seed(0)
    states = simulator.start(REPLICAS, generator)
    total = torch.zeros(REPLICAS, dtype=torch.float64)
    for t in range(10):
        following, actions = simulator.step(states, generator)
        total += DISCOUNT**t * simulator.reward(states, actions)
        states = following
    total /= mdp.n_agents
    return f"{float(total.mean()):.4f} ± {1.96 * float(total.std()) / REPLICAS**0.5:.4f}"


def main(sweeps: int = 6) -> None:
    """Prints one line a policy."""
    mdp = wireless()
    scopes = tl.neighbourhood_scopes(mdp, hops=1)  # a user's own two slots
    policy = tl.SoftmaxPolicy.tabular(mdp, scopes)
    aloha = tl.SoftmaxPolicy.from_probabilities(mdp, scopes, wireless_aloha(), temperature=1.0)
    print(f"uniform {returns(mdp, policy)}\nALOHA {returns(mdp, aloha)}", flush=True)
    start = time.process_time()
    tl.Trainer(
        mdp,
        policy,
        schedule=lambda progress: geometric(progress, start=0.3, end=0.003),
        improvement=tl.Improvement(order="chromatic", weighting="marginal"),
        evaluation=tl.Evaluation(engine="local", kappa=0, discount=DISCOUNT),
        iterations=sweeps,
    ).run()
    seconds = time.process_time() - start
    print(f"LPI, {sweeps} sweeps {returns(mdp, policy)} ({seconds:.0f} s of processor time)")
    for rung, one in tl.certify(mdp, policy, discount=DISCOUNT).items():
        print(f"  {rung}: ρ ≤ {one.rho.upper:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
