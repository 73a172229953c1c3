"""The monitor's three kinds of number, and where each comes from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batches import batch

import torchloc as tl
from torchloc.lipschitz import LipschitzMonitor, logit_bounds, logit_lipschitz, logit_span
from torchloc.lipschitz.monitor import observed_spreads


def test_lower_exact_and_upper_are_in_order() -> None:
    policy = batch(4, (2, 3, 2), 3, (6, 6), "gelu", gain=3.0)
    states = policy.groups[0].observations()
    with LipschitzMonitor(policy) as monitor:
        policy.act(states[::2], torch.Generator().manual_seed(0))
        lower = monitor.observed().toarray()
        exact, upper = monitor.exact().toarray(), monitor.bound(branches=4, steps=1).toarray()
        # Batches of other lengths may add up in another order: some roundings of logits of size ten.
        assert (
            (lower <= exact + 1e-13).all()
            and (exact <= upper).all()
            and (lower < exact - 0.1).any()
        )
        spans = monitor.exact(span=True), monitor.bound(span=True, branches=2, steps=0)
        # None of these was observed.
        np.testing.assert_array_equal(monitor.observed().toarray(), lower)
    np.testing.assert_array_equal(exact, logit_lipschitz(policy).toarray())
    np.testing.assert_array_equal(spans[0].toarray(), logit_span(policy).toarray())
    bound = logit_bounds(policy, span=True, branches=2, steps=0)
    np.testing.assert_array_equal(spans[1].toarray(), bound.toarray())


def test_sources_name_what_a_certificate_takes() -> None:
    policy = batch(2, (2,) * 5, 2, (4, 4))
    assert LipschitzMonitor(policy, budget=32).sources == ("exact",)
    with LipschitzMonitor(policy, budget=31) as monitor:
        assert monitor.sources == ("bound",)
        bound = monitor.bound(branches=3, steps=2).toarray()
        np.testing.assert_array_equal(monitor.certified(branches=3, steps=2).toarray(), bound)
    with LipschitzMonitor(policy) as monitor:
        np.testing.assert_array_equal(monitor.certified().toarray(), monitor.exact().toarray())


def test_a_large_scope_is_watched_and_bounded_but_not_enumerated() -> None:
    policy = batch(3, (2,) * 40, 2, (8, 8))
    generator = torch.Generator().manual_seed(0)
    state = torch.randint(2, (1, 40), generator=generator)
    flips = torch.cat([state, state ^ torch.eye(40, dtype=torch.int64)])
    with LipschitzMonitor(policy) as monitor:
        policy.act(flips, generator)
        lower = monitor.observed().toarray()
        assert (lower > 0).all()
        assert (lower <= monitor.bound(branches=1, steps=1).toarray()).all()
        with pytest.raises(tl.BudgetError, match=r"agent 0 sees 40 coordinates .* upper bounds"):
            monitor.exact()
        np.testing.assert_array_equal(monitor.observed().toarray(), lower)


def test_pairs_are_found_among_more_states_than_an_integer_counts() -> None:
    """Nine coordinates of a thousand values: keys are compressed on the way."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(1000, (2, 30, 9), generator=generator)
    rows[:, 10:20] = rows[:, :10]
    rows[:, 10:20, 7] += 1
    logits = torch.randn(2, 30, 3, generator=generator, dtype=torch.float64)
    have = observed_spreads(rows, logits)
    moved = logits[:, 10:20] - logits[:, :10]
    want = (moved - moved.mean(dim=-1, keepdim=True)).abs().amax(dim=(1, 2))
    torch.testing.assert_close(have[:, 7], want, rtol=0, atol=1e-14)
    assert not have[:, :7].any() and not have[:, 8:].any()
