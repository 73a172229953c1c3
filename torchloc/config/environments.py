"""Schemas of the environment families; a field has the name of the argument of its function."""

from __future__ import annotations

from dataclasses import dataclass

from torchloc.config.ranges import (
    FINITE,
    NONNEGATIVE,
    POSITIVE,
    PROBABILITY,
    Choices,
    Range,
    setting,
)

_SHAPES = ("ring", "line", "star", "three_leg", "grid", "torus", "random_regular")
_GRAPHS = Choices((*_SHAPES, "karate", "les_miserables", "davis"))


@dataclass
class HubSpoke:
    """The hub's action writes every spoke (paper, E.2)."""

    _target_: str = "torchloc.environments.hub_spoke"
    n: int = setting(4, Range(3))
    law: float = setting(0.5, PROBABILITY)
    noise: float = setting(0.0, PROBABILITY)


@dataclass
class Ising:
    """Parallel Glauber dynamics with a controlled field."""

    _target_: str = "torchloc.environments.ising"
    n: int = setting(8, Range(2))
    lattice: str = setting("ring", Choices(("ring", "torus", "grid")))
    rows: int | None = setting(None, Range(1))
    beta: float = setting(0.6, FINITE)
    field: float = setting(1.0, FINITE)
    control: str = setting("up", Choices(("up", "both")))
    cost: float = setting(0.2, FINITE)
    reward: str = setting("up", Choices(("up", "magnetisation", "alignment")))


@dataclass
class LeaderFollower:
    """Coordinate 1 copies coordinate 0, and with `mutual` the other way too (paper, E.1)."""

    _target_: str = "torchloc.environments.leader_follower"
    law: float = setting(0.5, PROBABILITY)
    mutual: bool = False


@dataclass
class LineMessage:
    """A bit travels down a line, one relay a step."""

    _target_: str = "torchloc.environments.line_msg"
    n: int = setting(8, Range(2))
    relay: float = setting(0.8, PROBABILITY)
    cost: float = setting(0.1, FINITE)
    reward: str = setting("all", Choices(("all", "sink")))


@dataclass
class Random:
    """Seeded Dirichlet kernels on any digraph."""

    _target_: str = "torchloc.environments.random_mdp"
    n: int = setting(8, Range(2))
    graph: str = setting("ring", _GRAPHS)
    graph_file: str | None = None
    directed: bool = True
    rows: int | None = setting(None, Range(1))
    degree: int = setting(3, Range(1))
    states: int = setting(2, Range(1))
    actions: int = setting(2, Range(1))
    concentration: float = setting(1.0, POSITIVE)
    coupling: float = setting(1.0, PROBABILITY)
    seed: int = setting(0, NONNEGATIVE)


@dataclass
class SIS:
    """Epidemic control on a contact graph; the pairs are by action, (nothing, protect or treat)."""

    _target_: str = "torchloc.environments.sis"
    _convert_: str = "all"
    n: int = setting(8, Range(2))
    graph: str = setting("ring", _GRAPHS)
    graph_file: str | None = None
    directed: bool = False
    rows: int | None = setting(None, Range(1))
    degree: int = setting(3, Range(1))
    seed: int = setting(0, NONNEGATIVE)
    infection: list[float] = setting([0.2, 0.05], PROBABILITY)
    recovery: list[float] = setting([0.3, 0.6], PROBABILITY)
    outside: float = setting(0.01, PROBABILITY)
    cost: float = setting(0.1, FINITE)


@dataclass
class Sleepy:
    """Two agents; agent 0 writes coordinate 1 (paper, Section 3)."""

    _target_: str = "torchloc.environments.sleepy"
    law: float = setting(0.5, PROBABILITY)


@dataclass
class SysAdmin:
    """Machines on a digraph; an action reboots."""

    _target_: str = "torchloc.environments.sysadmin"
    n: int = setting(8, Range(2))
    topology: str = setting("ring", Choices(_SHAPES))
    table: str = setting("jair", Choices(("jair", "ippc")))
    cost: float = setting(0.75, FINITE)
    recovery: float = setting(0.05, PROBABILITY)
    graph_file: str | None = None
    directed: bool = True
    rows: int | None = setting(None, Range(1))
    degree: int = setting(3, Range(1))
    seed: int = setting(0, NONNEGATIVE)


SCHEMAS: dict[str, type] = {
    "hub_spoke": HubSpoke,
    "ising": Ising,
    "leader_follower": LeaderFollower,
    "line_msg": LineMessage,
    "random": Random,
    "sis": SIS,
    "sleepy": Sleepy,
    "sysadmin": SysAdmin,
}
