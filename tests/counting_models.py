"""Random models whose kernels and rewards count, beside the same models written out by definition."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

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
            law = lambda: rng.dirichlet(np.ones(s_j), size=sizes)  # noqa: E731
            held = rng.choice([0.3, 0.8, 1.0], size=sizes)
            high, low = law(), law()
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


__all__ = ["CountBatch", "Counted", "random_counted"]
