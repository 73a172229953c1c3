"""What a pass over the balls reads, and the functions that they carry to their last step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchloc.alike import distinct
from torchloc.contraction.balls import Ball
from torchloc.contraction.sites import Sites
from torchloc.contraction.steps import Step
from torchloc.evaluation.numbers import Columns, ModelTables, Moved, Numbers, as_index
from torchloc.evaluation.sources import Sources
from torchloc.mdp.checks import IntArray

_CHUNK = {"cpu": 2**17, "cuda": 2**26}
"""Entries of the largest tensor of one batch: what stays in a processor's cache."""

Chosen = Sequence[tuple[int, IntArray]]
"""Classes of sites, and which of their rows are wanted."""


@dataclass(frozen=True, eq=False)
class Reached:
    """Some sources of a ball, and the operands of its last step whose derivative is wanted.

    Attributes:
        ball: The ball of these sources alone.
        origin: Number of the ball that they are part of.
        rows: (B,) where they stand in it.
        kernels: Positions of kernels.
        laws: Positions of shared laws.
    """

    ball: Ball
    origin: int
    rows: IntArray
    kernels: tuple[int, ...]
    laws: tuple[int, ...]

    @property
    def operands(self) -> list[int]:
        """The wanted operands of the last step's network."""
        n_kernels = len(self.ball.last.kinds)
        return [1 + i for i in self.kernels] + [1 + n_kernels + i for i in self.laws]


@dataclass(frozen=True, eq=False)
class Selection:
    """What of a plan reaches some agents.

    Attributes:
        agents: (K,) bool.
        balls: Balls with a derivative that is wanted, and which.
        kernels: Site classes, and which of their rows have an agent that is wanted.
        rewards: Classes of reward terms likewise.
    """

    agents: np.ndarray
    balls: tuple[Reached, ...]
    kernels: tuple[tuple[int, IntArray], ...]
    rewards: tuple[tuple[int, IntArray], ...]


@dataclass(frozen=True, eq=False)
class Problem:
    """What a pass reads.

    Attributes:
        sites: Structure of the kernels.
        sources: Structure of the rewards.
        model: Their tables.
        numbers: The policy's.
        discount: γ.
        memory: Functions of balls that are known already; None where nothing is kept.
    """

    sites: Sites
    sources: Sources
    model: ModelTables
    numbers: Numbers
    discount: float
    memory: Memory | None = None

    @property
    def chunk(self) -> int:
        """Entries of the largest tensor of one batch."""
        return _CHUNK[self.model.device.type]

    def zeros(self, *shape: int) -> Tensor:
        """Zeros of the pass's dtype on its device."""
        return torch.zeros(shape, dtype=self.model.dtype, device=self.model.device)


def carried(problem: Problem, ball: Ball, start: int, stop: int) -> Tensor:
    """(*S, B or 1) the ball's function before its last step: Σ_t γ^t (T^π)^t f, or one power."""
    source = problem.numbers.sources[ball.source].at(ball.rows[start:stop])
    values = source
    for step in ball.steps:
        network = step.pulling()
        operands = [values, *operands_of(problem.numbers, step, start, stop)]
        values = network(operands[: len(network.operands)])
        if problem.discount < 1.0:
            values = values * problem.discount
        if ball.carried and step.source is not None:
            order = sorted(range(len(step.source)), key=step.source.__getitem__)
            result = range(len(step.result))
            view = tuple(slice(None) if i in step.source else None for i in result)
            added = source.permute(*order, len(order))[(*view, slice(None))]
            values = values + (added * _unit(problem, step) if step.open else added)
    return values


def _unit(problem: Problem, step: Step) -> Tensor:
    """(1, …, *hidden sizes, 1): what stands for 1 along the hidden axes of an open result."""
    unit = problem.zeros(*(1,) * (len(step.result) + 1)) + 1.0
    for place, (_, along) in enumerate(step.units, start=len(step.direct)):
        shape = [1] * unit.ndim
        shape[place] = len(along)
        unit = unit * torch.tensor(along).to(unit).reshape(shape)
    return unit


