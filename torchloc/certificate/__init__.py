"""Certificates of locality: what each rung of the ladder proves about a policy.

With H a sound influence matrix (rows influenced), M the matrix that moves oscillations, δ(T f) ≤ M
δ(f):

    synchronous   M = γ Hᵀ                                        (paper, Theorem 3 and Section 3, "Discounted")
    asynchronous  M = γ ((I − diag ν) + diag ν H)ᵀ                (paper, B.6; here C^π serves as `coupled`)

and b ≥ δ(r^π) (with τ Ent π_k included for the entropy objective), whenever ρ(M) < 1:

    δ(h)       ≤ (I − M)^{-1} b                                   `poisson`
    δ(ĥ_κ)     ≤ Σ_{t ≤ κ} M^t b                                  `delta_hat`, by κ rounds of message passing
    δ(h − ĥ_κ) ≤ Σ_{t > κ} M^t b                                  `tail`, closed by a checked weight
    span_{a_k}(ĝ_k − g_k) ≤ ε_k = Σ_j γ ν_j E^a[j, k] tail_j      `epsilon` (ν_j = 1 if synchronous)

The several-step rungs `coupled_m` know M_1, …, M_m with δ(T^q f) ≤ M_q δ(f): there M^t above reads
M_m^{⌊t/m⌋} M_{t mod m}, and the condition is ρ(M_m) < 1, a decay of ρ(M_m)^{1/m} per step.

All are componentwise upper bounds. Where the upper bound of ρ is ≥ 1, tail, poisson and ε are ∞,
never a solve. Rounding is added outward: every number is a bound for the stored tables and logits
as exact reals, except that e^x is trusted to the last places.
"""

from torchloc.certificate.certify import Certificate, certify
from torchloc.certificate.given import TAGS, Sensitivities, Tag
from torchloc.certificate.ladder import Environment, Ladder, Spreads, reward_oscillation
from torchloc.certificate.rung import RungCertificate

__all__ = [
    "TAGS",
    "Certificate",
    "Environment",
    "Ladder",
    "RungCertificate",
    "Sensitivities",
    "Spreads",
    "Tag",
    "certify",
    "reward_oscillation",
]
