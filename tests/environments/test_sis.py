from __future__ import annotations

import sys
from pathlib import Path

import networkx as nx
import numpy as np
import oracle
import pytest
import reference

from torchloc.environments import sis, sis_on
from torchloc.errors import InputError
from torchloc.graphs import dependency_matrix
from torchloc.sensitivity import action_sensitivity, state_sensitivity


def test_law_and_reward() -> None:
    mdp = sis(4, infection=(0.3, 0.1), recovery=(0.2, 0.7), outside=0.05, cost=0.4)

    def law(j: int, s: tuple[int, ...], a: tuple[int, ...]) -> float:
        if s[j]:
            return 1 - (0.2, 0.7)[a[j]]
        contacts = s[j - 1] + s[(j + 1) % 4]
        return 1 - 0.95 * (1 - (0.3, 0.1)[a[j]]) ** contacts

    oracle.check_law(mdp, law)
    oracle.check_reward(mdp, lambda s, a: -s.sum() - 0.4 * a.sum())


def test_reference_values_on_the_ring() -> None:
    mdp = sis(4)
    gain, _ = oracle.optimum(mdp)
    assert gain / 4 == pytest.approx(-0.0248539, abs=5e-8)
    assert oracle.floor(mdp) == pytest.approx(1.0860, abs=1e-13)


@pytest.mark.parametrize(
    "mdp",
    [
        sis(3),
        sis(4, graph="star"),
        sis(4, graph="grid", infection=(0.9, 0.2), recovery=(0.05, 0.9)),
        sis(5, graph="line", outside=0.0),
    ],
)
def test_influence_by_enumeration(mdp: object) -> None:
    oracle.check_influence(mdp)


@pytest.mark.parametrize(
    ("graph", "n", "degree"),
    [("ring", 7, 2), ("torus", 9, 4), ("random_regular", 10, 3)],
)
@pytest.mark.parametrize("recovery", [(0.3, 0.6), (0.05, 0.1)])
def test_floor_on_regular_graphs(
    graph: str, n: int, degree: int, recovery: tuple[float, float]
) -> None:
    mdp = sis(n, graph=graph, recovery=recovery)
    stays_healthy = 0.99 * (1 - np.array([0.2, 0.05])) ** np.arange(degree + 1)[:, None]
    own = np.abs(np.array(recovery) - stays_healthy).max()
    assert oracle.floor(mdp) == pytest.approx(degree * 0.99 * 0.2 + own, abs=1e-13)


def test_supercritical_ring_under_the_uniform_policy() -> None:
    """Ring of 4, β = (.4, .1), δ = (.2, .5), ε = .01."""
    mdp = sis(4, infection=(0.4, 0.1), recovery=(0.2, 0.5), outside=0.01)
    model, policy = oracle.as_reference(mdp), oracle.uniform(mdp)
    one = reference.coupled_influence(model, policy)
    assert reference.spectral_radius(one) == pytest.approx(1.135, abs=5e-4)
    matrix = reference.policy_transition(
        reference.transition(model), reference.product_policy(model, policy)
    )
    assert np.sort(np.abs(np.linalg.eigvals(matrix)))[-2] == pytest.approx(0.872, abs=5e-4)


@pytest.mark.slow
def test_supercritical_ring_over_several_steps() -> None:
    mdp = sis(4, infection=(0.4, 0.1), recovery=(0.2, 0.5), outside=0.01)
    model, policy = oracle.as_reference(mdp), oracle.uniform(mdp)
    for steps, rate in ((2, 1.054), (3, 1.008), (4, 0.979), (8, 0.926)):
        matrix = reference.coupled_influence(model, policy, steps)
        assert reference.spectral_radius(matrix) ** (1 / steps) == pytest.approx(rate, abs=5e-4)


