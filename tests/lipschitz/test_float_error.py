"""Bounds on rounding: they hold, and they are not much more than what happens."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from batches import batch

from torchloc.lipschitz import logit_bounds, logit_lipschitz, logit_span
from torchloc.lipschitz.layers import forward_error, reach, read_chains
from torchloc.lipschitz.rounding import (
    UNIT,
    gamma,
    interval_product,
    largest_eigenvalues,
    spectral_norms,
)


def test_gamma_covers_its_definition() -> None:
    for n in (1, 10, 10**6):
        exact = Fraction(n) * Fraction(UNIT) / (1 - Fraction(n) * Fraction(UNIT))
        assert 2 * exact <= Fraction(gamma(n)) <= 2 * exact + Fraction(10 * UNIT)
    assert gamma(2**24, 2.0**-24) == torch.inf


@pytest.mark.parametrize("seed", range(5))
def test_interval_product_holds_the_exact_range(seed: int) -> None:
    """Corners of boxes of numbers of very different sizes, multiplied out in fractions."""
    rng = np.random.default_rng(seed)
    lower = rng.normal(size=6) * 10.0 ** rng.integers(-8, 9, 6)
    upper = lower + np.abs(rng.normal(size=6)) * 10.0 ** rng.integers(-12, 9, 6)
    weight = rng.normal(size=(6, 3)) * 10.0 ** rng.integers(-4, 5, (6, 3))
    box = [torch.tensor(x)[None, None] for x in (lower, upper)]
    low, high = interval_product(box[0], box[1], torch.tensor(weight)[None])
    for k in range(3):
        ends = [
            sorted(Fraction(x) * Fraction(weight[j, k]) for x in (lower[j], upper[j]))
            for j in range(6)
        ]
        assert Fraction(float(low[0, 0, k])) <= sum(end[0] for end in ends)
        assert Fraction(float(high[0, 0, k])) >= sum(end[1] for end in ends)


def test_norms_and_eigenvalues_are_upper_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(20, 9, 7, generator=generator, dtype=torch.float64)
    have, want = spectral_norms(matrices), torch.linalg.matrix_norm(matrices, 2)
    assert (have >= want).all() and (have <= want * (1 + 1e-10)).all()
    ones = torch.ones(1, 9, 4, dtype=torch.float64)
    assert 6.0 <= float(spectral_norms(ones)) <= 6.0 * (1 + 1e-10)
    assert float(spectral_norms(0.0 * ones)) == 0.0
    square = torch.cat([ones[..., :1] * ones[..., :1].mT, -torch.eye(9).double()[None]])
    top = largest_eigenvalues(square)
    assert 9.0 <= float(top[0]) <= 9.0 * (1 + 1e-10) and 0.0 <= float(top[1]) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_modules_stay_within_their_forward_error(activation: str, dtype: torch.dtype) -> None:
    policy = batch(20, (2, 3, 2), 3, (9, 8), activation, dtype=dtype, gain=2.0)
    (group,), (network,) = policy.groups, policy.networks
    ((_, chain),) = read_chains(network, group, torch.arange(20), 20, "network")
    seen = group.observations().expand(20, -1, -1)
    apart = (network(seen).detach().double() - chain(seen)).abs().amax(dim=1)
    allowed, size = forward_error(chain, reach(chain), chain.unit)
    own, _ = forward_error(chain, reach(chain), UNIT)
    assert (apart <= allowed + own).all()
    # Not empty words: within a factor that a worst case over 30 roundings a unit explains.
    assert (allowed <= 1e4 * chain.unit * size).all()


@pytest.mark.parametrize("hidden", [(), (4,), (4, 4)])
def test_bounds_hold_where_float32_cancels(hidden: tuple[int, ...]) -> None:
    """Weights of 1e6 that cancel: what the floats move by is rounding, and it is bounded."""
    policy = batch(50, (2, 2, 2), 2, hidden, dtype=torch.float32)
    (network,) = policy.networks
    layers = [layer for layer in network if hasattr(layer, "weight")]
    with torch.no_grad():
        layers[0].weight[:, :2] += 1e6
        layers[0].weight[:, 2:4] -= 1e6
    for span in (False, True):
        exact = (logit_span if span else logit_lipschitz)(policy).toarray()
        bound = logit_bounds(policy, span=span, branches=8, steps=1).toarray()
        assert (bound >= exact).all()
        assert exact.max() > 0.1  # roundings of numbers of 1e6, not the weights of size one


def test_overflow_is_an_infinite_bound() -> None:
    policy = batch(2, (2, 2), 2, (4, 4), dtype=torch.float32, gain=1e14)
    assert np.isinf(logit_bounds(policy, steps=1).toarray()).all()
