from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchloc.errors import InputError
from torchloc.mdp import FactoredMDP, KernelBatch, LocalKernel, LocalReward, RewardBatch

Array = np.ndarray

EYE = np.eye(2)
COPY = LocalKernel((0,), (), EYE)
COIN = LocalKernel((), (), [0.5, 0.5])


def model(**changes: object) -> FactoredMDP:
    """Two coordinates of sizes 2 and 3, agents of sizes 2 and 3; `changes` replace arguments."""
    arguments: dict[str, object] = {
        "state_sizes": [2, 3],
        "action_sizes": [2, 3],
        "kernels": [
            LocalKernel((1,), (0,), np.full((3, 2, 2), 0.5)),
            LocalKernel((0, 1), (), np.full((2, 3, 3), 1 / 3)),
        ],
        "rewards": [LocalReward((0,), (1,), np.zeros((2, 3)))],
    }
    arguments.update(changes)
    return FactoredMDP(**arguments)


def random_model(rng: np.random.Generator) -> FactoredMDP:
    """Unequal sizes, N ≠ K, shared actions, several shapes, names and an initial law."""
    states, actions = [2, 3, 1, 2], [3, 1, 2]
    kernels = [
        LocalKernel((1, 0), (2,), rng.dirichlet(np.ones(2), size=(3, 2, 2))),
        LocalKernel((1,), (0, 2), rng.dirichlet(np.ones(3), size=(3, 3, 2))),
        LocalKernel((), (1,), np.ones((1, 1))),
        LocalKernel((2, 3), (), rng.dirichlet(np.full(2, 0.1), size=(1, 2))),
    ]
    rewards = [
        LocalReward((0,), (0,), rng.normal(size=(2, 3))),
        LocalReward((3,), (0,), rng.normal(size=(2, 3))),
        LocalReward((), (), rng.normal()),
        LocalReward((1, 3), (), rng.normal(size=(3, 2))),
    ]
    return FactoredMDP(
        states,
        actions,
        kernels,
        rewards,
        initial=[rng.dirichlet(np.ones(size)) for size in states],
        coordinate_names=["Zürich", "", "a b", "x" * 40],
        agent_names=["κ", "λ", "μ"],
    )


def by_coordinate(mdp: FactoredMDP) -> dict[int, tuple[list[int], list[int], Array]]:
    return {
        int(j): (
            batch.states[row].tolist(),
            batch.actions[row].tolist(),
            batch.table[min(row, len(batch.table) - 1)],
        )
        for batch in mdp.kernels
        for row, j in enumerate(batch.coordinates)
    }


# Validation ------------------------------------------------------------------------------------

Case = tuple[Callable[[], object], list[str]]

