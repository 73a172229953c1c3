"""Every agent stands in one group of its own shape, and scope states are listed in C order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import torchloc as tl
from torchloc.graphs import Scopes
from torchloc.policy import AgentGroup, agent_groups, groups


def _groups(
    scopes: list[tuple[int, ...]], state_sizes: list[int], action_sizes: list[int]
) -> tuple[AgentGroup, ...]:
    return agent_groups(Scopes.from_lists(scopes), np.array(state_sizes), np.array(action_sizes))


def _group(*sizes: int, n_actions: int = 2) -> AgentGroup:
    return AgentGroup(np.array([0]), np.arange(len(sizes))[None], sizes, n_actions)


@pytest.mark.parametrize("seed", range(20))
def test_agents_are_partitioned_by_shape(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, n_agents = int(rng.integers(1, 6)), int(rng.integers(1, 30))
    state_sizes, action_sizes = rng.integers(1, 4, n), rng.integers(1, 4, n_agents)
    scopes = [
        tuple(rng.permutation(n)[: rng.integers(0, min(n, 3) + 1)].tolist())
        for _ in range(n_agents)
    ]
    found = _groups(scopes, state_sizes.tolist(), action_sizes.tolist())
    assert sorted(np.concatenate([g.agents for g in found])) == list(range(n_agents))
    for group in found:
        assert (np.diff(group.agents) > 0).all()
        assert len(group) == len(group.agents) == len(group.scope)
        for k, scope in zip(group.agents.tolist(), group.scope.tolist(), strict=True):
            assert tuple(scope) == scopes[k]
            assert group.sizes == tuple(state_sizes[scope])
            assert group.n_actions == action_sizes[k]
    shapes = [(group.sizes, group.n_actions) for group in found]
    assert len(set(shapes)) == len(shapes)


def test_unequal_sizes_and_orders() -> None:
    scopes = [(0, 1), (1, 0), (2, 0), (), (0, 2), (1,)]
    found = _groups(scopes, [2, 3, 2], [2, 2, 2, 2, 3, 2])
    members = {(g.sizes, g.n_actions): g.agents.tolist() for g in found}
    assert members == {
        ((), 2): [3],
        ((3,), 2): [5],
        ((2, 3), 2): [0],
        ((3, 2), 2): [1],
        ((2, 2), 2): [2],
        ((2, 2), 3): [4],
    }


def test_equal_sizes_share_a_group_whatever_they_see() -> None:
    (group,) = _groups([(0, 1), (2, 0), (1, 2)], [4, 4, 4], [3, 3, 3])
    assert group.scope.tolist() == [[0, 1], [2, 0], [1, 2]]
    assert not group.agents.flags.writeable and not group.scope.flags.writeable


def test_one_agent_and_none() -> None:
    (group,) = _groups([(1,)], [2, 5], [7])
    assert (group.sizes, group.n_actions, group.n_rows, len(group)) == ((5,), 7, 5, 1)
    assert _groups([], [2, 5], []) == ()


@pytest.mark.parametrize("sizes", [(), (1,), (3,), (2, 3), (3, 1, 2), (1, 1)])
def test_observations_list_scope_states_in_c_order(sizes: tuple[int, ...]) -> None:
    observations = _group(*sizes).observations()
    expected = list(itertools.product(*map(range, sizes)))
    assert observations.dtype == torch.int64
    assert observations.shape == (len(expected), len(sizes))
    assert [tuple(row) for row in observations.tolist()] == expected


def test_unflatten_puts_one_axis_a_coordinate() -> None:
    group = _group(2, 3)
    rows = torch.arange(12.0).reshape(1, 6, 2)
    table = group.unflatten(rows)
    assert table.shape == (1, 2, 3, 2)
    for row, (a, b) in enumerate(group.observations().tolist()):
        assert torch.equal(table[:, a, b], rows[:, row])
    assert _group().unflatten(torch.zeros(5, 1, 2)).shape == (5, 2)


def test_enumeration_has_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "ROW_BUDGET", 12)
    assert len(_group(3, 4).observations()) == 12
    message = r"agent 0 sees 1 coordinates with 13 joint states \(208 bytes .*budget of 12 states"
    with pytest.raises(tl.BudgetError, match=message):
        _group(13).observations()
