"""What an iteration logs: tag → number. Tags are grouped by the part before the slash.

All but `seconds/…` are functions of the run's configuration alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from torchloc.certificate import Certificate
from torchloc.engine import SimulatedValues, Values
from torchloc.lipschitz import LipschitzMonitor, certified_spreads

if TYPE_CHECKING:
    from torchloc.trainer import Trainer, TrainState

CURVES = ("coupled", "exact", "span", "paper")
"""Rungs whose ρ is a curve; the closing table has them all."""
OBSERVED_STATES = 256
"""States at which the networks are watched, fewer where there are many agents."""
OBSERVED_ROWS = 2**20


def measure(trainer: Trainer, state: TrainState) -> dict[str, float]:
    """All numbers of an iteration.

    Args:
        trainer: For its settings, and its generator (states on which Lipschitz constants are
            observed).
        state: The iteration's policy, evaluation, certificate and ledger.
    """
    values, certificate = state.values, state.certificate
    if certificate is None:
        raise ValueError("measure needs a certified state")
    tau = state.policy.temperature
    numbers = {
        "reward/average": values.reward_rate,
        "reward/per_agent": values.reward_rate / trainer.mdp.n_agents,
        "reward/objective": values.value,
        "reward/entropy": values.entropy_rate,
        "schedule/temperature": float(tau.mean()),
        "schedule/kappa": float(trainer.engine.kappa),
        "work/ball": float(trainer.ball_work()),
    }
    numbers |= _uncertainty(trainer, values)
    horizon = 1.0 if values.discount == 1.0 else 1.0 / (1.0 - values.discount)
    gain = values.reward_rate * horizon
    if state.optimum is not None:
        gap = state.optimum.gain - gain
        numbers["gap/joint_optimum"] = gap
        numbers["gap/per_agent_and_step"] = gap / horizon / trainer.mdp.n_agents
    if state.local_optimum is not None:
        numbers["gap/deterministic_local"] = state.local_optimum.gain - gain
    numbers |= _locality(certificate)
    numbers |= _lipschitz(trainer, state)
    numbers |= _ledger(trainer, state)
    return numbers


def _uncertainty(trainer: Trainer, values: Values) -> dict[str, float]:
    """The width of an exact solve; of a simulation the interval, and whether its batches are long."""
    if not isinstance(values, SimulatedValues):
        return {"reward/solve_width": values.width}
    rollout, n = values.rollout, trainer.mdp.n_agents
    return {
        "reward/half_width": rollout.half_width,
        "reward/per_agent_low": (rollout.average_reward - rollout.half_width) / n,
        "reward/per_agent_high": (rollout.average_reward + rollout.half_width) / n,
        "simulation/autocorrelation_time": rollout.autocorrelation_time,
        "simulation/batch_length": float(rollout.batch_length),
    }


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
    policy = state.policy
    certified, sources = certified_spreads(policy, span=False)
    bounded = [
        len(g) for g, source in zip(policy.groups, sources, strict=True) if source == "bound"
    ]
    count = max(2, min(OBSERVED_STATES, OBSERVED_ROWS // policy.n_agents))
    with LipschitzMonitor(policy) as monitor:
        states = state.values.sample(count, trainer.generator)
        policy.act(states, trainer.generator)
        observed = monitor.observed()
    pairs = max(len(policy.scopes.indices), 1)
    return {
        "lipschitz/max": _largest(certified.data),
        "lipschitz/mean": float(certified.data.sum()) / pairs,
        "lipschitz/bounded_agents": float(sum(bounded)),
        "lipschitz/observed_max": _largest(observed.data),
    }


def _ledger(trainer: Trainer, state: TrainState) -> dict[str, float]:
    records = state.records
    if not records:
        return {}
    names = ("prox_gain", "truncation_error", "scope_error", "fit_error", "staleness")
    numbers = {f"ledger/{name}": math.fsum(getattr(r, name) for r in records) for name in names}
    numbers["ledger/guarantee"] = math.fsum(r.guarantee for r in records)
    numbers["ledger/balance"] = math.fsum(r.balance for r in records)
    numbers["ledger/realised"] = math.fsum(r.realised for r in records)
    numbers["ledger/fit_kl"] = max(r.fit_kl for r in records)
    if trainer.improvement.guard != "none":
        numbers["ledger/skipped"] = float(sum(r.share == 0.0 for r in records))
        numbers["ledger/damped"] = float(sum(0.0 < r.share < 1.0 for r in records))
    return numbers


def _largest(values: np.ndarray) -> float:
    return float(values.max(initial=0.0))