KERNELS: dict[str, Case] = {
    "row sum": (lambda: LocalKernel((0,), (), [[0.5, 0.6], [1, 0]]), ["(0,)", "1.1", "1e-9"]),
    "row sum just over": (
        lambda: LocalKernel((0,), (), [[1, 0], [0.5, 0.5 + 2e-9]]),
        ["(1,)", "1.000000002"],
    ),
    "row of a batch": (
        lambda: KernelBatch([4, 7], [[0], [1]], [], [EYE, [[1, 0], [0.5, 0.4]]]),
        ["coordinate 7", "row (1,)", "0.9"],
    ),
    "negative": (lambda: LocalKernel((), (), [1.5, -0.5]), ["(1,)", "-0.5", "negative"]),
    "nan": (lambda: LocalKernel((0,), (), [[1, 0], [np.nan, 1]]), ["(1, 0)", "nan", "finite"]),
    "infinite": (lambda: LocalKernel((), (), [np.inf, 0]), ["(0,)", "inf", "finite"]),
    "nan in a batch": (
        lambda: KernelBatch([3, 9], [], [], [[0.5, 0.5], [np.nan, 1]]),
        ["coordinate 9", "nan"],
    ),
    "ragged": (lambda: LocalKernel((0,), (), [[0.5, 0.5], [1]]), ["kernel table", "rectangular"]),
    "text": (lambda: LocalKernel((), (), ["a", "b"]), ["kernel table", "numbers"]),
    "complex": (lambda: LocalKernel((), (), np.array([1j, 1])), ["kernel table", "complex"]),
    "too few axes": (
        lambda: LocalKernel((0,), (), [0.5, 0.5]),
        ["(2,)", "1 state", "(*S[states], *A[actions], S_j)"],
    ),
    "too many axes": (lambda: LocalKernel((), (), EYE), ["(2, 2)", "0 state", "0 action"]),
    "empty axis": (lambda: LocalKernel((0,), (), np.zeros((0, 2))), ["(0, 2)", "none empty"]),
    "leading axis": (
        lambda: KernelBatch([0, 1, 2], [], [], [[0.5, 0.5]] * 2),
        ["coordinate 0", "3 or 1, not 2"],
    ),
    "repeated state": (
        lambda: LocalKernel((3, 3), (), np.full((2, 2, 2), 0.5)),
        ["coordinate 3", "twice", "once"],
    ),
    "repeated action": (
        lambda: KernelBatch([0, 5], [], [[0, 1], [2, 2]], np.full((1, 2, 2, 2), 0.5)),
        ["kernel of coordinate 5", "agent 2", "twice"],
    ),
    "fractional parent": (
        lambda: LocalKernel((0.5,), (), EYE),
        ["kernel states", "(0, 0)", "0.5", "whole"],
    ),
    "infinite parent": (lambda: LocalKernel((np.inf,), (), EYE), ["kernel states", "inf"]),
    "enormous parent": (lambda: LocalKernel((2**60,), (), EYE), ["kernel states", str(2**60)]),
    "parent of text": (lambda: LocalKernel(("a",), (), EYE), ["kernel states", "whole"]),
    "rows of parents": (
        lambda: KernelBatch([0, 1], [[0]], [], [EYE]),
        ["kernel states", "1 rows", "2 coordinates"],
    ),
    "ragged parents": (
        lambda: KernelBatch([0, 1], [[0], [0, 1]], [], [EYE]),
        ["kernel states", "rectangular"],
    ),
    "coordinates with two axes": (
        lambda: KernelBatch([[0]], [], [], [[1.0]]),
        ["kernel coordinates", "1 axes", "(1, 1)"],
    ),
    "empty batch": (lambda: KernelBatch([], [], [], np.zeros((0, 2))), ["no coordinate"]),
}

FUNCTIONS: dict[str, Case] = {
    "sizes": (
        lambda: LocalKernel.from_function((0, 1), (), lambda s, a: [1], [2, 2, 2]),
        ["sizes has 3", "2 state", "0 action"],
    ),
    "parent out of range": (
        lambda: LocalKernel.from_function((4,), (), lambda s, a: [1], ([2, 2], [2])),
        ["coordinate 4", "2 coordinates"],
    ),
    "negative parent": (
        lambda: LocalKernel.from_function((), (-1,), lambda s, a: [1], ([2, 2], [2])),
        ["agent -1", "1 agents"],
    ),
    "size zero": (
        lambda: LocalKernel.from_function((0,), (), lambda s, a: [1], [0]),
        ["parent 0", "size 0"],
    ),
    "laws of different lengths": (
        lambda: LocalKernel.from_function(
            (0,), (), lambda s, a: [1 / (s[0] + 1)] * (s[0] + 1), [2]
        ),
        ["different shapes", "(1,)", "(2,)"],
    ),
    "no vector": (
        lambda: LocalKernel.from_function((0,), (), lambda s, a: 1.0, [2]),
        ["vector"],
    ),
    "no law": (
        lambda: LocalKernel.from_function((0,), (0,), lambda s, a: [0.5, 0.1 * a[0]], [2, 3]),
        ["row (0, 0)", "0.5"],
    ),
    "no numbers": (
        lambda: LocalKernel.from_function((0,), (), lambda s, a: ["x"], [2]),
        ["(0,)", "numbers"],
    ),
}

