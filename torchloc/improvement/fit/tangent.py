"""How the logits of a network answer to its parameters: what a Gauss-Newton step needs.

Logits matter up to a constant a row, so they are taken in an orthonormal basis Q (A, A − 1) of the
vectors of zero sum: outputs y = z Q, O = M (A − 1) numbers a unit, error e = (target − z) Q. With J
(O, P) their Jacobian, `Tangent` holds the Gram matrix J Jᵀ and v ↦ Jᵀ v.

For a chain of affine layers p_l = h_{l−1} W_l + b_l, h_l = σ(p_l), J is never formed. With
D_l[r, q] = ∂y_q / ∂p_l at row r, from one backward sweep D_{l−1} = (D_l W_lᵀ) ∘ σ'(p_{l−1}),

    (J Jᵀ)[(r, q), (r', q')] = Σ_l (h_{l−1}[r]·h_{l−1}[r'] + 1) (D_l[r, q]·D_l[r', q']),
    Jᵀ v: ΔW_l = Σ_r h_{l−1}[r] ⊗ U_l[r],  Δb_l = Σ_r U_l[r],  U_l[r] = Σ_q v[r, q] D_l[r, q],

a few batched products of the size of the layers. Other networks give J a row at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from torchloc.improvement.fit.problem import Parameters, Problem
from torchloc.policy.networks import (
    ACTIVATIONS,
    BatchedLinear,
    Bounded,
    LayeredNetwork,
    OneHot,
)


@dataclass(frozen=True, eq=False)
class Tangent:
    """A network to first order.

    Attributes:
        gram: (u, O, O) J Jᵀ.
        pull: (u, O) → parameters: v ↦ Jᵀ v.
    """

    gram: Tensor
    pull: Callable[[Tensor], Parameters]


def basis(n_actions: int) -> Tensor:
    """(A, A − 1) float64 orthonormal columns of zero sum (Helmert's)."""
    result = torch.zeros(n_actions, n_actions - 1, dtype=torch.float64)
    for j in range(n_actions - 1):
        result[: j + 1, j] = 1.0
        result[j + 1, j] = -(j + 1.0)
        result[:, j] /= math.sqrt((j + 1.0) * (j + 2.0))
    return result


def chain(problem: Problem) -> LayeredNetwork | None:
    """The network where it is a chain whose layers are all the agent's own."""
    network, kinds = problem.network, (OneHot, BatchedLinear, Bounded, *ACTIVATIONS.values())
    layered = isinstance(network, LayeredNetwork)
    return network if layered and all(isinstance(layer, kinds) for layer in network) else None


def tangent(problem: Problem, parameters: Parameters, units: Tensor) -> Tangent:
    """The Gram matrix and the pullback of some units at their parameters."""
    network = chain(problem)
    if network is None:
        return _general_tangent(problem, parameters, units)
    with torch.no_grad():
        return _chain_tangent(network, problem, parameters, units)


def tangent_bytes(problem: Problem) -> int:
    """Memory of the tangent of one unit."""
    n_outputs, n_parameters = problem.unit_outputs, problem.unit_parameters
    network = chain(problem)
    if network is None:
        return 8 * (3 * n_outputs**2 + n_outputs * n_parameters)
    widths = sum(layer.weight.shape[2] for layer in _affine(network).values())
    return 8 * (3 * n_outputs**2 + 2 * n_outputs * widths + 4 * n_parameters)


def _affine(network: LayeredNetwork) -> dict[str, BatchedLinear]:
    return {n: layer for n, layer in network.named_children() if isinstance(layer, BatchedLinear)}


def _chain_tangent(
    network: LayeredNetwork, problem: Problem, parameters: Parameters, units: Tensor
) -> Tangent:
    layers, names = list(network.children()), list(_affine(network))
    x = cast(OneHot, layers[0])(problem.seen(units))
    # One Gram matrix of the inputs serves all agents that see the same rows.
    inputs = [x[:1] if len(x) > 1 and x.stride(0) == 0 else x]
    slopes: list[Tensor] = []
    raw = _before(parameters, names[0], inputs[0])
    for name in names[1:]:
        after, slope = _activated(type(layers[2]), raw)
        inputs.append(after)
        slopes.append(slope)
        raw = _before(parameters, name, after)

    q = basis(raw.shape[-1]).to(raw.dtype)
    sweep = q.T.expand(len(raw), 1, -1, -1)  # (u, M or 1, A - 1, width)
    if isinstance(layers[-1], Bounded):
        sweep = _squashed(sweep, raw, layers[-1], problem.rows[units])
    sweeps = [sweep]
    for name, slope in zip(names[:0:-1], slopes[::-1], strict=True):
        back = sweep.flatten(1, 2) @ parameters[f"{name}.weight"].mT
        sweep = back.unflatten(1, sweep.shape[1:3]) * slope[:, :, None]
        sweeps.insert(0, sweep)

    n_rows, n_free = raw.shape[1], q.shape[1]
    gram = torch.zeros(len(raw), n_rows, n_free, n_rows, n_free, dtype=raw.dtype)
    for h, d in zip(inputs, sweeps, strict=True):
        rows = torch.matmul(h, h.mT) + 1.0
        flat = d.expand(-1, n_rows, -1, -1).flatten(1, 2)
        gram += rows[:, :, None, :, None] * (flat @ flat.mT).view_as(gram)

    def pull(v: Tensor) -> Parameters:
        v = v.unflatten(1, (n_rows, n_free)).to(raw.dtype)
        result: Parameters = {}
        for name, h, d in zip(names, inputs, sweeps, strict=True):
            moved = (v.unsqueeze(-1) * d).sum(dim=2)
            result[f"{name}.weight"] = h.mT.expand(len(moved), -1, -1) @ moved
            result[f"{name}.bias"] = moved.sum(dim=1, keepdim=True)
        return result

    return Tangent(gram.flatten(3, 4).flatten(1, 2), pull)


def _before(parameters: Parameters, name: str, inputs: Tensor) -> Tensor:
    """(u, M, out) h W + b."""
    weight = parameters[f"{name}.weight"]
    inputs = inputs.expand(len(weight), -1, -1).contiguous()
    return torch.baddbmm(parameters[f"{name}.bias"], inputs, weight)


def _squashed(sweep: Tensor, raw: Tensor, bounded: Bounded, rows: Tensor) -> Tensor:
    """The sweep in front of `Bounded`, from that behind it."""
    squashed = torch.tanh((raw - raw.mean(dim=-1, keepdim=True)) / bounded.unit)
    slope = bounded.limit[rows] / bounded.unit * (1.0 - squashed.square())
    sweep = sweep * slope[:, :, None]
    return sweep - sweep.mean(dim=-1, keepdim=True)


def _activated(kind: type[nn.Module], before: Tensor) -> tuple[Tensor, Tensor]:
    """σ(p) and σ'(p) of an elementwise activation."""
    with torch.enable_grad():
        leaf = before.detach().requires_grad_()
        after = kind()(leaf)
        (slope,) = torch.autograd.grad(after, leaf, torch.ones_like(after))
    return after.detach(), slope


def _general_tangent(problem: Problem, parameters: Parameters, units: Tensor) -> Tangent:
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    logits = problem.logits(leaves, units)
    outputs = (logits @ basis(logits.shape[-1]).to(logits.dtype)).flatten(1)
    blocks = []
    for column in outputs.sum(dim=0):
        gradients = torch.autograd.grad(
            column, list(leaves.values()), retain_graph=True, materialize_grads=True
        )
        blocks.append(torch.cat([g.reshape(len(g), -1) for g in gradients], dim=1))
    jacobian = torch.stack(blocks, dim=1)

    def pull(v: Tensor) -> Parameters:
        step = (v.to(jacobian.dtype).unsqueeze(1) @ jacobian).squeeze(1)
        sizes = [math.prod(value.shape[1:]) for value in leaves.values()]
        parts = torch.split(step, sizes, dim=1)
        return {
            name: part.reshape(value.shape)
            for (name, value), part in zip(leaves.items(), parts, strict=True)
        }

    return Tangent(jacobian @ jacobian.mT, pull)
