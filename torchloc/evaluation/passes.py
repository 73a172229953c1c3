"""One reverse pass over all balls: derivatives of Φ in the laws of the first step.

`product_pass` sums over the first state under a product law, `sampled_pass` takes given states in
place of it. Both go through the balls batch by batch, each batch small enough to stay in cache, and
collect the derivatives in the closed-loop kernels before they are attributed to the agents' laws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchloc.alike import distinct
from torchloc.contraction.balls import Ball, Step
from torchloc.contraction.sites import SiteClass, Sites
from torchloc.evaluation.numbers import Columns, ModelTables, Numbers, as_index
from torchloc.evaluation.sources import Sources
from torchloc.evaluation.weighting import ProductLaw
from torchloc.mdp.checks import IntArray

_CHUNK = {"cpu": 2**17, "cuda": 2**26}
"""Entries of the largest tensor of one batch: what stays in a processor's cache."""

Reached = tuple[Ball, tuple[int, ...], tuple[int, ...]]
"""A ball, and the positions of the kernels and of the shared laws whose derivative is wanted."""
Chosen = Sequence[tuple[int, IntArray]]
"""Classes of sites, and which of their rows are wanted."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What a pass reads.

    Attributes:
        sites: Structure of the kernels.
        sources: Structure of the rewards.
        model: Their tables.
        numbers: The policy's.
        discount: γ.
    """

    sites: Sites
    sources: Sources
    model: ModelTables
    numbers: Numbers
    discount: float

    @property
    def chunk(self) -> int:
        """Entries of the largest tensor of one batch."""
        return _CHUNK[self.model.device.type]

    def zeros(self, *shape: int) -> Tensor:
        """Zeros of the pass's dtype on its device."""
        return torch.zeros(shape, dtype=self.model.dtype, device=self.model.device)


def product_pass(
    problem: Problem, law: ProductLaw, balls: Sequence[Reached], kernels: Chosen, rewards: Chosen
) -> list[Tensor]:
    """One (*S_scope, A, G) derivative of Φ a policy group, right for the agents of the selection."""
    numbers = problem.numbers
    found = [problem.zeros(*laws.values.shape[:-1], len(group)) for laws, group in _groups(numbers)]
    inward = {
        i: problem.zeros(*numbers.kernels[i].values.shape[:-1], len(problem.sites.classes[i]))
        for i, _ in kernels
    }
    for ball, at, by in balls:
        targets = [(inward[ball.last.kinds[i]], ball.last.sites[i]) for i in at]
        targets += [(found[ball.last.groups[i]], ball.last.agents[i]) for i in by]
        wanted = [1 + i for i in at] + [1 + len(ball.last.kinds) + i for i in by]
        first, inverse = _alike(numbers, ball, weighted=law.columns is not None)
        unit = ball if inverse is None else ball.at(first)
        parts = list(_derivatives(problem, law, unit, wanted))
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
        _attribute(problem, site, problem.model.rewards[i], weight, rows, found, aligned=True)
    return found