class Memory:
    """The balls' functions before their last step, kept while a policy changes agent by agent.

    Args:
        balls: All balls of a plan.
        like: Gives dtype and device.
    """

    def __init__(self, balls: Sequence[Ball], like: ModelTables) -> None:
        self._balls = balls
        self._like = like
        self._values: list[Tensor | None] = [None] * len(balls)
        self._stale = [np.ones(len(ball), dtype=np.bool_) for ball in balls]

    @staticmethod
    def bytes_of(balls: Sequence[Ball]) -> int:
        """What keeping everything takes, float64."""
        return sum(8 * len(ball) * math.prod(ball.last.before_sizes) for ball in balls)

    def values(self, problem: Problem, origin: int, rows: IntArray) -> Tensor:
        """(*S, len(rows)) functions of some sources of a ball; what has changed is computed again."""
        ball = self._balls[origin]
        kept = self._values[origin]
        if kept is None:
            shape = (*ball.last.before_sizes, len(ball))
            kept = torch.empty(shape, dtype=self._like.dtype, device=self._like.device)
            self._values[origin] = kept
        stale = rows[self._stale[origin][rows]]
        if len(stale):
            part = ball.at(stale)
            new = carried(problem, part, 0, len(stale))
            kept.index_copy_(
                -1, as_index(stale, kept), new.expand(*new.shape[:-1], len(stale)).contiguous()
            )
            self._stale[origin][stale] = False
        return Columns(kept, None).at(rows)

    def forget(self, problem: Problem, moved: Moved) -> None:
        """Marks what reads something that changed."""
        kernels = []
        for rows, site in zip(moved.kernels, problem.sites.classes, strict=True):
            mask = np.zeros(len(site), dtype=np.bool_)
            mask[rows] = True
            kernels.append(mask)
        groups = problem.numbers.layout.groups
        for ball, stale in zip(self._balls, self._stale, strict=True):
            stale |= moved.sources[ball.source][ball.rows]
            for step in ball.steps:
                for kind, rows in zip(step.kinds, step.sites, strict=True):
                    stale |= kernels[kind][rows]
                for group, rows in zip(step.groups, step.agents, strict=True):
                    stale |= moved.agents[groups[group].agents[rows]]


def alike(numbers: Numbers, ball: Ball, *, weighted: bool) -> tuple[IntArray, IntArray | None]:
    """Representatives of sources whose balls hold equal numbers, and which stands for which."""
    names = [] if weighted else [numbers.sources[ball.source].names(ball.rows)]
    for step in (*ball.steps, ball.last):
        if not names or any(name is None for name in names):
            return ball.rows, None
        for kind, rows in zip(step.kinds, step.sites, strict=True):
            names.append(numbers.kernels[kind].names(rows))
        for group, rows in zip(step.groups, step.agents, strict=True):
            names.append(numbers.laws[group].names(rows))
        for c, link in step.links:
            names.append(numbers.model.links[step.kinds[c]][link].names(step.sites[c]))
    known = [name for name in names if name is not None]
    if len(known) < len(names):
        return ball.rows, None
    first, inverse = distinct(known)
    return (first, inverse) if 2 * len(first) <= len(ball) else (ball.rows, None)


def operands_of(numbers: Numbers, step: Step, start: int, stop: int) -> list[Tensor]:
    """Kernels, shared laws, waiting links and links of a step, for some of its functions."""
    links = numbers.model.links
    found = [
        numbers.kernels[kind].at(rows[start:stop])
        for kind, rows in zip(step.kinds, step.sites, strict=True)
    ]
    found += [
        numbers.laws[group].at(rows[start:stop])
        for group, rows in zip(step.groups, step.agents, strict=True)
    ]
    found += [links[one.kind][one.link].at(one.sites[start:stop]) for one in step.waiting]
    return found + [
        links[step.kinds[c]][link].at(step.sites[c][start:stop]) for c, link in step.links
    ]


def peak_of(ball: Ball) -> int:
    """Entries of the largest tensor before the last step, one function."""
    return max((step.pulling().peak for step in ball.steps), default=1)


def batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of pieces of at most `size`."""
    size = max(size, 1)
    for start in range(0, count, size):
        yield start, min(start + size, count)
