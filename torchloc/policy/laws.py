"""From logits to laws, and from laws to draws."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_logits(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """(z − max_a z)/τ in float64: the maximum is taken out first, so that no quotient overflows."""
    logits = logits.double()
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def drawn(laws: Tensor, generator: torch.Generator) -> Tensor:
    """(G, B) int64 draws from laws (G, B, A); an action of probability 0 is never drawn."""
    mass = laws.cumsum(dim=-1)
    draw = torch.rand(*mass.shape[:2], 1, generator=generator, dtype=torch.float64)
    # A draw is at most 1 - 2^-53, so its product with the total stays below the total, and the first
    # action whose mass exceeds it has a probability above 0.
    return (mass <= draw * mass[..., -1:]).sum(dim=-1)
