"""einsum whose contraction path is found once for each structure and shape, then reused."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

import opt_einsum
from torch import Tensor


def einsum(
    operands: Sequence[tuple[Tensor, Sequence[Hashable]]], out: Sequence[Hashable]
) -> Tensor:
    """Sums a product of tensors over all axes but those of `out`.

    Args:
        operands: (tensor, one name an axis); equal names are the same axis.
        out: Names of the result's axes, in order; each stands in some operand.

    Example:
        >>> import torch
        >>> a, b = torch.ones(2, 3), torch.ones(3)
        >>> einsum([(a, "ij"), (b, "j")], "i").tolist()
        [3.0, 3.0]
    """
    number: dict[Hashable, str] = {}
    terms = [
        "".join(number.setdefault(axis, opt_einsum.get_symbol(len(number))) for axis in axes)
        for _, axes in operands
    ]
    equation = f"{','.join(terms)}->{''.join(number[axis] for axis in out)}"
    shapes = tuple(tuple(tensor.shape) for tensor, _ in operands)
    return _expression(equation, shapes)(*(tensor for tensor, _ in operands), backend="torch")


@lru_cache(maxsize=1024)
def _expression(equation: str, shapes: tuple[tuple[int, ...], ...]) -> Any:
    return opt_einsum.contract_expression(equation, *shapes, optimize="auto")
