"""Interquartile means with bootstrap intervals, and times to a target.

The interquartile mean (IQM) of n numbers is the mean without the ⌊n/4⌋ smallest and the ⌊n/4⌋ largest. Its interval
is the percentile bootstrap: the 2.5 % and 97.5 % quantiles of the IQM over resamples of the runs. Over several
environments resamples are drawn within each (stratified), as Agarwal et al. (2021) do. Of one run there is no
interval. With fewer than some ten runs such intervals are too narrow: they are a picture of the spread, no proof.

Infinities are numbers here (a target never reached, an uncertified tail): quantiles are taken without
interpolation, so none of them turns into nan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchloc.mdp.checks import FloatArray

COVERAGE = 0.95
RESAMPLES = 2000
SEED = 0
TRIMMED = 0.25
"""The share cut off at each end."""


@dataclass(frozen=True)
class Estimate:
    """An IQM with its interval.

    Attributes:
        value: The IQM; nan where nothing was measured.
        low, high: The interval; None where there are fewer than two runs.
        count: Runs behind it.
    """

    value: float
    low: float | None
    high: float | None
    count: int

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self.count > 0


def interquartile_mean(values: FloatArray) -> FloatArray:
    """The IQM along the first axis; nan where infinities of both signs are left in.

    Args:
        values: (n, …), n ≥ 1, no nan.
    """
    cut = int(TRIMMED * len(values))
    with np.errstate(invalid="ignore"):
        return np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0)


def interval(
    strata: Sequence[FloatArray], *, resamples: int = RESAMPLES
) -> tuple[FloatArray, FloatArray]:
    """The bootstrap interval of the IQM of all strata together, resampled within each.

    Args:
        strata: (n_e, …) each, n_e ≥ 1.
        resamples: How many.

    Returns:
        Lower and upper end, (…).
    """
    generator = np.random.default_rng(SEED)
    drawn = [
        part[generator.integers(len(part), size=(resamples, len(part)))].swapaxes(0, 1)
        for part in strata
    ]
    samples = interquartile_mean(np.concatenate(drawn))
    tail = (1.0 - COVERAGE) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail], axis=0, method="inverted_cdf")
    return low, high


def estimate(values: Sequence[float] | FloatArray) -> Estimate:
    """The IQM of some runs' numbers and its interval; nan are left out.

    >>> estimate([1.0, 2.0, 3.0, 100.0]).value
    2.5
    >>> estimate([1.0])
    Estimate(value=1.0, low=None, high=None, count=1)
    """
    return pooled([np.asarray(values, dtype=np.float64)])


def pooled(strata: Sequence[FloatArray]) -> Estimate:
    """The IQM over several strata and its stratified interval; nan are left out.

    No stratum of one run can vary: the interval is None where none has two.
    """
    parts = [part[~np.isnan(part)] for part in strata]
    parts = [part for part in parts if len(part)]
    if not parts:
        return Estimate(math.nan, None, None, 0)
    everything = np.concatenate(parts)
    value = float(interquartile_mean(everything))
    if max(map(len, parts)) < 2:
        return Estimate(value, None, None, len(everything))
    low, high = interval(parts)
    return Estimate(value, float(low), float(high), len(everything))


def settled(steps: FloatArray, values: FloatArray, target: float) -> float:
    """The first step from which on all values are at least `target`; infinite where the last is not.

    Args:
        steps: (T,) in order.
        values: (T,).
        target: What to reach.

    >>> settled(np.arange(4.0), np.array([1.0, 3.0, 1.5, 2.0]), 1.4)
    1.0
    """
    below = np.flatnonzero(~(values >= target))
    after = int(below[-1]) + 1 if len(below) else 0
    return float(steps[after]) if after < len(steps) else math.inf
