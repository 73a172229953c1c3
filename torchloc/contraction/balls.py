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
from torchloc.contraction.network import Axes, Network
from torchloc.contraction.sites import Sites
from torchloc.errors import BudgetError
from torchloc.mdp.checks import IntArray

_THOROUGH = 64
"""Sites of a class from which the search for the cheapest order pays."""
_SEARCHED = 12
"""Operands up to which that search ends at once."""


@dataclass(frozen=True, eq=False)
class Step:
    """One application of T^π to B functions of one structure.

    Axes are numbered: coordinates of the result first, then shared actions, then coordinates before
    the step.

    Attributes:
        kinds: Site class of each coordinate before the step.
        sites: (B,) each: their rows in these classes.
        groups: Policy group of each shared agent.
        agents: (B,) each: their rows in these groups.
        scope: (B,) each: the coordinates that the result reads.
        sizes: Their sizes, then those of the shared actions, then those before the step.
        reads: Axes of each coordinate's kernel, its own next value last.
        sees: Axes of each shared agent's law.
        source: Where the source's own coordinates stand in the result; None if some do not.
        thorough: Whether its networks' orders are searched for: decided for the whole class, so that
            a part of it runs as it was planned.
    """

    kinds: tuple[int, ...]
    sites: list[IntArray]
    groups: tuple[int, ...]
    agents: list[IntArray]
    scope: list[IntArray]
    sizes: tuple[int, ...]
    reads: tuple[Axes, ...]
    sees: tuple[Axes, ...]
    source: Axes | None
    thorough: bool

    @property
    def before(self) -> Axes:
        """Axes of the function that is pulled back."""
        return tuple(axes[-1] for axes in self.reads)

    @property
    def before_sizes(self) -> tuple[int, ...]:
        """Sizes of the coordinates before the step."""
        return self.sizes[len(self.sizes) - len(self.kinds) :]

    @property
    def result_sizes(self) -> tuple[int, ...]:
        """Sizes of the result."""
        return self.sizes[: len(self.scope)]

    def at(self, rows: IntArray) -> Step:
        """The same step of some of the functions."""
        return replace(
            self,
            sites=[site[rows] for site in self.sites],
            agents=[agent[rows] for agent in self.agents],
            scope=[column[rows] for column in self.scope],
        )

    def _network(self, operands: Sequence[Axes], out: Axes) -> Network:
        thorough = self.thorough and len(operands) <= _SEARCHED
        return Network.of(tuple(operands), out, self.sizes, thorough)

    def pulling(self) -> Network:
        """(F, *kernels, *laws) → T^π F."""
        return self._network((self.before, *self.reads, *self.sees), tuple(range(len(self.scope))))

    def averaging(self) -> Network:
        """(F, *kernels, *laws) → Σ_s (T^π F)(s)."""
        return self._network((self.before, *self.reads, *self.sees), ())

    @property
    def hosts(self) -> tuple[int, ...]:
        """For each coordinate of the result the first of (*kernels, *laws) that reads it."""
        operands = (*self.reads, *self.sees)
        return tuple(
            next(i for i, axes in enumerate(operands) if axis in axes)
            for axis in range(len(self.scope))
        )

    def sampling(self) -> Network:
        """(F, *kernels, *laws) → (T^π F)(s) at a given state s: no axes for it."""
        u = len(self.scope)
        operands = (self.before, *self.reads, *self.sees)
        return self._network([tuple(x for x in axes if x >= u) for axes in operands], ())


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


_Open = tuple[IntArray, list[IntArray], tuple[Step, ...]]
"""Sources, the coordinates that their function reads by now, and the steps that led there."""


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
        stack: list[_Open] = [(np.arange(len(scope)), origin, ())] if origin else []
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
                    stack.append((taken, step.scope, (*done, step)))

    def _powers(
        self, source: int, rows: IntArray, scope: list[IntArray], kappa: int
    ) -> Iterator[Ball]:
        """Balls of T^π f, (T^π)² f, …, each of its own; the last one that is no constant ends them."""
        stack: list[_Open] = [(rows, scope, ())]
        while stack:
            rows, now, steps = stack.pop()
            for chosen, step in self._steps(now, []):
                done = tuple(one if len(chosen) == len(rows) else one.at(chosen) for one in steps)
                taken = at_rows(rows, chosen)
                if not self._fits(source, taken, step, kappa, last=True):
                    continue
                yield Ball(source, taken, done, step, carried=False)
                if len(done) < kappa and step.scope and self._fits(source, taken, step, kappa):
                    stack.append((taken, step.scope, (*done, step)))

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

    def _steps(self, scope: list[IntArray], own: list[IntArray]) -> Iterator[tuple[IntArray, Step]]:
        """Rows of equal structure, and the step they take."""
        sites = self.sites
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
                        yield (
                            at_rows(rows, picked),
                            self._step(
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
        sizes = dict.fromkeys(range(u), 1)
        at, act = 0, 0
        reads: list[Axes] = []
        action_sizes = [1] * q
        for c, kind in enumerate(kinds):
            member = self.sites.classes[kind]
            states = [position[pattern[at + i]] for i in range(len(member.read_sizes))]
            actions = [acting[act + i] for i in range(len(member.kept))]
            sizes.update(zip(states, member.read_sizes, strict=True))
            for action, size in zip(actions, member.kept_sizes, strict=True):
                action_sizes[action] = size
            reads.append((*states, *(u + a for a in actions), u + q + c))
            at += len(states)
            act += len(actions)
        sees: list[Axes] = []
        for a, group in enumerate(groups):
            member = self.layout.groups[group]
            states = [position[pattern[at + i]] for i in range(len(member.sizes))]
            sizes.update(zip(states, member.sizes, strict=True))
            sees.append((*states, u + a))
            at += len(states)
        own = [pattern[read + i] for i in range(n_own)]
        inside = all(column in position for column in own)
        return Step(
            kinds=tuple(kinds),
            sites=places,
            groups=tuple(groups),
            agents=agents,
            scope=[columns[column] for column in kept],
            sizes=(
                *(sizes[i] for i in range(u)),
                *action_sizes,
                *(self.sites.classes[kind].tail[0] for kind in kinds),
            ),
            reads=tuple(reads),
            sees=tuple(sees),
            source=tuple(position[column] for column in own) if inside else None,
            thorough=len(places[0]) >= _THOROUGH,
        )


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
