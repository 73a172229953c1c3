"""One reverse pass over all balls: derivatives of Φ in the laws of the first step.

The first state is summed out under a product law. The balls are gone through batch by batch, each
small enough to stay in cache, and the derivatives in the closed-loop kernels are collected before
they are attributed to the agents' laws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from torchloc.contraction.sites import SiteClass
from torchloc.contraction.steps import Step
from torchloc.evaluation.numbers import Columns, as_index
from torchloc.evaluation.problem import (
    Chosen,
    Problem,
    Reached,
    alike,
    batches,
    carried,
    operands_of,
)
from torchloc.evaluation.weighting import ProductLaw
from torchloc.mdp.checks import IntArray


def product_pass(
    problem: Problem, law: ProductLaw, balls: Sequence[Reached], kernels: Chosen, rewards: Chosen
) -> list[Tensor]:
    """One (*S_scope, A, G) derivative of Φ a policy group, right for the agents of the selection."""
    numbers = problem.numbers
    found = [
        problem.zeros(*laws.values.shape[:-1], len(group))
        for laws, group in zip(numbers.laws, numbers.layout.groups, strict=True)
    ]
    inward = {
        i: problem.zeros(*numbers.kernels[i].values.shape[:-1], len(problem.sites.classes[i]))
        for i, _ in kernels
    }
    for reached in balls:
        last = reached.ball.last
        targets = [(inward[last.kinds[i]], last.sites[i]) for i in reached.kernels]
        targets += [(found[last.groups[i]], last.agents[i]) for i in reached.laws]
        first, inverse = alike(numbers, reached.ball, weighted=law.columns is not None)
        parts = list(_derivatives(problem, law, reached, None if inverse is None else first))
        for i, (target, rows) in enumerate(targets):
            if inverse is None:
                for (start, stop), gradients in parts:
                    _add(target, rows[start:stop], gradients[i])
            else:
                whole = torch.cat([gradients[i] for _, gradients in parts], dim=-1)
                _add(target, rows, whole.index_select(-1, as_index(inverse, whole)))
    for i, rows in kernels:
        site = problem.sites.classes[i]
        _attribute(problem, site, problem.model.kernels[i], inward[i], rows, found)
    for i, rows in rewards:
        site = problem.sources.rewards[i]
        weight = law.joint(site.reads[rows], site.read_sizes, found[0])
        table, links = problem.model.rewards[i], problem.model.reward_links[i]
        _attribute(problem, site, table, weight, rows, found, links=links, aligned=True)
    return found


def _derivatives(
    problem: Problem, law: ProductLaw, reached: Reached, first: IntArray | None
) -> Iterator[tuple[tuple[int, int], list[Tensor]]]:
    """Batch by batch: (rows, derivatives in the wanted operands of the last step).

    Where balls are alike, only those that stand `first`.
    """
    ball, memory = reached.ball, problem.memory
    if first is not None:
        ball, memory = ball.at(first), None
    step = ball.last
    network = step.averaging()
    scale = problem.discount * law.scale(step.scope_sizes)
    peak = max(network.peak, *(one.pulling().peak for one in ball.steps), 1)
    for start, stop in batches(len(ball), problem.chunk // peak):
        if memory is None:
            values = carried(problem, ball, start, stop)
        else:
            values = memory.values(problem, reached.origin, reached.rows[start:stop])
        values = values * scale
        operands = [values, *operands_of(problem.numbers, step, start, stop)]
        # Each law joins one operand that reads its coordinate, so the network is that without laws.
        weights = _hosted(step, law.factors([c[start:stop] for c in step.scope], step.scope_sizes))
        for operand, weight in weights.items():
            operands[operand] = operands[operand] * weight
        gradients = network.gradients(operands, reached.operands)
        yield (
            (start, stop),
            [
                gradient * weights[operand] if operand in weights else gradient
                for operand, gradient in zip(reached.operands, gradients, strict=True)
            ],
        )


def _hosted(step: Step, factors: Sequence[Tensor]) -> dict[int, Tensor]:
    """Operand of the last step → the product of the laws that it takes, on its axes."""
    weights: dict[int, Tensor] = {}
    for axis, (host, factor) in enumerate(zip(step.hosts, factors, strict=False)):
        axes = step.operands[host]
        shape = [1] * len(axes) + [factor.shape[-1]]
        shape[axes.index(axis)] = len(factor)
        view = factor.reshape(shape)
        weights[host] = view * weights[host] if host in weights else view
    return weights


def _attribute(
    problem: Problem,
    site: SiteClass,
    table: Columns,
    inward: Tensor,
    rows: IntArray,
    found: list[Tensor],
    *,
    links: Sequence[Columns] = (),
    aligned: bool = False,
) -> None:
    """Adds what the derivatives in closed-loop tables are in the laws of their private agents.

    `inward` has a column a site of the class, or, `aligned`, a column a row (or one for all).
    """
    network = site.attribution(fixed=False)
    tables = problem.numbers.layout
    source = Columns(inward, None)
    for start, stop in batches(len(rows), problem.chunk // network.peak):
        some = rows[start:stop]
        weight = source.at(np.arange(start, stop) if aligned else some)
        laws = problem.numbers.closed_laws(site, some)
        operands = [weight, table.at(some), *laws, *(link.at(some) for link in links)]
        gradients = network.gradients(operands, range(2, 2 + len(site.closed)))
        for k, gradient in zip(site.closed, gradients, strict=True):
            agents = site.local.agents[some, k]
            _add(found[int(tables.group_of[agents[0]])], tables.row_of[agents], gradient)


def _add(target: Tensor, rows: IntArray, values: Tensor) -> None:
    """target[..., rows] += values, where a row may stand several times."""
    values = values.expand(*values.shape[:-1], len(rows))
    first = int(rows[0])
    if int(rows[-1]) - first == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
        target.narrow(-1, first, len(rows)).add_(values)
    else:
        target.index_add_(-1, as_index(rows, target), values)
