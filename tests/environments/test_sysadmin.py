from __future__ import annotations

import time
from pathlib import Path

import networkx as nx
import numpy as np
import oracle
import pytest
import reference

from torchloc.environments import sysadmin, sysadmin_hand_rule, sysadmin_on
from torchloc.errors import InputError
from torchloc.graphs import neighbourhood_scopes
from torchloc.mdp import FactoredMDP

Array = np.ndarray

JAIR = {(0, 0): 0.0238, (0, 1): 0.475, (1, 0): 0.0475, (1, 1): 0.95}
OPTIMA = {0.5: 0.909980, 0.75: 0.887747, 1.0: 0.865514, 1.5: 0.821048}
# The published values carry six digits, or as many as are written.
SIX_DIGITS = 5e-7


def ippc(on: int, rebooted: int, running: int, degree: int, recovery: float = 0.05) -> float:
    if rebooted:
        return 1.0
    return 0.45 + 0.5 * (1 + running) / (1 + degree) if on else recovery


def test_jair_law_and_reward() -> None:
    mdp = sysadmin(3, cost=0.6)
    oracle.check_law(mdp, lambda j, s, a: 1.0 if a[j] else JAIR[s[j - 1], s[j]])
    oracle.check_reward(mdp, lambda s, a: s.sum() - 0.6 * a.sum())


@pytest.mark.parametrize(
    ("topology", "n", "predecessors"),
    [
        ("ring", 4, [[3], [0], [1], [2]]),
        ("line", 3, [[], [0], [1]]),
        ("star", 4, [[], [0], [0], [0]]),
        ("three_leg", 5, [[], [0], [0], [0], [1]]),
        ("grid", 4, [[1, 2], [0, 3], [0, 3], [1, 2]]),
    ],
)
def test_ippc_law(topology: str, n: int, predecessors: list[list[int]]) -> None:
    mdp = sysadmin(n, topology=topology, table="ippc", recovery=0.1)

    def law(j: int, s: tuple[int, ...], a: tuple[int, ...]) -> float:
        running = sum(s[i] for i in predecessors[j])
        return ippc(s[j], a[j], running, len(predecessors[j]), recovery=0.1)

    oracle.check_law(mdp, law)
    parents = {
        int(j): states
        for batch in mdp.kernels
        for j, states in zip(batch.coordinates, batch.states.tolist(), strict=True)
    }
    assert [parents[j] for j in range(n)] == [[*p, j] for j, p in enumerate(predecessors)]


@pytest.mark.parametrize(
    "mdp",
    [
        sysadmin(3),
        sysadmin(4, topology="star", table="ippc"),
        sysadmin(4, topology="grid", table="ippc"),
        sysadmin(4, topology="random_regular", table="ippc", recovery=0.97),
    ],
)
def test_influence_by_enumeration(mdp: FactoredMDP) -> None:
    oracle.check_influence(mdp)


@pytest.mark.parametrize("n", [3, 4, 5, 50])
def test_floor_of_the_jair_ring(n: int) -> None:
    # Entries carry an ulp each and eigenvalues of a normal matrix inherit it.
    assert oracle.floor(sysadmin(n)) == pytest.approx(0.9025 + 0.475, abs=1e-13)


@pytest.mark.parametrize(
    ("topology", "n", "degree"), [("ring", 6, 1), ("torus", 12, 4), ("random_regular", 8, 3)]
)
@pytest.mark.parametrize("recovery", [0.05, 0.45])
def test_floor_of_ippc_on_regular_graphs(
    topology: str, n: int, degree: int, recovery: float
) -> None:
    mdp = sysadmin(n, topology=topology, table="ippc", recovery=recovery)
    expected = 0.95 - recovery + 0.5 * degree / (1 + degree)
    assert oracle.floor(mdp) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("cost", OPTIMA)
@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_optimum_of_the_jair_ring(n: int, cost: float) -> None:
    gain, _ = oracle.optimum(sysadmin(n, cost=cost))
    assert gain / n == pytest.approx(OPTIMA[cost], abs=SIX_DIGITS)


