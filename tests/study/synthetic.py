"""Run folders written without training: settings, series and outcome as `torchloc-train` leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.utils.tensorboard import SummaryWriter

from torchloc.study import Run

SCHEDULES: dict[str, dict[str, Any]] = {
    "geometric": {"start": 1.0, "end": 0.02},
    "linear": {"start": 1.0, "end": 0.02},
    "cosine": {"start": 1.0, "end": 0.02},
    "constant": {"value": 0.1},
    "certified": {"start": 1.0, "rate": 0.8},
    "tradeoff": {"start": 1.0, "share": 0.1},
}
Values = Sequence[float] | np.ndarray


def config(
    *,
    env: str = "sysadmin",
    schedule: str = "geometric",
    seed: Any = 0,
    iterations: int = 3,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Resolved settings; `changes` are dotted keys."""
    found: dict[str, Any] = {
        "name": "synthetic",
        "seed": seed,
        "threads": 1,
        "env": {"_target_": f"torchloc.environments.{env}", "n": 4},
        "scopes": {
            "_target_": "torchloc.graphs.neighbourhood_scopes",
            "_partial_": True,
            "hops": 1,
        },
        "policy": {"_target_": "torchloc.policy.SoftmaxPolicy.tabular", "_partial_": True},
        "schedule": {
            "_target_": f"torchloc.schedules.{schedule}",
            "_partial_": True,
            **SCHEDULES[schedule],
        },
        "improvement": {"_target_": "torchloc.improvement.Improvement", "objective": "entropy"},
        "evaluation": {"_target_": "torchloc.engine.Evaluation", "kappa": 3, "discount": 1.0},
        "locality": None,
        "trainer": {"iterations": iterations, "hold": "logits"},
        "logging": {"tensorboard": True},
    }
    for dotted, value in (changes or {}).items():
        *path, last = dotted.split(".")
        node = found
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return found


