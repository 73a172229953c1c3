"""Small tensor networks against one einsum and its derivatives, in every way of running them."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import opt_einsum
import pytest
import torch
from torch import Tensor

from torchloc.contraction import Network, network
from torchloc.contraction.network import Axes

# Sums of at most a few thousand products of numbers of size 1, in another order.
RTOL, ATOL = 1e-12, 1e-12
Structure = tuple[tuple[Axes, ...], Axes, tuple[int, ...]]


def random_structure(seed: int) -> Structure:
    """Up to six operands on up to eight axes, in any order; axes of size 1; scalars; any output."""
    rng = np.random.default_rng(seed)
    n_axes = int(rng.integers(1, 9))
    sizes = tuple(int(x) for x in rng.choice([1, 2, 2, 3], n_axes))
    operands = [
        tuple(int(x) for x in rng.permutation(n_axes)[: rng.integers(0, min(n_axes, 4) + 1)])
        for _ in range(int(rng.integers(1, 7)))
    ]
    used = sorted({x for axes in operands for x in axes})
    out = tuple(int(x) for x in rng.permutation(used)[: rng.integers(0, len(used) + 1)])
    return tuple(operands), out, sizes


def random_operands(
    structure: Structure, count: int, seed: int = 0, ones: float = 0.3
) -> list[Tensor]:
    """(*sizes, count) each, some of them one for all sites, some not contiguous."""
    rng = np.random.default_rng(seed)
    operands, _, sizes = structure
    tensors = []
    for axes in operands:
        batch = 1 if rng.random() < ones else count
        shape = (*(sizes[x] for x in axes), batch)
        flipped = torch.from_numpy(rng.normal(size=shape[::-1]))
        plain = flipped.permute(*reversed(range(len(shape))))
        tensors.append(plain if rng.random() < 0.5 else plain.contiguous())
    return tensors


def expected(structure: Structure, tensors: list[Tensor]) -> Tensor:
    """By one einsum, sites last."""
    operands, out, _ = structure
    count = max(tensor.shape[-1] for tensor in tensors)
    symbol = opt_einsum.get_symbol
    terms = ["".join(symbol(x + 1) for x in axes) + "a" for axes in operands]
    result = "".join(symbol(x + 1) for x in out) + "a"
    full = [tensor.expand(*tensor.shape[:-1], count) for tensor in tensors]
    return torch.einsum(f"{','.join(terms)}->{result}", *full)


def check(structure: Structure, *, thorough: bool, seed: int, count: int = 5) -> None:
    tensors = random_operands(structure, count, seed)
    made = Network(*structure, thorough)
    result = made(tensors)
    full = max(tensor.shape[-1] for tensor in tensors)
    assert result.shape[-1] in (1, full)
    assert result.shape[:-1] == tuple(structure[2][x] for x in structure[1])
    truth = expected(structure, tensors)
    torch.testing.assert_close(result.expand(truth.shape), truth, rtol=RTOL, atol=ATOL)
    # One copy a site: the derivative of an operand that all sites share is not summed over them.
    copies = [t.expand(*t.shape[:-1], full).clone().requires_grad_() for t in tensors]
    derivatives = torch.autograd.grad(expected(structure, copies).sum(), copies)
    rng = np.random.default_rng(seed)
    for wanted in (
        tuple(range(len(tensors))),
        tuple(rng.permutation(len(tensors))[: rng.integers(1, len(tensors) + 1)].tolist()),
    ):
        found = made.gradients(tensors, wanted)
        assert len(found) == len(wanted)
        for i, gradient in zip(wanted, found, strict=True):
            assert gradient.shape[-1] in (1, full)
            assert gradient.shape[:-1] == tensors[i].shape[:-1]
            torch.testing.assert_close(
                gradient.expand(derivatives[i].shape), derivatives[i], rtol=RTOL, atol=ATOL
            )


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int, thorough: bool) -> None:
    check(random_structure(seed), thorough=thorough, seed=seed)


MODES = {
    "loop": {"_LOOP_TERMS": 10**9, "_LONG": 0},
    "matrix products": {"_LOOP_TERMS": 1, "_JOINT": 0},
    "temporary": {"_LOOP_TERMS": 1, "_JOINT": 10**9},
    "temporary of short sums": {"_LOOP_TERMS": 10**9, "_LONG": 10**9},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_every_way_of_running(seed: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in MODES[mode].items():
        monkeypatch.setattr(network, name, value)
    check(random_structure(seed), thorough=bool(seed % 4), seed=seed)


def ring(width: int) -> Structure:
    """F on `width` neighbours pulled back by kernels that read three sites each."""
    state, before = range(width + 2), [width + 2 + c for c in range(width)]
    kernels = [(c, c + 1, c + 2, before[c]) for c in range(width)]
    return (tuple(before), *kernels), tuple(state), (2,) * (2 * width + 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("summed", [False, True])
def test_pull_backs_of_a_ring(summed: bool, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in MODES[mode].items():
        monkeypatch.setattr(network, name, value)
    operands, out, sizes = ring(4)
    check((operands, () if summed else out, sizes), thorough=True, seed=0)


def test_one_site_and_many_agree_to_the_last_bit() -> None:
    """A site's numbers do not depend on those beside it."""
    structure = ring(3)
    tensors = random_operands(structure, 6, ones=0.0)
    made = Network(*structure)
    whole = made(tensors)
    for b in range(6):
        assert torch.equal(made([t[..., b : b + 1] for t in tensors])[..., 0], whole[..., b])


