"""Random models whose kernels and rewards count, beside the same models written out by definition."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import reference as ref

from torchloc.mdp import (
    CountBatch,
    CountKernel,
    CountRewardBatch,
    FactoredMDP,
    LocalKernel,
    LocalReward,
)


@dataclass(frozen=True)
class Counted:
    """A model that counts, and its twin of tables."""

    counted: FactoredMDP
    tables: FactoredMDP


def random_counted(
    rng: np.random.Generator,
    *,
    n: int = 5,
    k: int = 3,
    count_actions: bool = False,
    shared: bool = False,
    noisy: bool = False,
) -> Counted:
    """Kernels with 1 or 2 counters over random parents, one reward term that counts, one that does not."""
    state_sizes, action_sizes = np.full(n, 2), np.full(k, 2)
    state_sizes[rng.integers(n)] = 3
    kernels: list[CountKernel] = []
    tables: list[LocalKernel] = []
    for j in range(n):
        order = rng.permutation(n).tolist()
        own = tuple(order[: rng.integers(0, 3)])
        rest = [i for i in order if i not in own and state_sizes[i] == 2]
        members = tuple(rest[: rng.integers(0, 4)])
        acting = (int(rng.integers(k)),) if shared else ((j,) if j < k else ())
        counted = tuple(a for a in range(k) if a not in acting) if count_actions else ()
        sizes = [*state_sizes[list(own)], *action_sizes[list(acting)]]
        s_j = int(state_sizes[j])
        if noisy and not counted:
            held = rng.choice([0.3, 0.8, 1.0], size=sizes)
            high, low = rng.dirichlet(np.ones(s_j), size=(2, *sizes))
            kernels.append(
                CountKernel.noisy_or(
                    own, acting, members, reached=high, spared=low, inhibition=held
                )
            )
            weights = np.broadcast_to([[0, 1]], (1, max(len(members), 1), 2))
            table = (
                high[..., None, :]
                + held[..., None, None] ** np.arange(len(members) + 1)[:, None]
                * (low - high)[..., None, :]
            )
            action_weights = np.zeros((1, 0, 2), np.int64)
        else:
            r = int(rng.integers(1, 3))
            levels = rng.integers(2, 4, size=r).tolist()
            weights = rng.integers(0, 3, size=(r, len(members), 2))
            action_weights = rng.integers(0, 3, size=(r, len(counted), 2))
            table = rng.dirichlet(np.ones(s_j), size=[*sizes, *levels])
            kernels.append(
                CountKernel(
                    own, acting, members, table, counted_actions=counted,
                    weights=weights, action_weights=action_weights,
                )
            )  # fmt: skip

        def law_of(s, a, own=own, acting=acting, table=table, w=weights, v=action_weights):
            # s: own, then members; a: own agents, then counted agents
            p, q, r = len(own), len(acting), len(w)
            counts = []
            for i in range(r):
                total = sum(int(w[i, m, x]) for m, x in enumerate(s[p:]))
                total += sum(int(v[i, m, x]) for m, x in enumerate(a[q:]))
                counts.append(min(total, table.shape[p + q + i] - 1))
            return table[(*s[:p], *a[:q], *counts)]

        tables.append(
            LocalKernel.from_function(
                (*own, *members), (*acting, *counted), law_of, (state_sizes, action_sizes)
            )
        )
    binary = [i for i in range(n) if state_sizes[i] == 2]
    members, agents = binary[:3], list(range(1, k))
    reward = rng.normal(size=(int(state_sizes[n - 1]), 2, 3))
    if n - 1 in members:
        members.remove(n - 1)
    term = CountRewardBatch(
        [[n - 1]], [[0]], [members], [agents], reward[None], state_weights=[0, 1]
    )
    shape = [int(state_sizes[n - 1]), *[2] * len(members), *[2] * (1 + len(agents))]
    full = np.zeros(shape)
    for index in itertools.product(*map(range, shape)):
        seen, acts = index[: 1 + len(members)], index[1 + len(members) :]
        full[index] = reward[seen[0], acts[0], min(sum(seen[1:]) + sum(acts[1:]), 2)]
    plain = LocalReward((0,), (), rng.normal(size=int(state_sizes[0])))
    return Counted(
        FactoredMDP(state_sizes, action_sizes, kernels, [term, plain]),
        FactoredMDP(
            state_sizes,
            action_sizes,
            tables,
            [LocalReward((n - 1, *members), (0, *agents), full), plain],
        ),
    )


# Wider models: any sizes, batches of several sites, modes, counts that stop --------------------------


@dataclass(frozen=True)
class Wide:
    """A model whose kernels and rewards come in count batches, and its plain definition."""

    counted: FactoredMDP
    plain: ref.Model


@dataclass
class _Spaces:
    """Sizes of a model, and random parents of several sites with the same sizes, place by place."""

    rng: np.random.Generator
    states: list[int]
    actions: list[int]

    def parents(
        self, count: int, sizes: Sequence[int], own: int, counted: int
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """(B, own), (B, counted) distinct members, and the sizes of all of them."""
        order = self.rng.permutation(len(sizes))[: own + counted]
        rows = np.tile(order, (count, 1))
        for row in rows[1:]:
            for size in set(sizes):
                same = [i for i in range(len(sizes)) if sizes[i] == size]
                at = [c for c, i in enumerate(order) if sizes[i] == size]
                row[at] = self.rng.permutation(same)[: len(at)]
        held = [int(sizes[i]) for i in order]
        return rows[:, :own], rows[:, own:], held


@dataclass
class _Sites:
    """What a random count batch is made of.

    Weights are (B, r, d, X) in full, junk beyond a parent's size; `options` says how they are given.
    """

    states: np.ndarray
    actions: np.ndarray
    counted_states: np.ndarray
    counted_actions: np.ndarray
    sizes: tuple[list[int], list[int]]
    state_weights: np.ndarray
    action_weights: np.ndarray
    levels: list[int]
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def draw(
        cls, spaces: _Spaces, count: int, own: tuple[int, int], counted: tuple[int, int]
    ) -> _Sites:
        rng = spaces.rng
        states, members, s = spaces.parents(count, spaces.states, own[0], counted[0])
        actions, agents, a = spaces.parents(count, spaces.actions, own[1], counted[1])
        s_counted, a_counted = s[own[0] :], a[own[1] :]
        r = int(rng.integers(1 if s_counted or a_counted else 0, 4))
        given, full = {}, []
        for kind, sizes in (("state", s_counted), ("action", a_counted)):
            width = max(sizes, default=2) + int(rng.integers(2))
            form = rng.integers(4)
            shape = [(width,), (len(sizes), width), (r, len(sizes), width),
                     (count, r, len(sizes), width)][form]  # fmt: skip
            weights = rng.choice([0, 0, 1, 1, 2, 3], size=shape)
            given[f"{kind}_weights"] = weights
            if sizes and (width != max(sizes) or len(set(sizes)) > 1 or rng.random() < 0.5):
                given[f"{kind}_sizes"] = sizes
            elif not sizes:
                given[f"{kind}_weights"] = None
            full.append(np.broadcast_to(weights, (count, r, len(sizes), width)))
        levels = rng.integers(1, 6, size=r).tolist()
        return cls(states, actions, members, agents, (s, a), *full, levels, given)

    def __len__(self) -> int:
        return len(self.states)

    @property
    def own_shape(self) -> list[int]:
        p, q = self.states.shape[1], self.actions.shape[1]
        return [*self.sizes[0][:p], *self.sizes[1][:q]]

    def largest(self) -> list[int]:
        """For each counter the most that the parents of a site add to it."""
        top = np.zeros((len(self), len(self.levels)), dtype=int)
        for weights, sizes, own in (
            (self.state_weights, self.sizes[0], self.states.shape[1]),
            (self.action_weights, self.sizes[1], self.actions.shape[1]),
        ):
            for m, size in enumerate(sizes[own:]):
                top += weights[:, :, m, :size].max(axis=-1)
        return top.max(axis=0).tolist()

    def written(self, row: int, table: np.ndarray) -> np.ndarray:
        """(*S, *S counted, *A, *A counted, …) by definition: the count of every combination of values."""
        p, q, d = self.states.shape[1], self.actions.shape[1], self.counted_states.shape[1]
        table = table[row if len(table) > 1 else 0]
        shape = [*self.sizes[0], *self.sizes[1]]
        tail = table.shape[p + q + len(self.levels) :]
        full = np.zeros((*shape, *tail))
        for point in itertools.product(*map(range, shape)):
            s, a = point[: p + d], point[p + d :]
            counts = []
            for i, level in enumerate(self.levels):
                total = sum(int(self.state_weights[row, i, m, x]) for m, x in enumerate(s[p:]))
                total += sum(int(self.action_weights[row, i, m, x]) for m, x in enumerate(a[q:]))
                counts.append(min(total, level - 1))
            full[point] = table[(*s[:p], *a[:q], *counts)]
        return full

    def term(self, row: int, table: np.ndarray) -> ref.Term:
        """One site as plain data."""
        states = (*self.states[row].tolist(), *self.counted_states[row].tolist())
        actions = (*self.actions[row].tolist(), *self.counted_actions[row].tolist())
        return states, actions, self.written(row, table)


def _moded(
    rng: np.random.Generator, sites: _Sites, n_values: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """A law that is q₀ + Σ_h α_h Π_i λ_{h,i}^{c_i} (q_h − q₀), and its modes in random order.

    Counters that some site can stop have rates 0 and 1.
    """
    r, lead = len(sites.levels), int(rng.choice([1, len(sites)]))
    for i, largest in enumerate(sites.largest()):
        if rng.random() < 0.7:
            sites.levels[i] = largest + 1 + int(rng.integers(2))
    stops = np.array(sites.largest()) >= np.array(sites.levels)
    n_modes = int(rng.integers(1, 4))
    rates = np.ones((1 + n_modes, r))
    rates[1:] = np.where(
        stops,
        rng.integers(0, 2, size=(n_modes, r)),
        rng.choice([0.0, 0.35, 0.8, 1.0], size=(n_modes, r)),
    )
    own = (lead, *sites.own_shape)
    laws = rng.dirichlet(np.full(n_values, 0.7), size=(*own, 1 + n_modes))
    share = rng.dirichlet(np.ones(n_modes + 1), size=own)[..., 1:, None]
    core = np.concatenate(
        [laws[..., :1, :], share * (laws[..., 1:, :] - laws[..., :1, :])], axis=-2
    )
    table = np.zeros((*own, *sites.levels, n_values))
    for counts in itertools.product(*map(range, sites.levels)):
        powers = (rates ** np.array(counts)).prod(axis=1)
        cell = (*(slice(None) for _ in own), *counts)
        table[cell] = (powers[:, None] * core).sum(axis=-2)
    order = rng.permutation(1 + n_modes)
    given = rates[order, 0] if r == 1 and rng.random() < 0.5 else rates[order]
    return table, (core[..., order, :], given)


def random_wide(
    rng: np.random.Generator,
    *,
    n: int = 5,
    k: int = 3,
    sizes: Sequence[int] = (2, 2, 2, 3, 4),
    modes: bool = False,
    counted_actions: bool = True,
    private: bool = False,
    counted: int = 3,
) -> Wide:
    """Count batches of one to three sites, over coordinates and agents of any sizes.

    Args:
        rng: Source of randomness.
        n: Coordinates.
        k: Agents.
        sizes: Of both, to be drawn from.
        modes: Kernels know their modes.
        counted_actions: Kernels may count actions.
        private: An agent acts on no kernel but that of the coordinate of its number, and is not counted.
        counted: Counted coordinates of a site at most.
    """
    spaces = _Spaces(rng, rng.choice(sizes, n).tolist(), rng.choice([2, 2, 3], k).tolist())
    kernels: dict[int, ref.Term] = {}
    batches: list[CountBatch] = []
    left = rng.permutation(n).tolist()
    while left:
        same = [j for j in left if spaces.states[j] == spaces.states[left[0]]]
        if private:
            same = [j for j in same if (j < k) == (same[0] < k)]
            same = [j for j in same if j >= k or spaces.actions[j] == spaces.actions[same[0]]]
        driven = same[: int(rng.integers(1, 4))]
        left = [j for j in left if j not in driven]
        d = int(rng.integers(0, min(counted, n) + 1))
        p = int(rng.integers(0, min(2, n - d) + 1))
        e = int(rng.integers(0, min(2, k) + 1)) if counted_actions and not private else 0
        q = int(rng.integers(0, min(1, k - e) + 1)) if not private else 0
        sites = _Sites.draw(spaces, len(driven), (p, q), (d, e))
        if private and driven[0] < k:
            sites.actions = np.array(driven)[:, None]
            sites.sizes[1].append(spaces.actions[driven[0]])
        size, given = spaces.states[driven[0]], None
        if modes:
            table, given = _moded(rng, sites, size)
        else:
            lead = int(rng.choice([1, len(driven)]))
            shape = (lead, *sites.own_shape, *sites.levels)
            table = rng.dirichlet(np.full(size, rng.choice([0.3, 1.0])), size=shape)
        batch = CountBatch(
            driven, sites.states, sites.actions, sites.counted_states, sites.counted_actions,
            table, modes=given, **sites.options,
        )  # fmt: skip
        batches.append(batch)
        for row, j in enumerate(driven):
            kernels[j] = sites.term(row, table)
    rewards: list[CountRewardBatch] = []
    terms: list[ref.Term] = []
    for _ in range(2):
        count, e = int(rng.integers(1, 4)), int(rng.integers(0, min(2, k) + 1))
        p, q, d = int(rng.integers(0, 3)), int(rng.integers(0, k - e + 1)), int(rng.integers(0, 3))
        sites = _Sites.draw(spaces, count, (p, q), (d, e))
        shape = (int(rng.choice([1, count])), *sites.own_shape, *sites.levels)
        table = rng.normal(size=shape)
        rewards.append(
            CountRewardBatch(
                sites.states,
                sites.actions,
                sites.counted_states,
                sites.counted_actions,
                table,
                **sites.options,
            )
        )
        terms += [sites.term(row, table) for row in range(count)]
    counted_model = FactoredMDP(spaces.states, spaces.actions, batches, rewards)
    plain = ref.Model(
        tuple(spaces.states), tuple(spaces.actions), [kernels[j] for j in range(n)], terms
    )
    return Wide(counted_model, plain)


__all__ = ["CountBatch", "Counted", "Wide", "random_counted", "random_wide"]
