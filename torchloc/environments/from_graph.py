"""A model of one's own by tables on a graph: what a node does depends on how many neighbours are active."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from torchloc.environments.checks import flag
from torchloc.environments.topologies import Digraph, from_file
from torchloc.errors import InputError
from torchloc.mdp import CountBatch, FactoredMDP, KernelBatch, RewardBatch
from torchloc.mdp.checks import FloatArray, IntArray, check_finite, integers, normalised, reals

KIND, IMPORTANCE, STRENGTH = "kind", "importance", "strength"
_SMALL = 2**12
"""Entries of one node's table up to which counted neighbours are written out one by one."""


def from_graph(
    graph_file: str,
    *,
    laws: Mapping[str, ArrayLike],
    rewards: Mapping[str, ArrayLike],
    active: Sequence[int] | None = None,
    directed: bool = False,
) -> FactoredMDP:
    """Nodes of a graph file, each of a kind, each kind with a table of its own.

    States: one coordinate a node with S values, the same S for all. Actions: one agent a node, A by its kind. Law:
    s'_j ~ laws[kind j][s_j, a_j, c_j], where c_j = min(C − 1, Σ_i strength(i → j) · active[s_i]) counts the active
    neighbours that point at j. Reward: Σ_j importance_j · rewards[kind j][s_j, a_j]. Influence:
    E^s[j, i] = max over s_j, a_j and counts c that the others reach of TV(laws[…][c], laws[…][c + strength(i → j) ·
    (active[x] − active[y])]). Source: yours.

    A GraphML file may carry `kind` (a word) and `importance` (a number, 1 if left out) on nodes, and `strength` (a
    whole number ≥ 0, 1 if left out) on edges, the file's own defaults first; other attributes are not read.

    Args:
        graph_file: A GraphML file or an edge list, as of the other families; an edge i → j says that i
            influences j.
        laws: For each kind a table (S, A, C, S): own state, own action, active neighbours (the last row of the
            C stands for more), next state. A node without a kind has the only one, or that named `default`.
        rewards: For each kind a table (S, A).
        active: (S,) whole numbers ≥ 0: what a neighbour in each state adds to the count; None: 0 in state 0,
            1 in the others.
        directed: Whether a line `i j` of an edge list is i → j only.

    Returns:
        N = K = n; names are the nodes' labels, where these are no plain numbers.

    Raises:
        InputError: The file cannot be read, a table is no law or does not fit, a kind has no table.
        BudgetError: A node counts too much to be written out.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> table = [[[[1, 0], [0.5, 0.5]], [[0.8, 0.2], [0.3, 0.7]]], [[[0.2, 0.8]] * 2, [[0, 1]] * 2]]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "pair.txt")
        ...     _ = path.write_text("0 1")
        ...     mdp = from_graph(str(path), laws={"default": table}, rewards={"default": [[0, -0.1], [1, 0.9]]})
        >>> mdp.n_coordinates, mdp.kernels[0].table.shape
        (2, (1, 2, 2, 2, 2))
    """
    graph = from_file(graph_file, directed=flag("directed", directed))
    tables = _laws(laws)
    n_states = next(iter(tables.values())).shape[0]
    payoffs = _rewards(rewards, tables)
    counted = _active(active, n_states)
    kinds, importance, strengths = _attributes(Path(graph_file), graph, list(tables))
    n_actions = np.array([table.shape[1] for table in tables.values()])[kinds]
    kernels: list[KernelBatch | CountBatch] = []
    for nodes, neighbours in graph.groups():
        for code, table in enumerate(tables.values()):
            rows = np.flatnonzero(kinds[nodes] == code)
            if len(rows):
                weights = _weights(nodes[rows], neighbours[rows], strengths, counted)
                kernels += _kernels(nodes[rows], neighbours[rows], table, weights)
    terms = []
    for code, kind in enumerate(tables):
        sites = np.flatnonzero(kinds == code)
        if len(sites):
            scale = importance[sites][:, None, None]
            scale = scale[:1] if (scale == scale[0]).all() else scale
            terms.append(RewardBatch(sites[:, None], sites[:, None], scale * payoffs[kind]))
    return FactoredMDP(
        np.full(graph.n, n_states),
        n_actions,
        kernels,
        terms,
        coordinate_names=graph.names,
        agent_names=graph.names,
    )


def _laws(laws: Mapping[str, ArrayLike]) -> dict[str, FloatArray]:
    if not isinstance(laws, Mapping) or not laws:
        raise InputError(
            f"laws is {laws!r}; give a table for each kind of node, as in laws.default"
        )
    tables: dict[str, FloatArray] = {}
    for kind, value in laws.items():
        table = reals(value, f"laws.{kind}")
        if table.ndim != 4 or 0 in table.shape or table.shape[0] != table.shape[3]:
            raise InputError(
                f"laws.{kind} has shape {table.shape}; it must be (S, A, C, S): own state, own action, active "
                f"neighbours, chance of each next state"
            )
        tables[str(kind)] = normalised(table[None], lambda _, kind=kind: f"laws.{kind}")[0]
    sizes = {kind: table.shape[0] for kind, table in tables.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"laws have different numbers of states, {sizes}; give all kinds the same")
    return tables


