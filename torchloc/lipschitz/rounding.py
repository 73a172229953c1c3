"""Floating-point error, bounded before it happens.

u = 2⁻⁵³ is half the spacing of float64 numbers next to 1. A sum of n products, in whatever order and
with or without fused multiplication, is off by at most γ_n = n u/(1 − n u) times the sum of the absolute
products (Higham, Accuracy and Stability of Numerical Algorithms, Section 3.1). Intervals below are
widened by such terms, so that they hold what exact arithmetic on the stored numbers would give.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchloc.shapes import Float

UNIT = 2.0**-53


def gamma(terms: int, unit: float = UNIT) -> float:
    """At least twice γ_n of `terms` + 4 roundings to `unit`: twice, so it covers its own use; ∞ if large."""
    n = (terms + 4) * unit
    return 2.0 * n / (1.0 - 2.0 * n) if n < 0.125 else torch.inf


def interval_product(
    lower: Float[Tensor, "G N n"], upper: Float[Tensor, "G N n"], weight: Float[Tensor, "G n k"]
) -> tuple[Float[Tensor, "G N k"], Float[Tensor, "G N k"]]:
    """Range of x W over all x in a box, widened by its rounding: lower and upper ends."""
    slack = gamma(weight.shape[1])
    centre = 0.5 * (lower + upper)
    radius = torch.maximum(upper - centre, centre - lower)
    radius = radius + slack * (centre.abs() + radius)
    middle = centre @ weight
    reach = (1.0 + slack) * (radius @ weight.abs())
    return middle - reach, middle + reach


def spectral_norms(matrices: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
    """Upper bounds on ‖M‖₂, from a computed singular value decomposition that is checked.

    With M = U Σ Vᵀ + E, ‖M‖₂ ≤ ‖U‖₂ ‖Σ‖₂ ‖V‖₂ + ‖E‖_F, where ‖U‖₂² ≤ 1 + ‖UᵀU − I‖_F.
    """
    u, sigma, vh = torch.linalg.svd(matrices, full_matrices=False)
    rebuilt = (u * sigma[..., None, :]) @ vh
    slack = gamma(sum(matrices.shape[-2:]))
    size = torch.linalg.matrix_norm((u.abs() * sigma[..., None, :]) @ vh.abs())
    error = torch.linalg.matrix_norm(matrices - rebuilt) + slack * size
    largest = sigma.amax(dim=-1) * (_stretch(u) * _stretch(vh.mT)).sqrt()
    return (largest + error) * (1.0 + slack)


def largest_eigenvalues(matrices: Float[Tensor, "B n n"]) -> Float[Tensor, " B"]:
    """Upper bounds on max(0, λ_max) of symmetric matrices, from a decomposition that is checked.

    With K = Q Λ Qᵀ + E, λ_max(K) ≤ max(0, λ_max(Λ)) ‖Q‖₂² + ‖E‖_F.
    """
    values, vectors = torch.linalg.eigh(matrices)
    rebuilt = (vectors * values[:, None]) @ vectors.mT
    slack = gamma(2 * matrices.shape[-1])
    size = torch.linalg.matrix_norm((vectors.abs() * values.abs()[:, None]) @ vectors.abs().mT)
    error = torch.linalg.matrix_norm(matrices - rebuilt) + slack * size
    return (values[:, -1].clamp(min=0.0) * _stretch(vectors) + error) * (1.0 + slack)


def _stretch(basis: Tensor) -> Tensor:
    """Upper bound on ‖Q‖₂² for nearly orthonormal columns."""
    eye = torch.eye(basis.shape[-1], dtype=basis.dtype)
    off = torch.linalg.matrix_norm(basis.mT @ basis - eye)
    size = torch.linalg.matrix_norm(basis.abs().mT @ basis.abs())
    return 1.0 + off + gamma(basis.shape[-2]) * (1.0 + size)
