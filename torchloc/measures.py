"""What an iteration logs: tag → number. Tags are grouped by the part before the slash.

All but `seconds/…` are functions of the run's configuration alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from torchloc.certificate import Certificate
from torchloc.lipschitz import LipschitzMonitor, logit_lipschitz

if TYPE_CHECKING:
    from torchloc.trainer import Trainer, TrainState

CURVES = ("coupled", "exact", "span", "paper")
"""Rungs whose ρ is a curve; the closing table has them all."""
OBSERVED_STATES = 256


def measure(trainer: Trainer, state: TrainState) -> dict[str, float]:
    """All numbers of an iteration.

    Args:
        trainer: For its settings, and its generator (states on which Lipschitz constants are
            observed).
        state: The iteration's policy, evaluation, certificate and ledger.
    """
    joint, certificate = state.joint, state.certificate
    if certificate is None:
        raise ValueError("measure needs a certified state")
    tau = state.policy.temperature
    numbers = {
        "reward/average": joint.reward_rate,
        "reward/per_agent": joint.reward_rate / trainer.mdp.n_agents,
        "reward/objective": joint.value,
        "reward/entropy": joint.entropy_rate,
        "reward/solve_width": joint.width,
        "schedule/temperature": float(tau.mean()),
        "schedule/kappa": float(trainer.evaluation.kappa),
    }
    horizon = 1.0 if joint.discount == 1.0 else 1.0 / (1.0 - joint.discount)
    gain = joint.reward_rate * horizon
    if state.optimum is not None:
        gap = state.optimum.gain - gain
        numbers["gap/joint_optimum"] = gap
        numbers["gap/per_agent_and_step"] = gap / horizon / trainer.mdp.n_agents
    if state.local_optimum is not None:
        numbers["gap/deterministic_local"] = state.local_optimum.gain - gain
    numbers |= _locality(certificate)
    numbers |= _lipschitz(trainer, state)
    numbers |= _ledger(state)
    return numbers


def _locality(certificate: Certificate) -> dict[str, float]:
    numbers = {}
    for name in CURVES:
        rung = certificate[name]
        numbers[f"rho/{name}"] = rung.rho.upper
        numbers[f"norm_rows/{name}"] = rung.row_norm
        numbers[f"norm_columns/{name}"] = rung.column_norm
    numbers["bound/delta_hat"] = _largest(certificate["coupled"].delta_hat)
    numbers["bound/tail"] = _largest(certificate.tail)
    numbers["bound/epsilon"] = _largest(certificate.epsilon)
    numbers["bound/epsilon_paper"] = _largest(certificate["paper"].epsilon)
    numbers["bound/tail_sum"] = float(certificate.tail.sum())
    return numbers


def _lipschitz(trainer: Trainer, state: TrainState) -> dict[str, float]:
    policy, joint = state.policy, state.joint
    exact = logit_lipschitz(policy)
    with LipschitzMonitor(policy) as monitor:
        law = joint.stationary.reshape(-1)
        drawn = torch.multinomial(law, OBSERVED_STATES, True, generator=trainer.generator)
        states = torch.stack(torch.unravel_index(drawn, joint.shape), dim=-1)
        policy.act(states, trainer.generator)
        observed = monitor.observed()
    pairs = max(len(policy.scopes.indices), 1)
    return {
        "lipschitz/max": _largest(exact.data),
        "lipschitz/mean": float(exact.data.sum()) / pairs,
        "lipschitz/observed_max": _largest(observed.data),
    }


def _ledger(state: TrainState) -> dict[str, float]:
    records = state.records
    if not records:
        return {}
    names = ("prox_gain", "truncation_error", "scope_error", "fit_error", "staleness")
    numbers = {f"ledger/{name}": math.fsum(getattr(r, name) for r in records) for name in names}
    numbers["ledger/guarantee"] = math.fsum(r.guarantee for r in records)
    numbers["ledger/balance"] = math.fsum(r.balance for r in records)
    numbers["ledger/realised"] = math.fsum(r.realised for r in records)
    numbers["ledger/fit_kl"] = max(r.fit_kl for r in records)
    return numbers


def _largest(values: np.ndarray) -> float:
    return float(values.max(initial=0.0))
