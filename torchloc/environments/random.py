"""Random models: seeded Dirichlet kernels on any digraph, the generator for soundness tests.

States: `states` values a site. Actions: `actions` values a site. Law: P_j = (1 − coupling)·Q_j(· |
a_j) + coupling·D_j(· | s_pred, s_j, a_j), all rows drawn from Dirichlet(concentration). Reward: Σ_j
r_j(s_j, a_j), entries uniform on [0, 1). Influence: E^s[j, i] ≤ coupling, so ρ(E^s) ≤ coupling·(1 +
largest in-degree). Source: test problem of this package.
"""

from __future__ import annotations

import numpy as np

from torchloc.environments.checks import (
    MODEL_BYTES,
    check_table,
    choice,
    probability,
    real,
    whole,
)
from torchloc.environments.topologies import CONTACTS, SHAPES, contact, from_file, shaped
from torchloc.errors import BudgetError, InputError
from torchloc.mdp import FactoredMDP, KernelBatch, RewardBatch


def random_mdp(
    n: int = 8,
    *,
    graph: str = "ring",
    graph_file: str | None = None,
    directed: bool = True,
    rows: int | None = None,
    degree: int = 3,
    states: int = 2,
    actions: int = 2,
    concentration: float = 1.0,
    coupling: float = 1.0,
    seed: int = 0,
) -> FactoredMDP:
    """A random model on a digraph; every site has tables of its own.

    States: n coordinates with `states` values. Actions: one agent a site with `actions` values.
    Law: P_j = (1 − coupling)·Q_j(· | a_j) + coupling·D_j(· | s_pred, s_j, a_j), the rows of Q_j and
    D_j independent draws of a symmetric Dirichlet law with parameter `concentration`: small, nearly
    deterministic; large, nearly uniform. Reward: Σ_j r_j(s_j, a_j), entries uniform on [0, 1).
    Influence: E^s[j, i] ≤ coupling, so ρ(E^s) ≤ coupling·(1 + largest in-degree), and E^s = 0 at
    coupling 0. Source: test problem of this package.

    Args:
        n: Number of sites; `karate`, `les_miserables`, `davis` and a file have their own.
        graph: One-way `ring`, `line`, `star` or `three_leg`; two-way `grid`, `torus`,
            `random_regular`, `karate`, `les_miserables` or `davis`.
        graph_file: A GraphML file or an edge list, which takes the place of `graph` and `n`.
        directed: Whether a line `i j` of an edge list is i → j only; else both directions.
        rows: Rows of a grid or torus, a divisor of n; None: the largest divisor ≤ √n.
        degree: Neighbours a site has in `random_regular`.
        states: Size of every coordinate, ≥ 1.
        actions: Size of every action space, ≥ 1.
        concentration: Dirichlet parameter, > 0.
        coupling: Weight of the part that reads states, in [0, 1].
        seed: Seed of the tables, and of `random_regular`.

    Returns:
        N = K = n; kernel j reads its d predecessors in ascending order, then itself, and agent j;
        tables (B, *(states,)*(d + 1), actions, states) for the B sites of in-degree d.

    Raises:
        InputError: An argument is outside its range, or the graph cannot be made or read.
        BudgetError: A table, or all of them together, would be too large.

    Example:
        >>> bool(random_mdp(6, coupling=0.1).kernels[0].state_influence().max() <= 0.1)
        True
    """
    size, choices = whole("states", states, 1), whole("actions", actions, 1)
    alpha, weight = real("concentration", concentration), probability("coupling", coupling)
    if alpha <= 0.0:
        raise InputError(f"concentration = {concentration!r}; it must be positive")
    rng = np.random.default_rng(whole("seed", seed, 0))
    if graph_file is not None:
        network = from_file(graph_file, directed=directed)
    elif choice("graph", graph, (*SHAPES, *CONTACTS)) in CONTACTS:
        network = contact(graph)
    else:
        network = shaped(graph, n, two_way=False, rows=rows, degree=degree, seed=seed)
    groups = list(network.groups())
    total = 0
    for nodes, predecessors in groups:
        shape = (size,) * (predecessors.shape[1] + 1) + (choices, size)
        check_table(shape, network.name(int(nodes[0])))
        total += 8 * len(nodes) * int(np.prod(shape))
    if total > MODEL_BYTES:
        raise BudgetError(
            f"the tables of {network.n} sites would take {total:,} bytes, over the limit of "
            f"{MODEL_BYTES:,}; lower n, states or the in-degree"
        )
    law = np.full(size, alpha)
    kernels = []
    for nodes, predecessors in groups:
        parents = (size,) * (predecessors.shape[1] + 1)
        own = rng.dirichlet(law, size=(len(nodes), *(1,) * len(parents), choices))
        reading = rng.dirichlet(law, size=(len(nodes), *parents, choices))
        kernels.append(
            KernelBatch(
                nodes,
                np.concatenate([predecessors, nodes[:, None]], axis=1),
                nodes[:, None],
                (1.0 - weight) * own + weight * reading,
            )
        )
    sites = np.arange(network.n)[:, None]
    return FactoredMDP(
        np.full(network.n, size),
        np.full(network.n, choices),
        kernels,
        [RewardBatch(sites, sites, rng.random((network.n, size, choices)))],
        coordinate_names=network.names,
        agent_names=network.names,
    )