def _derivatives(
    problem: Problem, law: ProductLaw, ball: Ball, wanted: Sequence[int]
) -> Iterator[tuple[tuple[int, int], list[Tensor]]]:
    """Batch by batch: (rows, derivatives in the wanted operands of the last step)."""
    step = ball.last
    network = step.averaging(weighted=law.columns is not None)
    scale = problem.discount * law.scale(step.result_sizes)
    peak = max(network.peak, *(one.pulling().peak for one in ball.steps), 1)
    for start, stop in _batches(len(ball), problem.chunk // peak):
        values = carried(problem, ball, start, stop) * scale
        weights = law.factors([c[start:stop] for c in step.scope], step.result_sizes)
        operands = [values, *_operands(problem.numbers, step, start, stop), *weights]
        yield (start, stop), network.gradients(operands, wanted)


def carried(problem: Problem, ball: Ball, start: int, stop: int) -> Tensor:
    """(*S, B or 1) the ball's function before its last step: Σ_t γ^t (T^π)^t f, or one power."""
    source = problem.numbers.sources[ball.source].at(ball.rows[start:stop])
    values = source
    for step in ball.steps:
        values = step.pulling()([values, *_operands(problem.numbers, step, start, stop)])
        if problem.discount < 1.0:
            values = values * problem.discount
        if ball.carried and step.source is not None:
            order = sorted(range(len(step.source)), key=step.source.__getitem__)
            view = tuple(slice(None) if i in step.source else None for i in range(len(step.scope)))
            values = values + source.permute(*order, len(order))[(*view, slice(None))]
    return values


def sampled_pass(
    problem: Problem,
    states: Tensor,
    balls: Sequence[Reached],
    kernels: Chosen,
    rewards: Chosen,
) -> list[tuple[Tensor, Tensor]]:
    """Sums over the states at which an agent sees the same, and how many these are.

    Args:
        problem: What is read.
        states: (R, N) int64.
        balls: Selected balls.
        kernels: Selected kernels.
        rewards: Selected reward terms.

    Returns:
        For every policy group (R_scope, A, G) sums and (R_scope, 1, G) counts.
    """
    numbers, count = problem.numbers, len(states)
    seen = _Seen(problem, states)
    inward = {
        i: problem.zeros(*site.kept_sizes, *site.tail, len(site), count)
        for i, site in ((i, problem.sites.classes[i]) for i, _ in kernels)
    }
    kernel_at = [
        seen.kernel(i, np.arange(len(site))) for i, site in enumerate(problem.sites.classes)
    ]
    for ball, at, by in balls:
        step = ball.last
        network = step.sampling()
        wanted = [1 + i for i in at] + [1 + len(step.kinds) + i for i in by]
        first, inverse = _alike(numbers, ball, weighted=False)
        known = None
        if inverse is not None:
            unit = ball.at(first)
            bounds = _batches(len(unit), problem.chunk // max(_peak(unit), 1))
            known = torch.cat([carried(problem, unit, a, b) for a, b in bounds], dim=-1)
        size = problem.chunk // (count * max(network.peak, _peak(ball)))
        for start, stop in _batches(len(ball), size):
            if known is None or inverse is None:
                values = carried(problem, ball, start, stop)
            else:
                values = known.index_select(-1, as_index(inverse[start:stop], known))
            values = values.expand(*values.shape[:-1], stop - start) * problem.discount
            operands = [values.repeat_interleave(count, dim=-1)]
            for kind, rows in zip(step.kinds, step.sites, strict=True):
                operands.append(_flat(kernel_at[kind], rows[start:stop]))
            for group, rows in zip(step.groups, step.agents, strict=True):
                operands.append(seen.law(group, rows[start:stop]))
            gradients = network.gradients(operands, wanted)
            for i, gradient in zip(at, gradients, strict=False):
                target = inward[step.kinds[i]]
                rows = step.sites[i][start:stop]
                split = gradient.expand(*gradient.shape[:-1], len(rows) * count)
                target.index_add_(
                    -2, as_index(rows, target), split.reshape(*split.shape[:-1], len(rows), count)
                )
            for i, gradient in zip(by, gradients[len(at) :], strict=True):
                seen.add(step.groups[i], step.agents[i][start:stop], gradient)
    for i, rows in kernels:
        site = problem.sites.classes[i]
        seen.attribute(site, problem.model.kernels[i], rows, inward[i])
    for i, rows in rewards:
        seen.attribute(problem.sources.rewards[i], problem.model.rewards[i], rows, None)
    return seen.result()


class _Seen:
    """What kernels, laws and rewards are at given states, and sums by what agents see there."""

    def __init__(self, problem: Problem, states: Tensor) -> None:
        self.problem = problem
        self.states = states
        numbers = problem.numbers
        self.cells = [flat_index(states, group.scope, group.sizes) for _, group in _groups(numbers)]
        self.sums = [
            problem.zeros(laws.values.shape[-2], group.n_rows * len(group))
            for laws, group in _groups(numbers)
        ]

    def kernel(self, i: int, rows: IntArray) -> Tensor:
        """(*A_shared, S_j, B, R) closed-loop kernels of site class i at the states."""
        site = self.problem.sites.classes[i]
        table = self.problem.numbers.kernels[i]
        return self._at(table, rows, site.reads[rows], site.read_sizes)

    def law(self, group: int, rows: IntArray) -> Tensor:
        """(A, B · R) laws of some agents of a group at the states."""
        laws = self.problem.numbers.laws[group]
        member = self.problem.numbers.tables.groups[group]
        values = self._at(laws, rows, member.scope[rows], member.sizes)
        return values.reshape(*values.shape[:-2], -1)

    def _at(self, table: Columns, rows: IntArray, scope: IntArray, sizes: Sequence[int]) -> Tensor:
        """(*rest, B, R): tables (*sizes, *rest, ·) at the states of their (B, m) coordinates."""
        rest = table.values.shape[len(sizes) : -1]
        flat = table.values.reshape(math.prod(sizes), -1, table.values.shape[-1])
        index = flat_index(self.states, scope, sizes)
        if flat.shape[-1] == 1:
            column = torch.zeros_like(index)
        else:
            ids = rows if table.ids is None else table.ids[rows]
            column = as_index(ids, index)[:, None].expand_as(index)
        picked = flat.permute(1, 0, 2)[:, index, column]
        return picked.reshape(*rest, *index.shape)

    def attribute(
        self, site: SiteClass, table: Columns, rows: IntArray, inward: Tensor | None
    ) -> None:
        """Adds what the derivatives (*A_shared, S_j, n, R) of some sites are in the agents' laws."""
        local, count = site.local, len(self.states)
        network = site.attribution(fixed=True)
        for start, stop in _batches(len(rows), self.problem.chunk // (network.peak * count)):
            some = rows[start:stop]
            parents = local.union[some, : local.n_states]
            values = self._at(table, some, parents, local.sizes[: local.n_states])
            operands = [
                torch.ones_like(values[(0,) * (values.ndim - 2)]).reshape(-1)
                if inward is None
                else _flat(inward, some),
                values.reshape(*values.shape[:-2], -1),
            ]
            groups = self.problem.numbers.tables
            places = []
            for k in site.closed:
                agents = local.agents[some, k]
                places.append((int(groups.group_of[agents[0]]), groups.row_of[agents]))
                operands.append(self.law(*places[-1]))
            gradients = network.gradients(operands, range(2, len(operands)))
            for (group, at), gradient in zip(places, gradients, strict=True):
                self.add(group, at, gradient)

    def add(self, group: int, rows: IntArray, gradient: Tensor) -> None:
        """Adds (A, B · R) to what the agents of these rows see at each state."""
        n = len(self.problem.numbers.tables.groups[group])
        cells = self.cells[group][as_index(rows, self.states)]
        flat = cells * n + as_index(rows, self.states)[:, None]
        target = self.sums[group]
        target.index_add_(1, flat.reshape(-1), gradient.expand(len(target), flat.numel()))

    def result(self) -> list[tuple[Tensor, Tensor]]:
        """(R_scope, A, G) sums and (R_scope, 1, G) counts of every group."""
        result = []
        for sums, cells, (_, group) in zip(
            self.sums, self.cells, _groups(self.problem.numbers), strict=True
        ):
            n = len(group)
            flat = cells * n + torch.arange(n, device=cells.device)[:, None]
            counts = torch.bincount(flat.reshape(-1), minlength=group.n_rows * n)
            shaped = sums.reshape(-1, group.n_rows, n).permute(1, 0, 2)
            result.append((shaped, counts.reshape(group.n_rows, 1, n).to(sums)))
        return result


def flat_index(states: Tensor, scope: IntArray, sizes: Sequence[int]) -> Tensor:
    """(B, R) row-major index of what each of (B, m) coordinates is in (R, N) states."""
    index = torch.zeros(len(scope), len(states), dtype=torch.int64, device=states.device)
    for column, size in zip(scope.T, sizes, strict=True):
        index = index * size + states[:, as_index(column, states)].T
    return index


def _attribute(
    problem: Problem,
    site: SiteClass,
    table: Columns,
    inward: Tensor,
    rows: IntArray,
    found: list[Tensor],
    *,
    aligned: bool = False,
) -> None:
    """Adds what the derivatives in closed-loop tables are in the laws of their private agents.

    `inward` has a column a site of the class, or, `aligned`, a column a row (or one for all).
    """
    network = site.attribution(fixed=False)
    tables = problem.numbers.tables
    source = Columns(inward, None)
    for start, stop in _batches(len(rows), problem.chunk // network.peak):
        some = rows[start:stop]
        weight = source.at(np.arange(start, stop) if aligned else some)
        laws = problem.numbers.closed_laws(site, some)
        gradients = network.gradients(
            [weight, table.at(some), *laws], range(2, 2 + len(site.closed))
        )
        for k, gradient in zip(site.closed, gradients, strict=True):
            agents = site.local.agents[some, k]
            _add(found[int(tables.group_of[agents[0]])], tables.row_of[agents], gradient)


def _alike(numbers: Numbers, ball: Ball, *, weighted: bool) -> tuple[IntArray, IntArray | None]:
    """Representatives of sources whose balls hold equal numbers, and which stands for which."""
    names = [] if weighted else [numbers.sources[ball.source].names(ball.rows)]
    for step in (*ball.steps, ball.last):
        if not names or any(name is None for name in names):
            return ball.rows, None
        for kind, rows in zip(step.kinds, step.sites, strict=True):
            names.append(numbers.kernels[kind].names(rows))
        for group, rows in zip(step.groups, step.agents, strict=True):
            names.append(numbers.laws[group].names(rows))
    known = [name for name in names if name is not None]
    if len(known) < len(names):
        return ball.rows, None
    first, inverse = distinct(known)
    return (first, inverse) if 2 * len(first) <= len(ball) else (ball.rows, None)


def _operands(numbers: Numbers, step: Step, start: int, stop: int) -> list[Tensor]:
    found = [
        numbers.kernels[kind].at(rows[start:stop])
        for kind, rows in zip(step.kinds, step.sites, strict=True)
    ]
    return found + [
        numbers.laws[group].at(rows[start:stop])
        for group, rows in zip(step.groups, step.agents, strict=True)
    ]


def _groups(numbers: Numbers):
    return list(zip(numbers.laws, numbers.tables.groups, strict=True))


def _peak(ball: Ball) -> int:
    return max((step.pulling().peak for step in ball.steps), default=1)


def _batches(count: int, size: int) -> Iterator[tuple[int, int]]:
    size = max(size, 1)
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _flat(values: Tensor, rows: IntArray) -> Tensor:
    """(*axes, n, R) → (*axes, len(rows) · R)."""
    picked = values.index_select(-2, as_index(rows, values))
    return picked.reshape(*picked.shape[:-2], -1)


def _add(target: Tensor, rows: IntArray, values: Tensor) -> None:
    """target[..., rows] += values, where a row may stand several times."""
    values = values.expand(*values.shape[:-1], len(rows))
    first = int(rows[0])
    if int(rows[-1]) - first == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
        target.narrow(-1, first, len(rows)).add_(values)
    else:
        target.index_add_(-1, as_index(rows, target), values)
