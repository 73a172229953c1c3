"""The balls on which truncated values live, planned once for all policies.

A source f (a closed-loop reward term, an entropy) on the coordinates V₀ enters the truncated value
as Σ_t γ^t (T^π)^t f. By Horner's rule,

    F₀ = f,      F_t = f + γ T^π F_{t−1},         T^π: functions of V → functions of reads(V),

one function carries the sum as long as V₀ stays among what it reads; where it does not, every
power is a function of its own. Sources whose whole chain has the same structure are one `Ball`: a
short list of networks and, for each operand, which site it belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from torchloc.alike import at_rows, coincidences, equal_columns
from torchloc.closed_loop import Layout
from torchloc.contraction.network import Axes
from torchloc.contraction.sites import Sites
from torchloc.contraction.steps import Open, Step
from torchloc.errors import BudgetError
from torchloc.mdp.checks import FloatArray, IntArray

_THOROUGH = 64
"""Sites of a class from which the search for the cheapest order pays."""
_WRITTEN = 2**10
"""Entries up to which a function of counted parents is written out."""
_OPEN = 1.0
"""Entries of an open function, for each one that it has written out, from which it is written out."""


@dataclass(frozen=True, eq=False)
class Ball:
    """B sources whose chains have the same structure.

    Attributes:
        source: Which class of sources.
        rows: (B,) rows of that class.
        steps: κ or fewer applications of T^π.
        last: The step from the state at which actions are chosen.
        carried: Whether the source is added after every step (Horner), or stands for its own power
            of T^π only.
    """

    source: int
    rows: IntArray
    steps: tuple[Step, ...]
    last: Step
    carried: bool

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def power(self) -> int:
        """Power of γ of the whole ball: that of its first function, for Horner the last step's."""
        return 1 if self.carried else 1 + len(self.steps)

    def at(self, rows: IntArray) -> Ball:
        """Some of the sources."""
        return replace(
            self,
            rows=self.rows[rows],
            steps=tuple(step.at(rows) for step in self.steps),
            last=self.last.at(rows),
        )


_Task = tuple[IntArray, Open, tuple[Step, ...]]
"""Sources, their function by now, and the steps that led there."""


