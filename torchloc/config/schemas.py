"""The schema of every configuration group: types, defaults, ranges, and the `_target_` they build.

A YAML file of `conf/GROUP/NAME.yaml` inherits its schema through its defaults list,

    defaults:
      - /schema/GROUP/NAME@_here_

so a wrong type or an unknown key is refused while Hydra composes; `ranges.check` holds the rest.
A field has the name of the argument of its `_target_`; the environments are in `environments.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from torchloc.config import environments
from torchloc.config.ranges import (
    NONNEGATIVE,
    POSITIVE,
    Choices,
    NaturalOr,
    Pattern,
    Range,
    setting,
)

THREADS = Range(1, 1024)
COUNT = Range(1, 10**9)
LARGEST_KAPPA = 100_000
"""Rounds of message passing at most."""
DEVICE = Pattern(r"cpu|cuda(:\d{1,3})?", "cpu, cuda, or cuda:N")
NAME = Pattern(
    r"(?!.*(^|/)\.*(/|$))[\w .+=,@\[\]-]{1,120}(/[\w .+=,@\[\]-]{1,120}){0,7}",
    "the name of a folder below runs: letters, digits, spaces and . _ - + = , @ [ ], at most 120, "
    "and / between folders",
)


@dataclass
class NeighbourhoodScopes:
    """What agent k acts on, and everything at most `hops` edges upstream of it."""

    _target_: str = "torchloc.graphs.neighbourhood_scopes"
    _partial_: bool = True
    hops: int = setting(1, Range(0, 10_000))


@dataclass
class ParentScopes:
    """The state parents of what agent k acts on."""

    _target_: str = "torchloc.graphs.parent_scopes"
    _partial_: bool = True


@dataclass
class ExplicitScopes:
    """One list of coordinates an agent."""

    _target_: str = "torchloc.graphs.as_scopes"
    _partial_: bool = True
    _convert_: str = "all"
    scopes: list[list[int]] = field(default=MISSING)


@dataclass
class TabularPolicy:
    """One free logit for every local observation and action, normal with deviation `scale` at first."""

    _target_: str = "torchloc.policy.SoftmaxPolicy.tabular"
    _partial_: bool = True
    scale: float = setting(0.0, NONNEGATIVE)


@dataclass
class LinearPolicy:
    """Logits linear in the one-hot observation."""

    _target_: str = "torchloc.policy.SoftmaxPolicy.linear"
    _partial_: bool = True


@dataclass
class MLPPolicy:
    """Multilayer perceptrons, one an agent or shared; `bound` keeps logits within L by construction."""

    _target_: str = "torchloc.policy.SoftmaxPolicy.mlp"
    _partial_: bool = True
    _convert_: str = "all"
    hidden: list[int] = setting([32, 32], Range(1))
    activation: str = setting("relu", Choices(("relu", "tanh", "gelu")))
    sharing: bool = False
    embedding: int = setting(8, NONNEGATIVE)
    bound: float | None = setting(None, POSITIVE)


@dataclass
class ConstantSchedule:
    """One temperature throughout."""

    _target_: str = "torchloc.schedules.constant"
    _partial_: bool = True
    value: float = setting(1.0, POSITIVE)


@dataclass
class LinearSchedule:
    """Equal steps from `start` to `end`."""

    _target_: str = "torchloc.schedules.linear"
    _partial_: bool = True
    start: float = setting(1.0, POSITIVE)
    end: float = setting(0.02, POSITIVE)


@dataclass
class GeometricSchedule:
    """Equal ratios from `start` to `end`."""

    _target_: str = "torchloc.schedules.geometric"
    _partial_: bool = True
    start: float = setting(1.0, POSITIVE)
    end: float = setting(0.02, POSITIVE)


@dataclass
class CosineSchedule:
    """Half a cosine wave from `start` to `end`."""

    _target_: str = "torchloc.schedules.cosine"
    _partial_: bool = True
    start: float = setting(1.0, POSITIVE)
    end: float = setting(0.02, POSITIVE)


@dataclass
class StaircaseSchedule:
    """Equal stairs from `start` to `end`, equal ratios."""

    _target_: str = "torchloc.schedules.staircase"
    _partial_: bool = True
    start: float = setting(1.0, POSITIVE)
    end: float = setting(0.02, POSITIVE)
    stairs: int = setting(4, Range(2, 10**9))


@dataclass
class CertifiedSchedule:
    """The lowest temperature that keeps ρ of a rung at most `target`, the logits held."""

    _target_: str = "torchloc.schedules.Certified"
    start: float = setting(1.0, POSITIVE)
    end: float = setting(0.02, POSITIVE)
    rung: str = setting("coupled", Choices(("coupled", "exact", "span", "tanh", "paper")))
    target: float = setting(0.95, POSITIVE)
    fall: float = setting(0.75, Range(0, 1, low_open=True, high_open=True))


@dataclass
class TradeoffSchedule:
    """Cools while the guaranteed gain of the last sweep is above its certified bias."""

    _target_: str = "torchloc.schedules.Tradeoff"
    start: float = setting(1.0, POSITIVE)
    end: float = setting(0.02, POSITIVE)
    fall: float = setting(0.75, Range(0, 1, low_open=True, high_open=True))


@dataclass
class Improvement:
    """KL-prox block updates; `prox` is the weight η, null means η = τ; `fit_*` for networks."""

    _target_: str = "torchloc.improvement.Improvement"
    order: str = setting("cyclic", Choices(("cyclic", "chromatic", "jacobi")))
    objective: str = setting("entropy", Choices(("entropy", "reward")))
    weighting: str = setting("stationary", Choices(("stationary", "marginal", "uniform")))
    prox: float | None = setting(None, NONNEGATIVE)
    guard: str = setting("none", Choices(("none", "damp", "skip")))
    fit_method: str = setting("auto", Choices(("auto", "levenberg", "adam")))
    fit_steps: int | None = setting(None, COUNT)
    fit_tolerance: float = setting(1e-10, POSITIVE)
    fit_kl: float = setting(0.0, NONNEGATIVE)
    fit_rate: float = setting(1e-2, POSITIVE)
    fit_batch: int | None = setting(None, COUNT)
    fit_ascend: bool = False


@dataclass
class Evaluation:
    """Exact by enumeration (`joint`), or on balls and by simulation (`local`); `auto`: what fits."""

    _target_: str = "torchloc.engine.Evaluation"
    engine: str = setting("auto", Choices(("auto", "joint", "local")))
    kappa: int | str = setting(3, NaturalOr(("auto", "certified"), LARGEST_KAPPA))
    kappa_most: int | str = setting(3, NaturalOr(("auto",), LARGEST_KAPPA))
    kappa_share: float = setting(0.1, POSITIVE)
    discount: float = setting(1.0, Range(0, 1, low_open=True))
    tolerance: float = setting(1e-10, POSITIVE)
    steps: int = setting(64, COUNT)
    burn_in: int = setting(64, Range(0, 10**9))
    replicas: int = setting(8, COUNT)
    ball_bytes: int = setting(2**27, Range(8, 2**62))
    dtype: str = setting("float64", Choices(("float64", "float32")))
    device: str = setting("cpu", DEVICE)


@dataclass
class Locality:
    """Keeps a rung under `target` by shrinking logits, or raising temperatures, after every sweep."""

    _target_: str = "torchloc.locality.Locality"
    target: float = setting(0.9, POSITIVE)
    rung: str = setting("exact", Choices(("coupled", "exact", "span", "tanh", "paper")))
    how: str = setting("logits", Choices(("temperature", "logits", "centre")))
    rounds: int = setting(6, COUNT)
    price: float | None = setting(None, POSITIVE)


@dataclass
class Trainer:
    """The loop; `hold` is what stays when τ moves."""

    iterations: int = setting(16, COUNT)
    hold: str = setting("logits", Choices(("logits", "policy")))


@dataclass
class Checkpoint:
    """One checkpoint at the end and one every `every` iterations (0: only at the end)."""

    every: int = setting(1, Range(0, 10**9))
    keep: int = setting(2, COUNT)


@dataclass
class Logging:
    """What a run writes beside its checkpoints, and whether it draws a progress bar."""

    tensorboard: bool = True
    heat_maps_every: int = setting(4, NONNEGATIVE)
    progress: bool = True


@dataclass
class Run:
    """One training run; groups that users may extend are `Any` and bring their own schema."""

    name: str = "default"
    seed: int = setting(0, Range(0, 2**63 - 1))
    threads: int = setting(1, THREADS)
    dynamics: str = setting("synchronous", Choices(("synchronous", "asynchronous")))
    env: Any = MISSING
    scopes: Any = MISSING
    policy: Any = MISSING
    schedule: Any = MISSING
    improvement: Any = MISSING
    evaluation: Any = MISSING
    locality: Any = None
    trainer: Trainer = field(default_factory=Trainer)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    logging: Logging = field(default_factory=Logging)


SCHEMAS: dict[str, dict[str, type]] = {
    "env": environments.SCHEMAS,
    "scopes": {
        "neighbourhood": NeighbourhoodScopes,
        "parents": ParentScopes,
        "explicit": ExplicitScopes,
    },
    "policy": {"tabular": TabularPolicy, "linear": LinearPolicy, "mlp": MLPPolicy},
    "schedule": {
        "constant": ConstantSchedule,
        "linear": LinearSchedule,
        "geometric": GeometricSchedule,
        "cosine": CosineSchedule,
        "staircase": StaircaseSchedule,
        "certified": CertifiedSchedule,
        "tradeoff": TradeoffSchedule,
    },
    "improvement": {"cyclic": Improvement, "chromatic": Improvement, "jacobi": Improvement},
    "locality": {"keep": Locality},
    "evaluation": {"auto": Evaluation, "joint": Evaluation, "local": Evaluation},
}


def register() -> None:
    """Puts the schemas where Hydra finds them; called before composing, any number of times."""
    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=Run, provider="torchloc")
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=schema, provider="torchloc")
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


def folder_name(text: str) -> str:
    """A string that is safe as one folder name: no separators, at most 120 characters.

    >>> folder_name("env.graph=/data/contacts.csv,seed=1")
    'env.graph=_data_contacts.csv,seed=1'
    """
    safe = "".join(c if c.isalnum() or c in "._-+=,[]" else "_" for c in text)
    return safe[:120]


def field_names(schema: Any) -> list[str]:
    """The settings of a schema, or nothing where a node has none."""
    if isinstance(schema, type) and dataclasses.is_dataclass(schema):
        return [field.name for field in dataclasses.fields(schema)]
    return []
