"""What one rung proves: ρ, message passing, tails and ε from one matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from torchloc.certificate.given import NO_REWARDS
from torchloc.certificate.rounding import UNIT
from torchloc.errors import InputError
from torchloc.mdp.checks import FloatArray, IntArray
from torchloc.spectral import (
    SpectralBound,
    Weighted,
    norm_columns,
    norm_rows,
    spectral_radius,
)

_ROUNDS = 256
_CLOSED = 1e-6
_KAPPA_CAP = 100_000


@dataclass(frozen=True, eq=False)
class RungCertificate:
    """What one rung proves.

    Attributes:
        rung: Its name.
        matrix: (N, N) CSR, H or K^(m), rows influenced, rounded up.
        operators: M_1, …, M_m (N, N) CSR: what moves oscillations in 1 … m steps, rounded up.
        oscillation: (N,) b ≥ δ(r^π); None where the reward is not known.
        reach: (N, K) CSR γ ν_j E^a[j, k], rounded up: what turns a tail into ε.
        kappa: κ of `delta_hat`, `tail` and `epsilon`.
        plain: Whether the last operator is `matrix` transposed, so that both have one ρ.
    """

    rung: str
    matrix: sp.csr_array
    operators: tuple[sp.csr_array, ...]
    oscillation: FloatArray | None
    reach: sp.csr_array
    kappa: int
    plain: bool

    @property
    def reward_oscillation(self) -> FloatArray:
        """(N,) b ≥ δ(r^π).

        Raises:
            InputError: The certificate stands on sensitivities that came without a reward; `delta_hat`, tails
                and ε then raise it too.
        """
        if self.oscillation is None:
            raise InputError(NO_REWARDS)
        return self.oscillation

    @property
    def steps(self) -> int:
        """m: how many steps the matrix speaks of."""
        return len(self.operators)

    @cached_property
    def rho(self) -> SpectralBound:
        """lower ≤ ρ(H) ≤ upper, checked; ρ(K^(m)) for m steps."""
        return self.contraction if self.plain else spectral_radius(self.matrix)

    @cached_property
    def contraction(self) -> SpectralBound:
        """lower ≤ ρ(M_m) ≤ upper, checked; ρ(M) = ρ(H) for synchronous dynamics without discount."""
        return spectral_radius(self.operators[-1])

    @property
    def rate(self) -> float:
        """Upper bound of the decay per step, ρ(M_m)^{1/m}."""
        return float(self.contraction.upper) ** (1.0 / self.steps) * (1.0 + 4.0 * UNIT)

    @property
    def certified(self) -> bool:
        """Whether the upper bound of ρ(M_m) is below 1, so that tails are finite."""
        return self.contraction.upper < 1.0

    @property
    def weighted(self) -> Weighted | None:
        """(w, λ) with max_i δ_i((T^m)^t f)/w_i ≤ λ^t max_i δ_i(f)/w_i (paper, B.7, W = diag(1/w)).

        None where no weights are in range; λ is just above `contraction.upper`.
        """
        return self.contraction.weighted

    def ball(self, coordinate: int, radius: int) -> IntArray:
        """Coordinates that can reach `coordinate` in at most `radius` applications of the matrix, ascending.

        Those are the edges of the support graph, i → j where H[j, i] > 0, followed backwards: what `delta_hat`
        at radius κ may depend on (paper, Theorem 7.2 and B.4, locality).

        Raises:
            InputError: No such coordinate, or a negative radius.
        """
        return np.flatnonzero(self._distances(coordinate, radius) >= 0)

    def influence_bound(self, cause: int, coordinate: int) -> tuple[float, float]:
        """How far `cause` is from `coordinate`, and what it can still do there (paper, B.4).

        For any f of that coordinate alone with oscillation 1: δ_cause(T^t f) = 0 for t < m·d, and
        Σ_t δ_cause(T^t f) ≤ the bound, which falls like λ^d: w_cause / w_coordinate · λ^d / (1 − λ). Of a
        several-step rung only the distance is told (m = `steps`).

        Returns:
            (d, bound): the distance in the support graph (∞ if there is no path, with bound 0), and the bound
            (∞ where not certified).

        Raises:
            InputError: No such coordinate.
        """
        n = self.matrix.shape[0]
        reached = self._distances(coordinate, n)
        if not 0 <= cause < n:
            raise InputError(f"cause is {cause}; the model has {n} coordinates, numbered from 0")
        if reached[cause] < 0:
            return math.inf, 0.0
        distance = int(reached[cause])
        closing = self._closing
        if closing is None or self.steps > 1:
            return distance, math.inf
        ratio = closing.weights[cause] / closing.weights[coordinate]
        tail = closing.rate**distance / (1.0 - closing.rate)
        return distance, float(ratio * tail * (1.0 + (2.0 * distance + 16.0) * UNIT))

    def _distances(self, coordinate: int, radius: int) -> IntArray:
        """(N,) number of edges from each coordinate to `coordinate`, −1 beyond the radius."""
        n = self.matrix.shape[0]
        if not 0 <= coordinate < n:
            raise InputError(
                f"coordinate is {coordinate}; the model has {n} coordinates, numbered from 0"
            )
        if radius < 0:
            raise InputError(f"radius is {radius}; it must be ≥ 0")
        distance = np.full(n, -1, dtype=np.int64)
        frontier = np.array([coordinate])
        distance[frontier] = 0
        for step in range(1, radius + 1):
            causes = np.unique(self.matrix[frontier].indices)
            frontier = causes[distance[causes] < 0]
            if len(frontier) == 0:
                break
            distance[frontier] = step
        return distance

    @property
    def row_norm(self) -> float:
        """Largest row sum of the matrix: an upper bound of its ρ, the norm test of prior work."""
        return norm_rows(self.matrix)

    @property
    def column_norm(self) -> float:
        """Largest column sum of the matrix: an upper bound of its ρ."""
        return norm_columns(self.matrix)

    @cached_property
    def delta_hat(self) -> FloatArray:
        """(N,) δ(ĥ_κ) ≤ Σ_{t ≤ κ} M^t b (paper, Theorem 7, certificate); valid whether certified or not."""
        total = np.zeros_like(self.reward_oscillation)
        blocks = self._blocks()
        for start in range(0, self.kappa + 1, self.steps):
            for term in next(blocks)[: self.kappa + 1 - start]:
                total = total + term
        return total * self._growth(self.kappa + 1)

    @cached_property
    def tail(self) -> FloatArray:
        """(N,) δ(h − ĥ_κ) ≤ Σ_{t > κ} M^t b; ∞ where not certified."""
        return self.tail_at(self.kappa)

    @cached_property
    def poisson(self) -> FloatArray:
        """(N,) δ(h) ≤ (I − M)^{-1} b; ∞ where not certified (paper, Theorem 3)."""
        return self.tail_at(-1)

    @cached_property
    def epsilon(self) -> FloatArray:
        """(K,) ε_k ≥ span over a_k of ĝ_k − g_k, uniformly in the state; ∞ where not certified."""
        return self._through_actions(self.tail)

    def tail_at(self, kappa: int) -> FloatArray:
        """(N,) the tail of another κ ≥ −1; κ = −1 bounds δ(h) itself.

        The sum is followed term by term, and closed by (M_m w)_i ≤ λ w_i, which gives
        (I − M_m)^{-1} x ≤ w max_j(x_j / w_j) / (1 − λ).
        """
        closing = self._closing
        if closing is None:
            return np.full_like(self.reward_oscillation, np.inf)
        weights, rate = closing.weights, closing.rate
        total = np.zeros_like(self.reward_oscillation)
        for block, terms in enumerate(self._blocks()):
            start = block * self.steps
            grow = self._growth(start + self.steps)
            if start > kappa:
                rest = np.sum(terms, axis=0)
                close = weights * (np.max(rest / weights) / (1.0 - rate) * grow)
                if start > kappa + _ROUNDS or close.max() <= _CLOSED * total.max(initial=0.0):
                    return (total + close) * grow
            for term in terms[max(kappa + 1 - start, 0) :]:
                total = total + term
        raise AssertionError("unreachable")  # pragma: no cover - the generator is endless

    @cached_property
    def _closing(self) -> Weighted | None:
        """Weights that close a sum; None where not certified.

        A rate half-way to 1 has flatter weights than one just above ρ, and the sum that it closes has
        fallen at ρ itself by then.
        """
        if not self.certified:
            return None
        flat = self.contraction.weights_at(max(math.sqrt(self.contraction.upper), 0.5))
        found = self.contraction.weighted if flat is None else flat
        return found if found is not None and found.rate < 1.0 else None

    @property
    def bias(self) -> float:
        """sup |ĥ_κ − h| ≤ ‖tail‖₁ for both centred by d·h = 0, and half of it up to the best constant."""
        return float(self.tail.sum()) * (1.0 + 2.0 * len(self.tail) * UNIT)

    def uniform_tail_at(self, kappa: int) -> float:
        """The paper's own form C λ^{κ+1} ‖b‖_∞ / (1 − λ) ≥ max tail (Theorem 7), the best (C, λ) known; ∞ if none.

        Never sharper than `tail_at` by more than what closes the sum there, and it carries no factor n;
        Theorem 14 as printed multiplies it by n.
        """
        largest = float(self.reward_oscillation.max(initial=0.0))
        if self.steps > 1 or not self.certified:
            return math.inf
        tails = [pair.tail(kappa) for pair in self.contraction.candidates]
        return min(tails, default=math.inf) * largest * (1.0 + 4.0 * UNIT)

    def epsilon_at(self, kappa: int) -> FloatArray:
        """(K,) ε_k of another κ ≥ 0; 0·∞ counts as 0."""
        return self._through_actions(self.tail_at(kappa))

    def _through_actions(self, tail: FloatArray) -> FloatArray:
        longest = int(np.bincount(self.reach.indices, minlength=1).max())
        return (self.reach.T @ tail) * (1.0 + 2.0 * (longest + 2) * UNIT)

    def kappa_for(self, epsilon: float) -> float:
        """The smallest κ with ε_k ≤ epsilon for every agent; ∞ where none is known.

        ε falls with κ, so the answer is found by doubling and bisection.

        Raises:
            InputError: epsilon is not > 0.
        """
        if not epsilon > 0:
            raise InputError(f"epsilon is {epsilon}; it must be > 0")

        def enough(kappa: int) -> bool:
            return bool((self.epsilon_at(kappa) <= epsilon).all())

        if not self.certified:
            return math.inf if self.reach.nnz else 0
        high = 0
        while not enough(high):
            high = 2 * high + 1
            if high > _KAPPA_CAP:
                return math.inf
        low = (high + 1) // 2
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle + 1, high)
        return high

    def _growth(self, terms: int) -> float:
        """Covers the rounding of sums of `terms` products of the operators."""
        return 1.0 + 2.0 * (terms + 4) * (self._longest + 2) * UNIT

    @cached_property
    def _longest(self) -> int:
        return max(int(np.diff(operator.indptr).max(initial=0)) for operator in self.operators)

    def _blocks(self) -> Iterator[list[FloatArray]]:
        """The terms M_m^q M_r b, r < m, for q = 0, 1, … without end."""
        b = self.reward_oscillation
        terms = [b, *(operator @ b for operator in self.operators[:-1])]
        while True:
            yield terms
            terms = [self.operators[-1] @ term for term in terms]
