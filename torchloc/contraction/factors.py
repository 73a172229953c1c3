"""Kernels that count, as products of small tensors.

    T[s_own, a_own, c, s'_j] with c = Σ_m w(x_m)   =   Σ_h  own[s_own, a_own, h, s'_j] Π links[h, x_m],

where h are *hidden* axes, read by no one else. A counter is a chain of adders: one hidden axis holds
the sum of the first t parents, as long as that sum can be, and the table reads the last. A kernel that
knows its modes has one hidden axis for all parents, and a link is Π_i λ_{h,i}^{w_i(x)}. Either way no tensor has
an axis for more than one counted parent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from torchloc.mdp import CountBatch, CountRewardBatch
from torchloc.mdp.checks import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Link:
    """One tensor between hidden axes and a counted parent.

    Attributes:
        table: (B or 1, *sizes of the hidden axes, X); no X where `member` is None.
        hidden: The hidden axes that it has, ascending.
        member: Position among the counted parents, coordinates first; None: it has no parent.
    """

    table: FloatArray
    hidden: tuple[int, ...]
    member: int | None


@dataclass(frozen=True, eq=False)
class Factors:
    """B kernels or reward terms, as products.

    Attributes:
        own: (B or 1, *S, *A, *hidden sizes that it reads, S_j); no S_j of a reward term.
        reads: The hidden axes that `own` has, ascending.
        sizes: Sizes of all hidden axes.
        units: For each of `reads` a vector that the links turn into 1: what a function that does not depend on
            the counted parents has on this axis.
        links: The rest.
    """

    own: FloatArray
    reads: tuple[int, ...]
    sizes: tuple[int, ...]
    units: tuple[FloatArray, ...]
    links: tuple[Link, ...]

    @classmethod
    def of(cls, batch: CountBatch | CountRewardBatch) -> Factors:
        """The factors of a batch: its modes where it knows them, else chains of adders."""
        counters = batch.counters
        if isinstance(batch, CountBatch) and batch.modes is not None:
            rates = batch.modes.rates
            unit = np.zeros(len(rates))
            unit[0] = 1.0
            # A counter stays where it stops: at one level it counts nothing, and 0^0 = 1.
            most = np.array(counters.levels, dtype=np.int64)[:, None] - 1
            powers = [
                # (H, r) rates, (B or 1, r, X) weights → (B or 1, H, X)
                Link(
                    (rates[:, :, None] ** np.minimum(weights, most)[:, None]).prod(axis=2),
                    (0,),
                    member,
                )
                for member, weights in _members(batch)
            ]
            return cls(batch.modes.table, (0,), (len(rates),), (unit,), tuple(powers))
        sizes: list[int] = []
        reads: list[int] = []
        links: list[Link] = []
        for i, level in enumerate(counters.levels):
            sums = 1
            before: int | None = None
            counted = [(m, weights[:, i]) for m, weights in _members(batch) if weights[:, i].any()]
            for member, weights in counted:
                last = member == counted[-1][0]
                grown = level if last else min(level, sums + int(weights.max()))
                sizes.append(grown)
                after = len(sizes) - 1
                table = _adder(weights, sums, grown, level)
                if before is None:
                    links.append(Link(table[:, 0], (after,), member))
                else:
                    links.append(Link(table, (before, after), member))
                before, sums = after, grown
            if before is None:
                sizes.append(level)
                before = len(sizes) - 1
                links.append(Link(np.eye(level)[:1], (before,), None))
            reads.append(before)
        units = tuple(np.ones(sizes[axis]) for axis in reads)
        return cls(batch.table, tuple(reads), tuple(sizes), units, tuple(links))


def _members(batch: CountBatch | CountRewardBatch) -> Iterator[tuple[int, IntArray]]:
    """Position among the counted parents, and (B or 1, r, X) weights of that parent's X values."""
    counters = batch.counters
    for m, size in enumerate(counters.state_sizes):
        yield m, counters.state_weights[:, :, m, :size]
    for m, size in enumerate(counters.action_sizes):
        yield len(counters.state_sizes) + m, counters.action_weights[:, :, m, :size]


def _adder(weights: IntArray, sums: int, grown: int, level: int) -> FloatArray:
    """(W, X) weights → (W, sums, grown, X): 1 where the sum so far and the parent's value make the next."""
    after = np.minimum(np.arange(sums)[:, None] + weights[:, None, :], level - 1)
    return (after[:, :, None, :] == np.arange(grown)[:, None]).astype(np.float64)
