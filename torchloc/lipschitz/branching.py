"""Best-first branching: a box is split by the values of one coordinate, and a bound is the largest left.

Every pair of scope states that differ in coordinate i alone lies in exactly one of the boxes that remain,
so the maximum of their bounds bounds L (or span) in i. The box with the largest bound is split next,
along the coordinate that, by first order, takes most from it: the one whose values move the
pre-activations z_1 most, weighted by how much each neuron's part of the bound hangs on the width of its
box. A box without a free coordinate is a single pair of states and stays.

Axis letters: G agents, N boxes an agent, R rows, m coordinates, P pairs of values (padded), S values.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from torchloc.lipschitz.boxes import Boxes, Prepared, coordinate_blocks
from torchloc.lipschitz.differences import propagate, row_bounds
from torchloc.lipschitz.quadratic import quadratic_bounds
from torchloc.lipschitz.rounding import gamma
from torchloc.shapes import Float, Int

CHUNK = 2**21
"""Numbers in one tensor of a batch of boxes, about."""
ITEMS = 64
"""Quadratic bounds that are computed at once."""


def value_pairs(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """(m, P) first and second values, and whether they are a pair: all pairs a < b, padded."""
    pairs = [list(itertools.combinations(range(size), 2)) for size in sizes]
    most = max(map(len, pairs), default=0)
    table = torch.zeros(len(sizes), most, 2, dtype=torch.int64)
    real = torch.zeros(len(sizes), most, dtype=torch.bool)
    for i, found in enumerate(pairs):
        if found:
            table[i, : len(found)] = torch.tensor(found)
            real[i, : len(found)] = True
    return table[..., 0], table[..., 1], real


def evaluate(prepared: Prepared, boxes: Boxes) -> tuple[Float[Tensor, "G N R"], Int[Tensor, "G N"]]:
    """Upper bounds of every row in every box, and the coordinate to split; −1 where none is free."""
    n_agents, n_boxes, m = boxes.fixed.shape
    n_rows = prepared.rows.shape[1]
    widest = max((layer.weight.shape[2] for layer in prepared.chain.affine[:-1]), default=1)
    rows = max(n_rows, 2 * widest if prepared.depth > 2 else 1)
    numbers = n_agents * max(rows * widest, m * max(prepared.chain.sizes))
    size = max(1, CHUNK // numbers)
    parts = [
        _evaluate(prepared, boxes.part(start, start + size)) for start in range(0, n_boxes, size)
    ]
    return torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)


def _evaluate(prepared: Prepared, boxes: Boxes) -> tuple[Tensor, Tensor]:
    free = boxes.free()
    if not prepared.depth:
        return _linear(prepared, boxes), torch.full_like(boxes.coordinate, -1)
    levels = propagate(prepared, boxes)
    bounds, carried = row_bounds(prepared, levels, prepared.rows, prepared.mass)
    worst = bounds.argmax(dim=2)[..., None, None].expand(-1, -1, 1, carried.shape[-1])
    low, high = levels[0].change
    weight = carried.abs().gather(2, worst)[:, :, 0] * (high - low)
    moved = prepared.surrogates[0].most - prepared.surrogates[0].least
    score = (weight / levels[0].width.clamp(min=1e-200)) @ moved.mT
    split = torch.where(free, score, -1.0).argmax(dim=2)
    return bounds, torch.where(free.any(dim=2), split, -1)


def _linear(prepared: Prepared, boxes: Boxes) -> Tensor:
    """Without hidden layers the difference of the logits is that of two rows of weights."""
    rows = coordinate_blocks(prepared.chain, prepared.rows.mT)
    mass = coordinate_blocks(prepared.chain, prepared.mass.mT)
    agent, at = torch.arange(len(rows))[:, None], boxes.coordinate
    sizes = mass[agent, at, boxes.first] + mass[agent, at, boxes.second]
    slack = gamma(prepared.chain.affine[0].weight.shape[2] + 8) * sizes
    return rows[agent, at, boxes.second] - rows[agent, at, boxes.first] + slack


class Frontier:
    """The boxes that remain, for every agent and coordinate.

    Args:
        prepared: The networks of G agents.
        branches: Splits of each coordinate's boxes at most.
    """

    def __init__(self, prepared: Prepared, branches: int) -> None:
        sizes = prepared.chain.sizes
        self.prepared, self.sizes = prepared, torch.tensor(sizes)
        self.first, self.second, self.real = value_pairs(sizes)
        n_agents, (m, n_pairs) = len(prepared.rows), self.first.shape
        most = max(sizes)
        # Enough at a time to keep the processor busy, few enough to stay near best-first.
        self.together = max(1, min(-(-branches // 8), 512 // (n_agents * m * most)))
        rounds = -(-branches // self.together)
        room = n_pairs + rounds * self.together * (most - 1)
        self.bounds = torch.full((n_agents, m, room), -torch.inf, dtype=torch.float64)
        self.fixed = torch.full((n_agents, m, room, m), -1, dtype=torch.int64)
        self.split = torch.full((n_agents, m, room), -1, dtype=torch.int64)
        self.pair = torch.zeros((n_agents, m, room), dtype=torch.int64)
        self.used = n_pairs
        self.pair[..., :n_pairs] = torch.arange(n_pairs)
        self.root = self._roots(n_pairs)
        self.rounds = rounds

    def _boxes(self, fixed: Tensor, pair: Tensor) -> Boxes:
        """Boxes (G, m · k) from (G, m, k, m) fixed values and (G, m, k) pairs."""
        coordinate = torch.arange(len(self.sizes))[:, None].expand_as(pair)
        return Boxes(
            fixed.flatten(1, 2),
            coordinate.flatten(1),
            self.first[coordinate, pair].flatten(1),
            self.second[coordinate, pair].flatten(1),
        )

    def _roots(self, n_pairs: int) -> Tensor:
        """(G, m, P, R) bounds of the boxes in which all other coordinates are free."""
        boxes = self._boxes(self.fixed[:, :, :n_pairs], self.pair[:, :, :n_pairs])
        bounds, split = evaluate(self.prepared, boxes)
        m = len(self.sizes)
        bounds = bounds.unflatten(1, (m, n_pairs))
        bounds = torch.where(self.real[..., None], bounds, -torch.inf)
        bounds = torch.where(bounds.isnan(), torch.inf, bounds)
        self.bounds[..., :n_pairs] = bounds.amax(dim=-1)
        self.split[..., :n_pairs] = split.unflatten(1, (m, n_pairs))
        return bounds

    def run(self) -> Float[Tensor, "G m"]:
        """Splits until the budget is spent or nothing is left to split; the bounds that remain."""
        agent = torch.arange(len(self.bounds))[:, None, None]
        coordinate = torch.arange(len(self.sizes))[None, :, None]
        most = int(self.sizes.max())
        for _ in range(self.rounds):
            value, slot = self.bounds[..., : self.used].topk(min(self.together, self.used), dim=-1)
            split = self.split[agent, coordinate, slot]
            if not bool(((split[..., 0] >= 0) & (value[..., 0] < torch.inf)).any()):
                break
            pair, along = self.pair[agent, coordinate, slot], split.clamp(min=0)
            fixed = self.fixed[agent, coordinate, slot].unsqueeze(3).repeat(1, 1, 1, most, 1)
            choice = torch.arange(most)[:, None].expand(*split.shape, most, 1)
            fixed.scatter_(4, along[..., None, None].expand_as(choice), choice)
            wide = pair.unsqueeze(3).expand(*split.shape, most)
            bounds, onward = evaluate(
                self.prepared, self._boxes(fixed.flatten(2, 3), wide.flatten(2, 3))
            )
            bounds = bounds.amax(dim=-1).reshape(*split.shape, most)
            bounds = torch.minimum(torch.where(bounds.isnan(), torch.inf, bounds), value[..., None])
            exists = torch.arange(most) < self.sizes[along].unsqueeze(-1)
            bounds = torch.where(exists, bounds, -torch.inf)
            # A box that cannot be split keeps its place, and has no children.
            whole = (split < 0)[..., None]
            stays = torch.cat([value[..., None], torch.full_like(bounds[..., 1:], -torch.inf)], -1)
            self._store(
                slot,
                torch.where(whole, stays, bounds),
                torch.where(whole[..., None], self.fixed[agent, coordinate, slot, None], fixed),
                torch.where(whole, -1, onward.reshape(*split.shape, most)),
                wide,
            )
        return self.bounds.amax(dim=-1)

    def _store(
        self, slot: Tensor, bounds: Tensor, fixed: Tensor, split: Tensor, pair: Tensor
    ) -> None:
        """The first child takes the parent's place, the others new ones."""
        n_new = slot.shape[-1] * (bounds.shape[-1] - 1)
        new = slice(self.used, self.used + n_new)
        self.bounds.scatter_(2, slot, bounds[..., 0])
        self.split.scatter_(2, slot, split[..., 0])
        self.fixed.scatter_(2, slot[..., None].expand_as(fixed[..., 0, :]), fixed[..., 0, :])
        self.bounds[..., new] = bounds[..., 1:].flatten(2)
        self.split[..., new] = split[..., 1:].flatten(2)
        self.fixed[..., new, :] = fixed[..., 1:, :].flatten(2, 3)
        self.pair[..., new] = pair[..., 1:].flatten(2)
        self.used += n_new

    def sharpened(self, reached: Float[Tensor, "G m"], *, steps: int) -> Float[Tensor, "G m"]:
        """The smaller of `reached` and what the quadratic bound makes of the boxes at the root.

        Of every coordinate the largest rows and pairs are bounded anew, until none of the others is
        larger than those that were, or one of those is no better than `reached`.
        """
        n_rows = self.root.shape[3]
        left = self.root.flatten(2).clone()
        settled = torch.full_like(reached, -torch.inf)
        together = max(1, min(ITEMS // settled.numel(), left.shape[2]))
        while True:
            value, place = left.topk(together, dim=-1)
            worth = (value > settled[..., None]) & (settled < reached)[..., None]
            worth &= value < torch.inf
            if not bool(worth.any()):
                return torch.minimum(reached, torch.maximum(settled, left.amax(dim=-1)))
            agent, coordinate, which = torch.nonzero(worth, as_tuple=True)
            chosen = place[agent, coordinate, which]
            bound = self._quadratic(agent, coordinate, chosen, n_rows, steps)
            bound = torch.minimum(torch.where(bound.isnan(), torch.inf, bound), value[worth])
            left[agent, coordinate, chosen] = -torch.inf
            at = agent * settled.shape[1] + coordinate
            settled.view(-1).scatter_reduce_(0, at, bound, "amax")

    def _quadratic(
        self, agent: Tensor, coordinate: Tensor, place: Tensor, n_rows: int, steps: int
    ) -> Tensor:
        """Quadratic bounds of items (agent, coordinate, pair · R + row)."""
        pair, row = place // n_rows, place % n_rows
        result = torch.empty(len(agent), dtype=torch.float64)
        for start in range(0, len(agent), ITEMS):
            cut = slice(start, start + ITEMS)
            i, p = coordinate[cut, None], pair[cut, None]
            free = torch.full((len(i), 1, len(self.sizes)), -1, dtype=torch.int64)
            boxes = Boxes(free, i, self.first[i, p], self.second[i, p])
            networks = self.prepared.select(agent[cut])
            result[cut] = quadratic_bounds(networks, boxes, row[cut], steps=steps)
        return result
