"""Values of RDDL expressions: each is a table over the fluents that it really reads.

An expression is grounded and evaluated in one pass: quantifiers run over their objects, non-fluents
are numbers, `false ^ x`, `true | x`, `0 * x` and branches of a known condition are cut off before x is
looked at. What is left is a function of state fluents, action fluents and random draws,

    value(s, a, u),    u_d ~ weight_d(· | s, a, u_{<d}),

one variable d for every occurrence of Bernoulli or Discrete, drawn afresh for every object that it
is grounded for. An intermediate, derived or next-state fluent without draws is put in as the
function that it is; one with draws becomes a draw of its own, shared by all who read it. The draws
are summed out exactly (`draws`):

    P(x | s, a) = Σ_u Π_d weight_d(u_d | s, a, u_{<d}) 1{value(s, a, u) = x}.

Expressions are the library's own syntax trees (pyRDDLGym). Its grounder is not used, because it takes
neither Discrete nor switch and writes out every zero term of a sum.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from torchloc.errors import BudgetError, InputError
from torchloc.interop.rddl.draws import draw, law
from torchloc.interop.rddl.operations import (
    AGGREGATIONS,
    ARITHMETIC,
    BINARY,
    LOGICAL,
    RELATIONAL,
    UNARY,
)
from torchloc.interop.rddl.problem import Ground, Node, Problem, label, text
from torchloc.interop.rddl.tables import Space, Table, Values, constant, pruned

Binding = Mapping[str, str]
NUMBERS = ("bool", "int", "real")


@dataclass(eq=False)
class Evaluator:
    """Evaluates the expressions of one problem.

    Attributes:
        problem: The problem.
        space: Its variables.
        parents: The fluent of each of the first variables: the state fluents, then the action fluents.
        fluents: Tables of the ground fluents; those with a CPF are added as they are met.
        weights: Law of every draw given variables below it.
        shared: The draws that stand for a fluent, and which.
        reached: Where the branch that is being evaluated is taken.
        met: Variables in the order in which they were first read since it was cleared.
        place: What is being evaluated, for errors.
    """

    problem: Problem
    space: Space
    parents: tuple[Ground, ...]
    fluents: dict[Ground, Table]
    weights: dict[int, Table] = field(default_factory=dict)
    shared: dict[int, Ground] = field(default_factory=dict)
    reached: Table = field(default_factory=lambda: constant(True, "bool"))
    met: dict[int, None] = field(default_factory=dict)
    place: str = "the problem"
    _open: list[Ground] = field(default_factory=list)

    def refusal(self, node: Node, reason: str) -> InputError:
        """The error that names an expression and where it stands."""
        return InputError(f"{self.place}: {text(node)} {reason}")

    def value(self, node: Node, binding: Binding) -> Table:
        """The table of an expression; new draws are recorded in `weights`."""
        kind, name = node.etype
        if kind == "constant":
            value = node.args
            return constant(value, {bool: "bool", int: "int"}.get(type(value), "real"))
        if kind == "pvar":
            return self._read(node, binding)
        if kind == "arithmetic":
            return self._arithmetic(node, name, binding)
        if kind == "relational":
            return self._relational(node, name, binding)
        if kind == "boolean":
            return self._logical(node, name, binding)
        if kind == "aggregation" and name in AGGREGATIONS:
            return self._aggregation(node, name, binding)
        if kind == "func":
            return self._function(node, name, binding)
        if kind == "control":
            return self.chosen(
                node,
                binding,
                lambda branch: self.value(branch, binding),
                lambda condition, then, other: self._choose(node, condition, then, other),
            )
        if kind == "randomvar":
            if name in ("KronDelta", "DiracDelta"):
                return self.value(node.args[0], binding)
            return draw(self, node, binding)
        raise self.refusal(node, "is not supported: there is no finite table for it")

    def branches(self, node: Node, binding: Binding) -> list[tuple[Table, Node]]:
        """Conditions and expressions of `if` or `switch`, in order; the last one needs no condition."""
        if node.etype[1] == "if":
            test, then, otherwise = node.args
            pairs = [(self.truth(test, binding), then), (constant(True, "bool"), otherwise)]
        else:
            pairs = self._cases(node, binding)
        live = []
        for condition, branch in pairs:
            if condition.constant is not False:
                live.append((condition, branch))
            if condition.constant is True:
                break
        return live

    def chosen(
        self,
        node: Node,
        binding: Binding,
        evaluate: Callable[[Node], Table],
        choose: Callable[[Table, Table, Table], Table],
    ) -> Table:
        """The branches of `if` or `switch`, evaluated and put together by their conditions.

        While a branch is evaluated `reached` says where it is taken.
        """
        before, done = self.reached, []
        for condition, branch in self.branches(node, binding):
            left = self.reached
            self.reached = self.space.combine(np.logical_and, [left, condition], "bool")
            done.append((condition, evaluate(branch)))
            self.reached = self.space.combine(lambda x, y: x & ~y, [left, condition], "bool")
        self.reached = before
        result = done[-1][1]
        for condition, table in reversed(done[:-1]):
            result = choose(condition, table, result)
        return result

    def grounded(self, node: Node, binding: Binding) -> Iterator[tuple[Node, Binding]]:
        """The body of a quantified expression with every binding of its parameters."""
        *typed, body = node.args
        parameters = [parameter for _, parameter in typed]
        for _, kind in parameters:
            if kind not in self.problem.objects:
                raise self.refusal(node, f"runs over {kind}, which is no declared type")
        for objects in itertools.product(*(self.problem.objects[kind] for _, kind in parameters)):
            names = (name for name, _ in parameters)
            yield body, {**binding, **dict(zip(names, objects, strict=True))}

    def _read(self, node: Node, binding: Binding) -> Table:
        name, arguments = node.args
        if arguments is None and name not in self.problem.kinds:
            found = binding.get(name) if name.startswith("?") else name.removeprefix("@")
            if found is None or found not in self.problem.type_of:
                raise self.refusal(node, "is neither a declared fluent nor an object")
            return self._object(found)
        if name not in self.problem.kinds:
            raise self.refusal(node, f"reads {name}, which is not declared")
        if arguments and not all(isinstance(argument, str) for argument in arguments):
            return self._follow(node, binding)
        objects = tuple(binding.get(x, x.removeprefix("@")) for x in arguments or ())
        return self.fluent((name, objects), node)

    def _follow(self, node: Node, binding: Binding) -> Table:
        """A fluent some of whose arguments are themselves fluents: each object in turn."""
        name, arguments = node.args
        choices: list[list[tuple[Table, str]]] = []
        for argument in arguments:
            if isinstance(argument, str):
                found = binding.get(argument, argument.removeprefix("@"))
                choices.append([(constant(True, "bool"), found)])
            else:
                pointer = self.value(argument, binding)
                objects = self.problem.objects.get(pointer.kind, ())
                pairs = [(self._is(pointer, x), x) for x in objects]
                choices.append([pair for pair in pairs if pair[0].constant is not False])
        if not all(choices):
            raise self.refusal(node, "has an argument that is no object")
        *options, last = itertools.product(*choices)
        result = self.fluent((name, tuple(x for _, x in last)), node)
        for option in options:
            here = self.fluent((name, tuple(x for _, x in option)), node)
            conditions = [condition for condition, _ in option]
            there = self.space.combine(
                lambda *c: functools.reduce(np.logical_and, c), conditions, "bool"
            )
            result = self._choose(node, there, here, result)
        return result

    def fluent(self, ground: Ground, node: Node) -> Table:
        """The table of a ground fluent, evaluated when it is first met."""
        if ground in self.fluents:
            self.met.update(dict.fromkeys(self.fluents[ground].variables))
            return self.fluents[ground]
        name, objects = ground
        kind = self.problem.kinds[name]
        if kind == "non-fluent" and ground in self.problem.constants:
            value = self.problem.constants[ground]
            if isinstance(value, str):
                return self._object(value)
            return constant(value, self.problem.ranges[name])
        if name not in self.problem.cpfs or len(objects) != len(self.problem.parameters[name]):
            raise self.refusal(node, f"reads {label(ground)}, which the problem does not have")
        if ground in self._open:
            cycle = " -> ".join(label(g) for g in [*self._open, ground])
            raise InputError(f"{self.place}: {cycle} is a circle; a fluent cannot read itself")
        outside = self.place, self.reached
        self.place, self.reached = f"the CPF of {label(ground)}", constant(True, "bool")
        self._open.append(ground)
        table = self._defined(ground)
        self._open.pop()
        self.place, self.reached = outside
        self.fluents[ground] = table
        return table

    def _defined(self, ground: Ground) -> Table:
        node, binding = self.problem.definition(ground)
        table = pruned(self.value(node, binding))
        kind = self.problem.ranges[ground[0]]
        self.check_kind(node, table.kind, kind)
        if all(v in self.shared for v in table.variables if v in self.weights):
            return table
        if kind == "bool":
            values: Values = np.array([False, True])
        elif kind in self.problem.objects:
            values = np.arange(len(self.problem.objects[kind]))
        elif table.values is None:
            raise BudgetError(
                f"{self.place} reads {len(table.variables)} fluents and draws, "
                f"{self.space.entries(table.variables):,} values in all, over the budget of "
                f"{self.space.budget:,}; raise the budget"
            )
        else:
            values = np.unique(table.values)
        outcome = self.space.add(len(values))
        self.weights[outcome] = law(self, node, binding, outcome, values, kind)
        self.shared[outcome] = ground
        return Table((outcome,), values, kind)

    def _arithmetic(self, node: Node, name: str, binding: Binding) -> Table:
        first = self.number(node.args[0], binding)
        if len(node.args) == 1:
            return first if name == "+" else self.space.combine(np.negative, [first], first.kind)
        if name == "*" and first.constant == 0:
            return first
        second = self.number(node.args[1], binding)
        if name == "*" and second.constant == 0:
            return second
        kind = "real" if name == "/" else self._join(node, first.kind, second.kind)
        return self.space.combine(ARITHMETIC[name], [first, second], kind)

    def _relational(self, node: Node, name: str, binding: Binding) -> Table:
        first, second = (self.value(argument, binding) for argument in node.args)
        self._join(node, first.kind, second.kind)
        if first.kind not in NUMBERS and name not in ("==", "~="):
            raise self.refusal(node, "puts objects in order; objects can only be equal or not")
        return self.space.combine(RELATIONAL[name], [first, second], "bool")

    def _logical(self, node: Node, name: str, binding: Binding) -> Table:
        if name in ("^", "&", "|"):
            return self._all(((argument, binding) for argument in node.args), name == "|")
        tables = [self.truth(argument, binding) for argument in node.args]
        if len(tables) == 1:
            return self.space.combine(np.logical_not, tables, "bool")
        return self.space.combine(LOGICAL[name], tables, "bool")

    def _all(self, parts: Iterator[tuple[Node, Binding]], absorbing: bool) -> Table:
        """Conjunction, or disjunction where true absorbs; stops at the first part that settles it."""
        result = constant(not absorbing, "bool")
        function = np.logical_or if absorbing else np.logical_and
        for node, binding in parts:
            table = self.truth(node, binding)
            if table.constant is absorbing:
                return table
            if table.constant is None:
                result = self.space.combine(function, [result, table], "bool")
        return result

    def _aggregation(self, node: Node, name: str, binding: Binding) -> Table:
        parts = self.grounded(node, binding)
        if name in ("forall", "exists"):
            return self._all(parts, name == "exists")
        function = AGGREGATIONS[name]
        result: Table | None = None
        count = 0
        for count, (body, inner) in enumerate(parts, 1):  # noqa: B007
            table = self.number(body, inner)
            if result is None:
                result = table
            elif not (table.constant == 0 and name in ("sum", "avg")):
                kind = self._join(node, result.kind, table.kind)
                result = self.space.combine(function, [result, table], kind)
        if result is None:
            raise self.refusal(node, "runs over no object")
        if name == "avg":
            result = self.space.combine(lambda x: x / count, [result], "real")
        return result

    def _function(self, node: Node, name: str, binding: Binding) -> Table:
        tables = [self.number(argument, binding) for argument in node.args]
        found = {1: UNARY, 2: BINARY}.get(len(tables), {}).get(name)
        if found is None:
            raise self.refusal(node, "is not supported: the function is not known")
        function, kind = found
        if kind is None:
            kind = tables[0].kind
            for table in tables[1:]:
                kind = self._join(node, kind, table.kind)
        return self.space.combine(function, tables, kind)

    def _cases(self, node: Node, binding: Binding) -> list[tuple[Table, Node]]:
        test, *cases = node.args
        pointer = self.value(test, binding)
        left = dict.fromkeys(self.problem.objects.get(pointer.kind, ()))
        pairs: list[tuple[Table, Node]] = []
        for word, case in cases:
            if word == "default":
                return [*pairs, (constant(True, "bool"), case)]
            name, branch = case
            name = name if isinstance(name, str) else name.args[0]
            name = name.removeprefix("@")
            if name not in left:
                raise self.refusal(
                    node, f"must have objects of {pointer.kind} as its cases, each once"
                )
            del left[name]
            pairs.append((self._is(pointer, name), branch))
        if left or not pairs:
            raise self.refusal(node, f"needs a default, or a case for {', '.join(left)}")
        return [*pairs[:-1], (constant(True, "bool"), pairs[-1][1])]

    def _object(self, name: str) -> Table:
        return constant(self.problem.index[name], self.problem.type_of[name])

    def _is(self, pointer: Table, name: str) -> Table:
        number = self.problem.index[name]
        return self.space.combine(lambda x: x == number, [pointer], "bool")

    def truth(self, node: Node, binding: Binding) -> Table:
        table = self.value(node, binding)
        if table.kind != "bool":
            raise self.refusal(node, f"is of kind {table.kind}, where true or false is needed")
        return table

    def number(self, node: Node, binding: Binding) -> Table:
        table = self.value(node, binding)
        if table.kind == "bool":
            if not table.variables and table.values is not None:
                return constant(int(table.values), "int")
            return self.space.combine(lambda x: x.astype(np.int64), [table], "int")
        if table.kind not in NUMBERS:
            raise self.refusal(node, f"is an object of {table.kind}, where a number is needed")
        return table

    def _choose(self, node: Node, condition: Table, then: Table, otherwise: Table) -> Table:
        kind = self._join(node, then.kind, otherwise.kind)
        return self.space.combine(np.where, [condition, then, otherwise], kind)

    def _join(self, node: Node, first: str, second: str) -> str:
        if first == second:
            return first
        if first in NUMBERS and second in NUMBERS:
            return "real" if "real" in (first, second) else "int"
        raise self.refusal(node, f"puts {first} and {second} together")

    def check_kind(self, node: Node, found: str, wanted: str) -> None:
        """Refuses an expression whose values are not of the fluent's kind; 0 and 1 may be counted."""
        wider = NUMBERS[NUMBERS.index(found) :] if found in NUMBERS else (found,)
        if wanted not in wider:
            raise self.refusal(node, f"is of kind {found}, but the fluent is of kind {wanted}")
