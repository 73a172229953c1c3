"""Which coordinates move in one step.

    synchronous     all of them                                                  (paper, Section 2)
    asynchronous    one alone, j with probability ν_j; all others stay           (paper, B.6)

Actions are drawn and the reward is collected in every step of both.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from torchloc.errors import InputError
from torchloc.mdp.checks import FloatArray, reals

Dynamics = Literal["synchronous", "asynchronous"]


def move_rates(
    n_coordinates: int, dynamics: Dynamics, site_law: ArrayLike | None = None
) -> FloatArray:
    """How often each coordinate moves.

    Args:
        n_coordinates: N.
        dynamics: `synchronous` or `asynchronous`.
        site_law: (N,) ν, asynchronous only; uniform if None. What it misses 1 by is divided out.

    Returns:
        (N,) probability that the coordinate moves in one step: 1 if synchronous, else ν.

    Raises:
        InputError: Unknown dynamics, a site law of synchronous dynamics, or one that is no law on
            the coordinates.

    Example:
        >>> move_rates(4, "asynchronous").tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    if dynamics not in ("synchronous", "asynchronous"):
        raise InputError(f"dynamics is {dynamics!r}; choose synchronous or asynchronous")
    if dynamics == "synchronous":
        if site_law is not None:
            raise InputError("site_law is given, but dynamics is synchronous; drop one of them")
        return np.ones(n_coordinates)
    if site_law is None:
        return np.full(n_coordinates, 1.0 / n_coordinates)
    law = reals(site_law, "site_law")
    if law.shape != (n_coordinates,) or not (law >= 0).all() or not abs(law.sum() - 1.0) <= 1e-9:
        raise InputError(
            f"site_law has shape {law.shape} and sum {law.sum():.6g}; it must be a law on the "
            f"{n_coordinates} coordinates"
        )
    return law / law.sum()
