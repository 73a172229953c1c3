from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from torchloc.errors import InputError
from torchloc.graphs import (
    Scopes,
    action_matrix,
    as_scopes,
    dependency_matrix,
    neighbourhood_scopes,
    parent_scopes,
)
from torchloc.mdp import FactoredMDP, LocalKernel

Parents = list[tuple[list[int], list[int]]]


def build(parents: Parents, n_agents: int) -> FactoredMDP:
    """Coordinate j has the state and action parents of parents[j]; all sizes 2, laws uniform."""
    kernels = [LocalKernel(s, a, np.full((2,) * (len(s) + len(a) + 1), 0.5)) for s, a in parents]
    return FactoredMDP([2] * len(parents), [2] * n_agents, kernels, [])


@st.composite
def models(draw: st.DrawFn) -> tuple[Parents, int]:
    n, k = draw(st.integers(1, 7)), draw(st.integers(0, 4))
    coordinates = st.lists(st.integers(0, n - 1), unique=True, max_size=4)
    agents = st.lists(st.integers(0, k - 1), unique=True, max_size=2) if k else st.just([])
    return draw(st.lists(st.tuples(coordinates, agents), min_size=n, max_size=n)), k


def upstream(parents: Parents, agent: int, hops: int) -> tuple[int, ...]:
    """Breadth first, from the coordinates that the agent acts on."""
    queue = deque((j, 0) for j, (_, agents) in enumerate(parents) if agent in agents)
    seen = {j for j, _ in queue}
    while queue:
        j, depth = queue.popleft()
        for i in parents[j][0]:
            if depth < hops and i not in seen:
                seen.add(i)
                queue.append((i, depth + 1))
    return tuple(sorted(seen))


@settings(deadline=None)
@given(case=models(), hops=st.integers(0, 8))
def test_neighbourhood_is_breadth_first_search(case: tuple[Parents, int], hops: int) -> None:
    parents, n_agents = case
    scopes = neighbourhood_scopes(build(parents, n_agents), hops=hops)
    assert list(scopes) == [upstream(parents, k, hops) for k in range(n_agents)]


@settings(deadline=None)
@given(case=models())
def test_parents_are_what_kernels_read(case: tuple[Parents, int]) -> None:
    parents, n_agents = case
    scopes = parent_scopes(build(parents, n_agents))
    assert list(scopes) == [
        tuple(sorted({i for states, agents in parents if k in agents for i in states}))
        for k in range(n_agents)
    ]


@settings(deadline=None)
@given(case=models())
def test_matrices(case: tuple[Parents, int]) -> None:
    parents, n_agents = case
    mdp = build(parents, n_agents)
    states, actions = dependency_matrix(mdp).toarray(), action_matrix(mdp).toarray()
    assert states.shape == (len(parents), len(parents))
    assert actions.shape == (len(parents), n_agents)
    for j, (s, a) in enumerate(parents):
        assert np.flatnonzero(states[j]).tolist() == sorted(s)
        assert np.flatnonzero(actions[j]).tolist() == sorted(a)


def ring(n: int) -> FactoredMDP:
    return build([([(j - 1) % n, j], [j]) for j in range(n)], n)


def test_ring() -> None:
    mdp = ring(5)
    assert list(neighbourhood_scopes(mdp, hops=0)) == [(k,) for k in range(5)]
    assert neighbourhood_scopes(mdp)[0] == (0, 4)
    assert neighbourhood_scopes(mdp, hops=2)[3] == (1, 2, 3)
    assert neighbourhood_scopes(mdp, hops=99)[0] == (0, 1, 2, 3, 4)
    assert parent_scopes(mdp)[2] == (1, 2)


@pytest.mark.parametrize("paths", [255, 256, 512])
def test_many_paths_to_one_coordinate_count_once(paths: int) -> None:
    # A count of paths in eight bits would vanish at 256.
    mdp = build([([], []), *[([0], [0])] * paths], 1)
    assert list(parent_scopes(mdp)) == [(0,)]
    assert list(neighbourhood_scopes(mdp)) == [tuple(range(paths + 1))]


@pytest.mark.parametrize("hops", [-1, 1.5, 1.0, float("nan"), True, "2", None])
def test_bad_hops(hops: object) -> None:
    with pytest.raises(InputError, match=r"hops = .*whole number"):
        neighbourhood_scopes(ring(3), hops=hops)


def test_scopes_are_sequences_of_tuples() -> None:
    scopes = Scopes.from_lists([(3, 1), (), [2]])
    assert len(scopes) == 3
    assert list(scopes) == [(3, 1), (), (2,)]
    assert (scopes[-1], scopes[np.int64(0)]) == ((2,), (3, 1))
    assert scopes.lengths.tolist() == [2, 0, 1]
    assert scopes.rows(np.array([0])).tolist() == [[3, 1]]
    assert scopes.rows(np.array([1])).shape == (1, 0)
    assert scopes.rows(np.zeros(0, np.int64)).shape == (0, 0)
    assert not scopes.indices.flags.writeable
    assert not scopes.indptr.flags.writeable
    for k in (3, -4):
        with pytest.raises(IndexError):
            scopes[k]
    assert len(Scopes.from_lists([])) == 0


def test_scopes_of_a_matrix_ascend_and_leave_it_alone() -> None:
    matrix = sp.csr_array(
        (np.array([1.0, 2.0, 0.0, 3.0]), np.array([2, 0, 1, 1]), np.array([0, 2, 4])), shape=(2, 3)
    )
    before = matrix.indices.copy(), matrix.data.copy()
    assert list(Scopes.from_matrix(matrix)) == [(0, 2), (1,)]
    np.testing.assert_array_equal(matrix.indices, before[0])
    np.testing.assert_array_equal(matrix.data, before[1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Scopes.from_lists([[0], [1, 2, 1]]), ["agent 1", "coordinate 1", "twice"]),
        (lambda: Scopes.from_lists([[], [0, -3]]), ["agent 1", "coordinate -3", "negative"]),
        (lambda: Scopes.from_lists([[0.5]]), ["agent 0", "0.5", "whole"]),
        (lambda: Scopes.from_lists([["x"]]), ["agent 0", "whole"]),
        (lambda: Scopes.from_lists([[[0]]]), ["agent 0", "1 axes"]),
        (lambda: Scopes(np.array([0, 2]), np.array([1])), ["indptr", "ends with 2", "1 indices"]),
        (lambda: Scopes(np.array([1, 1]), np.array([1])), ["indptr", "start with 0"]),
        (lambda: Scopes(np.array([0, 2, 1]), np.array([1])), ["indptr", "never fall"]),
        (lambda: Scopes(np.array([], dtype=np.int64), np.array([1])), ["indptr"]),
        (lambda: as_scopes(ring(3), [[0], [1]]), ["2 agents", "3"]),
        (lambda: as_scopes(ring(2), [[0], [1, 2]]), ["agent 1", "coordinate 2", "2 coordinates"]),
        (lambda: as_scopes(ring(3), [[3], [], []]), ["agent 0", "coordinate 3"]),
    ],
)
def test_bad_scopes(call: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_same_coordinate_in_neighbouring_scopes_is_fine() -> None:
    mdp = ring(3)
    given = Scopes.from_lists([(0, 1), (1, 2), (2,)])
    assert as_scopes(mdp, given) is given
    assert list(as_scopes(mdp, [(0, 1), (1, 2), (2,)])) == list(given)