def _rewards(
    rewards: Mapping[str, ArrayLike], tables: Mapping[str, FloatArray]
) -> dict[str, FloatArray]:
    if not isinstance(rewards, Mapping) or set(map(str, rewards)) != set(tables):
        given = sorted(map(str, rewards)) if isinstance(rewards, Mapping) else rewards
        raise InputError(
            f"rewards is for {given}, but laws is for {sorted(tables)}; give one table a kind"
        )
    result = {}
    for kind, value in rewards.items():
        payoff = reals(value, f"rewards.{kind}")
        if payoff.shape != tables[str(kind)].shape[:2]:
            raise InputError(
                f"rewards.{kind} has shape {payoff.shape}; it must be (S, A) = {tables[str(kind)].shape[:2]}"
            )
        check_finite(payoff[None], lambda _, kind=kind: f"rewards.{kind}")
        result[str(kind)] = payoff
    return result


def _active(active: Sequence[int] | None, n_states: int) -> IntArray:
    counted = (
        np.minimum(np.arange(n_states), 1) if active is None else integers(active, "active", 1)
    )
    if len(counted) != n_states or (counted < 0).any():
        raise InputError(
            f"active is {counted.tolist()}; give {n_states} whole numbers ≥ 0, what a neighbour in each state counts"
        )
    return counted


def _attributes(
    path: Path, graph: Digraph, known: list[str]
) -> tuple[IntArray, FloatArray, dict[tuple[int, int], int]]:
    """Places of the nodes' kinds in `known`, importances, and strengths of the edges of a GraphML file."""
    usual = known[0] if len(known) == 1 else "default"
    kinds = np.full(graph.n, known.index(usual) if usual in known else -1)
    words: dict[int, str] = {}
    importance = np.ones(graph.n)
    strengths: dict[tuple[int, int], int] = {}
    if path.suffix.lower() in (".graphml", ".xml"):
        import networkx as nx  # late: generated models start without it

        source: Any = nx.read_graphml(path)
        place = {name: i for i, name in enumerate(graph.names or map(str, range(graph.n)))}
        usually = [source.graph.get(f"{part}_default", {}) for part in ("node", "edge")]
        for node, own in source.nodes(data=True):
            data = {**usually[0], **own}
            i = place[str(int(node)) if graph.names is None else str(node)]
            words[i] = str(data.get(KIND, usual))
            kinds[i] = known.index(words[i]) if words[i] in known else -1
            importance[i] = _number(data.get(IMPORTANCE, 1.0), IMPORTANCE, graph.name(i))
        labels = {
            node: place[str(int(node)) if graph.names is None else str(node)] for node in source
        }
        for one, two, own in source.edges(data=True):
            data = {**usually[1], **own}
            pair = labels[one], labels[two]
            where = f"the edge from {graph.name(pair[0])} to {graph.name(pair[1])}"
            value = _number(data.get(STRENGTH, 1), STRENGTH, where)
            if value != int(value) or value < 0:
                raise InputError(
                    f"{STRENGTH} of {where} is {value:g}; it must be a whole number ≥ 0"
                )
            for key in {pair} if source.is_directed() else {pair, pair[::-1]}:
                if key in strengths and strengths[key] != int(value):
                    raise InputError(
                        f"{where} stands twice with different {STRENGTH}; give it once"
                    )
                strengths[key] = int(value)
    if (kinds < 0).any():
        i = int(np.argmax(kinds < 0))
        raise InputError(
            f"{graph.name(i)} is of kind {words.get(i, usual)!r}, but laws has tables for {', '.join(known)} only; "
            f"set its {KIND}, or add a table"
        )
    return kinds, importance, strengths


def _number(value: object, field: str, where: str) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{field} of {where} is {value!r}; it must be a finite number")
    return number


def _weights(
    nodes: IntArray,
    neighbours: IntArray,
    strengths: Mapping[tuple[int, int], int],
    counted: IntArray,
) -> IntArray:
    """(X,) or (B, 1, d, X): what each neighbour adds to the count at each of its values."""
    if not strengths or set(strengths.values()) == {1}:
        return counted
    found = [
        [strengths.get((i, j), 1) for i in row]
        for j, row in zip(nodes.tolist(), neighbours.tolist(), strict=True)
    ]
    factors = np.array(found, dtype=np.int64).reshape(neighbours.shape)
    return factors[:, None, :, None] * counted


def _kernels(
    nodes: IntArray, neighbours: IntArray, table: FloatArray, weights: IntArray
) -> Iterator[KernelBatch | CountBatch]:
    """Nodes of one kind and in-degree: tables where these are small, else counters."""
    sites, degree = nodes[:, None], neighbours.shape[1]
    if degree == 0:
        yield KernelBatch(nodes, sites, sites, table[None, :, :, 0])
        return
    none = np.zeros((len(nodes), 0), dtype=np.int64)
    batch = CountBatch(nodes, sites, sites, neighbours, none, table[None], state_weights=weights)
    if table[:, :, 0].size * table.shape[0] ** degree <= _SMALL:
        yield from batch.tables()
    else:
        yield batch
