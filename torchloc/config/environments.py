"""Schemas of the environment families; a field has the name of the argument of its function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torchloc.config.ranges import (
    FINITE,
    MISSING,
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
class Firefighting:
    """n firefighters, n + 1 houses in a row; an action is shared by two houses."""

    _target_: str = "torchloc.environments.firefighting"
    n: int = setting(3, Range(1))
    levels: int = setting(3, Range(2))
    spread: float = setting(0.8, PROBABILITY)
    growth: float = setting(0.4, PROBABILITY)
    douse: float = setting(0.6, PROBABILITY)
    ignition: float = setting(0.0, PROBABILITY)


@dataclass
class FromGraph:
    """Tables of your own on a graph file: by kind of node, own state, action and active neighbours."""

    _target_: str = "torchloc.environments.from_graph"
    _convert_: str = "all"
    graph_file: str = MISSING
    laws: Any = MISSING
    rewards: Any = MISSING
    active: list[int] | None = setting(None, NONNEGATIVE)
    directed: bool = False


@dataclass
class GameOfLife:
    """Conway's Game of Life with noise; `noise` holds one p a cell, row by row."""

    _target_: str = "torchloc.environments.game_of_life"
    _convert_: str = "all"
    height: int = setting(3, Range(2))
    width: int = setting(3, Range(2))
    torus: bool = False
    p: float = setting(0.1, PROBABILITY)
    noise: list[float] | None = setting(None, PROBABILITY)
    cost: float = setting(1.0, FINITE)


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
class Rddl:
    """A RDDL problem: `domain` and `instance` of rddlrepository, or the paths of their files."""

    _target_: str = "torchloc.interop.rddl.load_rddl"
    domain: str = MISSING
    instance: str = "1"
    concurrency: str = setting("refuse", Choices(("refuse", "lift")))
    preconditions: str = setting("refuse", Choices(("refuse", "lift")))
    budget: int = setting(2**20, Range(1))


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


@dataclass
class Wireless:
    """Users on a grid of cells share access points; two at one point collide."""

    _target_: str = "torchloc.environments.wireless"
    _convert_: str = "all"
    height: int = setting(3, Range(2))
    width: int = setting(4, Range(2))
    users: int = setting(2, Range(1))
    deadline: int = setting(2, Range(1))
    arrival: float = setting(0.5, PROBABILITY)
    success: list[float] | None = setting(None, PROBABILITY)


SCHEMAS: dict[str, type] = {
    "firefighting": Firefighting,
    "from_graph": FromGraph,
    "game_of_life": GameOfLife,
    "hub_spoke": HubSpoke,
    "ising": Ising,
    "leader_follower": LeaderFollower,
    "line_msg": LineMessage,
    "random": Random,
    "rddl": Rddl,
    "sis": SIS,
    "sleepy": Sleepy,
    "sysadmin": SysAdmin,
    "wireless": Wireless,
}
