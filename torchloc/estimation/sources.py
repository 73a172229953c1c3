"""What a source of draws is: it counts, for every context of every coordinate, the values of s'_j that it saw.

`logs` holds logged transitions, `simulators` what draws on demand. What makes the counts independent draws is
told in `torchloc.estimation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from torchloc.errors import InputError
from torchloc.estimation.contexts import Contexts
from torchloc.mdp.checks import IntArray, first

Advance = Callable[[int, int], None]
"""Told how many of how many units of work are done."""

CHUNK = 2_000_000
"""Draws that are held at once, at most."""


@dataclass(frozen=True, eq=False)
class Tally:
    """What was counted.

    Attributes:
        contexts: The contexts.
        counts: A batch: (B, C, S_j) int64, how often each value followed.
        sizes_tried: L, among how many sizes n_c was chosen after looking; 1 where it was fixed in advance.
    """

    contexts: Contexts
    counts: tuple[IntArray, ...]
    sizes_tried: int


class Source(Protocol):
    """Anything that can count draws in contexts."""

    @property
    def state_sizes(self) -> IntArray:
        """(N,) sizes of the coordinates' spaces."""
        ...

    @property
    def action_sizes(self) -> IntArray:
        """(K,) sizes of the agents' action spaces."""
        ...

    def tally(
        self,
        contexts: Contexts,
        samples: int | None,
        generator: np.random.Generator | None,
        advance: Advance,
    ) -> Tally:
        """Counts.

        Args:
            contexts: Of this source's sizes.
            samples: Draws a context, or first visits used.
            generator: Source of randomness of simulators.
            advance: Told about progress.

        Raises:
            InputError: `samples` or `generator` is missing, or a simulator returned no such values.
        """
        ...


def whole(field: str, value: int) -> int:
    """A whole number ≥ 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{field} is {value!r}; it must be a whole number ≥ 1")
    return int(value)


def check_values(array: NDArray, sizes: IntArray, field: str, kind: str) -> None:
    """Refuses a value that its column does not have."""
    bad = (array < 0) | (array >= sizes)
    if bad.any():
        row, column = first(bad)
        raise InputError(
            f"{field}: row {row} has value {int(array[row, column])} for {kind} {column}, which has "
            f"{int(sizes[column])} values, numbered from 0"
        )