def choices(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What Hydra would have noted as chosen."""
    found = {
        group: node["_target_"].rpartition(".")[2]
        for group, node in settings.items()
        if isinstance(node, dict) and "_target_" in node
    }
    return {**found, "locality": None, "experiment": None, "hydra/launcher": "basic"}


def write_run(
    folder: Path,
    settings: Mapping[str, Any] | None,
    series: Mapping[str, Values] | None,
    *,
    outcome: Mapping[str, Any] | None = None,
    chosen: Mapping[str, Any] | None = None,
    first: int = 1,
) -> Path:
    """A run folder: step `first` and on of every series; what is None is not written."""
    folder.mkdir(parents=True, exist_ok=True)
    if settings is not None:
        hydra = folder / ".hydra"
        hydra.mkdir(exist_ok=True)
        (hydra / "config.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False))
        noted = {"hydra": {"runtime": {"choices": dict(chosen or choices(settings))}}}
        (hydra / "hydra.yaml").write_text(yaml.safe_dump(noted))
    if series is not None:
        with SummaryWriter(str(folder)) as writer:
            for index in range(max(map(len, series.values()), default=0)):
                for tag, values in series.items():
                    if index < len(values):
                        writer.add_scalar(tag, float(values[index]), first + index)
    if outcome is not None:
        (folder / "outcome.json").write_text(json.dumps(dict(outcome)))
    return folder


def done(iterations: int = 3, seconds: float = 1.5) -> dict[str, Any]:
    """The outcome of a run that went to its end."""
    return {"status": "done", "iteration": iterations, "message": None, "seconds": seconds}


def rewards(values: Values, *, agents: int = 4, optimum: float | None = None) -> dict[str, Values]:
    """Series of a run that earns these rewards per agent, in one second an iteration."""
    each = np.asarray(values, dtype=np.float64)
    found: dict[str, Values] = {
        "reward/average": agents * each,
        "reward/per_agent": each,
        "schedule/temperature": np.geomspace(1.0, 0.02, len(each)),
        "schedule/kappa": np.full(len(each), 3.0),
        "seconds/improvement": np.full(len(each), 0.75),
        "seconds/certificate": np.full(len(each), 0.25),
    }
    for rung, size in (("coupled", 0.5), ("exact", 0.9), ("span", 1.5), ("paper", 2.0)):
        found[f"rho/{rung}"] = size * (1.0 + each)
    if optimum is not None:
        found["gap/per_agent_and_step"] = optimum - each
        found["gap/joint_optimum"] = agents * (optimum - each)
    return found


def full(
    rng: np.random.Generator, schedule: str, *, agents: int, level: float, iterations: int = 16
) -> dict[str, Values]:
    """Series of every tag, shaped like a real run of a schedule; for pictures."""
    t = np.linspace(0.0, 1.0, iterations)
    rank = list(SCHEDULES).index(schedule)
    speed = 2.0 + 0.9 * rank + 0.3 * rng.standard_normal()
    top = level * (1.0 - 0.02 * rank) + 0.01 * rng.standard_normal()
    each = top - 0.35 * np.exp(-speed * t) + 0.004 * rng.standard_normal(iterations)
    temperatures = {
        "geometric": 0.02**t,
        "linear": 1.0 - 0.98 * t,
        "cosine": 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * t)),
        "constant": np.full(iterations, 0.1),
        "certified": np.maximum(0.05 ** (1.4 * t), 0.12 + 0.02 * rank),
        "tradeoff": np.maximum(0.02 ** (0.8 * t), 0.08),
    }
    tau = temperatures[schedule]
    found = rewards(each, agents=agents, optimum=level + 0.02)
    found["schedule/temperature"] = tau
    kappa = (
        1.0 + np.floor(4 * t) if schedule in ("certified", "tradeoff") else np.full(iterations, 3)
    )
    found["schedule/kappa"] = kappa
    found["work/ball"] = agents * (2 * kappa + 1)
    found["rho/coupled"] = 0.4 + 0.5 * np.exp(-3 * t) + 0.01 * rank + 0.02 * rng.standard_normal()
    found["rho/exact"] = 0.8 + 0.6 * (1 - tau) + 0.02 * rng.standard_normal()
    found["rho/span"] = found["rho/exact"] * 1.1
    found["rho/paper"] = 0.9 + 0.2 / tau**0.6
    if schedule == "constant":
        found["rho/paper"] = np.where(t > 0.6, np.inf, found["rho/paper"])
    gain = 0.3 * np.exp(-6 * t) + 1e-9
    found["ledger/realised"] = gain * agents
    found["ledger/prox_gain"] = 0.9 * gain * agents
    found["ledger/truncation_error"] = 0.4 * gain * agents * (1 + 0.2 * rank) * np.exp(-2 * t)
    found["ledger/scope_error"] = 0.05 * gain * agents
    found["ledger/fit_error"] = np.full(iterations, 1e-12)
    found["ledger/guarantee"] = (
        found["ledger/prox_gain"] - found["ledger/truncation_error"] - found["ledger/scope_error"]
    )
    found["effect/temperature"] = np.concatenate([[0.0], np.diff(tau) * agents * 0.8])
    found["effect/updates"] = found["ledger/realised"]
    found["effect/temperature_reward"] = 0.2 * gain
    found["effect/updates_reward"] = 0.8 * gain
    found["ledger/skipped"] = np.where(t < 0.4, rank % 3, 0)
    found["ledger/damped"] = np.where(t < 0.4, rank % 2, 0)
    found["seconds/improvement"] = 0.2 + 0.05 * rank + 0.03 * rng.random(iterations)
    return found


def in_memory(
    settings: Mapping[str, Any],
    series: Mapping[str, Values],
    *,
    name: str = "run",
    started: float = 0.0,
    chosen: Mapping[str, str] | None = None,
) -> Run:
    """A whole run that was never on disk."""
    noted = choices(settings) if chosen is None else chosen
    return Run(
        folder=Path(name),
        name=name,
        config=dict(settings),
        choices={key: str(value or "null") for key, value in noted.items() if "/" not in key},
        series={
            tag: (np.arange(1.0, len(values) + 1.0), np.array(values, dtype=np.float64))
            for tag, values in series.items()
        },
        status="done",
        message="",
        seconds=None,
        started=started,
        trouble="",
    )
