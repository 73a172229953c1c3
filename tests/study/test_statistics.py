"""Means, intervals and times against values by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import bootstrap, trim_mean

from torchloc.study.statistics import (
    estimate,
    interquartile_mean,
    interval,
    pooled,
    settled,
)


def test_the_interquartile_mean_by_hand() -> None:
    assert interquartile_mean(np.array([3.0, 1.0, 2.0])) == 2.0  # of three none is cut
    assert interquartile_mean(np.array([1.0, 2.0, 4.0, 100.0])) == 3.0
    assert interquartile_mean(np.arange(8.0)) == 3.5
    assert interquartile_mean(np.array([1.0, 2.0, 3.0, np.inf, 5.0])) == pytest.approx(10 / 3)
    assert np.isinf(interquartile_mean(np.array([1.0, np.inf, 3.0, np.inf, 5.0])))


@pytest.mark.parametrize("n", range(1, 14))
def test_the_interquartile_mean_is_scipys(n: int) -> None:
    values = np.random.default_rng(n).standard_normal((n, 3))
    # Sums of n terms in double precision.
    np.testing.assert_allclose(interquartile_mean(values), trim_mean(values, 0.25), rtol=1e-12)


def test_of_two_runs_the_interval_is_both() -> None:
    """Resamples of {a, b} have the means a, (a + b)/2, b with probabilities ¼, ½, ¼."""
    found = estimate([1.0, 3.0])
    assert (found.value, found.low, found.high, found.count) == (2.0, 1.0, 3.0, 2)


def test_the_interval_is_the_quantile_of_all_resamples() -> None:
    """Of four runs all 256 resamples can be listed; 2,000 random ones find the same quantiles.

    Quantiles of the two distributions agree to what the probabilities 0.025 may be off: three
    standard errors of 2,000 draws, 0.0105.
    """
    values = np.array([0.0, 1.0, 4.0, 10.0])
    every = np.array(list(itertools.product(values, repeat=4))).T
    means = np.sort(interquartile_mean(every))
    low, high = interval([values])
    off = 3 * math.sqrt(0.025 * 0.975 / 2000)
    ends = np.quantile(means, [0.025 - off, 0.025 + off, 0.975 - off, 0.975 + off])
    assert ends[0] <= low <= ends[1] and ends[2] <= high <= ends[3]


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).standard_normal(40)
    low, high = interval([values])
    theirs = bootstrap(
        (values,),
        lambda x, axis: trim_mean(x, 0.25, axis=axis),
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    # Two independent estimates of a 2.5 % quantile, where the density of a normal mean with standard
    # error s is 0.058/s: each is off by s·√(0.025·0.975/2000)/0.058 = 0.06 s; three times √2 of it.
    spread = 3 * math.sqrt(2) * 0.06 * float(theirs.high - theirs.low) / 3.92
    assert abs(low - theirs.low) < spread and abs(high - theirs.high) < spread


def test_one_run_has_no_interval_and_no_run_no_value() -> None:
    one = estimate([2.0])
    assert (one.value, one.low, one.high) == (2.0, None, None)
    none = estimate([math.nan])
    assert math.isnan(none.value) and not none.known and none.low is None
    assert estimate([1.0, math.nan]).count == 1


def test_strata_are_resampled_within_themselves() -> None:
    """Each stratum is constant, so no resample differs; mixed, the interval would be [0, 10]."""
    zeros, tens = np.zeros(3), np.full(3, 10.0)
    found = pooled([zeros, tens])
    assert (found.value, found.low, found.high, found.count) == (5.0, 5.0, 5.0, 6)
    mixed = estimate(np.concatenate([zeros, tens]))
    assert (mixed.low, mixed.high) == (0.0, 10.0)
    assert pooled([np.array([1.0]), np.array([2.0])]).low is None


def test_infinities_make_no_nan() -> None:
    found = estimate([1.0, math.inf, math.inf])
    assert (found.value, found.low, found.high) == (math.inf, 1.0, math.inf)
    curves = np.array([[1.0, np.inf], [2.0, np.inf], [3.0, np.inf]])
    low, high = interval([curves])
    assert low[0] < high[0] and np.isinf([low[1], high[1]]).all()


def test_bands_are_pointwise_and_repeatable() -> None:
    matrix = np.random.default_rng(0).standard_normal((5, 7))
    low, high = interval([matrix])
    single = interval([matrix[:, 3]])
    assert (low[3], high[3]) == single
    assert (low < high).all()


def test_the_time_to_a_target_is_when_it_is_reached_for_good() -> None:
    steps = np.array([1.0, 2.0, 3.0, 4.0])
    assert settled(steps, np.array([5.0, 1.0, 4.0, 4.0]), 4.0) == 3.0
    assert settled(steps, np.array([4.0, 4.0, 5.0, 4.0]), 4.0) == 1.0
    assert settled(steps, np.array([4.0, 4.0, 4.0, 3.0]), 4.0) == math.inf
