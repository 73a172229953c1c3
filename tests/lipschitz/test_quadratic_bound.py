"""The quadratic bound against brute force over signs, and what it is for: wide layers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from batches import batch

from torchloc.lipschitz import logit_bounds, logit_lipschitz
from torchloc.lipschitz.quadratic import _search


def _largest(linear: torch.Tensor, bilinear: torch.Tensor) -> torch.Tensor:
    """max over x, y in {−1, 1} of aᵀx + yᵀ G (1, x); for fixed x the best y is the sign of G (1, x)."""
    n = linear.shape[1]
    x = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n)), dtype=torch.float64)
    w = torch.cat([torch.ones(len(x), 1, dtype=torch.float64), x], dim=1)
    values = linear @ x.T + (bilinear @ w.T).abs().sum(dim=1)
    return values.amax(dim=1)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_never_below_brute_force_and_near_it(steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    linear = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    bilinear = torch.randn(40, 5, 7, generator=generator, dtype=torch.float64)
    bilinear[:10] *= 1e-8
    linear[10:20] = 0.0
    bilinear[20:30, 2:] = 0.0
    have, want = _search(linear, bilinear, steps), _largest(linear, bilinear)
    assert (have >= want).all()
    # Without a linear part the infimum over p and q is at most Grothendieck's constant away.
    if steps == 20:
        assert (have <= 1.7823 * want)[10:20].all()


def test_degenerate_forms() -> None:
    zero = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 2, 4, dtype=torch.float64)
    assert 0.0 <= float(_search(*zero, 3)) <= 1e-290
    only = torch.tensor([[1.0, -2.0, 0.0]], dtype=torch.float64)
    assert 3.0 <= float(_search(only, zero[1], 5)) <= 3.0 * 1.1
    one = torch.zeros(1, 1, 2, dtype=torch.float64)
    one[0, 0, 0] = 4.0  # |y · 4|
    assert 4.0 <= float(_search(torch.zeros(1, 1, dtype=torch.float64), one, 5)) <= 4.0 * 1.1


@pytest.mark.parametrize("options", [{}, {"bound": 4.0}])
def test_it_tightens_wide_layers(options: dict[str, float]) -> None:
    """Where branching is of no use, on many coordinates; nothing without a second hidden layer."""
    policy = batch(2, (2,) * 10, 2, (24, 24), seed=1, **options)
    plain = logit_bounds(policy, branches=0, steps=0).toarray()
    sharp = logit_bounds(policy, branches=0, steps=5).toarray()
    exact = logit_lipschitz(policy).toarray()
    assert (exact <= sharp).all() and (sharp <= plain).all()
    assert np.median(sharp / plain) < 0.95
    shallow = batch(2, (2,) * 6, 2, (24,), seed=1)
    np.testing.assert_array_equal(
        logit_bounds(shallow, branches=0, steps=5).toarray(),
        logit_bounds(shallow, branches=0, steps=0).toarray(),
    )
