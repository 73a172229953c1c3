"""Models of one's own on graph files, against the rule that defines them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest

import torchloc as tl
from torchloc.environments import from_graph, sis
from torchloc.errors import InputError
from torchloc.mdp import CountBatch, KernelBatch


def law(states: int, actions: int, levels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(states), (states, actions, levels))


def graphml(nodes: str, edges: str, kind: str = "undirected") -> str:
    keys = "".join(
        f'<key id="{name}" for="{where}" attr.name="{name}" attr.type="{type_}"/>'
        for name, where, type_ in (
            ("kind", "node", "string"),
            ("importance", "node", "double"),
            ("strength", "edge", "int"),
        )
    )
    graph = f'<graph edgedefault="{kind}">{nodes}{edges}</graph>'
    return f'<graphml xmlns="http://graphml.graphdrawing.org/xmlns">{keys}{graph}</graphml>'


def node(name: str, **data: Any) -> str:
    inner = "".join(f'<data key="{key}">{value}</data>' for key, value in data.items())
    return f'<node id="{name}">{inner}</node>'


def edge(one: str, two: str, **data: Any) -> str:
    inner = "".join(f'<data key="{key}">{value}</data>' for key, value in data.items())
    return f'<edge source="{one}" target="{two}">{inner}</edge>'


def check(
    mdp: tl.FactoredMDP,
    expected: dict[int, dict[int, int]],
    tables: list[np.ndarray],
    active: list[int],
) -> None:
    """Every joint state and action: P(s'_j = v) is the table at the count, j by j."""
    tabulated = mdp.tabulated()
    seen = set()
    for batch in tabulated.kernels:
        assert isinstance(batch, KernelBatch)
        for row, j in enumerate(batch.coordinates.tolist()):
            table = batch.table[row if len(batch.table) > 1 else 0]
            levels = tables[j].shape[2]
            for index in np.ndindex(table.shape[:-1]):
                s = dict(zip(batch.states[row].tolist(), index, strict=False))
                a = index[batch.states.shape[1]]
                count = sum(strength * active[s[i]] for i, strength in expected[j].items())
                want = tables[j][s[j], a, min(count, levels - 1)]
                np.testing.assert_allclose(table[index], want, atol=1e-15)
            assert set(batch.states[row].tolist()) == {j, *expected[j]}
            assert batch.actions[row].tolist() == [j]
            seen.add(j)
    assert seen == set(expected)


def test_the_law_of_an_edge_list(tmp_path: Path) -> None:
    path = tmp_path / "edges.txt"
    path.write_text("0 1\n1 2\n3 1\n")
    table, active = law(3, 2, 3), [0, 1, 2]
    mdp = from_graph(
        str(path), laws={"only": table}, rewards={"only": np.ones((3, 2))}, active=active
    )
    both = {0: {1: 1}, 1: {0: 1, 2: 1, 3: 1}, 2: {1: 1}, 3: {1: 1}}
    check(mdp, both, [table] * 4, active)
    oneway = from_graph(
        str(path),
        laws={"only": table},
        rewards={"only": np.ones((3, 2))},
        active=active,
        directed=True,
    )
    check(oneway, {0: {}, 1: {0: 1, 3: 1}, 2: {1: 1}, 3: {}}, [table] * 4, active)


def test_kinds_importances_and_strengths(tmp_path: Path) -> None:
    path = tmp_path / "own.graphml"
    nodes = node("a", kind="x") + node("b", importance=2.5) + node("c") + node("lonely")
    edges = edge("a", "b", strength=3) + edge("b", "c", strength=0) + edge("c", "a")
    path.write_text(graphml(nodes, edges))
    laws = {"default": law(2, 2, 5), "x": law(2, 3, 2, seed=1)}
    rewards = {"default": [[0.0, 1.0], [2.0, 3.0]], "x": [[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]}
    mdp = from_graph(str(path), laws=laws, rewards=rewards)
    assert mdp.coordinate_names == ("a", "b", "c", "lonely") and mdp.action_sizes.tolist() == [
        3,
        2,
        2,
        2,
    ]
    tables = [laws["x"], laws["default"], laws["default"], laws["default"]]
    check(mdp, {0: {1: 3, 2: 1}, 1: {0: 3, 2: 0}, 2: {1: 0, 0: 1}, 3: {}}, tables, [0, 1])
    oracle.check_influence(mdp.tabulated())
    found = {
        int(j): term.table[i % len(term.table)]
        for term in mdp.rewards
        for i, j in enumerate(term.states[:, 0])
    }
    np.testing.assert_allclose(found[0], rewards["x"])
    np.testing.assert_allclose(found[1], 2.5 * np.array(rewards["default"]))
    np.testing.assert_allclose(found[2], rewards["default"])


def test_directed_graphml_keeps_its_directions(tmp_path: Path) -> None:
    path = tmp_path / "own.graphml"
    edges = edge("0", "1", strength=2) + edge("1", "0")
    path.write_text(graphml(node("1") + node("0"), edges, "directed"))
    table = law(2, 1, 3)
    mdp = from_graph(str(path), laws={"default": table}, rewards={"default": np.zeros((2, 1))})
    assert mdp.coordinate_names is None
    check(mdp, {0: {1: 1}, 1: {0: 2}}, [table] * 2, [0, 1])


def test_an_epidemic_by_tables_is_that_of_its_family(tmp_path: Path) -> None:
    """Sites of degree 2 in tables, and the same by name."""
    path = tmp_path / "ring.txt"
    path.write_text("\n".join(f"{i} {(i + 1) % 6}" for i in range(6)))
    beta, recovery, outside = np.array([0.2, 0.05]), np.array([0.3, 0.6]), 0.01
    caught = 1 - (1 - outside) * (1 - beta[:, None]) ** np.arange(3)
    ill = np.stack([caught, np.broadcast_to(1 - recovery[:, None], caught.shape)])
    mdp = from_graph(
        str(path),
        laws={"default": np.stack([1 - ill, ill], axis=-1)},
        rewards={"default": [[0.0, -0.1], [-1.0, -1.1]]},
    )
    one, two = (tl.state_sensitivity(model.tabulated()) for model in (mdp, sis(6)))
    np.testing.assert_allclose(one.toarray(), two.toarray(), atol=1e-15)


def test_fifty_thousand_nodes_share_their_tables(tmp_path: Path) -> None:
    path, n = tmp_path / "ring.txt", 50_000
    ends = np.arange(n)
    np.savetxt(path, np.stack([ends, np.roll(ends, -1)], axis=1), fmt="%d")
    mdp = from_graph(
        str(path), laws={"default": law(2, 2, 3)}, rewards={"default": np.ones((2, 2))}
    )
    assert [len(batch.table) for batch in (*mdp.kernels, *mdp.rewards)] == [1, 1]
    assert mdp.n_agents == n


def test_many_neighbours_are_counted_and_never_written_out(tmp_path: Path) -> None:
    path = tmp_path / "star.txt"
    path.write_text("\n".join(f"0 {i}" for i in range(1, 60)))
    table = law(2, 2, 8)
    mdp = from_graph(str(path), laws={"default": table}, rewards={"default": np.zeros((2, 2))})
    hub = next(batch for batch in mdp.kernels if 0 in batch.coordinates)
    assert isinstance(hub, CountBatch) and hub.table.shape == (1, 2, 2, 8, 2)
    assert hub.state_parents.shape == (1, 60)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"laws": {}}, "give a table for each kind"),
        ({"laws": {"default": [[[0.5, 0.5]]]}}, r"laws.default has shape \(1, 1, 2\)"),
        ({"laws": {"default": law(2, 2, 1)[..., :1]}}, "it must be"),
        (
            {"laws": {"default": law(2, 2, 1) * 2}},
            r"laws.default: row \(0, 0, 0\) of the table sums to 2",
        ),
        ({"laws": {"default": law(2, 2, 1), "b": law(3, 2, 1)}}, "different numbers of states"),
        ({"rewards": {}}, r"rewards is for \[\], but laws is for \['default'\]"),
        ({"rewards": {"default": [[1.0, 2.0]]}}, r"rewards.default has shape \(1, 2\)"),
        ({"rewards": {"default": [[1.0, np.inf], [0, 0]]}}, "rewards.default: entry"),
        ({"active": [0, 1, 2]}, "give 2 whole numbers"),
        ({"active": [0, -1]}, "give 2 whole numbers"),
        ({"directed": "no"}, "directed = 'no'"),
        ({"graph_file": "nowhere.txt"}, "there is no file"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "pair.txt"
    path.write_text("0 1\n")
    plain = {
        "graph_file": str(path),
        "laws": {"default": law(2, 2, 1)},
        "rewards": {"default": np.zeros((2, 2))},
    }
    with pytest.raises(InputError, match=words):
        from_graph(**{**plain, **change})


@pytest.mark.parametrize(
    ("nodes", "edges", "words"),
    [
        (
            node("a", kind="odd") + node("b"),
            edge("a", "b"),
            "node 'a' is of kind 'odd', but laws has tables for x, y",
        ),
        (node("a", kind="x") + node("b"), edge("a", "b"), "node 'b' is of kind 'default'"),
        (node("a", kind="x", importance="nan"), "", "importance of node 'a' is nan"),
        (
            node("a", kind="x") + node("b", kind="x"),
            edge("a", "b", strength=-1),
            "strength of the edge from node 'a'",
        ),
        (
            node("a", kind="x") + node("b", kind="x"),
            edge("a", "b", strength=2) + edge("a", "b", strength=3),
            "stands twice with different strength",
        ),
    ],
)
def test_attributes_that_make_no_sense_are_told(
    tmp_path: Path, nodes: str, edges: str, words: str
) -> None:
    path = tmp_path / "own.graphml"
    path.write_text(graphml(nodes, edges))
    laws = {"x": law(2, 2, 2), "y": law(2, 2, 2)}
    with pytest.raises(InputError, match=words):
        from_graph(str(path), laws=laws, rewards={kind: np.zeros((2, 2)) for kind in laws})
