"""Sorting alike rows, against Python's own comparisons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from torchloc import alike as room
from torchloc.alike import (
    coincidences,
    distinct,
    distinct_numbers,
    equal_columns,
    equal_rows,
    first_places,
)

Array = np.ndarray
Hash = Callable[[Sequence[NDArray]], NDArray[np.uint64]]
SHAPES = [(0, 1), (0, 2), (1, 3), (60, 2), (200, 5)]


def keys_of(shape: tuple[int, int], values: int = 3, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-1, values, size=shape)


def constant_hash(columns: Sequence[NDArray]) -> NDArray[np.uint64]:
    return np.zeros(len(columns[0]), dtype=np.uint64)


def coarse_hash(columns: Sequence[NDArray]) -> NDArray[np.uint64]:
    """Rows with the same first entry collide, the others do not."""
    return np.asarray(columns[0]).astype(np.int64).view(np.uint64)


HASHES: list[Hash | None] = [None, constant_hash, coarse_hash]


@pytest.fixture(params=HASHES, ids=["hashed", "all collide", "some collide"])
def collisions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param is not None:
        monkeypatch.setattr(room, "_hashes", request.param)


def patterns(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[row.index(value) for value in row] for row in rows]


@pytest.mark.usefixtures("collisions")
@pytest.mark.parametrize("shape", SHAPES)
def test_distinct_rows_stand_first_where_they_stand_first(shape: tuple[int, int]) -> None:
    keys = keys_of(shape)
    first, inverse = distinct(list(keys.T))
    rows = [tuple(row) for row in keys.tolist()]
    assert inverse.shape == (len(rows),)
    assert [rows[at] for at in first[inverse]] == rows
    assert len(first) == len(set(rows))
    assert sorted(first) == [at for at, row in enumerate(rows) if row not in rows[:at]]


def test_distinct_takes_columns_of_any_integer_type_and_stride() -> None:
    keys = keys_of((50, 3)).astype(np.int32)
    flags = keys[:, 1] > 0
    strided = np.asfortranarray(np.repeat(keys, 2, axis=1))[:, ::2]
    for columns in (list(keys.T), list(strided.T), [keys[:, 0], flags, keys[:, 2]]):
        first, inverse = distinct(columns)
        for column in columns:
            assert (column[first][inverse] == column).all()


def test_hashes_tell_nearby_rows_apart() -> None:
    """All rows of a grid, and all their permutations: no two share one of 2⁶⁴ hashes."""
    grid = np.stack(np.meshgrid(*[np.arange(-6, 6)] * 4), axis=-1).reshape(-1, 4)
    keys = room._hashes(list(grid.T))
    assert keys.dtype == np.uint64 and len(np.unique(keys)) == len(grid)
    assert len(np.unique(keys & np.uint64(2**40 - 1))) > 0.9 * len(grid)


@pytest.mark.usefixtures("collisions")
def test_numbers_are_told_apart_bit_by_bit() -> None:
    values = np.array(
        [[1.0, 1.0, 1.0 + 2**-52, 0.0, -0.0, np.nan, np.nan, 1.0], [2.0, 2.0] + [2.0] * 5 + [3.0]]
    )
    first, inverse = distinct_numbers(values)
    assert len(first) == 6
    assert inverse[0] == inverse[1] and inverse[5] == inverse[6]
    assert len({int(inverse[at]) for at in (0, 2, 3, 4, 5, 7)}) == 6
    transposed = np.ascontiguousarray(values.T).T
    assert (distinct_numbers(transposed)[1] == inverse).all()


@pytest.mark.usefixtures("collisions")
@pytest.mark.parametrize("shape", [(0, 0), (7, 0), *SHAPES])
def test_equal_rows_partition_the_rows(shape: tuple[int, int]) -> None:
    keys = keys_of(shape)
    for found in (list(equal_rows(keys)), list(equal_rows(np.asfortranarray(keys)))):
        places = np.concatenate([np.zeros(0, int), *(at for _, at in found)])
        assert sorted(places) == list(range(shape[0]))
        for value, at in found:
            assert len(at) and (keys[at] == value).all()
            assert (np.diff(at) > 0).all()
        assert len({tuple(value) for value, _ in found}) == len(found)


@pytest.mark.usefixtures("collisions")
def test_equal_columns_partition_the_rows() -> None:
    keys = keys_of((300, 3))
    found = list(equal_columns(list(keys.T)))
    assert len(found) == len({tuple(row) for row in keys.tolist()}) > 8
    for value, at in found:
        assert at.tolist() == np.flatnonzero((keys == value).all(axis=1)).tolist()
    same = [np.full(5, 7), np.full(5, -1)]
    ((value, at),) = equal_columns(same)
    assert value == [7, -1] and at.tolist() == list(range(5))
    assert list(equal_columns([])) == []
    assert list(equal_columns([np.zeros(0, int)])) == []


@pytest.mark.parametrize("columns", [0, 1, 4])
def test_first_places(columns: int) -> None:
    keys = np.random.default_rng(0).integers(3, size=(50, columns))
    places = first_places(keys)
    assert places.shape == keys.shape
    assert places.tolist() == patterns(keys.tolist())


@pytest.mark.parametrize("peeled", [0, 1, 3, 8, 100])
@pytest.mark.parametrize(
    ("shape", "values"), [((1, 1), 2), ((40, 1), 5), ((400, 3), 3), ((600, 6), 4), ((90, 4), 1)]
)
def test_coincidences(
    shape: tuple[int, int], values: int, peeled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_PEELED", peeled)
    keys = np.random.default_rng(1).integers(values, size=shape)
    expected = patterns(keys.tolist())
    seen = np.zeros(shape[0], dtype=int)
    found = list(coincidences(list(keys.T)))
    for pattern, rows in found:
        assert len(rows) and all(expected[row] == pattern for row in rows)
        assert (np.diff(rows) > 0).all()
        seen[rows] += 1
    assert (seen == 1).all()
    assert len(found) == len({tuple(pattern) for pattern in expected})


def test_coincidences_beyond_those_that_are_peeled() -> None:
    """Five columns have 52 patterns; all of them, one row each and then again."""
    every = sorted({tuple(row) for row in patterns(list(itertools.product(range(5), repeat=5)))})
    assert len(every) == 52
    keys = 10 * np.arange(104)[:, None] + np.tile(np.array(every), (2, 1))
    found = list(coincidences(list(keys.T)))
    assert found[0][1].tolist() == [0, 52]
    assert sorted(tuple(pattern) for pattern, _ in found) == every
    assert all(len(rows) == 2 for _, rows in found)


def test_coincidences_of_nothing() -> None:
    assert list(coincidences([])) == []
    assert list(coincidences([np.zeros(0, int)])) == []
