"""Certified bounds on scopes that no enumeration reaches: forty binary coordinates, 64–64 networks.

Timed are L and span of one agent in all its coordinates. Beside the time stand medians over the
coordinates, relative to what a search for violating pairs finds (so the truth lies in between).
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from lipschitz.batches import batch, searched, train

from torchloc.lipschitz import logit_bounds, norm_product_bounds

pytestmark = pytest.mark.benchmark

COORDINATES, ACTIONS, SECONDS = 40, 3, 60.0


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("steps", [0, 300])
def test_seconds_an_agent(activation: str, steps: int) -> None:
    torch.set_num_threads(1)
    policy = batch(1, (2,) * COORDINATES, ACTIONS, (64, 64), activation)
    train(policy, steps=steps)
    for span in (False, True):
        start = time.perf_counter()
        bound = logit_bounds(policy, span=span).toarray()
        seconds = time.perf_counter() - start
        found = searched(policy, span=span, starts=64, rounds=2)
        unbranched = logit_bounds(policy, span=span, branches=0, steps=0).toarray()
        product = norm_product_bounds(policy, span=span).toarray()
        print(
            f"{activation} after {steps} steps, {'span' if span else 'L'}: {seconds:.1f} s an agent "
            f"(limit {SECONDS:g} s); bound/found {np.median(bound / found):.2f}, intervals, lines and "
            f"norms alone {np.median(unbranched / found):.2f}, product of norms "
            f"{np.median(product / found):.2f}"
        )
        assert (bound >= found).all()
        assert seconds <= SECONDS


def test_seconds_of_many_agents() -> None:
    """A thousand agents with 16–16 networks on twelve coordinates, unbranched and by default."""
    torch.set_num_threads(1)
    policy = batch(1000, (2,) * 12, 2, (16, 16))
    for name, options in {
        "unbranched": {"branches": 0, "steps": 0},
        "branched": {"steps": 0},
    }.items():
        start = time.perf_counter()
        logit_bounds(policy, **options)
        print(f"1000 agents, {name}: {time.perf_counter() - start:.1f} s")
