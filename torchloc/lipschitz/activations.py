"""What an activation σ does to a box, and to a difference between two points of a box.

All functions are elementwise on float64 and round outwards. The elementary functions of torch are
taken to be right to 8 u |x| in float64 (measured: below 2), which 16 u covers with what is added.

- ReLU, tanh: increasing. GELU, x Φ(x) with Φ the normal distribution function, is not: it falls until
  x = −0.7517…, where it is −0.16997…, and its slope Φ(x) + x φ(x) runs from −0.1289… at −√2 to
  1.1289… at √2, rising in between and falling outside.
- x ↦ σ(x + d) − σ(x) has no extremum inside for ReLU, one at −d/2 for tanh. For GELU it is bounded
  on a grid of spacing w: between two of its points a function leaves the larger of its values there
  by at most w²/8 times the largest second derivative, and |σ''| ≤ 0.8, |σ'''| ≤ 0.8.
- σ(y) − σ(x) = t (y − x) with t between the smallest and the largest slope over the hull of x and y.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from torchloc.lipschitz.rounding import UNIT

Kind = Literal["relu", "tanh", "gelu", "identity"]
STEEPEST: dict[Kind, float] = {"relu": 1.0, "tanh": 1.0, "gelu": 1.1290, "identity": 1.0}
"""Lipschitz constants, rounded up."""
EVALUATION: dict[Kind, float] = {"relu": 0.0, "tanh": 4.0, "gelu": 16.0, "identity": 0.0}
"""Error of the module's own evaluation in units of its dtype, relative to |x|; measured: below 2 and 7."""

_ERROR = 32.0 * UNIT
_CURVATURE = 0.8
_GRID = 16
_LOWEST_AT, _LOWEST = -0.751791524693564, -0.169971208
_GELU_STEEP = 1.12890415


def apply(kind: Kind, x: Tensor) -> Tensor:
    """σ(x)."""
    if kind == "relu":
        return torch.relu(x)
    if kind == "tanh":
        return torch.tanh(x)
    return functional.gelu(x) if kind == "gelu" else x


def value_range(kind: Kind, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds on σ(x), lower ≤ x ≤ upper."""
    low, high = apply(kind, lower), apply(kind, upper)
    if kind in ("relu", "identity"):
        return low, high
    slack = _ERROR * torch.maximum(lower.abs(), upper.abs())
    if kind == "tanh":
        return (low - slack).clamp(min=-1.0), (high + slack).clamp(max=1.0)
    low, high = torch.minimum(low, high) - slack, torch.maximum(low, high) + slack
    inside = (lower <= _LOWEST_AT + 1e-9) & (upper >= _LOWEST_AT - 1e-9)
    return torch.where(inside, _LOWEST, low), high


def slope_range(kind: Kind, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds on (σ(y) − σ(x))/(y − x), lower ≤ x < y ≤ upper."""
    if kind == "identity":
        return torch.ones_like(lower), torch.ones_like(lower)
    if kind == "relu":
        least = (lower >= 0).to(lower.dtype)
        return least, torch.maximum(least, (upper > 0).to(lower.dtype))
    a, b = _slope(kind, lower), _slope(kind, upper)
    low, high = torch.minimum(a, b) - _ERROR, torch.maximum(a, b) + _ERROR
    if kind == "tanh":
        return low.clamp(min=0.0), torch.where((lower < 0) & (upper > 0), 1.0, high.clamp(max=1.0))
    turn = math.sqrt(2.0)
    peak = (lower <= turn + 1e-9) & (upper >= turn - 1e-9)
    trough = (lower <= -turn + 1e-9) & (upper >= -turn - 1e-9)
    return torch.where(trough, 1.0 - _GELU_STEEP, low), torch.where(peak, _GELU_STEEP, high)


def _slope(kind: Kind, x: Tensor) -> Tensor:
    if kind == "tanh":
        return 1.0 - torch.tanh(x).square()
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2.0 * math.pi)
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))) + x * density