@pytest.mark.parametrize(("topology", "value"), [("ring", 0.892204), ("star", 0.902486)])
def test_optimum_of_ippc(topology: str, value: float) -> None:
    gain, _ = oracle.optimum(sysadmin(4, topology=topology, table="ippc"))
    assert gain / 4 == pytest.approx(value, abs=SIX_DIGITS)


def chain_of_rule(n: int, alarm: float, idle: float) -> float:
    mdp = sysadmin(n)
    scopes = list(neighbourhood_scopes(mdp))
    policy = oracle.from_probabilities(scopes, sysadmin_hand_rule(mdp, alarm=alarm, idle=idle))
    return reference.chain(oracle.as_reference(mdp), policy).average / n


def test_hand_rule_attains_the_joint_optimum() -> None:
    gain, _ = oracle.optimum(sysadmin(4))
    assert chain_of_rule(4, 1.0, 0.0) == pytest.approx(0.8877472, abs=5e-8)
    # The bracket of the optimum, and a least-squares solve of 16 unknowns.
    assert chain_of_rule(4, 1.0, 0.0) == pytest.approx(gain / 4, abs=1e-10)


def test_lesser_rules() -> None:
    mdp = sysadmin(4)
    model = oracle.as_reference(mdp)
    self_only = oracle.from_probabilities([(k,) for k in range(4)], [np.eye(2)[::-1]] * 4)
    never = oracle.from_probabilities([()] * 4, [np.array([1.0, 0.0])] * 4)
    assert reference.chain(model, self_only).average / 4 == pytest.approx(0.85335, abs=5e-6)
    assert reference.chain(model, never).average / 4 == pytest.approx(0.0491, abs=5e-5)


def test_influence_of_policies() -> None:
    # The uniform policy .689; the optimal one .10, where H has 3.33.
    mdp = sysadmin(3)
    model = oracle.as_reference(mdp)
    scopes = list(neighbourhood_scopes(mdp))
    best = oracle.from_probabilities(scopes, sysadmin_hand_rule(mdp))
    rho = reference.spectral_radius
    coupled = reference.coupled_influence
    assert rho(coupled(model, oracle.uniform(mdp))) == pytest.approx(0.689, abs=5e-4)
    assert rho(coupled(model, best)) == pytest.approx(0.10, abs=5e-3)
    assert rho(reference.influence(model, best, "exact")) == pytest.approx(3.33, abs=5e-3)


def ring_step(law: Array, kernel: Array) -> Array:
    """One step of a law (2,)*n on a ring where site j follows kernel[s_{j-1}, s_j, s'_j]."""
    n = law.ndim
    law = np.einsum("apc,pcx->apxc", law.reshape(-1, 2, 2), kernel)
    for j in range(n - 2, 0, -1):
        law = np.einsum("apcr,pcx->apxr", law.reshape(2 ** (j - 1), 2, 2, -1), kernel)
    return np.einsum("pmc,cpx->xm", law.reshape(2, -1, 2), kernel).reshape((2,) * n)


def soft_rule(n: int) -> tuple[Array, Array]:
    """A site's kernel and reward: reboot with .3 if it or its predecessor is off, else .05."""
    mdp = sysadmin(n)
    reboot = sysadmin_hand_rule(mdp, alarm=0.3, idle=0.05)[0]
    kernel = (mdp.kernels[0].table[0] * reboot[..., None]).sum(axis=-2)
    return kernel, np.array([0.0, 1.0]) - 0.75 * reboot[..., 1]


def test_ring_step_is_the_joint_chain() -> None:
    kernel, _ = soft_rule(4)
    law = np.random.default_rng(0).dirichlet(np.ones(16))
    mdp = sysadmin(4)
    matrix = oracle.product_chain(mdp, sysadmin_hand_rule(mdp, alarm=0.3, idle=0.05))
    # Sums of 16 products of five factors.
    np.testing.assert_allclose(
        ring_step(law.reshape((2,) * 4), kernel).ravel(), law @ matrix, rtol=0, atol=2.0**-48
    )