def test_runs_are_reproducible_and_leave_their_operands_alone() -> None:
    structure = ring(3)
    tensors = random_operands(structure, 4)
    before = [tensor.clone() for tensor in tensors]
    one, two = Network(*structure), Network(*structure)
    assert torch.equal(one(tensors), two(tensors))
    assert torch.equal(one(tensors), one(tensors))
    wanted = range(len(tensors))
    for x, y in zip(one.gradients(tensors, wanted), two.gradients(tensors, wanted), strict=True):
        assert torch.equal(x, y)
    # Other derivatives in between change nothing.
    last = one.gradients(tensors, [3])
    one.gradients(tensors, [0, 2])
    assert torch.equal(last[0], one.gradients(tensors, [3])[0])
    assert torch.equal(last[0], one.gradients(tensors, [2, 3])[1])
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


def test_made_once_for_each_structure() -> None:
    structure = ring(2)
    assert Network.of(*structure) is Network.of(*structure)
    assert Network.of(*structure) is not Network.of(*structure, False)
    assert Network.of(*structure).sizes == structure[2]


def test_a_single_operand() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 4, 5)))
    made = Network(((2, 0, 1),), (1, 2), (3, 4, 2))
    torch.testing.assert_close(made([x]), x.sum(dim=1).transpose(0, 1), rtol=RTOL, atol=ATOL)
    (gradient,) = made.gradients([x], [0])
    assert gradient.shape == (2, 3, 4, 1) and bool((gradient == 1.0).all())


def test_nothing_is_wanted() -> None:
    structure = ring(2)
    assert Network(*structure).gradients(random_operands(structure, 2), []) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    structure = ring(2)
    tensors = [t.to(dtype) for t in random_operands(structure, 3)]
    made = Network(*structure)
    assert made(tensors).dtype == dtype
    assert all(g.dtype == dtype for g in made.gradients(tensors, range(3)))


# Counts -------------------------------------------------------------------------------------------

BY_HAND: list[tuple[Structure, int, int, int]] = [
    # A (2, 3), B (3, 5), v (5): B v costs 2 · 15, A (B v) 2 · 6. Largest: B. Kept: all and two results.
    ((((0, 1), (1, 2), (2,)), (0,), (2, 3, 5)), 15, 42, 6 + 15 + 5 + 3 + 2),
    # An outer product is larger than what it is made of.
    ((((0,), (1,)), (1, 0), (4, 5)), 20, 40, 4 + 5 + 20),
    # u · w: one number from 2 · 7 operations.
    ((((0,), (0,)), (), (7,)), 7, 14, 7 + 7 + 1),
    # One operand is not contracted at all.
    ((((0, 1),), (1, 0), (3, 4)), 12, 0, 12),
]


@pytest.mark.parametrize(("structure", "peak", "flops", "live"), BY_HAND)
@pytest.mark.parametrize("thorough", [True, False])
def test_counts_by_hand(
    structure: Structure, peak: int, flops: int, live: int, thorough: bool
) -> None:
    made = Network(*structure, thorough)
    assert (made.peak, made.flops, made.live) == (peak, flops, live)


@pytest.mark.parametrize("seed", range(20))
def test_the_peak_is_what_stands_in_memory(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No operand, intermediate or result is larger; one is as large."""
    structure = random_structure(seed)
    made = Network(*structure)
    tensors = random_operands(structure, 1)
    largest = [tensor.numel() for tensor in tensors]
    plain = network._Step.__call__

    def spied(self: Any, slots: list[Any], *, keep: bool) -> Tensor:
        result = plain(self, slots, keep=keep)
        largest.append(result.numel())
        return result

    monkeypatch.setattr(network._Step, "__call__", spied)
    made(tensors)
    assert max(largest) == made.peak
    assert sum(largest) == made.live


def test_the_order_avoids_the_joint_table() -> None:
    """A pull-back costs far less than its operands multiplied out, with either search."""
    operands, out, sizes = ring(8)
    for thorough in (True, False):
        assert Network(operands, out, sizes, thorough).flops < math.prod(sizes) / 4
        assert Network(operands, (), sizes, thorough).flops < math.prod(sizes) / 4


def test_a_sum_over_many_axes_at_once_is_planned_in_little_memory() -> None:
    """u · w of 2¹⁴ entries a site: what is planned does not grow with the terms of the sum."""
    axes = tuple(range(14))
    tracemalloc.start()
    made = Network((axes, axes), (), (2,) * 14)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    u, w = (
        torch.from_numpy(np.random.default_rng(i).normal(size=(2,) * 14 + (3,))) for i in (0, 1)
    )
    torch.testing.assert_close(made([u, w]), (u * w).flatten(0, -2).sum(0), rtol=0, atol=1e-10)
    assert peak < 2**20