REWARDS: dict[str, Case] = {
    "nan": (
        lambda: RewardBatch([[0], [1]], [], [[0, 1], [np.nan, 0]]),
        ["term 1", "(0,)", "nan"],
    ),
    "infinite": (lambda: LocalReward((), (), -np.inf), ["reward term", "-inf"]),
    "shape": (
        lambda: LocalReward((0,), (1,), [1.0, 2.0]),
        ["(2,)", "1 coordinates", "1 agents"],
    ),
    "leading axis": (lambda: RewardBatch([[0], [1], [2]], [], EYE), ["3 or 1, not 2"]),
    "repeated state": (lambda: LocalReward((1, 1), (), EYE), ["coordinate 1", "twice"]),
    "repeated action": (lambda: LocalReward((), (2, 2), EYE), ["agent 2", "twice"]),
    "rows": (
        lambda: RewardBatch([[0], [1]], [[0], [1], [2]], np.zeros((1, 2, 2))),
        ["2 rows", "3"],
    ),
    "no terms": (lambda: RewardBatch([], [], [5.0]), ["no terms", "[[]]"]),
    "empty axis": (lambda: LocalReward((0,), (), []), ["none empty"]),
    "ragged": (lambda: LocalReward((0,), (), [[1], [1, 2]]), ["reward table", "rectangular"]),
}

