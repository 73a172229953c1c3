"""Exact Lipschitz constants against pairs of states; the monitor never exceeds them."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from twins import draw

import torchloc as tl
from torchloc.lipschitz import logit_lipschitz, logit_span


@pytest.mark.parametrize("seed", range(40))
def test_matches_enumeration_over_pairs(seed: int) -> None:
    model, policy, _, twin = draw(seed, policy={"minus_infinity": 0.25 * (seed % 2)})
    # Differences of logits up to 100: one rounding each.
    np.testing.assert_allclose(
        logit_lipschitz(twin).toarray(), ref.logit_lipschitz(model, policy), atol=1e-12
    )
    np.testing.assert_allclose(
        logit_span(twin).toarray(), ref.logit_spans(model, policy), atol=1e-12
    )


@pytest.mark.parametrize("seed", range(20))
def test_observed_never_exceeds_exact_and_reaches_it_on_a_full_batch(seed: int) -> None:
    model, _, _, twin = draw(seed, policy={"minus_infinity": 0.1 * (seed % 2)})
    generator = torch.Generator().manual_seed(seed)
    with tl.LipschitzMonitor(twin) as monitor:
        states = torch.tensor(model.states)
        few = states[torch.randint(len(states), (3,), generator=generator)]
        twin.act(few, generator)
        exact = monitor.exact().toarray()
        assert (monitor.observed().toarray() <= exact).all()
        twin.act(states, generator)
        np.testing.assert_array_equal(monitor.observed().toarray(), exact)
        monitor.reset()
        assert monitor.observed().nnz == 0
    twin.act(torch.tensor(model.states), generator)
    assert monitor.observed().nnz == 0


def test_softmax_bound_is_attained() -> None:
    """TV(softmax u, softmax v) ≤ tanh(span / 4), with equality on two actions at ±c/4."""
    c = torch.linspace(0.0, 40.0, 81, dtype=torch.float64)
    logits = torch.stack([c / 4, -c / 4], dim=-1)
    p, q = torch.softmax(logits, -1), torch.softmax(-logits, -1)
    tv = 0.5 * (p - q).abs().sum(-1)
    torch.testing.assert_close(tv, torch.tanh(c / 4), rtol=0, atol=1e-15)


def test_shift_per_state_changes_nothing() -> None:
    _, policy, mdp, twin = draw(3, n_agents=(2, 2), sizes=(2, 3))
    before = logit_lipschitz(twin).toarray()
    shifted = [z + np.arange(z[..., 0].size).reshape(z[..., :1].shape) for z in policy.logits]
    moved = tl.SoftmaxPolicy.from_logits(
        mdp, policy.scopes, shifted, temperature=policy.temperature
    )
    # Shifts up to 30 cost as many units in the last place.
    np.testing.assert_allclose(logit_lipschitz(moved).toarray(), before, atol=1e-12)
