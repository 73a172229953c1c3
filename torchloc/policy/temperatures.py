"""The lowest temperatures that numbers allow."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torchloc.errors import InputError

LEAST_TEMPERATURE = 2.0**-890
"""Lowest τ of a run: logits of any float32 over it are finite (2¹²⁸ · 2⁸⁹⁰ < 2¹⁰²⁴), and its products keep their
digits. Laws alone are right at any τ; bounds and prox steps are not."""


def check_temperature(temperature: float) -> None:
    """Refuses a temperature of a run at which numbers divided by it leave the range of float64.

    Raises:
        InputError: It is positive, and below `LEAST_TEMPERATURE`.
    """
    if 0.0 < temperature < LEAST_TEMPERATURE:
        raise InputError(
            f"temperature is {temperature:.6g}; below {LEAST_TEMPERATURE:.3g} logits divided by it leave the "
            f"range of float64, so end the schedule above it"
        )


def check_scaled(temperature: float, weights: Iterable[Tensor]) -> None:
    """Refuses a temperature at which logits of a given law, τ times its log-odds, underflow in the weights.

    Raises:
        InputError: It is below the least normal number of the dtype of some weights.
    """
    for parameter in weights:
        least = torch.finfo(parameter.dtype).tiny
        if temperature < least:
            raise InputError(
                f"temperature is {temperature:.6g} with hold='policy', and logits of that size underflow in "
                f"weights of {str(parameter.dtype).removeprefix('torch.')}, below {least:.3g}; end the schedule "
                f"above it, use wider weights, or hold=logits"
            )
