"""Epidemic control: susceptible–infected–susceptible on a contact graph.

States: s_j ∈ {0, 1}, 1 = infected. Actions: a_j ∈ {0, 1}, 1 = protect or treat. Law, with k
infected neighbours: a healthy site is infected with 1 − (1 − ε)(1 − β_a)^k, an infected one heals
with δ_a. Reward: −Σ_j s_j − cost·Σ_j a_j. Influence: (1 − ε)·max_a β_a a neighbour, and of a site
on itself max_{a,k} |δ_a − (1 − ε)(1 − β_a)^k|; ρ(E^s) is their sum on a regular graph, 1.0860 on
the ring with the defaults. Source: discrete-time SIS model; test problem of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from torchloc.environments.checks import COUNTED, choice, probabilities, probability, real
from torchloc.environments.topologies import (
    CONTACTS,
    SHAPES,
    Digraph,
    contact,
    from_file,
    from_networkx,
    shaped,
)
from torchloc.mdp import CountBatch, FactoredMDP, KernelBatch, RewardBatch
from torchloc.mdp.checks import FloatArray, IntArray
from torchloc.mdp.counts import noisy_or_tables

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
        agent j: one table (2,)*(d + 1) + (2, 2) shared by all sites of in-degree d ≤ 5; beyond, a
        noisy-or that counts its neighbours.

    Raises:
        InputError: An argument is outside its range, or the graph cannot be made or read.

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
    kernels = [
        _table(nodes, neighbours, beta, delta, epsilon)
        if neighbours.shape[1] <= COUNTED
        else _counted(nodes, neighbours, beta, delta, epsilon)
        for nodes, neighbours in graph.groups()
    ]
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


def _table(
    nodes: IntArray, neighbours: IntArray, beta: FloatArray, delta: FloatArray, epsilon: float
) -> KernelBatch:
    """One table for all sites of a degree."""
    infected = np.indices((2,) * neighbours.shape[1]).sum(axis=0)[..., None]
    caught = 1.0 - (1.0 - epsilon) * (1.0 - beta) ** infected
    ill = np.stack([caught, np.broadcast_to(1.0 - delta, caught.shape)], axis=-2)
    parents = np.concatenate([neighbours, nodes[:, None]], axis=1)
    return KernelBatch(nodes, parents, nodes[:, None], np.stack([1.0 - ill, ill], axis=-1)[None])


def _counted(
    nodes: IntArray, neighbours: IntArray, beta: FloatArray, delta: FloatArray, epsilon: float
) -> CountBatch:
    """A noisy-or of the infected neighbours and the outside; an infected site does not look at them."""
    ill = np.stack([1.0 - delta, delta], axis=-1)[:, ::-1]
    spared = np.stack([np.tile([1.0 - epsilon, epsilon], (2, 1)), ill])
    reached = np.stack([np.tile([0.0, 1.0], (2, 1)), ill])
    held = np.stack([1.0 - beta, np.ones(2)])
    table, (modes, rates) = noisy_or_tables(reached, spared, held, neighbours.shape[1])
    return CountBatch(
        nodes,
        nodes[:, None],
        nodes[:, None],
        neighbours,
        np.zeros((len(nodes), 0), dtype=np.int64),
        table[None],
        modes=(modes[None], rates),
    )
