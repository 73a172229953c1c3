"""What adaptive schedules, and the choice of κ, read of a run: its last sweep and its certificate."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np

from torchloc.certificate import Environment, Ladder, RungCertificate, Spreads
from torchloc.improvement import Gains
from torchloc.mdp.checks import FloatArray
from torchloc.policy import SoftmaxPolicy
from torchloc.schedules import Reading, certified_kappa
from torchloc.spectral import spectral_radius


def truncation_bias(epsilon: FloatArray, gains: Gains) -> float:
    """Σ_k ε_k TV_k, 0 · ∞ = 0: what truncation may have cost what the agents moved, in units of reward a step.

    With gains of a ledger an upper bound of what the blocks' guarantees lose by truncation (theory: named
    term `truncation_error`); with estimated gains an estimate.

    Args:
        epsilon: (K,) certified ε_k.
        gains: Of the sweep.
    """
    moved = gains.total_variation.numpy()
    return float(np.where(moved > 0.0, epsilon, 0.0) @ moved)


def reading(
    environment: Environment,
    policy: SoftmaxPolicy,
    *,
    previous: float,
    epsilon: FloatArray,
    gains: Gains,
    averaged: bool = False,
) -> Reading:
    """What an adaptive schedule may read between two iterations.

    Args:
        environment: Of the model.
        policy: The policy; not changed.
        previous: τ of the iteration before.
        epsilon: (K,) ε_k certified for it.
        gains: Of its sweep.
        averaged: Asynchronous dynamics: `coupled` is C^π.
    """

    @cache
    def trial() -> tuple[SoftmaxPolicy, Spreads]:
        copied = copy.deepcopy(policy)
        return copied, Spreads(copied)

    def rho(rung: str, temperature: float) -> float:
        copied, spreads = trial()
        copied.set_temperature(temperature)
        ladder = Ladder(environment, copied, averaged=averaged, spreads=spreads)
        return spectral_radius(ladder.matrix(rung)).upper

    gain = float(gains.prox_gain.sum())
    return Reading(previous, rho, gain, truncation_bias(epsilon, gains))


def certified_radius(rung: RungCertificate, gains: Gains, *, share: float, at_most: int) -> int:
    """The smallest κ at which truncation may cost at most a share of what the last sweep gained.

    Args:
        rung: The certificate of the policy that is to be improved.
        gains: Of the last sweep.
        share: Of its prox gain.
        at_most: Largest κ; taken where none is small enough, or nothing is certified.
    """
    return certified_kappa(
        lambda kappa: truncation_bias(rung.epsilon_at(kappa), gains),
        gain=float(gains.prox_gain.sum()),
        share=share,
        at_most=at_most,
    )