THREE = np.full((3, 3), 1 / 3)
MODELS: dict[str, Case] = {
    "no coordinates": (lambda: FactoredMDP([], [2], [], []), ["state_sizes is empty"]),
    "empty space": (lambda: model(state_sizes=[2, 0]), ["state_sizes", "coordinate 1", "size 0"]),
    "empty actions": (lambda: model(action_sizes=[0, 3]), ["action_sizes", "agent 0", "size 0"]),
    "negative size": (lambda: model(state_sizes=[-2, 3]), ["coordinate 0", "size -2"]),
    "fractional size": (lambda: model(state_sizes=[2, 2.5]), ["state_sizes", "(1,)", "2.5"]),
    "sizes with two axes": (lambda: model(state_sizes=[[2, 3]]), ["state_sizes", "(1, 2)"]),
    "ragged sizes": (lambda: model(state_sizes=[2, [3]]), ["state_sizes", "rectangular"]),
    "missing kernel": (
        lambda: model(kernels=[COPY]),
        ["2 coordinates", "1 kernels", "coordinate 1"],
    ),
    "too many kernels": (
        lambda: model(state_sizes=[2, 2], kernels=[COPY] * 3),
        ["2 coordinates", "3 kernels", "kernel 2"],
    ),
    "missing beside a batch": (
        lambda: model(kernels=[KernelBatch([1], [], [], [[1.0, 0, 0]])]),
        ["coordinate 0", "exactly one kernel"],
    ),
    "doubled kernel": (
        lambda: model(kernels=[KernelBatch([1, 1], [], [], [[1.0, 0, 0]])]),
        ["coordinate 1 has 2 kernels"],
    ),
    "kernel of no coordinate": (
        lambda: model(kernels=[KernelBatch([0, 2], [], [], [[1.0, 0]])]),
        ["coordinate 2", "2 coordinates"],
    ),
    "kernel of a negative coordinate": (
        lambda: model(kernels=[KernelBatch([0, -1], [], [], [[1.0, 0]])]),
        ["coordinate -1"],
    ),
    "state parent out of range": (
        lambda: model(kernels=[COIN, LocalKernel((2,), (), THREE)]),
        ["kernel of coordinate 1", "coordinate 2", "2 coordinates"],
    ),
    "negative state parent": (
        lambda: model(kernels=[LocalKernel((-1,), (), EYE), LocalKernel((1,), (), THREE)]),
        ["kernel of coordinate 0", "coordinate -1"],
    ),
    "action parent out of range": (
        lambda: model(kernels=[COIN, LocalKernel((), (5,), THREE)]),
        ["kernel of coordinate 1", "agent 5", "2 agents"],
    ),
    "size of a state parent": (
        lambda: model(kernels=[LocalKernel((1,), (), EYE), LocalKernel((1,), (), THREE)]),
        ["kernel of coordinate 0", "axis 0", "size 2", "coordinate 1", "size 3"],
    ),
    "size of an action parent": (
        lambda: model(kernels=[COIN, LocalKernel((0,), (0,), np.full((2, 3, 3), 1 / 3))]),
        ["kernel of coordinate 1", "axis 1", "size 3", "agent 0", "size 2"],
    ),
    "size of the law": (
        lambda: model(kernels=[COIN, COPY]),
        ["kernel of coordinate 1", "2 entries", "3 states"],
    ),
    "foreign kernel": (lambda: model(kernels=[COIN, EYE]), ["kernels", "ndarray"]),
    "foreign reward": (lambda: model(rewards=[LocalReward((), (), 1), 3]), ["rewards[1]", "int"]),
    "reward coordinate": (
        lambda: model(rewards=[LocalReward((), (), 1.0), LocalReward((7,), (), [0, 1])]),
        ["rewards[1]", "coordinate 7", "2 coordinates"],
    ),
    "reward agent": (
        lambda: model(rewards=[RewardBatch([], [[0], [-1]], [[0, 1]])]),
        ["rewards[0], row 1", "agent -1"],
    ),
    "reward size": (
        lambda: model(rewards=[LocalReward((0,), (1,), np.zeros((2, 2)))]),
        ["rewards[0]", "axis 1", "size 2", "agent 1", "size 3"],
    ),
    "initial count": (lambda: model(initial=[[0.5, 0.5]]), ["initial", "1 laws", "2 coordinates"]),
    "initial shape": (
        lambda: model(initial=[[0.5, 0.5], [0.5, 0.5]]),
        ["initial law of coordinate 1", "(2,)", "3 states"],
    ),
    "initial sum": (
        lambda: model(initial=[[0.5, 0.5], [0.2, 0.2, 0.2]]),
        ["initial law of coordinate 1", "0.6"],
    ),
    "initial negative": (
        lambda: model(initial=[[1.5, -0.5], [1, 0, 0]]),
        ["initial law of coordinate 0", "-0.5"],
    ),
    "initial nan": (
        lambda: model(initial=[[np.nan, 1], [1, 0, 0]]),
        ["initial law of coordinate 0", "nan"],
    ),
    "initial text": (
        lambda: model(initial=[["a", "b"], [1, 0, 0]]),
        ["initial law of coordinate 0", "numbers"],
    ),
    "initial beyond a space": (
        lambda: model(initial=np.array([[0.5, 0.25, 0.25], [1, 0, 0]])),
        ["initial law of coordinate 0", "0.25", "value 2", "2 states"],
    ),
    "initial width": (lambda: model(initial=np.full((2, 2), 0.5)), ["initial", "(2, 3)"]),
    "initial scalar": (lambda: model(initial=np.array(1.0)), ["initial", "one law a coordinate"]),
    "coordinate names": (lambda: model(coordinate_names=["a"]), ["coordinate_names", "1", "2"]),
    "equal names": (lambda: model(agent_names=["a", "a"]), ["agent_names", "'a'", "twice"]),
}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(*case, id=f"{group}: {name}")
        for group, table in (
            ("kernel", KERNELS),
            ("function", FUNCTIONS),
            ("reward", REWARDS),
            ("model", MODELS),
        )
        for name, case in table.items()
    ],
)
def test_bad_input_gets_one_clear_error(call: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert len(message) < 300


# Construction ----------------------------------------------------------------------------------


def test_rows_within_tolerance_are_normalised_and_exact_rows_kept() -> None:
    loose, exact = [0.5, 0.5 + 5e-10], [0.1, 0.9]
    table = LocalKernel((0,), (), [loose, exact]).table
    # A quotient by the sum: each entry within an ulp.
    assert abs(table[0].sum() - 1) <= 2.0**-52
    np.testing.assert_allclose(table[0], np.array(loose) / np.sum(loose), rtol=2.0**-52)
    assert table[1].tolist() == exact


def test_arrays_are_frozen_copies() -> None:
    table, states = EYE.copy(), np.array([[0], [1]])
    batch = KernelBatch([0, 1], states, [], table[None])
    table[0, 0] = states[0, 0] = 7
    assert batch.table[0].tolist() == EYE.tolist()
    assert batch.states.tolist() == [[0], [1]]
    mdp = model(initial=[[0.5, 0.5], [1, 0, 0]])
    arrays = [mdp.state_sizes, mdp.action_sizes, mdp.initial, batch.states, batch.coordinates]
    arrays += [array for b in mdp.kernels for array in (b.table, b.states, b.actions)]
    arrays += [array for b in mdp.rewards for array in (b.table, b.states, b.actions)]
    assert not any(array.flags.writeable for array in arrays)


def test_models_and_batches_are_immutable() -> None:
    mdp = model()
    with pytest.raises(AttributeError, match="immutable"):
        mdp.initial = None
    with pytest.raises(AttributeError):
        mdp.kernels[0].table = EYE


def test_batches_equal_singles() -> None:
    rng = np.random.default_rng(3)
    tables = rng.dirichlet(np.ones(2), size=(5, 2, 2))
    states = [[(j - 1) % 5, j] for j in range(5)]
    rewards = rng.normal(size=(5, 2, 3))
    sizes, actions = [2] * 5, [3] * 5
    singles = FactoredMDP(
        sizes,
        actions,
        [LocalKernel(states[j], (), tables[j]) for j in range(5)],
        [LocalReward((j,), (j,), rewards[j]) for j in range(5)],
    )
    order = np.array([3, 0, 4, 2, 1])
    batched = FactoredMDP(
        sizes,
        actions,
        [KernelBatch(order, np.array(states)[order], [], tables[order])],
        [RewardBatch(np.arange(5)[:, None], np.arange(5)[:, None], rewards)],
    )
    mixed = FactoredMDP(
        sizes,
        actions,
        [
            LocalKernel(states[0], (), tables[0]),
            KernelBatch([1, 3], [states[1], states[3]], [], tables[[1, 3]]),
            LocalKernel(states[2], (), tables[2]),
            LocalKernel(states[4], (), tables[4]),
        ],
        [],
    )
    expected = by_coordinate(singles)
    for other in (by_coordinate(batched), by_coordinate(mixed)):
        assert {j: x[:2] for j, x in other.items()} == {j: x[:2] for j, x in expected.items()}
        assert all((other[j][2] == expected[j][2]).all() for j in expected)
    np.testing.assert_array_equal(singles.rewards[0].table, batched.rewards[0].table)
    edges = {tuple(edge) for edge in np.transpose(singles.state_edges()).tolist()}
    assert edges == {(j, i) for j in range(5) for i in states[j]}
    assert edges == {tuple(edge) for edge in np.transpose(batched.state_edges()).tolist()}


def test_equal_tables_of_singles_are_stored_once() -> None:
    kernels = [LocalKernel(((j + 1) % 4,), (), EYE.copy()) for j in range(4)]
    rewards = [LocalReward((j,), (), [0.0, 1.0]) for j in range(4)]
    mdp = FactoredMDP([2] * 4, [], kernels, rewards)
    assert mdp.kernels[0].table.shape == (1, 2, 2)
    assert mdp.rewards[0].table.shape == (1, 2)
    kernels[2] = COPY
    rewards[0] = LocalReward((0,), (), [0.0, 2.0])
    mdp = FactoredMDP([2] * 4, [], [*kernels[:3], LocalKernel((0,), (), 1 - EYE)], rewards)
    assert mdp.kernels[0].table.shape == (4, 2, 2)
    assert mdp.rewards[0].table.shape == (4, 2)


def test_from_function() -> None:
    def law(s: tuple[int, ...], a: tuple[int, ...]) -> list[float]:
        p = (1 + s[0] + 2 * s[1] + a[0]) / 10
        return [1 - p, p]

    by_parents = LocalKernel.from_function((2, 0), (1,), law, [2, 3, 2])
    by_model = LocalKernel.from_function((2, 0), (1,), law, ([3, 5, 2], [4, 2]))
    assert by_parents.table.shape == (2, 3, 2, 2)
    np.testing.assert_array_equal(by_parents.table, by_model.table)
    for s0, s1, a in itertools.product(range(2), range(3), range(2)):
        assert by_parents.table[s0, s1, a].tolist() == law((s0, s1), (a,))
    constant = LocalKernel.from_function((), (), lambda s, a: [0.25, 0.75], [])
    assert constant.table.tolist() == [0.25, 0.75]


def test_properties_and_names() -> None:
    mdp = random_model(np.random.default_rng(0))
    assert (mdp.n_coordinates, mdp.n_agents) == (4, 3)
    assert (mdp.n_states, mdp.n_joint_actions) == (12, 6)
    assert (mdp.coordinate_name(0), mdp.agent_name(2)) == ("Zürich", "μ")
    assert (model().coordinate_name(1), model().agent_name(0)) == ("1", "0")
    assert repr(mdp) == "FactoredMDP(4 coordinates, 3 agents, 4 reward terms)"
    agents = {tuple(edge) for edge in np.transpose(mdp.action_edges()).tolist()}
    assert agents == {(0, 2), (1, 0), (1, 2), (2, 1)}
    big = FactoredMDP(np.full(1000, 3), [], [KernelBatch(range(1000), [], [], [[1, 0, 0]])], [])
    assert big.n_states == 3**1000
    assert big.n_joint_actions == 1


def test_a_model_without_agents_or_rewards() -> None:
    mdp = FactoredMDP([2], [], [COPY], [])
    assert (mdp.n_agents, mdp.rewards) == (0, ())
    assert [len(part) for part in mdp.action_edges()] == [0, 0]


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    states=st.lists(st.integers(1, 3), max_size=3),
    actions=st.lists(st.integers(1, 3), max_size=2),
    size=st.integers(1, 4),
    shared=st.booleans(),
)
def test_influence_is_the_largest_distance(
    seed: int, states: list[int], actions: list[int], size: int, shared: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = (1 if shared else 2, *states, *actions)
    table = rng.dirichlet(np.full(size, 0.5), size=shape)
    p, q = len(states), len(actions)
    batch = KernelBatch([0, 1], [range(p)] * 2, [range(q)] * 2, table)
    expected = np.zeros((len(table), p + q))
    points = list(itertools.product(*map(range, (*states, *actions))))
    for row, x, y in itertools.product(range(len(table)), points, points):
        differs = [axis for axis in range(p + q) if x[axis] != y[axis]]
        if len(differs) == 1:
            distance = 0.5 * np.abs(table[row][x] - table[row][y]).sum()
            expected[row, differs[0]] = max(expected[row, differs[0]], distance)
    # The same differences, summed in another order.
    slack = size * 2.0**-52
    np.testing.assert_allclose(batch.state_influence(), expected[:, :p], rtol=0, atol=slack)
    np.testing.assert_allclose(batch.action_influence(), expected[:, p:], rtol=0, atol=slack)
    assert batch.state_shape == tuple(states)
    assert batch.action_shape == tuple(actions)


@pytest.mark.slow
def test_a_million_site_ring_builds_in_time() -> None:
    n = 1_000_000
    site = np.arange(n)
    table = np.random.default_rng(0).dirichlet(np.ones(2), size=(1, 2, 2, 2))
    start = time.perf_counter()
    mdp = FactoredMDP(
        np.full(n, 2),
        np.full(n, 2),
        [KernelBatch(site, np.stack([np.roll(site, 1), site], 1), site[:, None], table)],
        [RewardBatch(site[:, None], site[:, None], np.zeros((1, 2, 2)))],
    )
    assert time.perf_counter() - start <= 5.0
    assert mdp.kernels[0].table.size == 16
    # 2**n by repeated squaring, not by a million products.
    start = time.perf_counter()
    assert mdp.n_states.bit_length() == n + 1
    assert time.perf_counter() - start <= 1.0