def shift_range(kind: Kind, lower: Tensor, upper: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds on σ(x + d) − σ(x), lower ≤ x ≤ upper, for every d within 2 u of `shift`."""
    slack = _ERROR * (torch.maximum(lower.abs(), upper.abs()) + shift.abs())
    if kind == "identity":
        return shift - slack, shift + slack
    if kind == "gelu":
        return _gelu_shift_range(lower, upper, shift, slack)
    points = [lower, upper]
    if kind == "tanh":
        points.append((-0.5 * shift).maximum(lower).minimum(upper))
    values = [apply(kind, x + shift) - apply(kind, x) for x in points]
    low, high = values[0], values[0]
    for value in values[1:]:
        low, high = torch.minimum(low, value), torch.maximum(high, value)
    return low - slack, high + slack


def _gelu_shift_range(
    lower: Tensor, upper: Tensor, shift: Tensor, slack: Tensor
) -> tuple[Tensor, Tensor]:
    points, spacing = _grid(lower, upper)
    far = shift.unsqueeze(-1)
    values = apply("gelu", points + far) - apply("gelu", points)
    slack = slack + _CURVATURE / 8.0 * (1 + 1e-9) * spacing.square() * shift.abs()
    s, t = slope_range("gelu", torch.minimum(lower, lower + shift), (upper + shift).maximum(upper))
    low, high = torch.minimum(s * shift, t * shift), torch.maximum(s * shift, t * shift)
    edge = 4.0 * UNIT * shift.abs()
    return (
        torch.maximum(values.amin(dim=-1) - slack, low - edge),
        torch.minimum(values.amax(dim=-1) + slack, high + edge),
    )


def residual_range(
    kind: Kind, lower: Tensor, upper: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds on σ(x) − λ x, lower ≤ x ≤ upper, with any λ; in [0, 1] for tanh, 1 for the identity."""
    if kind == "identity":
        return torch.zeros_like(lower), torch.zeros_like(lower)
    size = torch.maximum(lower.abs(), upper.abs())
    slack = _ERROR * (1.0 + slope.abs()) * size
    if kind == "gelu":
        points, spacing = _grid(lower, upper)
        values = apply(kind, points) - slope.unsqueeze(-1) * points
        slack = slack + _CURVATURE / 8.0 * (1 + 1e-9) * spacing.square()
        return values.amin(dim=-1) - slack, values.amax(dim=-1) + slack
    if kind == "relu":
        extra = [torch.zeros_like(lower)]
    else:
        # Where tanh' = λ. A root that is off costs at most its own slope times the width, since the
        # function is concave to the right of 0 and convex to the left.
        root = torch.atanh((1.0 - slope).clamp(0.0, 1.0 - 1e-12).sqrt())
        slack = slack + ((_slope(kind, root) - slope).abs() + _ERROR) * (upper - lower)
        extra = [root, -root]
    low = high = apply(kind, lower) - slope * lower
    for point in [upper, *extra]:
        point = point.maximum(lower).minimum(upper)
        value = apply(kind, point) - slope * point
        low, high = torch.minimum(low, value), torch.maximum(high, value)
    return low - slack, high + slack


def _grid(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """(…, points) from lower to upper, and their spacing, rounded up."""
    steps = torch.linspace(0.0, 1.0, _GRID + 1, dtype=lower.dtype)
    width = upper - lower
    points = lower.unsqueeze(-1) + width.unsqueeze(-1) * steps
    points = points.minimum(upper.unsqueeze(-1))
    points[..., -1] = upper
    size = torch.maximum(lower.abs(), upper.abs())
    return points, width / _GRID + 8.0 * UNIT * size


def difference_range(
    kind: Kind,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    delta: tuple[Tensor, Tensor],
    slopes: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Bounds on σ(y) − σ(x) for x, y and y − x in the boxes `first`, `second` and `delta`.

    The best of three: slopes (from `slope_range` of the hull of x and y), values and shifts.
    """
    products = torch.stack([s * d for s in slopes for d in delta])
    low, high = products.amin(dim=0), products.amax(dim=0)
    low, high = low - 2.0 * UNIT * low.abs(), high + 2.0 * UNIT * high.abs()
    x, y = value_range(kind, *first), value_range(kind, *second)
    low = torch.maximum(low, y[0] - x[1] - 2.0 * UNIT * (y[0].abs() + x[1].abs()))
    high = torch.minimum(high, y[1] - x[0] + 2.0 * UNIT * (y[1].abs() + x[0].abs()))
    if kind != "gelu":  # increasing: the extremes are at the ends of y − x
        low = torch.maximum(low, shift_range(kind, *first, delta[0])[0])
        high = torch.minimum(high, shift_range(kind, *first, delta[1])[1])
    return low, high


def upper_line(
    slopes: tuple[Tensor, Tensor], delta: tuple[Tensor, Tensor], cap: Tensor
) -> tuple[Tensor, Tensor]:
    """(α, β) with min(max(s δ, t δ), cap) ≤ α δ + β for δ in its box: a chord, moved up.

    The function is piecewise linear, so the least β is reached at an end or at a kink.
    """
    s, t = slopes
    low, high = delta

    def capped(x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(s * x, t * x), cap)

    steep = torch.maximum(s.abs(), t.abs())
    tiny = torch.finfo(low.dtype).tiny
    alpha = (capped(high) - capped(low)) / (high - low).clamp(min=tiny)
    alpha = torch.minimum(torch.maximum(alpha, -steep), steep)
    beta = torch.maximum(capped(low) - alpha * low, capped(high) - alpha * high)
    kinks = [cap / torch.where(slope == 0.0, 1.0, slope) for slope in slopes]
    for kink in (torch.zeros_like(low), *kinks):
        point = kink.maximum(low).minimum(high)
        beta = torch.maximum(beta, capped(point) - alpha * point)
    size = torch.maximum(low.abs(), high.abs()) * steep
    return alpha, beta + _ERROR * (size + torch.minimum(cap.abs(), size))
