"""Explicit decay: ‖M^t‖_∞ ≤ C λ^t for all t ≥ 0, from norms of powers and from weights.

`power_norms` bounds ‖M^t‖_∞ = max(M^t 1) from above, by matrix–vector products rounded up. If
‖M^p‖_∞ ≤ λ^p, then C = max_{t<p} ‖M^t‖_∞ λ^{−t} serves for all t (write t = ap + r), a *Gelfand
block*. Weights with M w ≤ λ w give C = max w / min w. ‖M^t‖ ≤ C ρ^t itself is false in general: at
a Jordan block ‖M^t‖ρ^{−t} grows like t. If M^p = 0, every λ > 0 serves.

Numbers are kept as base-2 logarithms, so transients beyond 1e308 do not overflow; `_raised` moves a
logarithm up by more than the few roundings that it has seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchloc.errors import InputError
from torchloc.spectral.matrices import UNIT, Checked, Floats

_SHRINK = 0.02
_LEAST_STEPS, _MOST_STEPS = 32, 512
_MESH = np.array([0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97])
_MESH = np.append(_MESH, 1.0 - 2.0 ** -np.arange(6.0, 12.0))
_NILPOTENT = -np.array([1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 400.0, 800.0])
_DEEP = -900.0
_SLACK = 2.0**-44


@dataclass(frozen=True)
class PowerBound:
    """‖M^t‖_∞ ≤ constant · rate^t for every t ≥ 0, for the matrix M that was handed in.

    ‖·‖_∞ is the largest row sum. Oscillations move by M = Hᵀ: hand in Hᵀ to bound them.

    Attributes:
        constant: C ≥ 1.
        rate: λ ≥ 0 (0 for M = 0 only, with 0^0 = 1).
        kind: "gelfand" (powers), "nilpotent" (some power is 0) or "weighted" (max w / min w).
    """

    constant: float
    rate: float
    kind: str

    def tail(self, kappa: int) -> float:
        """Σ_{t>κ} C λ^t = C λ^{κ+1}/(1 − λ), rounded up; inf for λ ≥ 1."""
        if self.rate >= 1.0:
            return math.inf
        fall = (kappa + 1) * _log2(self.rate)
        rise = _log2(self.constant) - math.log2(1.0 - self.rate)
        if math.isinf(fall):
            return 0.0
        return _exp2_up(rise + fall + _SLACK * (abs(rise) + abs(fall) + 1.0))

    def kappa(self, eps: float, scale: float = 1.0) -> int | float:
        """The smallest κ ≥ 0 with scale · C λ^{κ+1}/(1 − λ) ≤ eps (as computed, rounded up); inf.

        Args:
            eps: what the tail may be, > 0.
            scale: a factor of the tail, such as ‖b‖_∞, ≥ 0.
        """
        if self.rate >= 1.0:
            return math.inf
        if scale == 0.0:
            return 0
        fall = -_log2(self.rate)
        need = _log2(self.constant) - math.log2(1.0 - self.rate) + _log2(scale) - _log2(eps)
        first = max(math.ceil(need / fall) - 2, 0)
        for kappa in range(first, first + 4):
            drop = (kappa + 1) * fall
            if need - drop + _SLACK * (abs(need) + drop + 1.0) <= 0.0 or math.isinf(drop):
                return kappa
        return math.ceil((need + 4.0 * _SLACK * (abs(need) + 1.0)) / fall)


def _raised(logs: Any) -> Any:
    """Logarithms moved up by 2^-46 of their size, and at least by 2^-46."""
    return logs + (np.abs(logs) + 1.0) * 2.0**-46


def _log2(value: float) -> float:
    return math.log2(value) if value > 0.0 else -math.inf


def _exp2_up(exponent: float) -> float:
    if exponent >= 1023.0:
        return math.inf
    return math.nextafter(2.0 ** max(exponent, -1022.0), math.inf)


def check_tail_request(eps: float, scale: float) -> None:
    """Raise InputError unless eps > 0 and scale ≥ 0 are finite numbers."""
    if not (math.isfinite(eps) and eps > 0.0):
        raise InputError(f"eps: {eps}; the accuracy asked for must be a finite number above 0")
    if not (math.isfinite(scale) and scale >= 0.0):
        raise InputError(f"scale: {scale}; it must be a finite number of at least 0")


def power_norms(matrix: Checked, upper: float, entries: int) -> Floats:
    """Upper bounds of log₂ ‖M^t‖_∞ for t = 0, 1, …, T; −inf for a power that is exactly 0.

    T grows until ‖M^T‖^{1/T} is near ρ, M^T is 0, or the products have read `entries` entries.

    Args:
        matrix: M.
        upper: an upper bound of ρ(M).
        entries: limit of the matrix entries read in all.
    """
    csr, terms = matrix.csr, matrix.terms
    steps = int(min(max(entries // max(csr.nnz + matrix.size, 1), _LEAST_STEPS), _MOST_STEPS))
    scale = int(np.frexp(csr.data.max())[1]) if csr.nnz else 0
    data = np.ldexp(csr.data, -scale)
    scaled = type(csr)((data, csr.indices, csr.indptr), shape=csr.shape)
    least = float(data.min()) if csr.nnz else 1.0
    v, exponent, logs = np.ones(matrix.size), 0, [0.0]
    goal = (1.0 - _SHRINK) * _log2(upper) if 0.0 < upper < 1.0 else -math.inf
    outward = 1.0 + 2.0 * (terms + 4) * UNIT
    for t in range(1, steps + 1):
        smallest = float(v.min(where=v > 0.0, initial=1.0))
        with np.errstate(under="ignore"):
            v = scaled @ v
            v *= outward
        if least * smallest < 2.0**-960:
            v += (terms + 2) * 2.0**-1000
        largest = float(v.max())
        if largest == 0.0:
            logs.append(-math.inf)
            break
        shift = int(np.frexp(largest)[1])
        if smallest < 2.0**-900:
            v[(v > 0.0) & (v < 2.0**-950)] = 2.0**-950
        v *= 2.0**-shift
        exponent += shift + scale
        logs.append(float(_raised(exponent + _log2(float(v.max())))))
        if t >= _LEAST_STEPS and logs[-1] / t <= goal:
            break
    return np.array(logs)


def gelfand_bounds(logs: Floats) -> list[PowerBound]:
    """The pairs (C, λ) that norms of powers give, at rates from the smallest up to 1.

    Args:
        logs: (T + 1,) as `power_norms`.
    """
    times = np.arange(len(logs))
    roots = logs[1:] / times[1:]
    nilpotent = bool(np.isneginf(logs[-1]))
    finite = logs[:-1] if nilpotent else logs
    if nilpotent:
        best, kind = _DEEP, "nilpotent"
    else:
        best, kind = float(_raised(_raised(roots)).min()), "gelfand"
    if not best < 0.0:
        return []
    rates = best * (1.0 - _MESH)
    if nilpotent:
        rates = np.append(rates, _NILPOTENT)
    bounds = []
    for rate in np.unique(rates[rates < 0.0]):
        if nilpotent:
            period = len(finite)
        else:
            period = int(np.argmax(_raised(roots) <= rate)) + 1
        exponent = float(_raised(logs[:period] - times[:period] * rate).max())
        constant, value = _exp2_up(exponent), math.nextafter(2.0 ** float(rate), math.inf)
        if math.isfinite(constant) and value < 1.0:
            bounds.append(PowerBound(max(constant, 1.0), value, kind))
    return bounds


def undominated(bounds: list[PowerBound]) -> tuple[PowerBound, ...]:
    """The bounds to which no other has both a smaller rate and a smaller constant, by rate."""
    kept: list[PowerBound] = []
    for bound in sorted(bounds, key=lambda item: (item.rate, item.constant)):
        if not kept or bound.constant < kept[-1].constant:
            kept.append(bound)
    return tuple(kept)
