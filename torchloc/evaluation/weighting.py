"""How the coordinates that an agent does not see are averaged out of its advantages."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from torchloc.errors import InputError
from torchloc.evaluation.numbers import as_index
from torchloc.mdp.checks import IntArray, reals

Weighting = Literal["uniform"] | Sequence[ArrayLike] | np.ndarray | Tensor
"""`uniform`, or one law a coordinate; an (N, max S) array is padded with zeros."""


@dataclass(frozen=True, eq=False)
class ProductLaw:
    """ν = Π ν_i.

    Attributes:
        columns: (max S, N) laws padded with zeros; None for uniform ones.
    """

    columns: Tensor | None

    def factors(self, scope: Sequence[IntArray], sizes: Sequence[int]) -> list[Tensor]:
        """(S_i, B) laws of the coordinates of B functions; none where the law is uniform."""
        if self.columns is None:
            return []
        return [
            self.columns[:size].index_select(-1, as_index(at, self.columns))
            for at, size in zip(scope, sizes, strict=True)
        ]

    def scale(self, sizes: Sequence[int]) -> float:
        """What stands in place of the factors where the law is uniform."""
        return 1.0 if self.columns is not None else 1.0 / math.prod(sizes)

    def joint(self, scope: IntArray, sizes: Sequence[int], like: Tensor) -> Tensor:
        """(*sizes, B or 1) product of the laws of (B, m) coordinates."""
        total = like.new_full((*(1,) * len(sizes), 1), self.scale(sizes))
        for axis, factor in enumerate(self.factors(list(scope.T), sizes)):
            shape = [1] * len(sizes) + [factor.shape[-1]]
            shape[axis] = factor.shape[0]
            total = total * factor.reshape(shape)
        return total.expand(*sizes, -1)


def as_product_law(
    weighting: Weighting, sizes: IntArray, *, dtype: torch.dtype, device: torch.device
) -> ProductLaw:
    """A product law that is positive everywhere.

    Raises:
        InputError: Another number of laws, a law of another size, or one with a zero.
    """
    if isinstance(weighting, str):
        if weighting != "uniform":
            raise InputError(
                f"weighting is {weighting!r}; choose uniform or rollout, or give one law a coordinate"
            )
        return ProductLaw(None)
    if not isinstance(weighting, Sized):
        raise InputError(
            f"weighting is {weighting!r}; choose uniform or rollout, or give one law a coordinate"
        )
    if len(weighting) != len(sizes):
        raise InputError(
            f"weighting has {len(weighting)} laws, but the model has {len(sizes)} coordinates; "
            f"give one each"
        )
    width = int(sizes.max())
    if isinstance(weighting, np.ndarray | Tensor) and weighting.ndim == 2:
        if weighting.shape[1] != width:
            raise InputError(
                f"weighting has shape {tuple(weighting.shape)}; it must be ({len(sizes)}, {width}), "
                f"padded with zeros"
            )
        padded = torch.as_tensor(weighting, dtype=torch.float64).T.clone()
    else:
        padded = torch.zeros(width, len(sizes), dtype=torch.float64)
        for i, law in enumerate(weighting):
            row = torch.tensor(
                reals(
                    law.numpy() if isinstance(law, Tensor) else law, f"weighting of coordinate {i}"
                )
            )
            if row.shape != (sizes[i],):
                raise InputError(
                    f"weighting of coordinate {i} has shape {tuple(row.shape)}, but the "
                    f"coordinate has {int(sizes[i])} states"
                )
            padded[: len(row), i] = row
    inside = torch.arange(len(padded))[:, None] < torch.from_numpy(sizes.copy())
    bad = (padded <= 0) & inside | (padded != 0) & ~inside
    bad |= ~((padded.sum(dim=0) - 1.0).abs() <= 1e-9)
    if bool(bad.any()):
        i = int(bad.any(dim=0).int().argmax())
        raise InputError(
            f"weighting of coordinate {i} is {padded[:, i].tolist()}; it must be "
            f"{int(sizes[i])} positive numbers that sum to 1 (mix in a little of the uniform law)"
        )
    return ProductLaw(padded.to(device, dtype))


def as_states(states: Tensor, state_sizes: IntArray, device: torch.device) -> Tensor:
    """(R, N) int64 states of the model.

    Raises:
        InputError: Another shape, or a value that a coordinate does not have.
    """
    n = len(state_sizes)
    if states.ndim != 2 or states.shape[1] != n or not len(states):
        raise InputError(
            f"states has shape {tuple(states.shape)}; it must be (R, {n}), one row a state"
        )
    whole = states.to(torch.int64)
    if bool((whole != states).any()):
        row, column = (int(x) for x in (whole != states).nonzero()[0])
        raise InputError(f"states[{row}, {column}] is {states[row, column]:g}; give whole numbers")
    states = whole.to(device)
    sizes = torch.tensor(state_sizes, device=states.device)
    wrong = (states < 0) | (states >= sizes)
    if bool(wrong.any()):
        row, column = (int(x) for x in wrong.nonzero()[0])
        raise InputError(
            f"states[{row}, {column}] is {int(states[row, column])}; coordinate {column} has "
            f"values 0 to {int(sizes[column]) - 1}"
        )
    return states