def test_average_of_the_soft_rule_on_the_ring_of_twelve() -> None:
    kernel, reward = soft_rule(12)
    law = np.full((2,) * 12, 2.0**-12)
    for _ in range(1000):
        previous, law = law, ring_step(law, kernel)
        law /= law.sum()
        if np.abs(law - previous).sum() < 1e-14:
            break
    first_two = law.reshape(2, 2, -1).sum(axis=-1)
    # Twelve published digits; site 1 stands for all, as the ring looks the same from each.
    assert (first_two * reward).sum() == pytest.approx(0.619421276697, abs=5e-13)


def test_a_shared_table_is_stored_once() -> None:
    mdp = sysadmin(1000)
    (batch,) = mdp.kernels
    assert batch.table.shape == (1, 2, 2, 2, 2)
    assert len(batch) == 1000
    star = sysadmin(13, topology="star", table="ippc")
    assert [(len(b), len(b.table)) for b in star.kernels] == [(1, 1), (12, 1)]


@pytest.mark.slow
def test_a_million_machines_build_in_time() -> None:
    start = time.perf_counter()
    mdp = sysadmin(n=1_000_000, topology="ring")
    assert time.perf_counter() - start <= 5.0
    assert (mdp.n_coordinates, mdp.n_agents) == (1_000_000, 1_000_000)
    assert mdp.kernels[0].table.size == 16


def test_a_large_star_needs_no_large_table() -> None:
    assert sysadmin(10_000, topology="star", table="ippc").n_agents == 10_000


def same(left: FactoredMDP, right: FactoredMDP) -> None:
    one, two = oracle.as_reference(left), oracle.as_reference(right)
    for a, b in zip(one.kernels, two.kernels, strict=True):
        assert a[:2] == b[:2]
        np.testing.assert_array_equal(a[2], b[2])


GRAPH = nx.DiGraph([(0, 3), (3, 1), (1, 0), (2, 1), (1, 2)])


def test_networkx_graph() -> None:
    mdp = sysadmin_on(GRAPH)
    assert mdp.coordinate_names is None
    batches = {b.states.shape[1]: b for b in mdp.kernels}
    assert batches[3].states.tolist() == [[2, 3, 1]]
    assert batches[2].states.tolist() == [[1, 0], [1, 2], [0, 3]]
    ring = nx.DiGraph([(j, (j + 1) % 5) for j in range(5)])
    same(sysadmin_on(ring, table="jair"), sysadmin(5))
    undirected = sysadmin_on(nx.path_graph(3))
    same(undirected, sysadmin_on(nx.path_graph(3).to_directed()))


def test_graph_files_round_trip(tmp_path: Path) -> None:
    edges, graphml, table = (tmp_path / f"g.{end}" for end in ("edges", "graphml", "csv"))
    nx.write_edgelist(GRAPH, edges)
    nx.write_graphml(GRAPH, graphml)
    table.write_text("".join(f"{i}, {j}, 1.5\n" for i, j in GRAPH.edges), encoding="utf-8")
    for path in (edges, graphml, table):
        mdp = sysadmin(graph_file=str(path), table="ippc")
        assert mdp.coordinate_names is None
        same(mdp, sysadmin_on(GRAPH))
    both = sysadmin(graph_file=str(edges), table="ippc", directed=False)
    same(both, sysadmin_on(GRAPH.to_undirected()))