class Planner:
    """Plans balls for sources on the sites of a model.

    Args:
        sites: The closed-loop kernels.
        layout: For groups and scopes of the agents.
        budget: Bytes of the largest tensor of one ball, float64.
        refused: Collects (source, rows) whose balls are over the budget; None raises.
    """

    def __init__(
        self,
        sites: Sites,
        layout: Layout,
        budget: int,
        refused: list[tuple[int, IntArray]] | None = None,
    ) -> None:
        self.sites = sites
        self.layout = layout
        self.budget = budget
        self.refused = refused

    def balls(self, source: int, scope: IntArray, kappa: int) -> Iterator[Ball]:
        """The balls of sources at truncation κ; constants, which move no advantage, have none.

        Args:
            source: Number of the class of sources, carried along.
            scope: (B, v) coordinates of each.
            kappa: κ.

        Raises:
            BudgetError: A tensor of a ball is over the budget.
        """
        origin = list(np.ascontiguousarray(scope.T))
        stack: list[_Task] = [(np.arange(len(scope)), Open.written(origin), ())] if origin else []
        while stack:
            rows, now, steps = stack.pop()
            own = [at_rows(column, rows) for column in origin]
            for chosen, step in self._steps(now, own):
                taken = at_rows(rows, chosen)
                done = tuple(one if len(chosen) == len(rows) else one.at(chosen) for one in steps)
                if len(done) == kappa:
                    if self._fits(source, taken, step, kappa, last=True):
                        yield Ball(source, taken, done, step, carried=True)
                elif step.source is None:
                    yield from self._powers(source, taken, [c[taken] for c in origin], kappa)
                elif self._fits(source, taken, step, kappa):
                    stack.append((taken, step.function(), (*done, step)))

    def _powers(
        self, source: int, rows: IntArray, scope: list[IntArray], kappa: int
    ) -> Iterator[Ball]:
        """Balls of T^π f, (T^π)² f, …, each of its own; the last one that is no constant ends them."""
        stack: list[_Task] = [(rows, Open.written(scope), ())]
        while stack:
            rows, now, steps = stack.pop()
            for chosen, step in self._steps(now, []):
                done = tuple(one if len(chosen) == len(rows) else one.at(chosen) for one in steps)
                taken = at_rows(rows, chosen)
                if not self._fits(source, taken, step, kappa, last=True):
                    continue
                yield Ball(source, taken, done, step, carried=False)
                if len(done) < kappa and step.scope and self._fits(source, taken, step, kappa):
                    stack.append((taken, step.function(), (*done, step)))

    def _fits(
        self, source: int, rows: IntArray, step: Step, kappa: int, *, last: bool = False
    ) -> bool:
        # The result alone may be too large to look for an order.
        needed = 8 * (1 if last else math.prod(step.result_sizes))
        if needed <= self.budget:
            network = step.averaging() if last else step.pulling()
            needed = 8 * network.peak
        if needed <= self.budget:
            return True
        if self.refused is None:
            raise BallTooLarge(self._place(step), kappa, needed, self.budget)
        self.refused.append((source, rows))
        return False

    def _place(self, step: Step) -> str:
        """An agent that acts in the first ball of a step, or a coordinate where none does."""
        for kind, site in zip(step.kinds, step.sites, strict=True):
            agents = self.sites.classes[kind].local.agents
            if agents.shape[1]:
                return f"agent {int(agents[site[0], 0])}"
        return f"coordinate {int(self.sites.classes[step.kinds[0]].rows[step.sites[0][0]])}"

    def _steps(self, function: Open, own: list[IntArray]) -> Iterator[tuple[IntArray, Step]]:
        """Rows of equal structure, and the step they take."""
        sites, scope = self.sites, function.scope
        for kinds, rows in equal_columns([sites.class_of[column] for column in scope]):
            places = [sites.row_of[at_rows(column, rows)] for column in scope]
            members = [sites.classes[kind] for kind in kinds]
            reads = [
                column
                for member, place in zip(members, places, strict=True)
                for column in _taken(member.read_columns, place)
            ]
            shared = [
                column
                for member, place in zip(members, places, strict=True)
                for column in _taken(member.shared_columns, place)
            ]
            beside = [at_rows(column, rows) for column in own]
            for same, inner in _patterns(shared, len(rows)):
                firsts = sorted(set(same))
                agents = [at_rows(shared[c], inner) for c in firsts]
                for groups, deeper in self._groups(agents, len(inner)):
                    chosen = at_rows(inner, deeper)
                    rows_of = [self.layout.row_of[at_rows(agent, deeper)] for agent in agents]
                    seen = [
                        column
                        for group, at in zip(groups, rows_of, strict=True)
                        for column in _taken(list(self.layout.groups[group].scope.T), at)
                    ]
                    columns = [at_rows(column, chosen) for column in reads] + seen
                    columns += [at_rows(column, chosen) for column in beside]
                    for pattern, last in _patterns(columns, len(chosen)):
                        picked = at_rows(chosen, last)
                        taken = at_rows(rows, picked)
                        yield (
                            taken,
                            self._step(
                                replace(
                                    function,
                                    waiting=tuple(link.at(taken) for link in function.waiting),
                                ),
                                kinds,
                                [at_rows(place, picked) for place in places],
                                [firsts.index(c) for c in same],
                                groups,
                                [at_rows(at, last) for at in rows_of],
                                [at_rows(column, last) for column in columns],
                                pattern,
                                len(own),
                            ),
                        )

    def _groups(self, agents: list[IntArray], count: int) -> Iterator[tuple[list[int], IntArray]]:
        if not agents:
            yield [], np.arange(count)
            return
        yield from equal_columns([self.layout.group_of[agent] for agent in agents])

    def _step(
        self,
        function: Open,
        kinds: list[int],
        places: list[IntArray],
        acting: list[int],
        groups: list[int],
        agents: list[IntArray],
        columns: list[IntArray],
        pattern: list[int],
        n_own: int,
    ) -> Step:
        read = len(columns) - n_own
        kept = sorted(set(pattern[:read]))
        position = {column: axis for axis, column in enumerate(kept)}
        u, q = len(kept), len(groups)
        members = [self.sites.classes[kind] for kind in kinds]
        hidden_sizes = [
            size for member in members if member.factors for size in member.factors.sizes
        ]
        first_before = u + q + len(hidden_sizes)
        first_hidden = first_before + len(kinds)
        sizes = dict.fromkeys(range(u), 1)
        at, act, hidden = 0, 0, u + q
        reads: list[Axes] = []
        links: list[tuple[int, int]] = []
        link_axes: list[Axes] = []
        units: list[tuple[int, FloatArray]] = []
        action_sizes = [1] * q
        for c, member in enumerate(members):
            width = len(member.column_sizes)
            states = [position[pattern[at + i]] for i in range(width)]
            actions = [u + acting[act + i] for i in range(len(member.shared_sizes))]
            sizes.update(zip(states, member.column_sizes, strict=True))
            for action, size in zip(actions, member.shared_sizes, strict=True):
                action_sizes[action - u] = size
            own, kept_actions = states[: len(member.read_sizes)], actions[: len(member.kept)]
            inner: Axes = ()
            if member.factors is not None:
                parents = states[len(own) :] + actions[len(kept_actions) :]
                inner = tuple(hidden + axis for axis in member.factors.reads)
                units += zip(inner, member.factors.units, strict=True)
                for i, link in enumerate(member.links):
                    axes = tuple(hidden + axis for axis in link.hidden)
                    links.append((c, i))
                    link_axes.append(axes if link.member is None else (*axes, parents[link.member]))
                hidden += len(member.factors.sizes)
            reads.append((*own, *kept_actions, *inner, first_before + c))
            at += width
            act += len(actions)
        sees: list[Axes] = []
        for a, group in enumerate(groups):
            seen = self.layout.groups[group]
            states = [position[pattern[at + i]] for i in range(len(seen.sizes))]
            sizes.update(zip(states, seen.sizes, strict=True))
            sees.append((*states, u + a))
            at += len(states)
        waiting_axes = [
            (
                *(first_hidden + axis for axis in link.hidden),
                *(() if link.place is None else (first_before + link.place,)),
            )
            for link in function.waiting
        ]
        waits = (
            bool(links)
            and math.prod(sizes.values()) > _WRITTEN
            and not any(u <= axis < u + q for axes in link_axes for axis in axes)
        )
        step = Step(
            kinds=tuple(kinds),
            sites=places,
            groups=tuple(groups),
            agents=agents,
            scope=[columns[column] for column in kept],
            sizes=(
                *(sizes[i] for i in range(u)),
                *action_sizes,
                *hidden_sizes,
                *(member.tail[-1] for member in members),
                *function.hidden,
            ),
            before=(
                *(first_before + place for place in function.direct),
                *(first_hidden + axis for axis in function.held),
            ),
            reads=tuple(reads),
            sees=tuple(sees),
            links=tuple(links),
            link_axes=tuple(link_axes),
            units=tuple(units),
            waiting=function.waiting,
            waiting_axes=tuple(waiting_axes),
            source=None,
            open=waits,
            thorough=len(places[0]) >= _THOROUGH,
        )
        if waits and math.prod(step.result_sizes) >= _OPEN * math.prod(step.scope_sizes):
            step = replace(step, open=False)
        direct = {axis: i for i, axis in enumerate(step.direct)}
        origin = [position.get(pattern[read + i], -1) for i in range(n_own)]
        inside = all(axis in direct for axis in origin)
        return replace(step, source=tuple(direct[axis] for axis in origin) if inside else None)


class BallTooLarge(BudgetError):
    """A tensor of a ball is over the budget.

    Attributes:
        kappa: κ of the plan.
    """

    def __init__(self, place: str, kappa: int, needed: int, budget: int) -> None:
        self.kappa = kappa
        super().__init__(
            f"at kappa={kappa} the ball of {place} needs a tensor of {needed} bytes, over the budget "
            f"of {budget}"
        )


def _taken(columns: Sequence[IntArray], rows: IntArray) -> list[IntArray]:
    return [column[rows] for column in columns]


def _patterns(columns: list[IntArray], count: int) -> Iterator[tuple[list[int], IntArray]]:
    if not columns:
        yield [], np.arange(count)
        return
    yield from coincidences(columns)
