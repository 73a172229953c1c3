"""Temperature schedules: pure functions of the progress p of a run, from 0 (first) to 1 (last).

Every function returns the temperature tau > 0 of softmax(z / tau) and hits its end points exactly:

- `constant`:  tau(p) = value
- `linear`:    tau(p) = (1 - p) start + p end
- `geometric`: tau(p) = start^(1 - p) end^p, equal ratios from one iteration to the next
- `cosine`:    tau(p) = w start + (1 - w) end with w = (1 + cos(pi p)) / 2, flat at both ends

All are monotone between `start` and `end`. They know only numbers.
"""

from __future__ import annotations

import math

from torchloc.errors import InputError


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
