"""Checks of the families' arguments: each error names the field, its value and the mend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np

from torchloc.errors import BudgetError, InputError
from torchloc.mdp.checks import FloatArray

COUNTED = 5
"""With more neighbours a site counts them; with as many or fewer its kernel is a table."""

# A table of 12 binary parents besides the site's own state, with two actions, has this size.
TABLE_BYTES = 2**18
MODEL_BYTES = 2**31
SITES = MODEL_BYTES // 64
"""Sites of a generated model at most: the index arrays of each take at least 64 bytes."""


def whole(field: str, value: int, least: int) -> int:
    """A whole number ≥ `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{field} = {value!r}; it must be a whole number ≥ {least}")
    return int(value)


def sites(n: int, least: int) -> int:
    """A number of sites ≥ `least` whose index arrays fit a memory.

    Raises:
        BudgetError: Over `SITES`.
    """
    if whole("n", n, least) > SITES:
        raise BudgetError(
            f"n = {n}; at 64 bytes a site the model would take {64 * n:,} bytes, over the limit of "
            f"{MODEL_BYTES:,}; use n ≤ {SITES:,}"
        )
    return int(n)


def real(field: str, value: float) -> float:
    """A finite real number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{field} = {value!r}; it must be a finite number")
    return float(value)


def probability(field: str, value: float) -> float:
    """A number in [0, 1]."""
    number = real(field, value)
    if not 0.0 <= number <= 1.0:
        raise InputError(f"{field} = {value!r} is outside [0, 1]; give a probability")
    return number


def probabilities(field: str, value: Sequence[float], count: int) -> FloatArray:
    """(count,) numbers in [0, 1]."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != count:
        raise InputError(f"{field} = {value!r}; give {count} probabilities, one an action")
    return np.array([probability(f"{field}[{a}]", entry) for a, entry in enumerate(value)])


def flag(field: str, value: bool) -> bool:
    """True or false."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{field} = {value!r}; it must be true or false")
    return bool(value)


def choice(field: str, value: str, options: Sequence[str]) -> str:
    """One of the names."""
    if value not in options:
        raise InputError(f"{field} = {value!r}; choose one of {', '.join(options)}")
    return value


def check_table(shape: Sequence[int], node: str) -> None:
    """Refuses a kernel table (*S, *A, S_j) that is too large to enumerate.

    Raises:
        BudgetError: Over `TABLE_BYTES`; it gives the node, its parents and the bytes.
    """
    size = 8 * math.prod(shape)
    if size > TABLE_BYTES:
        raise BudgetError(
            f"the kernel of {node} has {len(shape) - 2} state parents: its table would take "
            f"{size:,} bytes, over the limit of {TABLE_BYTES:,}; use a graph of smaller in-degree"
        )