def test_labels_of_a_graph_become_names(tmp_path: Path) -> None:
    path = tmp_path / "named.txt"
    path.write_text("# a comment\nweb db\n\ndb cache # more\n", encoding="utf-8")
    mdp = sysadmin(graph_file=str(path), table="ippc")
    assert mdp.coordinate_names == mdp.agent_names == ("web", "db", "cache")
    path.write_text("30 4\n4 100\n", encoding="utf-8")
    mdp = sysadmin(graph_file=str(path), table="ippc")
    assert mdp.coordinate_names == ("4", "30", "100")
    named = nx.relabel_nodes(GRAPH, {0: "a", 1: "b", 2: "c", 3: "d"})
    nx.write_graphml(named, tmp_path / "named.graphml")
    mdp = sysadmin(graph_file=str(tmp_path / "named.graphml"), table="ippc")
    assert mdp.coordinate_names == tuple(named.nodes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 1}, ["n = 1", "ring", "2"]),
        ({"n": 0}, ["n = 0"]),
        ({"n": 3.0}, ["n = 3.0", "whole"]),
        ({"n": True}, ["n = True"]),
        ({"topology": "circle"}, ["topology = 'circle'", "three_leg"]),
        ({"table": "x"}, ["table = 'x'", "jair, ippc"]),
        ({"cost": float("nan")}, ["cost = nan", "finite"]),
        ({"cost": "high"}, ["cost = 'high'"]),
        ({"recovery": 1.5}, ["recovery = 1.5", "[0, 1]"]),
        ({"topology": "star"}, ["jair", "exactly one predecessor", "node 0 has 0", "ippc"]),
        ({"topology": "grid"}, ["exactly one predecessor", "node 0 has 2"]),
        ({"topology": "three_leg", "n": 3, "table": "ippc"}, ["n = 3", "three_leg", "4"]),
        ({"topology": "grid", "n": 7, "table": "ippc"}, ["n = 7", "grid", "at least 2"]),
        ({"topology": "torus", "n": 8, "table": "ippc"}, ["n = 8", "torus", "at least 3"]),
        ({"topology": "grid", "n": 8, "rows": 3, "table": "ippc"}, ["rows = 3", "n = 8"]),
        ({"topology": "random_regular", "n": 5, "table": "ippc"}, ["degree = 3", "n = 5", "even"]),
        ({"topology": "random_regular", "degree": 8, "table": "ippc"}, ["degree = 8", "below n"]),
        ({"topology": "random_regular", "seed": -1, "table": "ippc"}, ["seed = -1"]),
        ({"graph_file": "no/such.edges"}, ["no file", "no/such.edges"]),
    ],
)
def test_bad_arguments(arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        sysadmin(**arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("g.edges", "0 1\n2\n", ["line 2", "'2'", "two nodes"]),
        ("g.csv", "0,1\n2,\n", ["line 2", "'2,'"]),
        ("g.edges", "# nothing\n", ["no nodes"]),
        ("g.edges", "a b\nb b\n", ["self-loop", "'b'"]),
        ("g.graphml", "<graphml><graph", ["no valid GraphML"]),
        ("g.graphml", "<html></html>", ["no valid GraphML"]),
        ("g.edges", b"\xff\xfe\x00", ["cannot be read"]),
    ],
)
def test_bad_graph_files(tmp_path: Path, name: str, text: str | bytes, words: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        sysadmin(graph_file=str(path), table="ippc")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_folder_is_no_graph_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        sysadmin(graph_file=str(tmp_path))


def test_bad_graphs() -> None:
    with pytest.raises(InputError, match="networkx graph"):
        sysadmin_on([(0, 1)])
    with pytest.raises(InputError, match="no nodes"):
        sysadmin_on(nx.DiGraph())
    with pytest.raises(InputError, match=r"exactly one predecessor.*'hub' has 2"):
        sysadmin_on(nx.Graph([("leaf", "hub"), ("hub", "other")]), table="jair")


def test_a_large_in_degree_is_counted() -> None:
    """The hub of a star with 500 leaves: its law and its sensitivities by hand."""
    hub = sysadmin_on(nx.DiGraph([(i, 0) for i in range(1, 501)])).kernels[-1]
    assert hub.coordinates.tolist() == [0]
    on = np.arange(501)
    np.testing.assert_allclose(hub.table[0, 1, 0, :, 1], 0.45 + 0.5 * (1 + on) / 501, atol=1e-15)
    np.testing.assert_allclose(hub.table[0, 0, 0, :, 1], 0.05, atol=1e-15)
    np.testing.assert_allclose(hub.table[0, :, 1, :, 1], 1.0, atol=1e-15)
    entry = hub.state_influence()[0]
    np.testing.assert_allclose(entry[1:], 0.5 / 501, atol=1e-14)
    assert entry[0] == pytest.approx(0.9)
    assert hub.action_influence()[0, 0] == pytest.approx(0.95)


def test_hand_rule_refuses_bad_probabilities() -> None:
    with pytest.raises(InputError, match="alarm = 2"):
        sysadmin_hand_rule(sysadmin(3), alarm=2.0)
    with pytest.raises(InputError, match="idle = -1"):
        sysadmin_hand_rule(sysadmin(3), idle=-1)
