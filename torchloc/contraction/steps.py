"""One application of T^π to functions of one structure, and how its result is held.

What a kernel that counts pulls back is not written out where its parents are many: the function is then
*open*, a tensor over the other coordinates and the kernels' hidden axes, and its links wait for the next
step. Where that has more entries than the function itself, nothing is won, and it is written out too. A
function that does not depend on the counted parents is added to it along the units of these axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torchloc.alike import at_rows
from torchloc.contraction.network import SEARCHED, Axes, Network
from torchloc.mdp.checks import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Waiting:
    """A link of a function that is open, for B functions of one structure.

    Attributes:
        kind: Site class.
        link: Which of its links.
        sites: (B,) rows of the class.
        hidden: Which of the function's hidden axes it has.
        place: Where its coordinate stands in the function's scope; None: it has none.
    """

    kind: int
    link: int
    sites: IntArray
    hidden: tuple[int, ...]
    place: int | None

    def at(self, rows: IntArray) -> Waiting:
        """The same of some of the functions."""
        return replace(self, sites=at_rows(self.sites, rows))


@dataclass(frozen=True, eq=False)
class Open:
    """What B functions of one structure read, and how they are held.

    Attributes:
        scope: (B,) each: the coordinates.
        direct: Those that are axes of the tensor, ascending.
        hidden: Sizes of all hidden axes.
        held: Those that are axes of the tensor, after the coordinates, ascending.
        waiting: Links that are still to be contracted.
    """

    scope: list[IntArray]
    direct: tuple[int, ...]
    hidden: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    waiting: tuple[Waiting, ...] = ()

    @classmethod
    def written(cls, scope: list[IntArray]) -> Open:
        """Functions that are written out."""
        return cls(scope, tuple(range(len(scope))))


@dataclass(frozen=True, eq=False)
class Step:
    """One application of T^π to B functions of one structure.

    Axes are numbered: coordinates of the result first, then shared actions, then the kernels' hidden
    axes, then coordinates before the step, then the hidden axes of what is pulled back.

    Attributes:
        kinds: Site class of each coordinate before the step.
        sites: (B,) each: their rows in these classes.
        groups: Policy group of each shared agent.
        agents: (B,) each: their rows in these groups.
        scope: (B,) each: the coordinates that the result reads.
        sizes: Sizes of all axes.
        before: Axes of the function that is pulled back.
        reads: Axes of each coordinate's kernel, its own next value last.
        sees: Axes of each shared agent's law.
        links: The kernels' links: which coordinate before the step, and which link of its kernel.
        link_axes: Their axes.
        units: Unit of each hidden axis that a kernel reads, and the axis.
        waiting: Links of the function that is pulled back, and `waiting_axes` their axes.
        source: Where the source's own coordinates stand among the axes of the result; None if some do
            not.
        open: Whether the links wait for the next step.
        thorough: Whether its networks' orders are searched for: decided for the whole class, so that
            a part of it runs as it was planned.
    """

    kinds: tuple[int, ...]
    sites: list[IntArray]
    groups: tuple[int, ...]
    agents: list[IntArray]
    scope: list[IntArray]
    sizes: tuple[int, ...]
    before: Axes
    reads: tuple[Axes, ...]
    sees: tuple[Axes, ...]
    links: tuple[tuple[int, int], ...]
    link_axes: tuple[Axes, ...]
    units: tuple[tuple[int, FloatArray], ...]
    waiting: tuple[Waiting, ...]
    waiting_axes: tuple[Axes, ...]
    source: Axes | None
    open: bool
    thorough: bool

    @property
    def before_sizes(self) -> tuple[int, ...]:
        """Sizes of the function that is pulled back."""
        return tuple(self.sizes[axis] for axis in self.before)

    @property
    def scope_sizes(self) -> tuple[int, ...]:
        """Sizes of the coordinates that the result reads."""
        return self.sizes[: len(self.scope)]

    @property
    def direct(self) -> Axes:
        """Coordinates that are axes of the result: where it is open, those that are not only counted."""
        if not self.open:
            return tuple(range(len(self.scope)))
        inside = {axis for axes in (*self.reads, *self.sees) for axis in axes}
        return tuple(axis for axis in range(len(self.scope)) if axis in inside)

    @property
    def result(self) -> Axes:
        """Axes of the result."""
        return (*self.direct, *(axis for axis, _ in self.units)) if self.open else self.direct

    @property
    def result_sizes(self) -> tuple[int, ...]:
        """Sizes of the result."""
        return tuple(self.sizes[axis] for axis in self.result)

    def function(self) -> Open:
        """What the result reads, and how it is held."""
        if not self.open:
            return Open.written(self.scope)
        linked = {x for axes in self.link_axes for x in axes if x >= len(self.scope)}
        hidden = sorted(linked | {axis for axis, _ in self.units})
        number = {axis: i for i, axis in enumerate(hidden)}
        waiting = []
        for (c, link), axes in zip(self.links, self.link_axes, strict=True):
            own = tuple(number[x] for x in axes if x in number)
            place = next((x for x in axes if x < len(self.scope)), None)
            waiting.append(Waiting(self.kinds[c], link, self.sites[c], own, place))
        return Open(
            self.scope,
            self.direct,
            tuple(self.sizes[axis] for axis in hidden),
            tuple(number[axis] for axis, _ in self.units),
            tuple(waiting),
        )

    def at(self, rows: IntArray) -> Step:
        """The same step of some of the functions."""
        return replace(
            self,
            sites=[site[rows] for site in self.sites],
            agents=[agent[rows] for agent in self.agents],
            scope=[column[rows] for column in self.scope],
            waiting=tuple(link.at(rows) for link in self.waiting),
        )

    @property
    def operands(self) -> tuple[Axes, ...]:
        """Axes of (F, *kernels, *laws, *waiting links, *links)."""
        return (self.before, *self.reads, *self.sees, *self.waiting_axes, *self.link_axes)

    def _network(self, operands: Sequence[Axes], out: Axes) -> Network:
        thorough = self.thorough and len(operands) <= SEARCHED
        return Network.of(tuple(operands), out, self.sizes, thorough)

    def pulling(self) -> Network:
        """(F, *kernels, *laws, *waiting links, *links) → T^π F; where it is open, without the links."""
        count = len(self.operands) - (len(self.links) if self.open else 0)
        return self._network(self.operands[:count], self.result)

    def averaging(self) -> Network:
        """(F, *kernels, *laws, *waiting links, *links) → Σ_s (T^π F)(s)."""
        return self._network(self.operands, ())

    @property
    def hosts(self) -> tuple[int, ...]:
        """For each coordinate that the result reads the first of the operands that does."""
        return tuple(
            next(i for i, axes in enumerate(self.operands) if axis in axes)
            for axis in range(len(self.scope))
        )

    def sampling(self) -> Network:
        """The same operands → (T^π F)(s) at a given state s: no axes for it."""
        u = len(self.scope)
        return self._network([tuple(x for x in axes if x >= u) for axes in self.operands], ())
