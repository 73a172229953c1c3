from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchloc.errors import InputError
from torchloc.schedules import constant, cosine, geometric, linear

temperatures = st.floats(min_value=1e-6, max_value=1e6)
fractions = st.floats(min_value=0.0, max_value=1.0)
moving = pytest.mark.parametrize("schedule", [linear, geometric, cosine])

Schedule = Callable[..., float]


@moving
@given(start=temperatures, end=temperatures)
def test_end_points_are_exact(schedule: Schedule, start: float, end: float) -> None:
    assert schedule(0.0, start=start, end=end) == start
    assert schedule(1.0, start=start, end=end) == end


@moving
@given(start=temperatures, end=temperatures, progress=fractions)
def test_stays_between_its_end_points(
    schedule: Schedule, start: float, end: float, progress: float
) -> None:
    assert min(start, end) <= schedule(progress, start=start, end=end) <= max(start, end)


@moving
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.02), (0.02, 1.0), (1e6, 1e-6)])
def test_is_strictly_monotone_on_the_grid_of_a_run(
    schedule: Schedule, start: float, end: float
) -> None:
    values = [schedule(i / 63, start=start, end=end) for i in range(64)]
    assert all((b - a) * (end - start) > 0 for a, b in itertools.pairwise(values))


@moving
@given(value=temperatures, progress=fractions)
def test_equal_end_points_are_constant(schedule: Schedule, value: float, progress: float) -> None:
    assert schedule(progress, start=value, end=value) == value
    assert constant(progress, value=value) == value


def test_geometric_has_equal_ratios() -> None:
    values = [geometric(i / 15, start=1.0, end=0.02) for i in range(16)]
    expected = 0.02 ** (1 / 15)
    # Two powers and a product, each within an ulp or two of the truth.
    assert all(
        math.isclose(b / a, expected, rel_tol=16 * 2**-53) for a, b in itertools.pairwise(values)
    )


def test_linear_has_equal_steps_and_cosine_is_flat_at_the_ends() -> None:
    line = [linear(i / 10, start=1.0, end=0.5) for i in range(11)]
    assert all(abs((a - b) - 0.05) <= 4 * 2**-53 for a, b in itertools.pairwise(line))
    step = 1e-4
    wave = [cosine(p, start=1.0, end=0.5) for p in (0.0, step, 1.0 - step, 1.0)]
    # 1 - cos(x) <= x^2 / 2.
    bound = 0.25 * (math.pi * step) ** 2 / 2 + 2**-52
    assert 0 <= wave[0] - wave[1] <= bound
    assert 0 <= wave[2] - wave[3] <= bound


@pytest.mark.parametrize("progress", [-1e-9, 1.0 + 1e-9, math.nan, math.inf])
def test_progress_outside_the_unit_interval_is_refused(progress: float) -> None:
    for schedule in (linear, geometric, cosine):
        with pytest.raises(InputError, match=r"progress = .* is outside \[0, 1\]"):
            schedule(progress, start=1.0, end=0.5)
    with pytest.raises(InputError, match="progress"):
        constant(progress, value=1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused_by_name(bad: float) -> None:
    for schedule in (linear, geometric, cosine):
        with pytest.raises(InputError, match=r"start = .* is no temperature"):
            schedule(0.5, start=bad, end=0.5)
        with pytest.raises(InputError, match=r"end = .* is no temperature"):
            schedule(0.5, start=0.5, end=bad)
    with pytest.raises(InputError, match=r"value = .* is no temperature"):
        constant(0.5, value=bad)
