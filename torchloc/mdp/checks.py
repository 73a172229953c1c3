"""Validation shared by kernels, rewards and the model: one clear error a rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchloc.errors import InputError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """The array, made read-only."""
    array.flags.writeable = False
    return array


def integers(value: ArrayLike, field: str, ndim: int) -> IntArray:
    """A frozen int64 copy with `ndim` axes; an empty sequence fits any `ndim`."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(
            f"{field} must be a rectangular array of whole numbers; NumPy cannot read it: {error}"
        ) from error
    if array.size == 0 and array.ndim < ndim:
        array = array.reshape((*array.shape, *(0,) * (ndim - array.ndim)))
    if array.ndim != ndim:
        raise InputError(f"{field} must have {ndim} axes, but its shape is {array.shape}")
    if not array.size:  # whatever its dtype, there is nothing in it to be wrong
        return frozen(np.zeros(array.shape, dtype=np.int64))
    if not np.issubdtype(array.dtype, np.integer):
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"{field} must hold whole numbers, but its dtype is {array.dtype}")
        array = array.astype(np.float64)  # a half cannot be held against the largest index
        broken = ~np.isfinite(array) | (array != np.floor(array))
        if broken.any():
            index = first(broken)
            raise InputError(
                f"{field}: entry {index} is {array[index]:.6g}; it must be a whole number"
            )
    beyond = (array < -(2.0**53)) | (array > 2.0**53)
    if beyond.any():
        index = first(beyond)
        raise InputError(f"{field}: entry {index} is {array[index]}; that is no index or size")
    return frozen(array.astype(np.int64))


def reals(value: ArrayLike, field: str) -> FloatArray:
    """A float64 copy, not yet frozen; what NumPy cannot read as numbers is refused."""
    try:
        if np.iscomplexobj(value):
            raise TypeError("it holds complex numbers")
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{field} must be a rectangular array of numbers; NumPy cannot read it: {error}"
        ) from error


def first(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """The index of the first true entry."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape))


def check_finite(table: FloatArray, place: Callable[[int], str]) -> None:
    """Refuses NaN and infinity; `place` says whose table row b of the leading axis is."""
    bad = ~np.isfinite(table)
    if bad.any():
        index = first(bad)
        raise InputError(
            f"{place(index[0])}: entry {index[1:]} of the table is {table[index]}; "
            f"every entry must be a finite number"
        )


def normalised(table: FloatArray, place: Callable[[int], str]) -> FloatArray:
    """Laws along the last axis: finite, nonnegative, summing to 1 within 1e-9.

    Rows that miss 1 by more than their own rounding are divided by their sum, so that exact solves
    see stochastic rows; other rows are kept bit for bit.
    """
    check_finite(table, place)
    if (table < 0).any():
        index = first(table < 0)
        raise InputError(
            f"{place(index[0])}: entry {index[1:]} of the table is {table[index]:.6g}; "
            f"a probability cannot be negative"
        )
    total = table.sum(axis=-1)
    off = np.abs(total - 1.0)
    if (off > 1e-9).any():
        index = first(off > 1e-9)
        raise InputError(
            f"{place(index[0])}: row {index[1:]} of the table sums to {total[index]:.12g}, not to "
            f"1 (tolerance 1e-9); the last axis must be a probability law"
        )
    loose = off > 4.0 * np.finfo(np.float64).eps * table.shape[-1]
    if loose.any():
        table = np.where(loose[..., None], table / total[..., None], table)
    return table


def check_parents(array: IntArray, place: Callable[[int], str], bound: int, kind: str) -> None:
    """Indices (B, p) in [0, bound); `place` says whose parents row b are."""
    bad = (array < 0) | (array >= bound)
    if bad.any():
        index = first(bad)
        raise InputError(
            f"{place(index[0])}: it reads {kind} {int(array[index])}, but the model has {bound} "
            f"{kind}s, numbered from 0"
        )


def check_distinct(array: IntArray, place: Callable[[int], str], kind: str) -> None:
    """No index twice in a row of (B, p); `place` says whose parents row b are."""
    ordered = np.sort(array, axis=1)
    twice = ordered[:, 1:] == ordered[:, :-1]
    if twice.any():
        row, column = first(twice)
        raise InputError(
            f"{place(row)}: {kind} {int(ordered[row, column])} stands twice among its parents; "
            f"name every parent once"
        )


def names(value: Sequence[str] | None, field: str, count: int) -> tuple[str, ...] | None:
    """Distinct printable names, one an entity; None stays None (entities are then called by number)."""
    if value is None:
        return None
    result = tuple(str(name) for name in value)
    if len(result) != count:
        raise InputError(f"{field} has {len(result)} names, but {count} are needed")
    hidden = next((name for name in result if not name.isprintable()), None)
    if hidden is not None:
        raise InputError(
            f"{field}: {hidden!r} holds a character that cannot be printed; names are single lines"
        )
    if len(set(result)) != count:
        (twice, _), *_ = Counter(result).most_common(1)
        raise InputError(f"{field}: {twice!r} stands twice; names must differ")
    return result
