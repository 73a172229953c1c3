"""SysAdmin: machines on a network that crash, pull each other down, and can be rebooted.

States: s_j ∈ {0, 1}, 1 = on. Actions: a_j ∈ {0, 1}, 1 = reboot, after which a machine is on. Law
without: `jair` a table over (predecessor, self); `ippc` on stays on with .45 + .5·(1 + predecessors
on)/(1 + in-degree), off comes back with `recovery`. Reward: Σ_j s_j − cost·Σ_j a_j. Influence:
ρ(E^s) = 1.3775 on the jair ring and 1.15 on the ippc ring. Source: Guestrin, Koller, Parr and
Venkataraman, JAIR 19, 2003; International Probabilistic Planning Competition 2011.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from torchloc.environments.checks import COUNTED, choice, probability, real
from torchloc.environments.topologies import SHAPES, Digraph, from_file, from_networkx, shaped
from torchloc.errors import InputError
from torchloc.mdp import CountBatch, FactoredMDP, KernelBatch, RewardBatch
from torchloc.mdp.checks import FloatArray, IntArray

if TYPE_CHECKING:
    import networkx as nx

TABLES = ("jair", "ippc")

# P(on' | predecessor, self) without reboot.
_JAIR = np.array([[0.0238, 0.475], [0.0475, 0.95]])


def sysadmin(
    n: int = 8,
    *,
    topology: str = "ring",
    table: str = "jair",
    cost: float = 0.75,
    recovery: float = 0.05,
    graph_file: str | None = None,
    directed: bool = True,
    rows: int | None = None,
    degree: int = 3,
    seed: int = 0,
) -> FactoredMDP:
    """Keep machines on; every machine may be rebooted at every step.

    States: n binary coordinates, 1 = on. Actions: one binary agent a machine, 1 = reboot. Law: a
    rebooted machine is on; otherwise by `table`. `jair`, for exactly one predecessor: P(on' | pred,
    self) (0, 0) .0238, (0, 1) .475, (1, 0) .0475, (1, 1) .95. `ippc`, for any in-degree d: a
    machine that is on stays on with .45 + .5·(1 + #predecessors on)/(1 + d), one that is off comes
    back with `recovery`. Reward: Σ_j on_j − cost·Σ_j reboot_j. Influence: jair ring ρ(E^s) = .9025
    + .475 = 1.3775 for every n ≥ 3; ippc with in-degree d everywhere ρ(E^s) = .95 − recovery +
    .5·d/(1 + d) (recovery ≤ .45), 1.15 on the ring. Source: Guestrin, Koller, Parr and
    Venkataraman, JAIR 19, 2003 (`jair`); SysAdmin of the International Probabilistic Planning
    Competition 2011 (`ippc`), without its cap on reboots.

    Args:
        n: Number of machines; a file has its own.
        topology: One-way `ring` (j − 1 → j), `line` (j − 1 → j), `star` (hub 0 feeds the leaves) or
            `three_leg` (hub 0 feeds three lines); two-way `grid`, `torus` or `random_regular`.
        table: `jair` or `ippc`.
        cost: Price of one reboot.
        recovery: Probability that an off machine comes back by itself (`ippc`).
        graph_file: A GraphML file or an edge list, which takes the place of `topology` and `n`.
        directed: Whether a line `i j` of an edge list is i → j only; else both directions.
        rows: Rows of a grid or torus, a divisor of n; None: the largest divisor ≤ √n.
        degree: Neighbours a machine has in `random_regular`.
        seed: Seed of `random_regular`.

    Returns:
        N = K = n, all sizes 2; kernel j reads its d predecessors in ascending order, then itself,
        and agent j: one table (2,)*(d + 1) + (2, 2) shared by all machines of in-degree d ≤ 5; beyond, a
        kernel that counts them.

    Raises:
        InputError: An argument is outside its range, the graph cannot be made or read, or `jair`
            meets a machine without exactly one predecessor.

    Example:
        >>> float(sysadmin(5).kernels[0].state_influence().sum().round(4))
        1.3775
    """
    if graph_file is not None:
        network = from_file(graph_file, directed=directed)
    else:
        choice("topology", topology, SHAPES)
        network = shaped(topology, n, two_way=False, rows=rows, degree=degree, seed=seed)
    return _build(network, table, cost, recovery)


def sysadmin_on(
    graph: nx.Graph, *, table: str = "ippc", cost: float = 0.75, recovery: float = 0.05
) -> FactoredMDP:
    """`sysadmin` on a networkx graph: i → j says that machine i pulls machine j down.

    Args:
        graph: The network; an undirected graph stands for both directions, labels other than 0 … n
            − 1 become names.
        table: As `sysadmin`.
        cost: As `sysadmin`.
        recovery: As `sysadmin`.

    Raises:
        InputError: As `sysadmin`.
    """
    return _build(from_networkx(graph), table, cost, recovery)


def sysadmin_hand_rule(
    mdp: FactoredMDP, *, alarm: float = 1.0, idle: float = 0.0
) -> list[FloatArray]:
    """The local rule "reboot iff the machine or a predecessor is off", as probabilities.

    On the jair ring with cost .75 it attains the joint optimum (n = 4: .8877472 a machine).

    Args:
        mdp: A `sysadmin` model.
        alarm: Probability of a reboot where one of them is off.
        idle: Probability of a reboot where all are on.

    Returns:
        K tables (*S[scope_k], 2) on the scopes `neighbourhood_scopes(mdp, hops=1)`, {k} and its
        predecessors; the rule is symmetric in them. Machines of equal in-degree share one array.

    Raises:
        InputError: `alarm` or `idle` is no probability.
    """
    high, low = probability("alarm", alarm), probability("idle", idle)
    tables: dict[int, FloatArray] = {}
    for batch in mdp.kernels:
        reboot = np.full(batch.state_shape, high)
        reboot[(1,) * reboot.ndim] = low
        rule = np.stack([1.0 - reboot, reboot], axis=-1)
        tables.update((int(j), rule) for j in batch.coordinates)
    return [tables[k] for k in range(mdp.n_agents)]


def _build(graph: Digraph, table: str, cost: float, recovery: float) -> FactoredMDP:
    c, back = real("cost", cost), probability("recovery", recovery)
    if choice("table", table, TABLES) == "jair" and (graph.in_degrees != 1).any():
        node = int(np.argmax(graph.in_degrees != 1))
        raise InputError(
            f"table = 'jair' needs exactly one predecessor a machine, but {graph.name(node)} has "
            f"{int(graph.in_degrees[node])}; use the one-way ring or table = 'ippc'"
        )
    kernels = []
    for nodes, predecessors in graph.groups():
        degree = predecessors.shape[1]
        if degree > COUNTED:
            kernels.append(_counted(nodes, predecessors, back))
            continue
        on = np.ones((*(2,) * (degree + 1), 2))
        on[..., 0] = _JAIR if table == "jair" else _ippc(degree, back)
        kernels.append(
            KernelBatch(
                nodes,
                np.concatenate([predecessors, nodes[:, None]], axis=1),
                nodes[:, None],
                np.stack([1.0 - on, on], axis=-1)[None],
            )
        )
    sites = np.arange(graph.n)[:, None]
    return FactoredMDP(
        np.full(graph.n, 2),
        np.full(graph.n, 2),
        kernels,
        [RewardBatch(sites, sites, np.array([[[0.0, -c], [1.0, 1.0 - c]]]))],
        coordinate_names=graph.names,
        agent_names=graph.names,
    )


def _counted(nodes: IntArray, predecessors: IntArray, recovery: float) -> CountBatch:
    """The law of `ippc`, by the number of predecessors that are on."""
    degree = predecessors.shape[1]
    on = np.ones((2, 2, degree + 1))
    on[0, 0], on[1, 0] = recovery, 0.45 + 0.5 * (1.0 + np.arange(degree + 1)) / (1.0 + degree)
    return CountBatch(
        nodes,
        nodes[:, None],
        nodes[:, None],
        predecessors,
        np.zeros((len(nodes), 0), dtype=np.int64),
        np.stack([1.0 - on, on], axis=-1)[None],
    )


def _ippc(degree: int, recovery: float) -> FloatArray:
    """P(on' | predecessors, self) without reboot: (2,)*degree + (2,)."""
    running = 0.45 + 0.5 * (1.0 + np.indices((2,) * degree).sum(axis=0)) / (1.0 + degree)
    return np.stack([np.full(running.shape, recovery), running], axis=-1)
