"""Epidemic control: susceptible–infected–susceptible on a contact graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from torchloc.environments.checks import check_table, choice, probabilities, probability, real
from torchloc.environments.topologies import (
    CONTACTS,
    SHAPES,
    Digraph,
    contact,
    from_file,
    from_networkx,
    shaped,
)
from torchloc.mdp import FactoredMDP, KernelBatch, RewardBatch

if TYPE_CHECKING:
    import networkx as nx


def sis(
    n: int = 8,
    *,
    graph: str = "ring",
    graph_file: str | None = None,
    directed: bool = False,
    rows: int | None = None,
    degree: int = 3,
    seed: int = 0,
    infection: Sequence[float] = (0.2, 0.05),
    recovery: Sequence[float] = (0.3, 0.6),
    outside: float = 0.01,
    cost: float = 0.1,
) -> FactoredMDP:
    """An infection on a contact graph; agents protect the healthy and treat the infected.

    States: n binary coordinates, 1 = infected. Actions: one binary agent a site, 0 nothing, 1
    protect or treat. Law: a healthy site with k infected neighbours gets infected with probability
    1 − (1 − ε)(1 − β_a)^k, an infected one recovers with δ_a. Reward: −Σ_j s_j − cost·Σ_j a_j.
    Influence: E^s[j, i] = (1 − ε)·max_a β_a for a neighbour i, and E^s[j, j] the maximum over a and
    k of |δ_a − (1 − ε)(1 − β_a)^k|; on a d-regular graph ρ(E^s) is their sum d·(1 − ε)β + E^s[j,
    j], 1.0860 on the ring with the defaults. ε > 0 keeps the chain ergodic. Source: discrete-time
    SIS model; test problem of this package.

    Args:
        n: Number of sites; `karate`, `les_miserables`, `davis` and a file have their own.
        graph: Two-way `ring`, `line`, `star`, `three_leg`, `grid`, `torus`, `random_regular`, or
            one of the contact graphs `karate`, `les_miserables`, `davis`.
        graph_file: A GraphML file or an edge list, which takes the place of `graph` and `n`.
        directed: Whether a line `i j` of an edge list is i → j only.
        rows: Rows of a grid or torus, a divisor of n; None: the largest divisor ≤ √n.
        degree: Neighbours a site has in `random_regular`.
        seed: Seed of `random_regular`.
        infection: (β_0, β_1), infection probability a contact and step, by action.
        recovery: (δ_0, δ_1), recovery probability a step, by action.
        outside: ε, infection probability a step from outside.
        cost: Price of one protection or treatment.

    Returns:
        N = K = n, all sizes 2; kernel j reads its d neighbours in ascending order, then itself, and
        agent j: one table (2,)*(d + 1) + (2, 2) shared by all sites of in-degree d.

    Raises:
        InputError: An argument is outside its range, or the graph cannot be made or read.
        BudgetError: A site has so many neighbours (over 12) that its table is too large.

    Example:
        >>> float(sis(4).kernels[0].state_influence().sum().round(4))
        1.086
    """
    if graph_file is not None:
        network = from_file(graph_file, directed=directed)
    elif choice("graph", graph, (*SHAPES, *CONTACTS)) in CONTACTS:
        network = contact(graph)
    else:
        network = shaped(graph, n, two_way=True, rows=rows, degree=degree, seed=seed)
    return _build(network, infection, recovery, outside, cost)


def sis_on(
    graph: nx.Graph,
    *,
    infection: Sequence[float] = (0.2, 0.05),
    recovery: Sequence[float] = (0.3, 0.6),
    outside: float = 0.01,
    cost: float = 0.1,
) -> FactoredMDP:
    """`sis` on a networkx graph; an edge i → j of a directed one says that i infects j.

    Args:
        graph: The contacts; labels other than 0 … n − 1 become names.
        infection: As `sis`.
        recovery: As `sis`.
        outside: As `sis`.
        cost: As `sis`.

    Raises:
        InputError: As `sis`.
        BudgetError: As `sis`.
    """
    return _build(from_networkx(graph), infection, recovery, outside, cost)


def _build(
    graph: Digraph,
    infection: Sequence[float],
    recovery: Sequence[float],
    outside: float,
    cost: float,
) -> FactoredMDP:
    beta, delta = probabilities("infection", infection, 2), probabilities("recovery", recovery, 2)
    epsilon, c = probability("outside", outside), real("cost", cost)
    kernels = []
    for nodes, neighbours in graph.groups():
        count = neighbours.shape[1]
        check_table((2,) * (count + 1) + (2, 2), graph.name(int(nodes[0])))
        infected = np.indices((2,) * count).sum(axis=0)[..., None]
        caught = 1.0 - (1.0 - epsilon) * (1.0 - beta) ** infected
        ill = np.stack([caught, np.broadcast_to(1.0 - delta, caught.shape)], axis=-2)
        kernels.append(
            KernelBatch(
                nodes,
                np.concatenate([neighbours, nodes[:, None]], axis=1),
                nodes[:, None],
                np.stack([1.0 - ill, ill], axis=-1)[None],
            )
        )
    sites = np.arange(graph.n)[:, None]
    table = np.array([[[0.0, -c], [-1.0, -1.0 - c]]])
    return FactoredMDP(
        np.full(graph.n, 2),
        np.full(graph.n, 2),
        kernels,
        [RewardBatch(sites, sites, table)],
        coordinate_names=graph.names,
        agent_names=graph.names,
    )
