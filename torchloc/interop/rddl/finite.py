"""The finite values of state and action fluents.

A `bool` has two, an enumerated type its objects. An `int` has those between its bounds, where action
preconditions, constraints or invariants of the form `fluent <= number` give both. A state fluent of
kind `int` without bounds has the values within reach: the smallest sets V_j ∋ initial value with

    { value_j(s, a, u) : s_i ∈ V_i, all a and u } ⊆ V_j,

found by iteration from the initial values and refused where they grow past a limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from torchloc.errors import BudgetError, InputError
from torchloc.interop.rddl.expressions import Binding, Evaluator
from torchloc.interop.rddl.problem import Ground, Node, Problem, label
from torchloc.interop.rddl.tables import Space, Table, Values

LARGEST = 256  # values of one whole-number fluent
_TURNED = {"<=": ">=", "<": ">", ">=": "<=", ">": "<", "==": "=="}


def ranges(problem: Problem, budget: int) -> dict[Ground, Values]:
    """Values of every ground state fluent, then of every ground action fluent.

    Raises:
        InputError: A fluent has no finite set of values.
        BudgetError: A CPF of a whole-number fluent reads too much.
    """
    fluents = problem.grounds("state-fluent") + problem.grounds("action-fluent")
    bounds = _bounds(problem)
    found: dict[Ground, Values] = {}
    grown: list[Ground] = []
    for ground in fluents:
        kind = problem.ranges[ground[0]]
        if kind == "bool":
            found[ground] = np.array([False, True])
        elif kind in problem.objects:
            found[ground] = np.arange(len(problem.objects[kind]))
        elif kind != "int":
            raise InputError(
                f"{label(ground)} is of kind {kind}: a fluent with infinitely many values has no "
                f"finite coordinate or agent; use bool, int or an enumerated type"
            )
        elif None not in (ends := bounds.get(ground, (None, None))):
            low, high = ends[0] or 0, ends[1] or 0
            if not low <= high < low + LARGEST:
                raise InputError(
                    f"{label(ground)} lies between {low} and {high}; it must have at least one value "
                    f"and at most {LARGEST}"
                )
            found[ground] = np.arange(low, high + 1)
        elif ground in problem.initial:
            found[ground] = np.array([problem.initial[ground]], dtype=np.int64)
            grown.append(ground)
        else:
            raise InputError(
                f"{label(ground)} is of kind int without both bounds; give them as "
                f"action-preconditions, such as {label(ground)} >= 0 and {label(ground)} <= 3"
            )
    while grown:
        evaluator = evaluator_of(problem, found, budget)
        sets = {ground: _reached(evaluator, ground, found[ground]) for ground in grown}
        if all(len(sets[ground]) == len(found[ground]) for ground in grown):
            break
        found |= sets
    return found


def evaluator_of(problem: Problem, values: dict[Ground, Values], budget: int) -> Evaluator:
    """An evaluator whose first variables are the state fluents, then the action fluents."""
    space = Space(budget)
    fluents = {}
    for ground, listed in values.items():
        variable = space.add(len(listed))
        fluents[ground] = Table((variable,), listed, problem.ranges[ground[0]])
    return Evaluator(problem, space, tuple(values), fluents)


def conjuncts(evaluator: Evaluator, node: Node, binding: Binding) -> Iterator[tuple[Node, Binding]]:
    """The parts of a conjunction, `forall` written out."""
    if node.etype in (("boolean", "^"), ("boolean", "&")):
        for argument in node.args:
            yield from conjuncts(evaluator, argument, binding)
    elif node.etype == ("aggregation", "forall"):
        for body, inner in evaluator.grounded(node, binding):
            yield from conjuncts(evaluator, body, inner)
    else:
        yield node, binding


def _reached(evaluator: Evaluator, ground: Ground, before: Values) -> Values:
    name = f"{ground[0]}'"
    evaluator.place = f"the CPF of {label((name, ground[1]))}"
    node, binding = evaluator.problem.definition((name, ground[1]))
    table = evaluator.value(node, binding)
    if table.values is None:
        raise BudgetError(
            f"{evaluator.place} reads {len(table.variables)} fluents and draws, over the budget of "
            f"{evaluator.space.budget:,} entries; give bounds of {label(ground)} as state-invariants"
        )
    if table.kind not in ("bool", "int"):
        raise evaluator.refusal(node, f"is of kind {table.kind}, but the fluent is of kind int")
    values = np.union1d(before, table.values.astype(np.int64))
    if len(values) > LARGEST:
        raise InputError(
            f"{label(ground)} has more than {LARGEST} values within reach of its first value; bound "
            f"it in its CPF, with min[…] and max[…]"
        )
    return values


def _bounds(problem: Problem) -> dict[Ground, tuple[int | None, int | None]]:
    found: dict[Ground, tuple[int | None, int | None]] = {}
    if "int" not in problem.ranges.values():
        return found
    evaluator = Evaluator(problem, Space(budget=1), (), {})
    for node in (*problem.preconditions, *problem.constraints, *problem.invariants):
        for part, binding in conjuncts(evaluator, node, {}):
            if part.etype[0] != "relational" or part.etype[1] not in _TURNED:
                continue
            first, second = part.args
            for fluent, bound, sign in (
                (first, second, part.etype[1]),
                (second, first, _TURNED[part.etype[1]]),
            ):
                ground = _whole_fluent(problem, fluent, binding)
                if ground is None or not set(_names(bound)) <= _known(problem):
                    continue
                low, high = found.get(ground, (None, None))
                least, most = _ends(sign, evaluator.number(bound, binding).constant)
                low = least if low is None or (least is not None and least > low) else low
                high = most if high is None or (most is not None and most < high) else high
                found[ground] = low, high
    return found


def _ends(sign: str, bound: float) -> tuple[int | None, int | None]:
    """Smallest and largest whole number x with `x sign bound`; None where there is no end."""
    low = math.floor(bound) + 1 if sign == ">" else math.ceil(bound)
    high = math.ceil(bound) - 1 if sign == "<" else math.floor(bound)
    return (None if sign in ("<", "<=") else low), (None if sign in (">", ">=") else high)


def _whole_fluent(problem: Problem, node: Node, binding: Binding) -> Ground | None:
    if node.etype[0] != "pvar" or problem.ranges.get(node.args[0]) != "int":
        return None
    if problem.kinds[node.args[0]] not in ("state-fluent", "action-fluent"):
        return None
    arguments = node.args[1] or ()
    if not all(isinstance(argument, str) for argument in arguments):
        return None
    return node.args[0], tuple(binding.get(x, x.removeprefix("@")) for x in arguments)


def _known(problem: Problem) -> set[str]:
    return {name for name, kind in problem.kinds.items() if kind == "non-fluent"}


def _names(node: Node) -> Iterator[str]:
    """Names of the fluents that an expression of numbers reads; parameters and objects too."""
    if isinstance(node, tuple | list):
        for part in node:
            yield from _names(part)
    elif not isinstance(node, str | bool | int | float):
        if node.etype[0] == "pvar":
            yield node.args[0]
        elif node.etype[0] != "constant":
            yield from _names(node.args)
