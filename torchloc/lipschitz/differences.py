"""Signed differences between two copies of a network, and upper bounds on combinations of its logits.

Two scope states s, s' of a box differ in coordinate i alone: a in the first, b in the second. With
pre-activations z_ℓ and z_ℓ + δ_ℓ and Δ_ℓ = σ(z_ℓ + δ_ℓ) − σ(z_ℓ),

    δ_1 = W_1[i, b] − W_1[i, a] exactly,      δ_ℓ = W_ℓᵀ Δ_{ℓ−1},      c·(z(s') − z(s)) = v·Δ_D,   v = W_{D+1} c.

Δ_1 is bounded neuron by neuron over the exact first box. Above, Δ_ℓ = t ∘ δ_ℓ with slopes
t ∈ [m − ρ, m + ρ] over the hull of both copies' boxes. Three upper bounds of v·Δ_ℓ hold together:

- *interval*: Σ max(v Δ) over the box of Δ_ℓ;
- *lines*: Δ_ℓ ≤ α δ_ℓ + β (≥ where v < 0) by chords, so v·Δ_ℓ ≤ Σ β + (W_ℓ (v ∘ α))·Δ_{ℓ−1}, layer by layer;
- *norms*: v·Δ_ℓ ≤ (W_ℓ (v ∘ m))·Δ_{ℓ−1} + Σ_j u_j |δ_{ℓ,j}|, u = |v| ∘ ρ, where for any centre C and radius
  ‖Δ_{ℓ−1} − C‖₂ ≤ R one has Σ u |δ_ℓ| ≤ Σ u |W_ℓᵀ C| + ‖u‖₂ ‖W_ℓ‖₂ R. Many small differences of random sign
  add up like the root of their number here, and like their number in the other two.

Directions and rounding: all are upper bounds for exact arithmetic on the chain's numbers. Boxes are
widened as they are made; what a row adds up is at most |v|ᵀ μ_D, with μ_1 = max |Δ_1| and
μ_ℓ = max|t| ∘ (|W_ℓ|ᵀ μ_{ℓ−1}), and γ times that is added at the end.

Axis letters: G agents, N boxes an agent, R rows v, n units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchloc.lipschitz.activations import (
    difference_range,
    residual_range,
    shift_range,
    slope_range,
    upper_line,
    value_range,
)
from torchloc.lipschitz.boxes import Box, Boxes, Copies, Prepared
from torchloc.lipschitz.rounding import UNIT, gamma, interval_product
from torchloc.shapes import Float


@dataclass(frozen=True, eq=False)
class Level:
    """What is known of one hidden layer in N boxes, each tensor (G, N, n) but `radius`.

    Attributes:
        delta, change: Boxes of δ and Δ.
        middle, spread: m and ρ.
        upper, lower: Lines (α, β) above and below Δ.
        mass: μ.
        centre, radius: C and R (G, N) with ‖Δ − C‖₂ ≤ R.
        width: Width of the box of z.
    """

    delta: Box
    change: Box
    middle: Tensor
    spread: Tensor
    upper: Box
    lower: Box
    mass: Tensor
    centre: Tensor
    radius: Tensor
    width: Tensor


def propagate(prepared: Prepared, boxes: Boxes) -> tuple[Level, ...]:
    """All hidden layers, from the first to the last."""
    copies = Copies.of(prepared, boxes)
    shift = copies.shift()
    residuals: tuple[list[Box], list[Box]] = ([], [])
    values: list[Box] = []
    levels: list[Level] = []
    for index, kind in enumerate(prepared.chain.kinds):
        layer = prepared.chain.affine[index]
        first, second = copies.layer(index, residuals)
        if index == 0:
            slack = 2.0 * UNIT * shift.abs()
            delta = (shift - slack, shift + slack)
            slopes = slope_range(kind, *_hull(first, second))
            change = shift_range(kind, *first, shift)
            mass = torch.maximum(change[0].abs(), change[1].abs())
        else:
            first, second = (
                _narrowed(box, interval_product(*before, layer.weight), layer.bias)
                for box, before in zip((first, second), values, strict=True)
            )
            delta = _delta(prepared, levels)
            first, second, delta = _consistent(first, second, delta)
            slopes = slope_range(kind, *_hull(first, second))
            change = difference_range(kind, first, second, delta, slopes)
            steep = torch.maximum(slopes[0].abs(), slopes[1].abs())
            mass = steep * (levels[-1].mass @ layer.weight.abs())
        levels.append(_level(prepared, levels, slopes, delta, change, mass, first))
        values = [value_range(kind, *box) for box in (first, second)]
        for store, box in zip(residuals, (first, second), strict=True):
            store.append(residual_range(kind, *box, prepared.slopes[index]))
    return tuple(levels)


def _level(
    prepared: Prepared,
    below: list[Level],
    slopes: Box,
    delta: Box,
    change: Box,
    mass: Tensor,
    first: Box,
) -> Level:
    middle = 0.5 * (slopes[0] + slopes[1])
    spread = torch.maximum(slopes[1] - middle, middle - slopes[0]) * (1.0 + 4.0 * UNIT)
    alpha, beta = upper_line(slopes, delta, change[1])
    low_alpha, low_beta = upper_line(slopes, (-delta[1], -delta[0]), -change[0])
    centre, radius = _ball(prepared, below, middle, spread, change, mass)
    return Level(
        delta,
        change,
        middle,
        spread + 4.0 * UNIT * middle.abs(),
        (alpha, beta),
        (low_alpha, -low_beta),
        mass,
        centre,
        radius,
        first[1] - first[0],
    )


def _ball(
    prepared: Prepared,
    below: list[Level],
    middle: Tensor,
    spread: Tensor,
    change: Box,
    mass: Tensor,
) -> tuple[Tensor, Tensor]:
    """C and R with ‖Δ − C‖₂ ≤ R: from the box of Δ, or from the ball of the layer below."""
    slack = gamma(8 * mass.shape[-1])
    centre, half = centred_box(change)
    radius = half.norm(dim=-1) * (1.0 + slack)
    if not below:
        return centre, radius
    index = len(below)
    image = below[-1].centre @ prepared.chain.affine[index].weight
    steep = (middle.abs() + spread).amax(dim=-1)
    other = (spread * image).norm(dim=-1)
    other = other + steep * prepared.norms[index - 1][:, None] * below[-1].radius
    other = other * (1.0 + slack) + slack * mass.norm(dim=-1)
    closer = other < radius
    return (
        torch.where(closer[..., None], middle * image, centre),
        torch.where(closer, other, radius),
    )


def centred_box(box: Box) -> tuple[Tensor, Tensor]:
    """Centre and (rounded up) half width."""
    centre = 0.5 * (box[0] + box[1])
    half = torch.maximum(box[1] - centre, centre - box[0])
    return centre, half * (1.0 + 4.0 * UNIT) + 4.0 * UNIT * centre.abs()


def _delta(prepared: Prepared, levels: list[Level]) -> Box:
    """Box of δ = W_ℓᵀ Δ_{ℓ−1} for the layer above `levels`."""
    weight = prepared.chain.affine[len(levels)].weight
    lower, upper = interval_product(*levels[-1].change, weight)
    if len(levels) > 1:
        rows = weight.mT.contiguous()
        both = torch.cat([rows, -rows], dim=1)
        bound = row_bounds(prepared, tuple(levels), both, both.abs())[0]
        upper = torch.minimum(upper, bound[..., : rows.shape[1]])
        lower = torch.maximum(lower, -bound[..., rows.shape[1] :])
    return lower, upper


def _hull(first: Box, second: Box) -> Box:
    return torch.minimum(first[0], second[0]), torch.maximum(first[1], second[1])


def _narrowed(box: Box, product: Box, bias: Tensor) -> Box:
    lower, upper = product[0] + bias, product[1] + bias
    slack = 2.0 * UNIT * (lower.abs() + upper.abs() + bias.abs())
    return torch.maximum(box[0], lower - slack), torch.minimum(box[1], upper + slack)


def _consistent(first: Box, second: Box, delta: Box) -> tuple[Box, Box, Box]:
    """Boxes of x, y and y − x, each narrowed by the other two."""

    def sums(a: Box, b: Box, sign: float) -> Box:
        """Range of a + b, or of a − b."""
        low, high = (b[0], b[1]) if sign > 0 else (-b[1], -b[0])
        lower, upper = a[0] + low, a[1] + high
        slack = 2.0 * UNIT * (lower.abs() + upper.abs())
        return lower - slack, upper + slack

    def meet(a: Box, b: Box) -> Box:
        return torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])

    narrow_first = meet(first, sums(second, delta, -1.0))
    narrow_second = meet(second, sums(first, delta, 1.0))
    return narrow_first, narrow_second, meet(delta, sums(second, first, -1.0))


def row_bounds(
    prepared: Prepared,
    levels: tuple[Level, ...],
    rows: Float[Tensor, "G R n"],
    mass: Float[Tensor, "G R n"],
) -> tuple[Float[Tensor, "G N R"], Float[Tensor, "G N R k"]]:
    """Upper bounds of v·Δ for the last of `levels`, and |v| carried back to Δ_1 by lines.

    Args:
        prepared: The networks.
        levels: Hidden layers 1 … ℓ.
        rows: v.
        mass: At least |v|, what is added up for it.
    """
    top = levels[-1]
    low, high = top.change
    best = high @ rows.clamp(min=0.0).mT + low @ rows.clamp(max=0.0).mT
    carried, constant = carried_down(prepared, levels, rows, down_to=1)
    best = torch.minimum(best, constant + _interval(carried, levels[0].change))
    if len(levels) > 1:
        best = torch.minimum(best, _by_norms(prepared, levels, rows))
    return best + row_slack(prepared, levels, mass), carried


def row_slack(
    prepared: Prepared, levels: tuple[Level, ...], mass: Float[Tensor, "G R n"]
) -> Float[Tensor, "G N R"]:
    """γ times what a row adds up: the rounding of any of its bounds."""
    terms = sum(sum(layer.weight.shape[1:]) for layer in prepared.chain.affine[: len(levels) + 1])
    return gamma(4 * terms + 64 * len(levels)) * (levels[-1].mass @ mass.mT)


def carried_down(
    prepared: Prepared, levels: tuple[Level, ...], rows: Float[Tensor, "G R n"], *, down_to: int
) -> tuple[Float[Tensor, "G N R k"], Float[Tensor, "G N R"]]:
    """(p, constant) with v·Δ_ℓ ≤ p·Δ_{down_to} + constant by the lines of the layers between."""
    carried = rows.unsqueeze(1).expand(-1, levels[-1].mass.shape[1], -1, -1)
    constant = torch.zeros_like(carried[..., 0])
    for index in range(len(levels) - 1, down_to - 1, -1):
        level, weight = levels[index], prepared.chain.affine[index].weight
        up, down = carried.clamp(min=0.0), carried.clamp(max=0.0)
        constant = constant + _dot(up, level.upper[1]) + _dot(down, level.lower[1])
        slope = up * level.upper[0].unsqueeze(2) + down * level.lower[0].unsqueeze(2)
        carried = _times(slope, weight.mT)
    return carried, constant


def _by_norms(
    prepared: Prepared, levels: tuple[Level, ...], rows: Float[Tensor, "G R n"]
) -> Float[Tensor, "G N R"]:
    carried = rows.unsqueeze(1).expand(-1, levels[-1].mass.shape[1], -1, -1)
    total = torch.zeros_like(carried[..., 0])
    for index in range(len(levels) - 1, 0, -1):
        level, below, weight = levels[index], levels[index - 1], prepared.chain.affine[index].weight
        gap = carried.abs() * level.spread.unsqueeze(2)
        size = torch.maximum(level.delta[0].abs(), level.delta[1].abs())
        image = (below.centre @ weight).abs()
        norm = prepared.norms[index - 1][:, None] * below.radius
        total = total + torch.minimum(
            _dot(gap, size), _dot(gap, image) + gap.norm(dim=-1) * norm.unsqueeze(-1)
        )
        carried = _times(carried * level.middle.unsqueeze(2), weight.mT)
    return total * (1.0 + gamma(4 * carried.shape[-1])) + _interval(carried, levels[0].change)


def _interval(carried: Float[Tensor, "G N R n"], change: Box) -> Float[Tensor, "G N R"]:
    centre, half = centred_box(change)
    return _dot(carried, centre) + _dot(carried.abs(), half)


def _dot(rows: Float[Tensor, "G N R n"], units: Float[Tensor, "G N n"]) -> Float[Tensor, "G N R"]:
    return (rows @ units.unsqueeze(-1)).squeeze(-1)


def _times(
    rows: Float[Tensor, "G N R n"], matrix: Float[Tensor, "G n k"]
) -> Float[Tensor, "G N R k"]:
    n_agents, n_boxes, n_rows, n = rows.shape
    return (rows.reshape(n_agents, n_boxes * n_rows, n) @ matrix).unflatten(1, (n_boxes, n_rows))
