"""Averages of truncated advantages over given states, such as a simulation's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchloc.contraction.sites import SiteClass
from torchloc.evaluation.numbers import Columns, Numbers, as_index
from torchloc.evaluation.problem import Chosen, Problem, Reached, alike, batches, carried, peak_of
from torchloc.mdp.checks import IntArray


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
    kernel_at = {
        kind: seen.kernel(kind, np.arange(len(problem.sites.classes[kind])))
        for kind in sorted({kind for reached in balls for kind in reached.ball.last.kinds})
    }
    for reached in balls:
        ball, at, by = reached.ball, reached.kernels, reached.laws
        step = ball.last
        network = step.sampling()
        first, inverse = alike(numbers, ball, weighted=False)
        known = None
        if inverse is not None:
            unit = ball.at(first)
            bounds = batches(len(unit), problem.chunk // max(peak_of(unit), 1))
            known = torch.cat([carried(problem, unit, a, b) for a, b in bounds], dim=-1)
        size = problem.chunk // (count * max(network.peak, peak_of(ball)))
        for start, stop in batches(len(ball), size):
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
            for one in step.waiting:
                values = numbers.model.links[one.kind][one.link].at(one.sites[start:stop])
                values = values.expand(*values.shape[:-1], stop - start)
                operands.append(values.repeat_interleave(count, dim=-1))
            for c, link in step.links:
                operands.append(seen.link(step.kinds[c], link, step.sites[c][start:stop]))
            gradients = network.gradients(operands, reached.operands)
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
        table, links = problem.model.rewards[i], problem.model.reward_links[i]
        seen.attribute(problem.sources.rewards[i], table, rows, None, links)
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

    def link(self, i: int, which: int, rows: IntArray) -> Tensor:
        """(*hidden, *A, B · R) a link of some sites at the states: its coordinate is given."""
        site = self.problem.sites.classes[i]
        member = site.links[which].member
        inside = member is not None and member < site.members.shape[1]
        column = site.members[rows, member] if inside else None
        return self._link(self.problem.model.links[i][which], rows, column)

    def _link(self, table: Columns, rows: IntArray, column: IntArray | None) -> Tensor:
        """(*rest, B · R): tables (*hidden, X, ·) with X at (B,) coordinates, or as they are."""
        if column is None:
            values = table.at(rows)
            values = values.expand(*values.shape[:-1], len(rows))
            return values.repeat_interleave(len(self.states), dim=-1)
        first = Columns(table.values.movedim(-2, 0), table.ids)
        values = self._at(first, rows, column[:, None], first.values.shape[:1])
        return values.reshape(*values.shape[:-2], -1)

    def law(self, group: int, rows: IntArray) -> Tensor:
        """(A, B · R) laws of some agents of a group at the states."""
        laws = self.problem.numbers.laws[group]
        member = self.problem.numbers.layout.groups[group]
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
        self,
        site: SiteClass,
        table: Columns,
        rows: IntArray,
        inward: Tensor | None,
        links: Sequence[Columns] = (),
    ) -> None:
        """Adds what the derivatives (*A_shared, S_j, n, R) of some sites are in the agents' laws."""
        local, count = site.local, len(self.states)
        network = site.attribution(fixed=True)
        for start, stop in batches(len(rows), self.problem.chunk // (network.peak * count)):
            some = rows[start:stop]
            n_own = local.n_states if site.own is None else site.own[0]
            values = self._at(table, some, local.union[some, :n_own], local.sizes[:n_own])
            operands = [
                torch.ones_like(values[(0,) * (values.ndim - 2)]).reshape(-1)
                if inward is None
                else _flat(inward, some),
                values.reshape(*values.shape[:-2], -1),
            ]
            groups = self.problem.numbers.layout
            places = []
            for k in site.closed:
                agents = local.agents[some, k]
                places.append((int(groups.group_of[agents[0]]), groups.row_of[agents]))
                operands.append(self.law(*places[-1]))
            for link, columns in zip(site.links, links, strict=False):
                place = local.n_states if link.member is None else n_own + link.member
                column = local.union[some, place] if place < local.n_states else None
                operands.append(self._link(columns, some, column))
            gradients = network.gradients(operands, range(2, 2 + len(places)))
            for (group, at), gradient in zip(places, gradients, strict=True):
                self.add(group, at, gradient)

    def add(self, group: int, rows: IntArray, gradient: Tensor) -> None:
        """Adds (A, B · R) to what the agents of these rows see at each state."""
        n = len(self.problem.numbers.layout.groups[group])
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


def _groups(numbers: Numbers):
    return list(zip(numbers.laws, numbers.layout.groups, strict=True))


def _flat(values: Tensor, rows: IntArray) -> Tensor:
    """(*axes, n, R) → (*axes, len(rows) · R)."""
    picked = values.index_select(-2, as_index(rows, values))
    return picked.reshape(*picked.shape[:-2], -1)
