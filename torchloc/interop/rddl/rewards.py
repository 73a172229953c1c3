"""The reward as a sum of local terms, each over what it reads.

Sums, differences, and products and branches of sums are taken apart,

    c·Σ_m f_m = Σ_m c·f_m,      if c then Σ_m f_m else Σ_m g_m = Σ_m 1{c} f_m + Σ_m 1{¬c} g_m,

as far as the expression goes. A term that reads draws, or fluents of the next state, is replaced by its
expectation given state and action, which leaves every value unchanged. A term whose scope lies
within another's is added to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from torchloc.errors import BudgetError
from torchloc.interop.rddl.draws import expectation
from torchloc.interop.rddl.expressions import Binding, Evaluator
from torchloc.interop.rddl.problem import Node
from torchloc.interop.rddl.tables import Space, Table, pruned


def reward_terms(evaluator: Evaluator, node: Node) -> tuple[list[Table], bool]:
    """Terms over state and action fluents that add up to the expected reward.

    Returns:
        The terms, and whether the reward itself is random given state and action.

    Raises:
        InputError: Part of the expression has no table, or is not a finite number.
        BudgetError: A term reads too much.
    """
    evaluator.place = "the reward"
    means: dict[tuple[int, ...], Table] = {}
    random = False
    for table in summands(evaluator, node, {}):
        mean = expectation(evaluator, table)
        random = random or any(v in evaluator.weights for v in table.variables)
        if mean.values is None:
            raise BudgetError(
                f"the reward: a term reads {len(mean.variables)} fluents, "
                f"{evaluator.space.entries(mean.variables):,} entries, over the budget of "
                f"{evaluator.space.budget:,}; write it as a sum of smaller terms, or raise the budget"
            )
        if not bool(np.isfinite(mean.values).all()):
            raise evaluator.refusal(node, "is not a finite number everywhere")
        _add(evaluator.space, means, mean.variables, mean)
    merged: dict[tuple[int, ...], Table] = {}
    for table in sorted(map(pruned, means.values()), key=lambda t: -len(t.variables)):
        home = next((v for v in merged if set(table.variables) <= set(v)), table.variables)
        if table.constant != 0:
            _add(evaluator.space, merged, home, table)
    return list(merged.values()), random


def summands(evaluator: Evaluator, node: Node, binding: Binding) -> Iterator[Table]:
    """Tables that add up to an expression of numbers."""
    kind, name = node.etype
    combine = evaluator.space.combine
    if kind == "arithmetic" and name in ("+", "-"):
        *first, last = node.args
        for argument in first:
            yield from summands(evaluator, argument, binding)
        for table in summands(evaluator, last, binding):
            yield combine(np.negative, [table], table.kind) if name == "-" else table
    elif kind == "aggregation" and name in ("sum", "avg"):
        parts = list(evaluator.grounded(node, binding))
        for body, inner in parts:
            for table in summands(evaluator, body, inner):
                if name == "avg":
                    table = combine(lambda x: x / len(parts), [table], "real")
                yield table
    elif kind == "arithmetic" and name == "*" and any(map(_is_sum, node.args)):
        total, factor = node.args if _is_sum(node.args[0]) else reversed(node.args)
        scale = evaluator.number(factor, binding)
        if scale.constant != 0:
            for table in summands(evaluator, total, binding):
                yield combine(np.multiply, [scale, table], "real")
    elif kind == "arithmetic" and name == "/" and _is_sum(node.args[0]):
        scale = evaluator.number(node.args[1], binding)
        for table in summands(evaluator, node.args[0], binding):
            yield combine(np.divide, [table, scale], "real")
    elif kind == "control":
        before, found = evaluator.reached, list[Table]()
        for condition, branch in evaluator.branches(node, binding):
            left = evaluator.reached
            evaluator.reached = here = combine(np.logical_and, [left, condition], "bool")
            for table in summands(evaluator, branch, binding):
                found.append(combine(lambda c, x: np.where(c, x, 0.0), [here, table], "real"))
            evaluator.reached = combine(lambda x, y: x & ~y, [left, condition], "bool")
        evaluator.reached = before
        yield from found
    else:
        yield evaluator.number(node, binding)


def _is_sum(node: Node) -> bool:
    kind, name = node.etype
    if kind == "arithmetic" and name in ("*", "/"):
        return any(map(_is_sum, node.args))
    return kind == "control" or name in ("+", "-", "sum", "avg")


def _add(
    space: Space, terms: dict[tuple[int, ...], Table], home: tuple[int, ...], table: Table
) -> None:
    here = terms.get(home)
    terms[home] = table if here is None else space.combine(np.add, [here, table], "real")
