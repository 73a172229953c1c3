"""Tables: functions of finitely many variables, as arrays with one axis a variable.

A variable is a number with a size; coordinates, agents, random draws and outcomes are all variables.
A table f has the ascending variables v_1 < … < v_m and the array f[x_{v_1}, …, x_{v_m}], where x_v is
an index into the variable's values. Operations act on the union of the operands' variables, all
entries at once. A table over the budget keeps its variables and loses its array, so that what reads
too much can still be named and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Table:
    """A function of the variables, and what its values are.

    Attributes:
        variables: Distinct variables, ascending.
        values: One axis a variable; None where the array would be over budget.
        kind: `bool`, `int`, `real`, or the type whose objects the values number.
    """

    variables: tuple[int, ...]
    values: Values | None
    kind: str

    @property
    def array(self) -> Values:
        """The values of a table that is within the budget."""
        if self.values is None:
            raise ValueError(f"the table of the variables {self.variables} is over the budget")
        return self.values

    @property
    def constant(self) -> Any:
        """The value of a table of no variables, else None."""
        if self.variables or self.values is None:
            return None
        return self.values.item()


def constant(value: bool | int | float, kind: str) -> Table:
    """The table of no variables.

    >>> constant(3, "int").constant
    3
    """
    dtype = {"bool": np.bool_, "real": np.float64}.get(kind, np.int64)
    return Table((), np.array(value, dtype=dtype), kind)


def aligned(table: Table, variables: Sequence[int]) -> Values:
    """The array with an axis of length 1 for each of the ascending variables that it does not read."""
    sizes = dict(zip(table.variables, table.array.shape, strict=True))
    return table.array.reshape([sizes.get(v, 1) for v in variables])


def reordered(table: Table, variables: Sequence[int]) -> Values:
    """The array with its axes in the order of `variables`, which are all of the table's and others.

    >>> f = Table((0, 1), np.array([[1, 2, 3], [4, 5, 6]]), "int")
    >>> reordered(f, (1, 5, 0)).shape
    (3, 1, 2)
    """
    ascending = sorted(variables)
    return aligned(table, ascending).transpose([ascending.index(v) for v in variables])


class Space:
    """The sizes of the variables, and the budget of entries a table may have.

    >>> space = Space(budget=8)
    >>> x, y = space.add(2), space.add(3)
    >>> f, g = (Table((v,), np.arange(space.sizes[v]), "int") for v in (x, y))
    >>> total = space.combine(np.add, [f, g], "int")
    >>> total.variables, total.values.tolist()
    ((0, 1), [[0, 1, 2], [1, 2, 3]])
    >>> z = space.add(2)
    >>> h = Table((z,), np.arange(2), "int")
    >>> space.combine(np.add, [total, h], "int").values is None
    True
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.sizes: list[int] = []

    def add(self, size: int) -> int:
        """A new variable, above all others."""
        self.sizes.append(size)
        return len(self.sizes) - 1

    def entries(self, variables: Sequence[int]) -> int:
        """Number of entries of a table of these variables, an exact int."""
        return math.prod(self.sizes[v] for v in variables)

    def combine(self, function: Callable[..., Values], tables: Sequence[Table], kind: str) -> Table:
        """`function` of the tables' arrays, entry by entry, on the union of their variables."""
        variables = tuple(sorted({v for table in tables for v in table.variables}))
        if self.entries(variables) > self.budget or any(t.values is None for t in tables):
            return Table(variables, None, kind)
        with np.errstate(all="ignore"):
            values = function(*(aligned(table, variables) for table in tables))
        return Table(variables, np.asarray(values), kind)

    def total(self, table: Table, variable: int) -> Table:
        """The sum over one variable; itself where the table does not read it."""
        if variable not in table.variables:
            return table
        axis = table.variables.index(variable)
        rest = table.variables[:axis] + table.variables[axis + 1 :]
        values = None if table.values is None else table.values.sum(axis=axis)
        return Table(rest, values, table.kind)


def pruned(table: Table, keep: Sequence[int] = ()) -> Table:
    """Without the variables on which no entry depends; those in `keep` stay.

    >>> f = Table((4, 7), np.array([[1.0, 1.0], [2.0, 2.0]]), "real")
    >>> pruned(f).variables, pruned(f, keep=[7]).variables
    ((4,), (4, 7))
    """
    if table.values is None:
        return table
    variables, values = list(table.variables), table.values
    for v in table.variables:
        axis = variables.index(v)
        head = values.take([0], axis=axis)
        if v not in keep and bool((values == head).all()):
            values = head.squeeze(axis)
            del variables[axis]
    return Table(tuple(variables), values, table.kind)
