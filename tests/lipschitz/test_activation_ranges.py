"""Ranges of activations against dense samples, and the accuracy that is assumed of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from torchloc.lipschitz import activations as act

KINDS = ("relu", "tanh", "gelu", "identity")
STEPS = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)


def _boxes(seed: int, n: int = 400) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    centre = 3.0 * torch.randn(n, generator=generator, dtype=torch.float64)
    width = 10.0 ** (3.0 * torch.rand(n, generator=generator, dtype=torch.float64) - 2.0)
    width[:20] = 0.0
    return centre - width, centre + width, generator


def _between(lower: Tensor, upper: Tensor) -> Tensor:
    """(…, 201) points, both ends included."""
    points = lower[..., None] + (upper - lower)[..., None] * STEPS
    points[..., -1] = upper
    return points


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_hold_every_sample(kind: act.Kind) -> None:
    lower, upper, generator = _boxes(1)
    x = _between(lower, upper)
    low, high = act.value_range(kind, lower, upper)
    assert (low[:, None] <= act.apply(kind, x)).all()
    assert (act.apply(kind, x) <= high[:, None]).all()

    low, high = act.slope_range(kind, lower, upper)
    rise, run = act.apply(kind, x).diff(dim=1), x.diff(dim=1)
    # A secant of two values each right to 8 u |x|.
    error = 16.0 * act.UNIT * x.abs().amax(dim=1, keepdim=True)
    assert (rise >= low[:, None] * run - error).all()
    assert (rise <= high[:, None] * run + error).all()

    shift = torch.randn(len(lower), generator=generator, dtype=torch.float64)
    low, high = act.shift_range(kind, lower, upper, shift)
    moved = act.apply(kind, x + shift[:, None]) - act.apply(kind, x)
    assert (low[:, None] <= moved).all() and (moved <= high[:, None]).all()

    slope = torch.rand(len(lower), generator=generator, dtype=torch.float64)
    slope = torch.ones_like(slope) if kind == "identity" else slope
    low, high = act.residual_range(kind, lower, upper, slope)
    rest = act.apply(kind, x) - slope[:, None] * x
    assert (low[:, None] <= rest).all() and (rest <= high[:, None]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_are_attained(kind: act.Kind) -> None:
    """Dense samples come within the curvature of 200 steps, and of the 16 of GELU's grid."""
    lower, upper, generator = _boxes(2)
    narrow = upper - lower < 2.0
    lower, upper = lower[narrow], upper[narrow]
    x = _between(lower, upper)
    width = upper - lower
    fine = 0.1 * (width / 200).square() + 1e-12 + (width / 200 if kind == "relu" else 0.0)
    coarse = 0.11 * (width / 16).square() + fine
    shift = torch.randn(len(lower), generator=generator, dtype=torch.float64)
    low, high = act.value_range(kind, lower, upper)
    values = act.apply(kind, x)
    assert (values.amax(dim=1) >= high - fine).all() and (values.amin(dim=1) <= low + fine).all()
    low, high = act.shift_range(kind, lower, upper, shift)
    moved = act.apply(kind, x + shift[:, None]) - values
    slack = 2.0 * (coarse if kind == "gelu" else fine) * (1.0 + shift.abs())
    assert (moved.amax(dim=1) >= high - slack).all() and (moved.amin(dim=1) <= low + slack).all()
    slope = 0.3 * torch.ones_like(lower)
    if kind != "identity":
        low, high = act.residual_range(kind, lower, upper, slope)
        rest = values - slope[:, None] * x
        slack = 2.0 * (coarse if kind == "gelu" else fine)
        assert (rest.amax(dim=1) >= high - slack).all() and (rest.amin(dim=1) <= low + slack).all()


@pytest.mark.parametrize("kind", KINDS)
def test_differences_and_lines_hold_every_sample(kind: act.Kind) -> None:
    lower, upper, generator = _boxes(3)
    start = 2.0 * torch.randn(len(lower), generator=generator, dtype=torch.float64)
    size = torch.rand(len(lower), generator=generator, dtype=torch.float64)
    delta = (start, start + size)
    pick = torch.rand(len(lower), 500, 2, generator=generator, dtype=torch.float64)
    pick[:, :4] = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    x = lower[:, None] + (upper - lower)[:, None] * pick[..., 0]
    d = delta[0][:, None] + size[:, None] * pick[..., 1]
    # Narrower than the sum of the two boxes: samples outside are dropped.
    second = (lower + 0.9 * delta[0] + 0.1 * delta[1], upper + 0.1 * delta[0] + 0.9 * delta[1])
    inside = (x + d >= second[0][:, None]) & (x + d <= second[1][:, None])
    hull = (torch.minimum(lower, second[0]), torch.maximum(upper, second[1]))
    slopes = act.slope_range(kind, *hull)
    low, high = act.difference_range(kind, (lower, upper), second, delta, slopes)
    moved = act.apply(kind, x + d) - act.apply(kind, x)
    error = 32.0 * act.UNIT * (x.abs() + d.abs())
    assert (moved >= low[:, None] - error)[inside].all()
    assert (moved <= high[:, None] + error)[inside].all()
    alpha, beta = act.upper_line(slopes, delta, high)
    assert (moved <= alpha[:, None] * d + beta[:, None] + error)[inside].all()
    alpha, beta = act.upper_line(slopes, (-delta[1], -delta[0]), -low)
    assert (moved >= alpha[:, None] * d - beta[:, None] - error)[inside].all()


@pytest.mark.parametrize("kind", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_is_as_accurate_as_assumed(kind: act.Kind, dtype: torch.dtype) -> None:
    """Float32 against float64; float64 against the 64-bit mantissa of a long double, where there is one."""
    generator = torch.Generator().manual_seed(4)
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.logspace(-20, 2, 2001)]).to(dtype)
    x = torch.cat([x, 3.0 * torch.randn(50_000, generator=generator, dtype=dtype)])
    have = act.apply(kind, x).double()
    unit = torch.finfo(dtype).eps / 2.0
    if dtype == torch.float32:
        want, own = act.apply(kind, x.double()), act.EVALUATION[kind]
        assert ((have - want).abs() <= own * unit * x.double().abs()).all()
        return
    if np.finfo(np.longdouble).nmant < 63 or kind == "gelu":
        return  # no finer arithmetic at hand, or no erf in it
    wide = x.numpy().astype(np.longdouble)
    want = np.tanh(wide) if kind == "tanh" else np.maximum(wide, 0)
    error = np.abs(have.numpy().astype(np.longdouble) - want)
    assert (error <= act.EVALUATION[kind] * unit * np.abs(wide)).all()
