from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import oracle
import pytest

from torchloc.environments import random_mdp
from torchloc.errors import BudgetError, InputError


@pytest.mark.parametrize("graph", ["ring", "line", "star", "three_leg", "grid", "random_regular"])
def test_shapes(graph: str) -> None:
    mdp = random_mdp(8, graph=graph, states=3, actions=2, degree=3)
    assert (mdp.n_coordinates, mdp.n_agents) == (8, 8)
    for batch in mdp.kernels:
        parents = batch.states.shape[1]
        assert batch.table.shape == (len(batch), *(3,) * parents, 2, 3)
        assert (batch.states[:, -1] == batch.coordinates).all()
        assert (batch.actions[:, 0] == batch.coordinates).all()


def test_seeds() -> None:
    one, two, other = random_mdp(5), random_mdp(5), random_mdp(5, seed=1)
    np.testing.assert_array_equal(one.kernels[0].table, two.kernels[0].table)
    np.testing.assert_array_equal(one.rewards[0].table, two.rewards[0].table)
    assert (one.kernels[0].table != other.kernels[0].table).any()
    rows = one.kernels[0].table.reshape(-1, 2)
    assert len(np.unique(rows[:, 0])) == len(rows)


@pytest.mark.parametrize("concentration", [1e-3, 0.05, 1.0, 1e6])
@pytest.mark.parametrize("coupling", [0.0, 0.3, 1.0])
def test_influence(concentration: float, coupling: float) -> None:
    mdp = random_mdp(3, states=2, concentration=concentration, coupling=coupling, seed=7)
    oracle.check_influence(mdp)
    influence = oracle.state_influence(mdp)
    # A mixture (1 − c) q + c d rounds each entry by half an ulp or so.
    assert influence.max() <= coupling + 2.0**-50
    assert oracle.floor(mdp) <= 2 * coupling + 2.0**-48


def test_concentration() -> None:
    # A symmetric Dirichlet law on 4 values has entries of variance 3 / (16 (4 α + 1)).
    for alpha in (0.1, 1.0, 20.0):
        table = random_mdp(400, states=4, concentration=alpha).kernels[0].table
        assert table.mean() == pytest.approx(0.25, abs=1e-12)
        assert table.var() == pytest.approx(3 / (16 * (4 * alpha + 1)), rel=0.05)


def test_rewards_are_uniform_on_the_unit_interval() -> None:
    (batch,) = random_mdp(500).rewards
    assert batch.table.shape == (500, 2, 2)
    assert 0 <= batch.table.min() < 0.01
    assert 0.99 < batch.table.max() < 1


def test_graph_file(tmp_path: Path) -> None:
    nx.write_edgelist(nx.DiGraph([("a", "b"), ("c", "b")]), tmp_path / "g.edges")
    mdp = random_mdp(graph_file=str(tmp_path / "g.edges"))
    assert mdp.coordinate_names == ("a", "b", "c")
    assert oracle.as_reference(mdp).kernels[1][0] == (0, 2, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 1}, ["n = 1"]),
        ({"graph": "blob"}, ["graph = 'blob'"]),
        ({"states": 0}, ["states = 0", "≥ 1"]),
        ({"actions": 1.5}, ["actions = 1.5", "whole"]),
        ({"concentration": 0.0}, ["concentration = 0.0", "positive"]),
        ({"coupling": 1.1}, ["coupling = 1.1", "[0, 1]"]),
        ({"seed": -3}, ["seed = -3"]),
    ],
)
def test_bad_arguments(arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        random_mdp(**arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_sizes_over_budget() -> None:
    with pytest.raises(BudgetError, match=r"node 0 has 3 state parents.*bytes"):
        random_mdp(8, graph="grid", states=40)
    with pytest.raises(BudgetError, match=r"tables of 100000 sites.*bytes"):
        random_mdp(100_000, states=12, actions=4)
