"""Temperature schedules, and the choice of the radius: pure functions of a run's numbers.

Fixed schedules read the progress p of a run, from 0 (first) to 1 (last), are monotone between `start`
and `end`, and hit both exactly:

- `constant`:  tau(p) = value
- `linear`:    tau(p) = (1 - p) start + p end
- `geometric`: tau(p) = start^(1 - p) end^p, equal ratios from one iteration to the next
- `cosine`:    tau(p) = w start + (1 - w) end with w = (1 + cos(pi p)) / 2, flat at both ends
- `staircase`: the values of `geometric` at `stairs` places, each held equally long

Adaptive ones (`Certified`, `Tradeoff`) read what the run has found so far, and the certificate:

- `certified_temperature`: the lowest tau that keeps a rung's rho at most `target` with the logits as they
  are, no lower than `fall` times the one before
- `tradeoff_temperature`: `fall` times the one before while the guaranteed gain of the last sweep is above its
  certified bias

and `certified_kappa` takes the smallest radius whose certified bias is a small share of the gain. They
know only numbers, and functions from numbers to numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torchloc.errors import InputError

GRID = 12
"""Temperatures that are tried where rho is not monotone."""
MONOTONE = ("span", "tanh", "paper")
RUNGS = ("coupled", "exact", *MONOTONE)
_ACCURACY = 1e-3


def constant(progress: float, *, value: float) -> float:
    """The same temperature throughout.

    Args:
        progress: Fraction of the run that is done, in [0, 1].
        value: The temperature, positive and finite.

    Returns:
        `value`.

    Raises:
        InputError: If an argument is outside its range.

    >>> constant(0.3, value=0.5)
    0.5
    """
    _check_progress(progress)
    return _positive("value", value)


def linear(progress: float, *, start: float, end: float) -> float:
    """Straight line: tau(p) = (1 - p) start + p end.

    Args:
        progress: Fraction p of the run that is done, in [0, 1].
        start: Temperature at p = 0, positive and finite.
        end: Temperature at p = 1, positive and finite.

    Returns:
        The temperature, between `start` and `end`.

    Raises:
        InputError: If an argument is outside its range.

    >>> [linear(p, start=1.0, end=0.5) for p in (0.0, 0.5, 1.0)]
    [1.0, 0.75, 0.5]
    """
    _check_progress(progress)
    start, end = _positive("start", start), _positive("end", end)
    return _between((1.0 - progress) * start + progress * end, start, end)


def geometric(progress: float, *, start: float, end: float) -> float:
    """Equal ratios: tau(p) = start^(1 - p) end^p.

    Args:
        progress: Fraction p of the run that is done, in [0, 1].
        start: Temperature at p = 0, positive and finite.
        end: Temperature at p = 1, positive and finite.

    Returns:
        The temperature, between `start` and `end`.

    Raises:
        InputError: If an argument is outside its range.

    >>> [round(geometric(p, start=1.0, end=0.01), 12) for p in (0.0, 0.5, 1.0)]
    [1.0, 0.1, 0.01]
    """
    _check_progress(progress)
    start, end = _positive("start", start), _positive("end", end)
    return _between(start ** (1.0 - progress) * end**progress, start, end)


def cosine(progress: float, *, start: float, end: float) -> float:
    """Half a cosine wave: tau(p) = w start + (1 - w) end, w = (1 + cos(pi p)) / 2.

    Args:
        progress: Fraction p of the run that is done, in [0, 1].
        start: Temperature at p = 0, positive and finite.
        end: Temperature at p = 1, positive and finite.

    Returns:
        The temperature, between `start` and `end`.

    Raises:
        InputError: If an argument is outside its range.

    >>> [round(cosine(p, start=1.0, end=0.5), 12) for p in (0.0, 0.5, 1.0)]
    [1.0, 0.75, 0.5]
    """
    _check_progress(progress)
    start, end = _positive("start", start), _positive("end", end)
    weight = 0.5 * (1.0 + math.cos(math.pi * progress))
    return _between(weight * start + (1.0 - weight) * end, start, end)


def staircase(progress: float, *, start: float, end: float, stairs: int) -> float:
    """Stairs of equal length and equal ratios: `geometric` at floor(p stairs) / (stairs - 1).

    Args:
        progress: Fraction p of the run that is done, in [0, 1].
        start: Temperature of the first stair, positive and finite.
        end: Temperature of the last one, positive and finite.
        stairs: How many, at least 2.

    Returns:
        The temperature, between `start` and `end`.

    Raises:
        InputError: If an argument is outside its range.

    >>> [staircase(p, start=1.0, end=0.25, stairs=3) for p in (0.0, 0.3, 0.4, 0.7, 1.0)]
    [1.0, 1.0, 0.5, 0.25, 0.25]
    """
    _check_progress(progress)
    if stairs < 2:
        raise InputError(f"stairs = {stairs!r}; a staircase has at least 2")
    return geometric(min(int(progress * stairs), stairs - 1) / (stairs - 1), start=start, end=end)


def certified_temperature(
    previous: float,
    rho: Callable[[float], float],
    *,
    start: float,
    end: float,
    target: float,
    fall: float,
    monotone: bool,
) -> float:
    """The lowest temperature whose rho is at most the target, between the lowest allowed and `start`.

    Args:
        previous: The temperature before; the lowest allowed is max(end, fall previous).
        rho: Temperature to certified upper bound of rho, the logits held.
        start: Highest temperature.
        end: Lowest temperature.
        target: Of rho.
        fall: Least ratio of a temperature to the one before, in (0, 1).
        monotone: Whether rho falls as the temperature rises: then by bisection of its logarithm, to a
            thousandth; else the lowest of `GRID` temperatures that passes, equally spaced in logarithm.

    Returns:
        It. Where none passes, the one of least rho among those tried.

    >>> tau = certified_temperature(
    ...     1.0, lambda t: 0.5 / t, start=1.0, end=0.1, target=0.9, fall=0.5, monotone=True
    ... )
    >>> round(tau, 2)
    0.56
    """
    low = min(max(end, fall * previous), start)
    if rho(low) <= target:
        return low
    if monotone:
        return _bisected(rho, low, start, target)
    tried = [low * (start / low) ** (step / (GRID - 1)) for step in range(1, GRID)]
    tried[-1] = start
    found = []
    for tau in tried:
        found.append(rho(tau))
        if found[-1] <= target:
            return tau
    return tried[min(range(len(tried)), key=found.__getitem__)]


def _bisected(rho: Callable[[float], float], low: float, high: float, target: float) -> float:
    """The lowest temperature that passes, from above: the one returned was checked."""
    if rho(high) > target:
        return high
    while high > low * (1.0 + _ACCURACY):
        middle = math.sqrt(low) * math.sqrt(high)  # their product may underflow
        low, high = (low, middle) if rho(middle) <= target else (middle, high)
    return high


def tradeoff_temperature(
    previous: float, *, gain: float, bias: float, start: float, end: float, fall: float
) -> float:
    """Cools while it is worth it: `fall` times the temperature before if gain > bias, else the same.

    Args:
        previous: The temperature before.
        gain: Sum over agents of the prox gains of the last sweep.
        bias: Sum over agents of what truncation may have cost it, epsilon_k times the total variation that
            agent k moved by; infinite where nothing is certified.
        start: Highest temperature.
        end: Lowest temperature.
        fall: Ratio of a temperature to the one before, in (0, 1).

    >>> [round(tradeoff_temperature(0.5, gain=g, bias=0.1, start=1.0, end=0.3, fall=0.5), 9) for g in (0.2, 0.1)]
    [0.3, 0.5]
    """
    return min(max(end, fall * previous), start) if gain > bias else previous


def certified_kappa(
    bias: Callable[[int], float], *, gain: float, share: float, at_most: int
) -> int:
    """The smallest radius whose certified bias is at most a share of the gain, up to `at_most`.

    Args:
        bias: Radius to bias, which falls as the radius grows; infinite where nothing is certified.
        gain: Of the last sweep, as in `tradeoff_temperature`.
        share: Of the gain that truncation may cost, > 0.
        at_most: Largest radius that is affordable; taken where none is small enough.

    >>> certified_kappa(lambda kappa: 0.5**kappa, gain=1.0, share=0.2, at_most=8)
    3
    """
    return next((kappa for kappa in range(at_most) if bias(kappa) <= share * gain), at_most)


@dataclass(frozen=True)
class Reading:
    """What an adaptive schedule may read.

    Attributes:
        previous: The temperature of the iteration before.
        rho: (rung, temperature) to certified upper bound of rho, the logits held.
        gain, bias: Of the last sweep, as in `tradeoff_temperature`.
    """

    previous: float
    rho: Callable[[str, float], float]
    gain: float
    bias: float


class Adaptive(ABC):
    """A schedule that reads the run; begins at `start`, and never goes below `end`."""

    start: float
    end: float

    @abstractmethod
    def next(self, reading: Reading) -> float:
        """The temperature of the next iteration."""


@dataclass(frozen=True)
class Certified(Adaptive):
    """`certified_temperature` of a rung.

    Attributes:
        start, end: Highest and lowest temperature; a run begins with the first.
        rung: `coupled`, `exact`, `span`, `tanh` or `paper`.
        target: Of rho of the rung, > 0.
        fall: Least ratio of a temperature to the one before, in (0, 1).

    Raises:
        InputError: A value is outside its range.
    """

    start: float = 1.0
    end: float = 0.02
    rung: str = "coupled"
    target: float = 0.95
    fall: float = 0.75

    def __post_init__(self) -> None:
        _check_fall(self.start, self.end, self.fall)
        if self.rung not in RUNGS:
            raise InputError(f"rung = {self.rung!r}; choose one of {', '.join(RUNGS)}")
        if not 0.0 < self.target < math.inf:
            raise InputError(f"target = {self.target!r}; it must be a finite number > 0")

    def next(self, reading: Reading) -> float:
        return certified_temperature(
            reading.previous,
            lambda tau: reading.rho(self.rung, tau),
            start=self.start,
            end=self.end,
            target=self.target,
            fall=self.fall,
            monotone=self.rung in MONOTONE,
        )


@dataclass(frozen=True)
class Tradeoff(Adaptive):
    """`tradeoff_temperature`.

    Attributes:
        start, end: Highest and lowest temperature; a run begins with the first.
        fall: Ratio of a temperature to the one before, in (0, 1).

    Raises:
        InputError: A value is outside its range.
    """

    start: float = 1.0
    end: float = 0.02
    fall: float = 0.75

    def __post_init__(self) -> None:
        _check_fall(self.start, self.end, self.fall)

    def next(self, reading: Reading) -> float:
        return tradeoff_temperature(
            reading.previous,
            gain=reading.gain,
            bias=reading.bias,
            start=self.start,
            end=self.end,
            fall=self.fall,
        )


def _check_fall(start: float, end: float, fall: float) -> None:
    if not 0.0 < _positive("end", end) <= _positive("start", start):
        raise InputError(f"end = {end!r} is above start = {start!r}; a run cools from start to end")
    if not 0.0 < fall < 1.0:
        raise InputError(f"fall = {fall!r}; it must lie between 0 and 1")


def _check_progress(progress: float) -> None:
    if not 0.0 <= progress <= 1.0:
        raise InputError(
            f"progress = {progress!r} is outside [0, 1]: pass the fraction of the run that is done"
        )


def _positive(name: str, value: float) -> float:
    if not 0.0 < value < math.inf:
        raise InputError(f"{name} = {value!r} is no temperature: give a positive finite number")
    return float(value)


def _between(value: float, start: float, end: float) -> float:
    # Rounding may step over an end point by an ulp, which would break monotonicity there.
    return min(max(value, min(start, end)), max(start, end))
