"""One small tensor network, contracted for many sites at once, and its gradient in any operand.

    out[o] = Σ_{axes not in o} Π_i operand_i[axes of i]              for every site b

The sites are the *last* axis of every tensor, so that each step is a few elementwise operations on
long contiguous rows: batched products of tiny matrices leave a processor idle. The order of the
pairwise contractions is found once by opt_einsum. The gradient is the same network walked
backwards, so it costs two to three contractions, for all operands together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import opt_einsum
import torch
from torch import Tensor

Axes = tuple[int, ...]
Views = tuple[tuple[Any, ...], ...]

SEARCHED = 12
"""Operands up to which a search for the cheapest order ends at once."""
_LOOP_TERMS = 16
"""Terms of a sum that are accumulated one by one at most."""
_LONG = 2**14
"""Entries of a result from which one more pass over it is cheaper than a temporary."""
_MANY = 24
"""Operands from which a second order is tried."""
_JOINT = 2**16
"""Entries a site of a temporary from which matrix products are cheaper."""


@dataclass(frozen=True)
class _Product:
    """Σ over some axes of a product of two tensors, laid out in ascending order of the axes."""

    left_sum: Axes  # dimensions of the left tensor that stand nowhere else
    right_sum: Axes
    lefts: Views  # one view a term of the sum; none where these are many
    rights: Views
    joint: tuple[tuple[Any, ...], tuple[Any, ...], Axes]  # views, and the dimensions to be summed
    equation: str
    entries: int  # of the product before it is summed, a site

    @classmethod
    def of(cls, left: Axes, right: Axes, out: Axes, sizes: Sequence[int]) -> _Product:
        summed = [x for x in sorted({*left, *right}) if x not in out]
        left_sum = tuple(i for i, x in enumerate(left) if x in summed and x not in right)
        right_sum = tuple(i for i, x in enumerate(right) if x in summed and x not in left)
        left = tuple(x for i, x in enumerate(left) if i not in left_sum)
        right = tuple(x for i, x in enumerate(right) if i not in right_sum)
        both = [x for x in summed if x in left and x in right]
        order = sorted({*left, *right})

        def view(axes: Axes, kept: Sequence[int], fixed: dict[int, int]) -> tuple[Any, ...]:
            """`axes` ascending → `kept` ascending: integers for fixed axes, None for absent ones."""
            every = sorted({*kept, *fixed})
            return tuple(
                fixed[x] if x in fixed else slice(None) if x in axes else None
                for x in every
                if x in axes or x not in fixed
            )

        kept = [x for x in order if x not in both]
        n_terms = math.prod(sizes[x] for x in both)
        values = itertools.product(*(range(sizes[x]) for x in both))
        terms = [
            dict(zip(both, value, strict=True))
            for value in (values if n_terms <= _LOOP_TERMS else ())
        ]
        symbol = {x: opt_einsum.get_symbol(i + 1) for i, x in enumerate(order)}
        batch = opt_einsum.get_symbol(0)
        texts = ["".join(symbol[x] for x in axes) + batch for axes in (left, right, tuple(kept))]
        return cls(
            left_sum,
            right_sum,
            tuple(view(left, kept, term) for term in terms),
            tuple(view(right, kept, term) for term in terms),
            (
                view(left, order, {}),
                view(right, order, {}),
                tuple(order.index(x) for x in both),
            ),
            f"{texts[0]},{texts[1]}->{texts[2]}",
            math.prod(sizes[x] for x in order),
        )

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        if self.left_sum:
            left = left.sum(dim=self.left_sum)
        if self.right_sum:
            right = right.sum(dim=self.right_sum)
        n_terms = len(self.lefts)
        if n_terms:
            out = left[self.lefts[0]] * right[self.rights[0]]
            if n_terms <= 4 or out.numel() >= _LONG:
                for a, b in zip(self.lefts[1:], self.rights[1:], strict=True):
                    out.addcmul_(left[a], right[b])
                return out
        elif self.entries > _JOINT:
            return torch.einsum(self.equation, left, right)
        a, b, summed = self.joint
        return (left[a] * right[b]).sum(dim=summed)


@dataclass(frozen=True)
class _Step:
    """One contraction: slots of the operands, of the result, and how.

    With one operand (`right` is None) a sum over `dims`.
    """

    left: int
    right: int | None
    result: int
    product: _Product | None
    dims: Axes = ()

    def __call__(self, slots: list[Any], *, keep: bool) -> Tensor:
        left = slots[self.left]
        if self.right is None or self.product is None:
            result = left.sum(dim=self.dims)
        else:
            result = self.product(left, slots[self.right])
            if not keep:
                slots[self.right] = None
        if not keep:
            slots[self.left] = None
        return result


_Back = tuple[int, int, int, _Product | None]
"""Slot whose derivative is found, slot of the known one, the other factor, and how (None: copied)."""


class Network:
    """A contraction with its order, for operands (*sizes of its axes, B or 1).

    Args:
        operands: The axes of each operand: numbers that index `sizes`, each once.
        out: The axes of the result.
        sizes: Size of every axis.
        thorough: Search for the cheapest order; else take a greedy one.

    Attributes:
        peak: Entries a site of the largest tensor that stands in memory.
        flops: Multiplications and additions a site of one contraction.

    Example:
        >>> f, p = torch.rand(2, 5), torch.rand(3, 2, 5)
        >>> network = Network.of(((1,), (0, 1)), (0,), (3, 2))
        >>> bool((network((f, p)) - torch.einsum("tb,stb->sb", f, p)).abs().max() < 1e-6)
        True
    """

    def __init__(
        self,
        operands: tuple[Axes, ...],
        out: Axes,
        sizes: tuple[int, ...],
        thorough: bool = True,
    ) -> None:
        self.operands = operands
        self.out = out
        self.sizes = sizes
        self._orders = tuple(
            None if list(axes) == sorted(axes) else (*_ranked(axes), len(axes)) for axes in operands
        )
        self._axes = [tuple(sorted(axes)) for axes in operands]
        self._steps: list[_Step] = []
        self.flops = 0
        live = list(range(len(operands)))
        for places in _path(operands, out, sizes, thorough):
            slots = [live[i] for i in places]
            for at in sorted(places, reverse=True):
                live.pop(at)
            self._append(slots, {*out, *(x for slot in live for x in self._axes[slot])})
            live.append(len(self._axes) - 1)
        self._last = live[0]
        final = self._axes[self._last]
        self._tail = tuple(i for i, x in enumerate(final) if x not in out)
        kept = [x for x in final if x in out]
        self._arranged = None if kept == list(out) else tuple(kept.index(x) for x in out)
        self.peak = max(self._entries(axes) for axes in self._axes)
        self._backward: dict[tuple[int, ...], list[_Back]] = {}
        self._known: dict[int, Axes] = {}

    def _append(self, slots: list[int], needed: set[int]) -> None:
        left, result = slots[0], len(self._axes)
        a = self._axes[left]
        if len(slots) == 1:
            dims = tuple(i for i, x in enumerate(a) if x not in needed)
            self._steps.append(_Step(left, None, result, None, dims))
            self._axes.append(tuple(x for x in a if x in needed))
            self.flops += self._entries(a)
            return
        right = slots[1]
        b = self._axes[right]
        axes = tuple(x for x in sorted({*a, *b}) if x in needed)
        product = _Product.of(a, b, axes, self.sizes)
        self._steps.append(_Step(left, right, result, product))
        self._axes.append(axes)
        self.flops += 2 * product.entries

    @staticmethod
    @lru_cache(maxsize=65536)
    def of(
        operands: tuple[Axes, ...], out: Axes, sizes: tuple[int, ...], thorough: bool = True
    ) -> Network:
        """The network, made once for each structure."""
        return Network(operands, out, sizes, thorough)

    def _entries(self, axes: Axes) -> int:
        return math.prod(self.sizes[x] for x in axes)

    @cached_property
    def live(self) -> int:
        """Entries a site of all tensors that a gradient keeps."""
        return sum(self._entries(axes) for axes in self._axes)

    def __call__(self, operands: Sequence[Tensor]) -> Tensor:
        """(*sizes of out, B or 1)."""
        slots = self._arrange(operands)
        for step in self._steps:
            slots.append(step(slots, keep=False))
        result = slots[self._last]
        if self._tail:
            result = result.sum(dim=self._tail)
        if self._arranged is not None:
            result = result.permute(*self._arranged, result.ndim - 1)
        return result

    def gradients(self, operands: Sequence[Tensor], wanted: Sequence[int]) -> list[Tensor]:
        """Derivatives of Σ_out in some operands.

        Args:
            operands: As for a call.
            wanted: Which operands.

        Returns:
            For each of them (*sizes of its axes, B or 1), broadcast where nothing depends on an axis.
        """
        wanted = tuple(wanted)
        slots = self._arrange(operands)
        for step in self._steps:
            slots.append(step(slots, keep=True))
        plan = self._backward.get(wanted)
        if plan is None:
            plan = self._backward[wanted] = self._plan_backward(wanted)
        unit = torch.ones(1, dtype=slots[0].dtype, device=slots[0].device)
        found: dict[int, Tensor] = {self._last: unit}
        for target, source, other, product in plan:
            found[target] = (
                found[source] if product is None else product(found[source], slots[other])
            )
        result = []
        for i in wanted:
            axes = sorted(self.operands[i])
            have = self._known[i]
            gradient = found[i][(*(slice(None) if x in have else None for x in axes), slice(None))]
            gradient = gradient.expand(*(self.sizes[x] for x in axes), -1)
            order = [axes.index(x) for x in self.operands[i]]
            result.append(gradient.permute(*order, len(axes)))
        return result

    def _plan_backward(self, wanted: tuple[int, ...]) -> list[_Back]:
        needs = [slot in wanted for slot in range(len(self._axes))]
        for step in self._steps:
            needs[step.result] = needs[step.left] or (step.right is not None and needs[step.right])
        plan = []
        known: dict[int, Axes] = {self._last: ()}
        for step in reversed(self._steps):
            if step.right is None:
                if needs[step.left]:
                    known[step.left] = known[step.result]
                    plan.append((step.left, step.result, step.result, None))
                continue
            for target, other in ((step.left, step.right), (step.right, step.left)):
                if needs[target]:
                    source = known[step.result]
                    have = {*source, *self._axes[other]}
                    axes = tuple(x for x in self._axes[target] if x in have)
                    product = _Product.of(source, self._axes[other], axes, self.sizes)
                    known[target] = axes
                    plan.append((target, step.result, other, product))
        self._known |= known
        return plan

    def _arrange(self, operands: Sequence[Tensor]) -> list[Tensor]:
        return [
            tensor if order is None else tensor.permute(order)
            for tensor, order in zip(operands, self._orders, strict=True)
        ]


def _ranked(axes: Axes) -> list[int]:
    return sorted(range(len(axes)), key=axes.__getitem__)


def _path(
    operands: tuple[Axes, ...], out: Axes, sizes: tuple[int, ...], thorough: bool
) -> list[tuple[int, ...]]:
    """Places in the shrinking list of operands, one or two a step; a result goes to its end.

    A greedy order goes wrong where many operands meet, as the links of a counted parent do: then the
    order that sums out axes one by one, always the one that leaves the smallest tensor, is tried too.
    """
    if len(operands) < 2:
        return []
    terms = ["".join(opt_einsum.get_symbol(x) for x in axes) for axes in operands]
    equation = f"{','.join(terms)}->{''.join(opt_einsum.get_symbol(x) for x in out)}"
    shapes = [tuple(sizes[x] for x in axes) for axes in operands]
    optimize = "dp" if thorough else "greedy"
    found, _ = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimize)
    path = [tuple(sorted(places)) for places in found]
    if thorough or len(operands) <= _MANY:
        return path
    other = _eliminating(operands, out, sizes)
    return min((path, other), key=lambda one: _largest(operands, out, sizes, one))


def _eliminating(
    operands: tuple[Axes, ...], out: Axes, sizes: tuple[int, ...]
) -> list[tuple[int, ...]]:
    live = [frozenset(axes) for axes in operands]
    inner = {x for axes in live for x in axes} - set(out)
    path: list[tuple[int, ...]] = []

    def size(axes: Iterable[int]) -> int:
        return math.prod(sizes[x] for x in axes)

    def merge(places: list[int]) -> None:
        """Contracts these operands, the smallest first."""
        while len(places) > 1:
            first, second = sorted(sorted(places, key=lambda i: (size(live[i]), i))[:2])
            path.append((first, second))
            joined = live[first] | live[second]
            rest = [axes for i, axes in enumerate(live) if i not in (first, second)]
            needed = set(out).union(*rest)
            live[:] = [*rest, joined & needed]
            moved = [i - (i > first) - (i > second) for i in places if i not in (first, second)]
            places = [*moved, len(live) - 1]

    while inner:
        reach = {x: frozenset().union(*(axes for axes in live if x in axes)) for x in inner}
        chosen = min(inner, key=lambda x: (size(reach[x] - {x}), x))
        merge([i for i, axes in enumerate(live) if chosen in axes])
        inner = {x for x in inner if any(x in axes for axes in live) and x != chosen}
    merge(list(range(len(live))))
    return path


def _largest(
    operands: tuple[Axes, ...], out: Axes, sizes: tuple[int, ...], path: list[tuple[int, ...]]
) -> int:
    """Entries of the largest tensor on a path."""
    live, largest = [set(axes) for axes in operands], 0
    for places in path:
        joined = set().union(*(live[i] for i in places))
        live = [axes for i, axes in enumerate(live) if i not in places]
        live.append(joined & set(out).union(*live))
        largest = max(largest, math.prod(sizes[x] for x in live[-1]))
    return largest