@pytest.mark.parametrize(
    ("graph", "degree"), [("karate", 17), ("les_miserables", 36), ("davis", 14)]
)
def test_contact_graphs_with_hubs_are_counted(graph: str, degree: int) -> None:
    """E^s and E^a by hand, neighbour by neighbour, and the hub itself."""
    beta, delta, eps = np.array([0.2, 0.05]), np.array([0.3, 0.6]), 0.01
    mdp = sis(graph=graph)
    edges = dependency_matrix(mdp).toarray()
    degrees = edges.sum(axis=1) - 1
    assert degrees.max() == degree
    entry = state_sensitivity(mdp).toarray()
    caught = 1.0 - (1.0 - eps) * (1.0 - beta) ** np.arange(degree + 1)[:, None]
    off = ~np.eye(len(entry), dtype=bool)
    np.testing.assert_allclose(entry[off], (edges * (1.0 - eps) * beta.max())[off], atol=1e-14)
    own = [np.abs(1.0 - delta - caught[: d + 1]).max() for d in degrees]
    np.testing.assert_allclose(entry.diagonal(), own, atol=1e-14)
    act = [max((caught[: d + 1, 0] - caught[: d + 1, 1]).max(), 0.3) for d in degrees]
    np.testing.assert_allclose(action_sensitivity(mdp).toarray().diagonal(), act, atol=1e-14)


@pytest.mark.parametrize("degree", [6, 9])
def test_counts_are_the_tables(degree: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = sis(degree + 1, graph="star")
    monkeypatch.setattr(sys.modules["torchloc.environments.sis"], "COUNTED", 99)
    written = sis(degree + 1, graph="star")
    for mine, other in zip(counted.tabulated().kernels, written.kernels, strict=True):
        assert mine.coordinates.tolist() == other.coordinates.tolist()
        # The count kernel reads itself first, the table last.
        table = mine.table
        if mine.states[0, 0] == mine.coordinates[0] and len(mine.states[0]) == degree + 1:
            table = np.moveaxis(table, 1, degree + 1)
        np.testing.assert_allclose(table, other.table, rtol=0, atol=1e-15)


def test_real_contacts_below_the_limit() -> None:
    karate = nx.karate_club_graph()
    few = karate.subgraph([node for node, degree in karate.degree() if degree <= 6])
    mdp = sis_on(few)
    assert mdp.n_coordinates == len(few)
    assert mdp.coordinate_names == tuple(str(node) for node in sorted(few))
    edges = dependency_matrix(mdp).toarray()
    assert (edges.diagonal()).all()
    assert edges.sum() == len(few) + 2 * few.number_of_edges()


def test_graph_files_round_trip(tmp_path: Path) -> None:
    graph = nx.relabel_nodes(nx.path_graph(4), {0: "ann", 1: "bob", 2: "cid", 3: "dee"})
    nx.write_edgelist(graph, tmp_path / "g.edges", data=False)
    nx.write_graphml(graph, tmp_path / "g.graphml")
    direct = oracle.as_reference(sis_on(graph))
    for name in ("g.edges", "g.graphml"):
        mdp = sis(graph_file=str(tmp_path / name))
        assert mdp.coordinate_names == ("ann", "bob", "cid", "dee")
        for one, two in zip(oracle.as_reference(mdp).kernels, direct.kernels, strict=True):
            assert one[:2] == two[:2]
            np.testing.assert_array_equal(one[2], two[2])
    one_way = sis(graph_file=str(tmp_path / "g.edges"), directed=True)
    assert oracle.as_reference(one_way).kernels[1][0] == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 2}, ["n = 2", "ring", "3"]),
        ({"graph": "village"}, ["graph = 'village'", "karate"]),
        ({"infection": (0.2, 1.2)}, ["infection[1] = 1.2", "[0, 1]"]),
        ({"infection": 0.2}, ["infection = 0.2", "2 probabilities"]),
        ({"recovery": (0.1, 0.2, 0.3)}, ["recovery = (0.1, 0.2, 0.3)", "2 probabilities"]),
        ({"recovery": "ab"}, ["recovery = 'ab'"]),
        ({"outside": -0.01}, ["outside = -0.01"]),
        ({"cost": float("-inf")}, ["cost = -inf"]),
        ({"graph_file": "nowhere.graphml"}, ["no file nowhere.graphml"]),
    ],
)
def test_bad_arguments(arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        sis(**arguments)
    assert all(word in str(error.value) for word in words), str(error.value)
