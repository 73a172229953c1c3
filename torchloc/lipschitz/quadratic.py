"""The quadratic bound: two hidden layers at once, without treating any neuron alone.

With Δ_1 = c + r ∘ x and Δ_2 = (m + ρ ∘ y) ∘ W_2ᵀ Δ_1, all entries of x and y in [−1, 1],

    v·Δ_2 = k + aᵀ x + yᵀ G w,     w = (1, x),     k = (v ∘ m)·W_2ᵀ c,     a = r ∘ W_2 (v ∘ m),
                                                 G = diag(v ∘ ρ) W_2ᵀ (c, diag(r)).

For every p > 0 and q > 0, since y_j g ≤ (p_j + g²/p_j)/2 and w² ≤ 1,

    v·Δ_2 ≤ k + ½ Σ p + wᵀ Q w ≤ k + ½ Σ p + max(0, λ_max(D^{−1/2} Q D^{−1/2})) Σ q,             (*)

with D = diag(q), Q = ½ Gᵀ diag(1/p) G and a/2 added to its first row and column. The infimum over p and
q is Shor's semidefinite relaxation; by Grothendieck's inequality it stays within a constant factor of the
largest value of the bilinear part, where intervals lose the root of the width. Any p and q give a bound, so
they are sought by a few steps towards what is optimal as β → ∞,

    q_i / Σ q = X_ii,                      X = exp(β D^{−1/2} Q D^{−1/2} / λ_max) / trace,
    p_j² = (G Y Gᵀ)_jj,                    Y = D^{−1/2} X D^{−1/2} Σ q,

and only the eigenvalue of the best is checked. Layers above the second are first carried down by their
lines (`differences`).

Axis letters: B items (a network, a box, a row v), n and k units of the two layers, s = 1 + n.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchloc.lipschitz.boxes import Boxes, Prepared
from torchloc.lipschitz.differences import carried_down, centred_box, propagate, row_slack
from torchloc.lipschitz.rounding import gamma, largest_eigenvalues
from torchloc.shapes import Float, Int

_SHARPNESS = 20.0
_FLOOR = 1e-4
_LEAST = 1e-12
_TINY = 1e-300


def quadratic_bounds(
    prepared: Prepared, boxes: Boxes, row: Int[Tensor, " B"], *, steps: int
) -> Float[Tensor, " B"]:
    """Upper bounds of v·Δ_D; ∞ with fewer than two hidden layers.

    Args:
        prepared: The network of every item.
        boxes: One box an item.
        row: (B,) which of the prepared rows is v.
        steps: Steps of the search for p and q, at least 1.
    """
    result = torch.full(row.shape, torch.inf, dtype=torch.float64)
    if prepared.depth < 2:
        return result
    levels, item = propagate(prepared, boxes), torch.arange(len(row))
    rows, mass = prepared.rows[item, row, None], prepared.mass[item, row, None]
    slack = row_slack(prepared, levels, mass)[:, 0, 0]
    carried, constant = carried_down(prepared, levels, rows, down_to=2)
    v, weight = carried[:, 0, 0], prepared.chain.affine[1].weight
    centre, half = (x[:, 0] for x in centred_box(levels[0].change))
    middle, spread = v * levels[1].middle[:, 0], v * levels[1].spread[:, 0]
    image = (centre[:, None] @ weight)[:, 0]
    linear = half * (weight @ middle[:, :, None])[:, :, 0]
    bilinear = torch.cat([image[:, :, None], weight.mT * half[:, None]], 2) * spread[:, :, None]
    sound = torch.isfinite(bilinear).all(dim=(1, 2)) & torch.isfinite(linear).all(dim=1)
    if bool(sound.any()):
        result[sound] = _search(linear[sound], bilinear[sound], steps)
    return result + (middle * image).sum(dim=1) + constant[:, 0, 0] + slack


def _search(
    linear: Float[Tensor, "B n"], bilinear: Float[Tensor, "B k s"], steps: int
) -> Float[Tensor, " B"]:
    """The best value of (*) less k, checked."""
    unit = (linear.abs().sum(dim=1) + bilinear.abs().sum(dim=(1, 2))).clamp(min=_TINY)
    linear, bilinear = linear / unit[:, None], bilinear / unit[:, None, None]
    p, q = _start(linear, bilinear)
    floor = (_FLOOR * p.mean(dim=1, keepdim=True)).clamp(min=_LEAST)
    best = torch.full((len(linear),), torch.inf, dtype=linear.dtype)
    best_p, best_q, p_step, q_step = p, q, torch.zeros_like(p), torch.zeros_like(q)
    rate = torch.full((len(linear), 1), 0.3, dtype=linear.dtype)
    for _ in range(steps):
        values, vectors = torch.linalg.eigh(_scaled(linear, bilinear, p, q))
        top = values[:, -1].clamp(min=0.0)
        bound = 0.5 * p.sum(dim=1) + top * q.sum(dim=1)
        tilt = torch.softmax(_SHARPNESS * values / top.clamp(min=_TINY)[:, None], dim=1)
        density = (vectors * tilt[:, None]) @ vectors.mT
        share = density.diagonal(dim1=1, dim2=2).clamp(min=_TINY)
        root = q.rsqrt()
        moments = density * (root[:, :, None] * root[:, None]) * q.sum(dim=1)[:, None, None]
        wanted = ((bilinear @ moments) * bilinear).sum(dim=2).clamp(min=0.0).sqrt()
        better = (bound < best)[:, None]
        best = torch.where(better[:, 0], bound, best)
        best_p, best_q = torch.where(better, p, best_p), torch.where(better, q, best_q)
        p_step = torch.where(better, _step(wanted.clamp(min=_LEAST), p), p_step)
        q_step = torch.where(better, _step(share, q / q.sum(dim=1, keepdim=True)), q_step)
        rate = torch.where(better, 1.2 * rate, 0.5 * rate)
        p = torch.maximum(best_p * ((1.5 * rate).clamp(max=1.0) * p_step).exp(), floor)
        q = _shares(best_q * (rate * q_step).exp())
    top = largest_eigenvalues(_scaled(linear, bilinear, best_p, best_q))
    # Rounding of Q and of the division by the unit: γ times what is added up, which w² ≤ 1 weighs.
    size = 0.5 * (bilinear.abs().sum(dim=2).square() / best_p).sum(dim=1) + linear.abs().sum(dim=1)
    total = 0.5 * best_p.sum(dim=1) + top * best_q.sum(dim=1)
    slack = gamma(2 * sum(bilinear.shape[1:]) + 16)
    return unit * (total * (1.0 + slack) + slack * (1.0 + size))


def _start(
    linear: Float[Tensor, "B n"], bilinear: Float[Tensor, "B k s"]
) -> tuple[Float[Tensor, "B k"], Float[Tensor, "B s"]]:
    """p and q in proportion to the rows of the form, balanced against each other."""
    squares = torch.cat([linear.square().sum(dim=1, keepdim=True), linear.square()], dim=1)
    q = _shares((squares + bilinear.square().sum(dim=1)).sqrt())
    p = bilinear.norm(dim=2)
    p = torch.maximum(p, (_FLOOR * p.mean(dim=1, keepdim=True)).clamp(min=_LEAST))
    root = q.rsqrt()
    form = bilinear * root[:, None] / p.sqrt()[:, :, None]
    vector = torch.ones_like(q)[:, :, None]
    for _ in range(4):  # a rough largest eigenvalue of ½ Gᵀ diag(1/p) G in the metric of q
        vector = vector / vector.norm(dim=1, keepdim=True).clamp(min=_TINY)
        vector = 0.5 * (form.mT @ (form @ vector))
    largest = vector.norm(dim=1)
    scale = (2.0 * largest * q.sum(dim=1, keepdim=True) / p.sum(dim=1, keepdim=True)).sqrt()
    return p * scale.clamp(min=_FLOOR), q


def _scaled(linear: Tensor, bilinear: Tensor, p: Tensor, q: Tensor) -> Float[Tensor, "B s s"]:
    """D^{−1/2} Q D^{−1/2}, symmetric to the last bit."""
    form = bilinear / p.sqrt()[:, :, None]
    result = 0.5 * (form.mT @ form)
    result[:, 0, 1:] += 0.5 * linear
    root = q.rsqrt()
    result = result * (root[:, :, None] * root[:, None])
    upper = torch.triu(result)
    return upper + torch.triu(result, 1).mT


def _step(wanted: Tensor, have: Tensor) -> Tensor:
    return (wanted / have).log().clamp(-1.0, 1.0)


def _shares(weights: Tensor) -> Tensor:
    """Rows that sum to about 1, no entry far below the average."""
    total = weights.sum(dim=1, keepdim=True)
    share = torch.where(total > 0.0, weights / total.clamp(min=_TINY), 1.0)
    return share.clamp(min=_FLOOR / weights.shape[1])
