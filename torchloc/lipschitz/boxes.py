"""Boxes of scope states, and what the pre-activations of both copies do in them.

A box fixes some coordinates of a scope and leaves the others free; coordinate i has the value a in the
first copy and b in the second. The first pre-activation z_1 = b_1 + Σ_j W_1[j, s_j] is a sum over
coordinates, so its range over a box is exact. Deeper ones are bounded twice, by intervals and by
*affine surrogates*: with slopes λ_k per neuron, chosen once an agent, h_k = λ_k ∘ z_k + ρ_k with ρ_k in
`residual_range`, so that

    z_ℓ = q_ℓ + Σ_j Q_ℓ[j, s_j] + Σ_{k<ℓ} ρ_k P_{kℓ},

again a sum over coordinates, whose range over a box is exact, plus small residuals. Both hold together.

Axis letters: G agents, N boxes an agent, R rows, n units, m coordinates, S values (padded).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from torchloc.lipschitz.activations import apply, residual_range, value_range
from torchloc.lipschitz.layers import Chain, forward_error, largest_inputs
from torchloc.lipschitz.rounding import UNIT, gamma, interval_product, spectral_norms
from torchloc.shapes import Float, Int

Box = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Boxes:
    """N boxes an agent.

    Attributes:
        fixed: (G, N, m) values of fixed coordinates; −1: free. The entry of `coordinate` is ignored.
        coordinate: (G, N) i.
        first, second: (G, N) its values a and b.
    """

    fixed: Int[Tensor, "G N m"]
    coordinate: Int[Tensor, "G N"]
    first: Int[Tensor, "G N"]
    second: Int[Tensor, "G N"]

    def part(self, start: int, stop: int) -> Boxes:
        """Boxes start … stop − 1 of every agent."""
        cut = slice(start, stop)
        return Boxes(
            self.fixed[:, cut], self.coordinate[:, cut], self.first[:, cut], self.second[:, cut]
        )

    def free(self) -> Tensor:
        """(G, N, m) whether a coordinate is free."""
        own = functional.one_hot(self.coordinate, self.fixed.shape[-1]).bool()
        return (self.fixed < 0) & ~own


@dataclass(frozen=True, eq=False)
class Surrogate:
    """z_ℓ as a sum over coordinates plus residuals.

    Attributes:
        constant: (G, 1, n).
        values: (G, m, S, n), padded with values that exist.
        least, most: (G, m, n) over the values.
        residuals: ℓ − 1 matrices (G, n_k, n).
        slack: (G, 1, n) rounding of the sums.
    """

    constant: Tensor
    values: Tensor
    least: Tensor
    most: Tensor
    residuals: tuple[Tensor, ...]
    slack: Tensor

    def select(self, agents: Tensor) -> Surrogate:
        """Those of some agents."""
        return Surrogate(
            self.constant[agents],
            self.values[agents],
            self.least[agents],
            self.most[agents],
            tuple(matrix[agents] for matrix in self.residuals),
            self.slack[agents],
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """What does not depend on the box.

    Attributes:
        chain: The networks.
        surrogates: One a hidden layer.
        slopes: λ, (G, 1, n) a hidden layer.
        norms: (G,) upper bounds on ‖W_ℓ‖₂, hidden layers 2, 3, …
        rows: (G, R, n) v = W_{D+1} c for every combination c of the logits.
        mass: (G, R, n) the absolute values that are added up for `rows`.
        noise: (G, R) what rounding in the module and in centring its logits adds to |c·(ẑ − ẑ')|.
        ceiling: (G, R) |c·(ẑ − ẑ')| at most by construction.
    """

    chain: Chain
    surrogates: tuple[Surrogate, ...]
    slopes: tuple[Tensor, ...]
    norms: tuple[Tensor, ...]
    rows: Float[Tensor, "G R n"]
    mass: Float[Tensor, "G R n"]
    noise: Float[Tensor, "G R"]
    ceiling: Float[Tensor, "G R"]

    @property
    def depth(self) -> int:
        """D, the number of hidden layers."""
        return len(self.chain.kinds)

    def select(self, agents: Int[Tensor, " B"]) -> Prepared:
        """Those of some agents, each as often as it is named."""
        return Prepared(
            self.chain.select(agents),
            tuple(made.select(agents) for made in self.surrogates),
            tuple(slope[agents] for slope in self.slopes),
            tuple(norm[agents] for norm in self.norms),
            self.rows[agents],
            self.mass[agents],
            self.noise[agents],
            self.ceiling[agents],
        )


def prepare(chain: Chain, combinations: Float[Tensor, "A R"]) -> Prepared:
    """Surrogates, norms and last rows of some agents.

    Args:
        chain: Their networks.
        combinations: c, the combinations of logits to bound, one a column.
    """
    surrogates, slopes, sizes = [], [], []
    residuals: list[Box] = []
    values: Box = (torch.empty(0), torch.empty(0))
    mass = torch.empty(0)
    for index, kind in enumerate(chain.kinds):
        layer = chain.affine[index]
        if index == 0:
            mass = layer.bias.abs() + largest_inputs(chain, layer.weight.abs()).sum(1, keepdim=True)
            made = _first_surrogate(chain, mass)
            lower, upper = _everywhere(made, residuals)
        else:
            # |λ z| + |ρ| ≤ (2 |λ| + Lip(σ)) |z|, and no slope is above 1.13.
            mass = layer.bias.abs() + 3.5 * mass @ layer.weight.abs()
            made = _next_surrogate(chain, index, surrogates[-1], slopes[-1], mass)
            lower, upper = _meet(
                _everywhere(made, residuals),
                _shifted(interval_product(*values, layer.weight), layer.bias),
            )
        width = (upper - lower).clamp(min=1e-200)
        slope = (apply(kind, upper) - apply(kind, lower)) / width
        slope = slope.clamp(-0.13, 1.13) if kind == "gelu" else slope.clamp(0.0, 1.0)
        slope = torch.ones_like(slope) if kind == "identity" else slope
        residuals.append(residual_range(kind, lower, upper, slope))
        values = value_range(kind, lower, upper)
        sizes.append(torch.maximum(values[0].abs(), values[1].abs())[:, 0])
        surrogates.append(made)
        slopes.append(slope)
    last = chain.affine[-1]
    error, size = forward_error(chain, tuple(sizes), chain.unit)
    weights = combinations.abs()
    n_actions = len(combinations)
    centring = 8.0 * (n_actions + 8) * UNIT * (error + size).amax(dim=1, keepdim=True)
    return Prepared(
        chain,
        tuple(surrogates),
        tuple(slopes),
        tuple(spectral_norms(layer.weight) for layer in chain.affine[1:-1]),
        (last.weight @ combinations).mT.contiguous(),
        (last.weight.abs() @ weights).mT.contiguous(),
        2.0 * (1.0 + gamma(n_actions)) * ((error + centring) @ weights),
        2.0 * (1.0 + gamma(n_actions)) * chain.ceiling[:, None] * weights.sum(dim=0),
    )


def coordinate_blocks(chain: Chain, weight: Float[Tensor, "G inputs n"]) -> Tensor:
    """(G, m, S, n) rows of the first layer by coordinate and value, padded with value 0."""
    n_agents, _, n = weight.shape
    most = max(chain.sizes, default=1)
    blocks = [
        torch.cat([part, part[:, :1].expand(-1, most - part.shape[1], -1)], dim=1)
        for part in weight.split(chain.sizes, dim=1)
    ]
    return torch.stack(blocks, dim=1) if blocks else weight.new_zeros(n_agents, 0, most, n)


def _first_surrogate(chain: Chain, mass: Tensor) -> Surrogate:
    layer = chain.affine[0]
    values = coordinate_blocks(chain, layer.weight)
    slack = gamma(2 * len(chain.sizes) + 16) * mass
    return Surrogate(layer.bias, values, values.amin(dim=2), values.amax(dim=2), (), slack)


def _next_surrogate(
    chain: Chain, index: int, before: Surrogate, slope: Tensor, mass: Tensor
) -> Surrogate:
    layer = chain.affine[index]
    through = slope.mT * layer.weight
    n_agents, m, n_values, n = before.values.shape
    values = (before.values.reshape(n_agents, m * n_values, n) @ through).unflatten(
        1, (m, n_values)
    )
    terms = sum(layer.weight.shape[1] for layer in chain.affine[: index + 1])
    return Surrogate(
        before.constant @ through + layer.bias,
        values,
        values.amin(dim=2),
        values.amax(dim=2),
        (*(matrix @ through for matrix in before.residuals), layer.weight),
        gamma(4 * terms + 2 * m + 32) * mass,
    )


def _everywhere(made: Surrogate, residuals: list[Box]) -> Box:
    """(G, 1, n) range of z_ℓ over all scope states."""
    lower = made.constant + made.least.sum(dim=1, keepdim=True) - made.slack
    upper = made.constant + made.most.sum(dim=1, keepdim=True) + made.slack
    return _with_residuals(made, (lower, upper), residuals)


def _with_residuals(made: Surrogate, box: Box, residuals: list[Box]) -> Box:
    lower, upper = box
    for (low, high), matrix in zip(residuals, made.residuals, strict=True):
        low, high = interval_product(low, high, matrix)
        lower, upper = lower + low, upper + high
    slack = 16.0 * UNIT * (lower.abs() + upper.abs() + made.slack)
    return lower - slack, upper + slack


def _meet(first: Box, second: Box) -> Box:
    return torch.maximum(first[0], second[0]), torch.minimum(first[1], second[1])


def _shifted(box: Box, bias: Tensor) -> Box:
    lower, upper = box[0] + bias, box[1] + bias
    slack = 2.0 * UNIT * (lower.abs() + upper.abs() + bias.abs())
    return lower - slack, upper + slack


@dataclass(frozen=True, eq=False)
class Copies:
    """Ranges of the pre-activations of both copies in N boxes, layer by layer.

    Attributes:
        prepared: The networks.
        boxes: The boxes.
        hot: (G, N, m · S) indicators of the values that are fixed.
        free: (G, N, m) ones where a coordinate is free.
    """

    prepared: Prepared
    boxes: Boxes
    hot: Tensor
    free: Tensor

    @classmethod
    def of(cls, prepared: Prepared, boxes: Boxes) -> Copies:
        """The copies in the boxes."""
        free = boxes.free()
        n_values = max(prepared.chain.sizes, default=1)
        own = functional.one_hot(boxes.coordinate, boxes.fixed.shape[-1]).bool()
        kept = torch.where(free | own, -1, boxes.fixed)
        hot = functional.one_hot(kept + 1, n_values + 1)[..., 1:].double()
        return cls(prepared, boxes, hot.flatten(2), free.double())

    def layer(self, index: int, residuals: tuple[list[Box], list[Box]]) -> tuple[Box, Box]:
        """Boxes (G, N, n) of z in hidden layer `index` of both copies, from the residuals below."""
        made, at = self.prepared.surrogates[index], self.boxes
        base = made.constant + self.hot @ made.values.flatten(1, 2)
        lower, upper = base + self.free @ made.least, base + self.free @ made.most
        agent = torch.arange(len(base))[:, None]
        result = []
        for value, before in zip((at.first, at.second), residuals, strict=True):
            own = made.values[agent, at.coordinate, value]
            box = (lower + own - made.slack, upper + own + made.slack)
            result.append(_with_residuals(made, box, before))
        return result[0], result[1]

    def shift(self) -> Tensor:
        """(G, N, n) d, the difference of z_1 between the copies, to one rounding."""
        made, at = self.prepared.surrogates[0], self.boxes
        agent = torch.arange(len(made.values))[:, None]
        first, second = (
            made.values[agent, at.coordinate, value] for value in (at.first, at.second)
        )
        return second - first
