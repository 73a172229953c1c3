"""Random draws within expressions, and summing them out.

A draw is a variable d with a law weight_d(· | variables below d). With the draws below a table f,

    E f = Σ_u Π_d weight_d(u_d | ·, u_{<d}) f(·, u),

summed from the last draw to the first: a weight reads only what stands below its own variable, so each
sum leaves a function of what is left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from torchloc.interop.rddl.problem import Node
from torchloc.interop.rddl.tables import Table, Values, pruned

if TYPE_CHECKING:
    from torchloc.interop.rddl.expressions import Binding, Evaluator

SLACK = (
    1e-12  # a probability may miss [0, 1] by the rounding of the sums and quotients that give it
)
TOTAL = 1e-9  # and a law's sum may miss 1 by as much as a kernel's


def law(
    evaluator: Evaluator, node: Node, binding: Binding, outcome: int, values: Values, kind: str
) -> Table:
    """P(· | state, action, shared draws) of an expression along the variable `outcome`.

    Where a branch ends in a distribution its chances are taken as they stand, without a draw.

    Args:
        evaluator: Evaluates the expression's parts.
        node: The expression.
        binding: Objects of its free parameters.
        outcome: A variable as long as `values`.
        values: The values that the expression may take; what falls elsewhere is lost.
        kind: Their kind.
    """
    first = len(evaluator.space.sizes)
    table = _law(evaluator, node, binding, Table((outcome,), values, kind))
    return expectation(evaluator, table, lambda v: v >= first and v not in evaluator.shared)


def draw(evaluator: Evaluator, node: Node, binding: Binding) -> Table:
    """A new draw from a distribution, as a table of its outcomes.

    Raises:
        InputError: Its chances are no law somewhere where its branch is taken.
    """
    combine = evaluator.space.combine
    outcomes, kind, chances = _distribution(evaluator, node, binding)
    variable = evaluator.space.add(len(outcomes))
    parts = Table((variable,), outcomes, kind)
    weight = _spread(evaluator, outcomes, chances, parts)
    lawful = combine(lambda p: (p >= -SLACK) & (p <= 1.0 + SLACK), [weight], "bool")
    total = combine(
        lambda p: np.abs(p - 1.0) <= TOTAL, [evaluator.space.total(weight, variable)], "bool"
    )
    lawful = combine(np.logical_and, [lawful, total], "bool")
    broken = combine(lambda ok, here: here & ~ok, [lawful, evaluator.reached], "bool")
    if broken.values is not None and bool(broken.values.any()):
        raise evaluator.refusal(node, "has probabilities that are negative or miss 1 in sum")
    # Where the branch is not taken any law will do. What could not be checked stays over budget.
    mended = combine(
        lambda ok, p: np.where(ok, p.clip(0.0, 1.0), 1.0 / len(outcomes)), [lawful, weight], "real"
    )
    unknown = Table(mended.variables, None, "real")
    evaluator.weights[variable] = mended if broken.values is not None else unknown
    return parts


def expectation(
    evaluator: Evaluator, table: Table, which: Callable[[int], bool] = lambda v: True
) -> Table:
    """The table with the draws summed out that `which` holds for, the last ones first."""
    while True:
        table = pruned(table)
        draws = [v for v in table.variables if v in evaluator.weights and which(v)]
        if not draws:
            return table
        weights = evaluator.weights[draws[-1]]
        weighted = evaluator.space.combine(np.multiply, [table, weights], "real")
        table = evaluator.space.total(weighted, draws[-1])


def sources(evaluator: Evaluator, table: Table) -> set[int]:
    """The shared draws that a table depends on, directly or through other draws."""
    weights = evaluator.weights
    found, todo = set[int](), [v for v in table.variables if v in weights]
    while todo:
        v = todo.pop()
        if v not in found:
            found.add(v)
            todo.extend(u for u in weights[v].variables if u in weights and u != v)
    return found & set(evaluator.shared)


def _law(evaluator: Evaluator, node: Node, binding: Binding, parts: Table) -> Table:
    combine = evaluator.space.combine
    kind, name = node.etype
    if kind == "control":
        return evaluator.chosen(
            node,
            binding,
            lambda branch: _law(evaluator, branch, binding, parts),
            lambda condition, then, other: combine(np.where, [condition, then, other], "real"),
        )
    if kind == "randomvar" and name in ("KronDelta", "DiracDelta"):
        return _law(evaluator, node.args[0], binding, parts)
    if kind == "randomvar":
        outcomes, kind, chances = _distribution(evaluator, node, binding)
        evaluator.check_kind(node, kind, parts.kind)
        return _spread(evaluator, outcomes, chances, parts)
    value = evaluator.value(node, binding)
    evaluator.check_kind(node, value.kind, parts.kind)
    return combine(lambda x, y: (x == y).astype(np.float64), [value, parts], "real")


def _distribution(
    evaluator: Evaluator, node: Node, binding: Binding
) -> tuple[Values, str, list[Table]]:
    """Outcomes of a finite distribution, their kind, and the chance of each."""
    combine, name = evaluator.space.combine, node.etype[1]
    if name == "Bernoulli":
        p = evaluator.number(node.args[0], binding)
        return np.array([False, True]), "bool", [combine(lambda x: 1.0 - x, [p], "real"), p]
    if name in ("Discrete", "UnnormDiscrete"):
        (_, kind), *cases = node.args
        given = {case.removeprefix("@"): chance for _, (case, chance) in cases}
        objects = evaluator.problem.objects.get(kind, ())
        if len(given) != len(cases) or set(given) != set(objects):
            raise evaluator.refusal(node, f"must give every object of {kind} one probability")
        chances = [evaluator.number(given[x], binding) for x in objects]
    elif name in ("Discrete(p)", "UnnormDiscrete(p)") and len(node.args) == 2:
        (_, (parameter, kind)), (body,) = node.args
        objects = evaluator.problem.objects.get(kind, ())
        chances = [evaluator.number(body, {**binding, parameter: x}) for x in objects]
    else:
        raise evaluator.refusal(
            node, "is not supported: of the distributions, Bernoulli, Discrete and KronDelta are"
        )
    if not chances:
        raise evaluator.refusal(node, f"draws from {kind}, which is no declared type")
    if name.startswith("Unnorm"):
        total = combine(lambda *p: functools.reduce(np.add, p), chances, "real")
        chances = [combine(np.divide, [p, total], "real") for p in chances]
    return np.arange(len(objects)), kind, chances


def _spread(
    evaluator: Evaluator, outcomes: Values, chances: Sequence[Table], parts: Table
) -> Table:
    """Σ_m chance_m 1{outcome_m = ·} along the variable of `parts`."""
    combine = evaluator.space.combine
    marks = [Table(parts.variables, (parts.array == x) * 1.0, "real") for x in outcomes]
    terms = [combine(np.multiply, pair, "real") for pair in zip(chances, marks, strict=True)]
    return functools.reduce(lambda f, g: combine(np.add, [f, g], "real"), terms)
