"""One simulated step, and its share of whole runs, beside drawing the same number of uniforms.

Two-way ring with a table of its own at every site: P_j reads s_{j−1}, s_j, s_{j+1}, a_j, agent j
sees the same three, reward on s_j. One thread. A step draws one float64 uniform for every action
and every coordinate of every replica, which bounds it from below. Every case runs in a process of
its own, so that its peak memory is its own; what model and policy take is shown apart. Meant for a
quiet machine.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import torchloc as tl
from torchloc.evaluation.rollout import simulate
from torchloc.evaluation.simulator import Simulator

pytestmark = pytest.mark.benchmark

STEPS = 20


def ring(n: int) -> tuple[tl.FactoredMDP, tl.SoftmaxPolicy]:
    sites = np.arange(n)
    parents = np.stack([(sites - 1) % n, sites, (sites + 1) % n], axis=1)
    up = np.random.default_rng(0).random((n, 2, 2, 2, 2))
    kernels = tl.KernelBatch(sites, parents, sites[:, None], np.stack([1.0 - up, up], axis=-1))
    rewards = tl.RewardBatch(sites[:, None], np.zeros((n, 0), dtype=np.int64), [[0.0, 1.0]])
    mdp = tl.FactoredMDP(np.full(n, 2), np.full(n, 2), [kernels], [rewards])
    return mdp, tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=1.0)


def gib() -> float:
    """Peak resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def least(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of the fastest of ten calls of each, in turn: what disturbs one disturbs the others."""
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(10):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return seconds


def measure(n: int, replicas: int) -> dict[str, float]:
    """Seconds and peak memory (GiB) of the parts."""
    torch.set_num_threads(1)
    mdp, policy = ring(n)
    before = gib()
    begin = time.perf_counter()
    simulator = Simulator(mdp, policy)
    built = time.perf_counter() - begin
    generator = torch.Generator().manual_seed(0)
    states = simulator.start(replicas, generator)
    actions = simulator.step(states, generator)[1]
    shape = (2 * n, replicas)
    found = least(
        {
            "step": lambda: simulator.step(states, generator),
            "reward": lambda: simulator.reward(states, actions),
            "uniforms": lambda: torch.rand(shape, dtype=torch.float64, generator=generator),
        }
    )
    begin = time.perf_counter()
    renewed = simulator.renewed(policy)
    found["renewed"] = time.perf_counter() - begin
    begin = time.perf_counter()
    simulate(mdp, policy, steps=STEPS, replicas=replicas, simulator=renewed)
    found["run"] = (time.perf_counter() - begin - found["renewed"]) / STEPS
    return {**found, "built": built, "before": before, "peak": gib()}


@pytest.mark.parametrize(
    ("n", "replicas", "seconds", "more"),
    [(10**5, 8, 0.06, 0.5), (10**6, 2, 0.25, 1.5), (10**6, 4, 0.4, 1.5)],
)
def test_ring(n: int, replicas: int, seconds: float, more: float) -> None:
    command = [sys.executable, str(Path(__file__).resolve()), str(n), str(replicas)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(
        f"n = {n} × {replicas} replicas: {1e3 * found['step']:.1f} ms a step (limit "
        f"{1e3 * seconds:g} ms), {found['step'] / found['uniforms']:.2f} times its uniforms; "
        f"reward {1e3 * found['reward']:.1f} ms, whole run {1e3 * found['run']:.1f} ms a step; "
        f"built {found['built']:.2f} s, renewed {found['renewed']:.2f} s; peak "
        f"{found['peak']:.2f} GiB ({found['before']:.2f} before)"
    )
    assert found["step"] <= seconds
    assert found["peak"] - found["before"] <= more


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
