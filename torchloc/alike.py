"""Sites that are alike: rows of equal integers, and rows with equal coincidences among them.

Columns are separate (B,) arrays, so that a comparison runs over contiguous memory. Rows are told
apart by a 64-bit hash, and every answer is then verified, so it is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from torchloc.mdp.checks import IntArray

_PEELED = 8
"""Classes that are looked for one by one before all rows are sorted."""


def at_rows(values: NDArray, rows: IntArray) -> NDArray:
    """values[rows] for ascending distinct rows; no copy where these are all."""
    return values if len(rows) == len(values) else values[rows]


def distinct(columns: Sequence[NDArray]) -> tuple[IntArray, IntArray]:
    """Distinct rows of some columns of integers.

    Returns:
        (D,) where each distinct row stands first, and (B,) which of them each row equals.
    """
    key = _hashes(columns)
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    if all((column == column[first][inverse]).all() for column in columns):
        return first, inverse
    # Two rows share a hash: a chance of one in 10^7 for a million rows.
    _, first, inverse = np.unique(
        np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True
    )
    return first, inverse.reshape(-1)


def distinct_numbers(values: NDArray[np.float64]) -> tuple[IntArray, IntArray]:
    """As `distinct`, for the columns of (E, B) numbers, which are told apart bit by bit."""
    return distinct(list(np.ascontiguousarray(values).view(np.int64)))


def equal_columns(columns: Sequence[IntArray]) -> Iterator[tuple[list[int], IntArray]]:
    """(distinct row, where it stands) of some columns of integers."""
    count = len(columns[0]) if columns else 0
    if not count:
        return
    if all((column == column[0]).all() for column in columns):
        yield [int(column[0]) for column in columns], np.arange(count)
        return
    first, inverse = distinct(columns)
    for at, rows in zip(first, _members(inverse, len(first)), strict=True):
        yield [int(column[at]) for column in columns], rows


def equal_rows(keys: IntArray) -> Iterator[tuple[list[int], IntArray]]:
    """(distinct row, where it stands) of an integer matrix (B, c)."""
    if keys.shape[1] == 0:
        if len(keys):
            yield [], np.arange(len(keys))
        return
    yield from equal_columns(list(np.ascontiguousarray(keys.T)))


def coincidences(columns: Sequence[IntArray]) -> Iterator[tuple[list[int], IntArray]]:
    """Classes of rows by which of their entries are equal.

    Yields:
        A pattern, for each column the first one that holds the same number, and the rows that have
        it. Together the classes hold every row once.
    """
    if not columns:
        return
    rest = np.arange(len(columns[0]))
    cut = list(columns)
    for _ in range(_PEELED):
        if not len(rest):
            return
        row = [int(column[0]) for column in cut]
        pattern = [row.index(value) for value in row]
        match = _matches(cut, pattern)
        yield pattern, rest[match]
        rest = rest[~match]
        cut = [column[~match] for column in cut]
    if len(rest):
        yield from ((p, rest[rows]) for p, rows in equal_columns(_first_places(cut)))


def first_places(columns: IntArray) -> IntArray:
    """(B, c): for each entry the first column of its row that holds the same number."""
    if columns.shape[1] == 0:
        return columns
    return np.stack(_first_places(list(np.ascontiguousarray(columns.T))), axis=1)


def _first_places(columns: Sequence[IntArray]) -> list[IntArray]:
    places = []
    for j, column in enumerate(columns):
        place = np.full(len(column), j)
        for i in reversed(range(j)):
            place[columns[i] == column] = i
        places.append(place)
    return places


def _matches(columns: Sequence[IntArray], pattern: Sequence[int]) -> NDArray[np.bool_]:
    match = np.ones(len(columns[0]), dtype=np.bool_)
    kept: list[int] = []
    for j, i in enumerate(pattern):
        if i != j:
            match &= columns[j] == columns[i]
            continue
        for other in kept:
            match &= columns[j] != columns[other]
        kept.append(j)
    return match


def _members(inverse: IntArray, count: int) -> list[IntArray]:
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(np.bincount(inverse, minlength=count))
    return np.split(order, ends[:-1])


def _hashes(columns: Sequence[NDArray]) -> NDArray[np.uint64]:
    odd = np.random.default_rng(0).integers(0, 2**63, len(columns), dtype=np.uint64) * 2 + 1
    key = np.zeros(len(columns[0]), dtype=np.uint64)
    for column, factor in zip(columns, odd, strict=True):
        mixed = (column.astype(np.int64, copy=False).view(np.uint64) + factor) * factor
        mixed ^= mixed >> np.uint64(29)
        key = (key ^ mixed) * factor
        key ^= key >> np.uint64(32)
    return key
