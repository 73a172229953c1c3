"""Parallel Glauber dynamics of the Ising model with a controlled field.

States: spins s_j ∈ {−1, +1} on a ring, torus or grid, coded 0 and 1. Actions: a field h_a, off or
on (up, or both ways). Law: P(s'_j = +1) = ½(1 + tanh β(Σ_neighbours s_i + h_a)), all spins at once.
Reward: number of spins up, magnetisation or alignment, minus `cost` a field. Influence: without a
field and at even degree ½·tanh 2β a neighbour, so ρ(E^s) = tanh 2β on a ring and 2·tanh 2β on a
torus, < 1 iff β < .2747. Source: Glauber, J. Math. Phys. 4, 1963, all sites at once.
"""

from __future__ import annotations

import numpy as np

from torchloc.environments.checks import check_table, choice, real, whole
from torchloc.environments.topologies import shaped
from torchloc.mdp import FactoredMDP, KernelBatch, RewardBatch

LATTICES = ("ring", "torus", "grid")
CONTROLS = ("up", "both")
REWARDS = ("up", "magnetisation", "alignment")


def ising(
    n: int = 8,
    *,
    lattice: str = "ring",
    rows: int | None = None,
    beta: float = 0.6,
    field: float = 1.0,
    control: str = "up",
    cost: float = 0.2,
    reward: str = "up",
) -> FactoredMDP:
    """Spins that follow their neighbours and a field which the agents switch.

    States: n spins s ∈ {−1, +1}, coded 0 and 1. Actions: agent j sets its field h_a ∈ (0, +field)
    with `control="up"`, (−field, 0, +field) with `both`. Law: P(s'_j = +1) = ½(1 + tanh β(Σ s +
    h_a)), the sum over the neighbours of j (a spin does not see itself); all spins move at once.
    Reward: `up` Σ_j 1{s_j = +1}; `magnetisation` Σ_j s_j; `alignment` Σ_links s_i s_j; minus `cost`
    for every field that is not 0. Influence: uncontrolled (field 0) ½·tanh 2β for each neighbour at
    even degree, so ρ(E^s) = tanh 2β on a ring and 2·tanh 2β on a torus, below 1 iff β < .2747; with
    a field E^s[j, i] is the maximum over h and over the other neighbours' sum m of ½(tanh β(m + 1 +
    h) − tanh β(m − 1 + h)). Source: Glauber dynamics, all sites at once; test problem of this
    package.

    Args:
        n: Number of spins.
        lattice: `ring` (n ≥ 3), or `torus` (sides ≥ 3) or `grid` (sides ≥ 2) with four neighbours.
        rows: Rows of a torus or grid, a divisor of n; None: the largest divisor ≤ √n.
        beta: Inverse temperature β.
        field: Strength h of the field, in units of one neighbour.
        control: Which fields an agent may set, `up` or `both`.
        cost: Price of one field that is on.
        reward: `up`, `magnetisation` or `alignment`.

    Returns:
        N = K = n, state sizes 2, action sizes 2 (`up`) or 3 (`both`); kernel j reads its d
        neighbours in ascending order and agent j: one table (2,)*d + (A, 2) shared by all sites of
        degree d.

    Raises:
        InputError: An argument is outside its range.

    Example:
        >>> batch = ising(4, beta=0.5, field=0.0).kernels[0]
        >>> bool(np.allclose(batch.state_influence(), 0.5 * np.tanh(1.0)))
        True
    """
    beta, h, c = real("beta", beta), real("field", field), real("cost", cost)
    choice("lattice", lattice, LATTICES)
    choice("reward", reward, REWARDS)
    pushes = np.array([0, 1] if choice("control", control, CONTROLS) == "up" else [-1, 0, 1])
    fields, price = h * pushes, -c * np.abs(pushes)
    graph = shaped(lattice, whole("n", n, 1), two_way=True, rows=rows)
    kernels = []
    for nodes, neighbours in graph.groups():
        degree = neighbours.shape[1]
        check_table((2,) * degree + (len(fields), 2), graph.name(int(nodes[0])))
        total = 2 * np.indices((2,) * degree).sum(axis=0) - degree
        with np.errstate(over="ignore"):  # tanh(±∞) = ±1 is meant
            up = 0.5 * (1.0 + np.tanh(beta * (total[..., None] + fields)))
        kernels.append(
            KernelBatch(nodes, neighbours, nodes[:, None], np.stack([1.0 - up, up], axis=-1)[None])
        )
    sites = np.arange(n)[:, None]
    spins = np.array([-1.0, 1.0])
    if reward == "alignment":
        terms = [
            RewardBatch(graph.links(), [], np.outer(spins, spins)[None]),
            RewardBatch([], sites, price[None]),
        ]
    else:
        value = np.array([0.0, 1.0]) if reward == "up" else spins
        terms = [RewardBatch(sites, sites, (value[:, None] + price)[None])]
    return FactoredMDP(np.full(n, 2), np.full(n, len(fields)), kernels, terms)
