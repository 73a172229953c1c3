"""100,000 agents with a 16–16 MLP on three binary coordinates: forward pass and fit step, on two threads.

The forward pass gives the logits of every agent at its 8 scope states. A fit step is a step of a fit of
all agents to random targets from fresh weights, its share of what a call costs besides included. All
times are the least of some repeats and stand beside the time that copying the weights once takes here.
Every dtype runs in a process of its own. Meant for a quiet machine: a second thread that has to share
its core makes the first one wait, which at least does not keep it busy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import torchloc as tl
from torchloc.environments import sis
from torchloc.improvement import fit_logits

pytestmark = pytest.mark.benchmark

AGENTS = 100_000
FORWARD = 0.3
STEP = {"float32": 1.2, "float64": 2.0}
STEPS = {"levenberg": 3, "adam": 10}
NETWORKS: dict[str, dict[str, Any]] = {
    "relu": {},
    "tanh": {"activation": "tanh"},
    "gelu": {"activation": "gelu"},
    "bounded": {"bound": 2.0},
    "shared": {"sharing": True},
}


def least(repeats: int, call: Callable[[], Any]) -> float:
    """Seconds of the quickest of some calls; the first one is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def measure(name: str) -> dict[str, float]:
    """Seconds a pass, a step and a copy of all weights."""
    torch.set_num_threads(2)
    dtype = getattr(torch, name)
    mdp = sis(AGENTS)
    scopes = tl.neighbourhood_scopes(mdp)
    result = {}
    for kind, options in NETWORKS.items():
        policy = tl.SoftmaxPolicy.mlp(mdp, scopes, hidden=(16, 16), dtype=dtype, **options)
        with torch.no_grad():
            result[f"forward {kind}"] = least(5, lambda policy=policy: policy.group_logits(0))
    policy = tl.SoftmaxPolicy.mlp(mdp, scopes, hidden=(16, 16), dtype=dtype)
    fresh = {name: value.clone() for name, value in policy.state_dict().items()}
    flat = torch.cat([value.flatten() for value in policy.networks.state_dict().values()])
    result["copy"] = least(5, lambda: flat.clone())
    result["megabytes"] = flat.numel() * flat.element_size() / 1e6
    targets = 3.0 * torch.randn(
        AGENTS, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for method, steps in STEPS.items():
        seconds = []
        for _ in range(4):
            policy.load_state_dict(fresh)
            start = time.perf_counter()
            report = fit_logits(
                policy, 0, torch.arange(AGENTS), targets, method=method, steps=steps
            )
            seconds.append((time.perf_counter() - start) / steps)
            assert report.steps == steps
        result[f"step {method}"] = min(seconds)
    return result


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_hundred_thousand_agents(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, str(Path(__file__).resolve()), name]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    copy, size = found.pop("copy"), found.pop("megabytes")
    with capsys.disabled():
        print(f"\n{name}: {size:.0f} MB of weights, copied in {copy:.3f} s")
        for what, seconds in found.items():
            print(f"  {what:18s} {seconds:6.3f} s = {seconds / copy:5.1f} copies of the weights")
    for what, seconds in found.items():
        assert seconds <= (FORWARD if what.startswith("forward") else STEP[name]), what


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
