from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import oracle
import pytest
import reference

from torchloc.environments import game_of_life
from torchloc.environments.rules import HandRule, hand_rule
from torchloc.errors import BudgetError, InputError
from torchloc.evaluation.planning import optimal_control
from torchloc.graphs import as_scopes, neighbourhood_scopes
from torchloc.mdp import FactoredMDP

Array = np.ndarray


def around(height: int, width: int, torus: bool) -> list[list[int]]:
    """The cells at most one row and one column away from each, itself left out, ascending."""

    def gap(x: int, y: int, length: int) -> int:
        return min(abs(x - y), length - abs(x - y)) if torus else abs(x - y)

    cells = list(itertools.product(range(height), range(width)))
    return [
        [
            i
            for i, (u, v) in enumerate(cells)
            if (u, v) != (y, x) and gap(u, y, height) <= 1 and gap(v, x, width) <= 1
        ]
        for y, x in cells
    ]


def conway(own: int, living: int) -> bool:
    return living == 3 or (living == 2 and own == 1)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 3), (3, 2)])
def test_law_and_reward(height: int, width: int) -> None:
    mdp = game_of_life(height, width, p=0.07, cost=0.6)
    near = around(height, width, False)

    def law(j: int, s: tuple[int, ...], a: tuple[int, ...]) -> float:
        lives = a[j] or conway(s[j], sum(s[i] for i in near[j]))
        return 0.93 if lives else 0.07

    oracle.check_law(mdp, law)
    oracle.check_reward(mdp, lambda s, a: s.sum() - 0.6 * a.sum())


@pytest.mark.parametrize(
    ("height", "width", "torus"),
    [(3, 3, False), (3, 3, True), (4, 5, False), (3, 4, True), (5, 2, False)],
)
def test_every_table_and_its_neighbours(height: int, width: int, torus: bool) -> None:
    n = height * width
    noise = np.linspace(0.0, 1.0, n)
    near = around(height, width, torus)
    for mdp, flips in (
        (game_of_life(height, width, torus=torus, p=0.2), np.full(n, 0.2)),
        (game_of_life(height, width, torus=torus, noise=noise), noise),
    ):
        for j, (states, actions, table) in enumerate(oracle.as_reference(mdp).kernels):
            assert (sorted(states), actions) == (sorted((*near[j], j)), (j,))
            order = [states.index(i) for i in (*near[j], j)]
            table = np.moveaxis(table, order, range(len(order)))
            seen = reference.grid((2,) * len(states))
            living, own = seen[:, :-1].sum(axis=1), seen[:, -1]
            lives = (living == 3) | ((living == 2) & (own == 1))
            alive = np.where(np.stack([lives, lives | True], axis=1), 1 - flips[j], flips[j])
            expected = np.stack([1 - alive, alive], axis=-1)
            np.testing.assert_allclose(table.reshape(-1, 2, 2), expected, rtol=0, atol=2.0**-53)


@pytest.mark.parametrize(
    "mdp",
    [
        game_of_life(2, 2, p=0.3),
        game_of_life(2, 3),
        game_of_life(2, 2, noise=[0.0, 0.2, 0.5, 0.9]),
    ],
)
def test_influence_by_enumeration(mdp: FactoredMDP) -> None:
    oracle.check_influence(mdp)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.45, 0.8])
@pytest.mark.parametrize(("height", "width"), [(3, 3), (3, 5), (6, 4)])
def test_floor_of_the_torus(height: int, width: int, p: float) -> None:
    # Rows sum to 9 entries that carry an ulp each, and the matrix is symmetric.
    mdp = game_of_life(height, width, torus=True, p=p)
    assert oracle.floor(mdp) == pytest.approx(9 * abs(1 - 2 * p), abs=1e-13)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.45, 0.8])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 5), (3, 3), (6, 4)])
def test_floor_of_the_grid(height: int, width: int, p: float) -> None:
    sides = [1 + 2 * np.cos(np.pi / (length + 1)) for length in (height, width)]
    mdp = game_of_life(height, width, p=p)
    assert oracle.floor(mdp) == pytest.approx(sides[0] * sides[1] * abs(1 - 2 * p), abs=1e-13)


def test_floor_of_the_three_by_three_grid() -> None:
    # Three published digits.
    assert oracle.floor(game_of_life(p=0.0)) == pytest.approx(5.83, abs=5e-3)


def test_influence_with_noise_of_its_own() -> None:
    noise = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0])
    influence = oracle.state_influence(game_of_life(noise=noise))
    near = oracle.state_influence(game_of_life(p=0.0))
    assert {0.0, 1.0} == {*near.ravel().tolist()}
    expected = np.abs(1 - 2 * noise)[:, None] * near
    np.testing.assert_allclose(influence, expected, rtol=0, atol=2.0**-52)


def flipped(value: Array, n: int, p: float) -> Array:
    """E[value(s')] where every cell of a pattern is turned over with probability p."""
    value = value.reshape((2,) * n)
    for axis in range(n):
        value = (1 - p) * value + p * np.flip(value, axis)
    return value.ravel()


def optimum_of_patterns(
    height: int, width: int, torus: bool, p: float, cost: float
) -> tuple[float, float]:
    """Bracket of the optimal average: the next pattern is life(s) ∪ a, then noise turns cells over.

    Relative value iteration over patterns as whole numbers; knows no kernel.
    """
    n = height * width
    states = reference.grid((2,) * n)
    near = around(height, width, torus)
    place = 2 ** np.arange(n)[::-1]
    living = np.stack([states[:, cells].sum(axis=1) for cells in near], axis=1)
    life = ((living == 3) | ((living == 2) & (states == 1))) @ place
    patterns = life[:, None] | np.arange(2**n)
    gain = states.sum(axis=1)[:, None] - cost * states.sum(axis=1)
    value = np.zeros(2**n)
    for _ in range(10_000):
        drift = (gain + flipped(value, n, p)[patterns]).max(axis=1) - value
        if drift.max() - drift.min() < 1e-10:
            return float(drift.min()), float(drift.max())
        value += 0.9 * drift
        value -= value[0]
    raise RuntimeError("relative value iteration did not close its bracket")


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ({"height": 2, "width": 2}, 3.3908),
        ({"height": 2, "width": 2, "p": 0.02}, 3.91065408),
        ({"height": 2, "width": 3}, 3.46539544),
        ({"height": 3, "width": 3}, 4.67440601),
        ({"height": 3, "width": 3, "cost": 0.5}, 5.65599529),
        ({"height": 3, "width": 3, "torus": True}, 3.40585766),
        ({"height": 3, "width": 3, "p": 0.45}, 4.38118234),
    ],
)
def test_optimal_gain(arguments: dict[str, Any], value: float) -> None:
    full = {"torus": False, "p": 0.1, "cost": 1.0, **arguments}
    low, high = optimum_of_patterns(**full)
    assert (low + high) / 2 == pytest.approx(value, abs=5e-9)
    plan = optimal_control(game_of_life(**arguments))
    assert plan.lower - 1e-12 <= high and low <= plan.upper + 1e-12
    if arguments["height"] == 2:
        assert oracle.optimum(game_of_life(**arguments))[0] == pytest.approx(value, abs=5e-9)


def ruled(**arguments: Any) -> tuple[FactoredMDP, list[tuple[int, ...]], HandRule]:
    mdp = game_of_life(**arguments)
    scopes = neighbourhood_scopes(mdp)
    rule = hand_rule({"_target_": "torchloc.environments.game_of_life", **arguments}, mdp, scopes)
    assert rule is not None
    return mdp, list(scopes), rule


def earned(**arguments: Any) -> float:
    mdp, scopes, rule = ruled(**arguments)
    return reference.chain(
        oracle.as_reference(mdp), oracle.from_probabilities(scopes, rule.tables)
    ).average


@pytest.mark.parametrize(
    ("arguments", "text", "sets"),
    [
        ({"cost": 0.5}, "set iff the cell would die or stay dead", lambda own, lives: not lives),
        ({}, "set iff the cell would stay dead", lambda own, lives: not lives and not own),
        ({"p": 0.3}, "never set", lambda own, lives: False),
        ({"p": 0.6, "cost": 0.0}, "never set", lambda own, lives: False),
        ({"p": 0.0}, "set iff the cell would stay dead", lambda own, lives: not lives and not own),
    ],
)
def test_hand_rule_sets_where_it_pays(arguments: dict[str, Any], text: str, sets: Any) -> None:
    _, scopes, rule = ruled(**arguments)
    assert rule.text == text
    near = around(3, 3, False)
    for k, scope in enumerate(scopes):
        seen = reference.grid((2,) * len(scope))
        for row in seen:
            value = dict(zip(scope, row.tolist(), strict=True))
            lives = conway(value[k], sum(value[i] for i in near[k]))
            assert rule.tables[k][tuple(row)].tolist() == (
                [0, 1] if sets(value[k], lives) else [1, 0]
            )


def test_hand_rule_takes_the_noise_of_every_cell() -> None:
    _, scopes, rule = ruled(height=2, width=2, noise=[0.1, 0.4, 0.1, 0.4])
    assert rule.text == "set where it pays for the noise of the cell"
    for k, (scope, table) in enumerate(zip(scopes, rule.tables, strict=True)):
        dead = tuple(0 for _ in scope)
        assert table[dead].tolist() == ([1, 0] if k % 2 else [0, 1])


def test_hand_rule_against_the_optimum() -> None:
    """Where a setting pays at once the rule is the joint optimum, to the optimum's bracket."""
    assert earned(height=2, width=2, cost=0.5) == pytest.approx(
        oracle.optimum(game_of_life(2, 2, cost=0.5))[0], abs=1e-9
    )
    best, _ = oracle.optimum(game_of_life(2, 3))
    never = reference.chain(
        oracle.as_reference(game_of_life(2, 3)),
        oracle.from_probabilities([()] * 6, [np.array([1.0, 0.0])] * 6),
    ).average
    assert never + 1 < earned(height=2, width=3) <= best


def test_hand_rule_needs_all_neighbours() -> None:
    mdp = game_of_life(2, 2)
    blind = as_scopes(mdp, [[0, 1, 2, 3], [0, 1, 3], [2], [3]])
    with pytest.raises(InputError, match="reads coordinate 2, which agent 1 does not see"):
        hand_rule({"_target_": "torchloc.environments.game_of_life"}, mdp, blind)


def test_tables_are_shared() -> None:
    grid = game_of_life(50, 60)
    assert [(len(b), b.table.shape) for b in grid.kernels] == [
        (4, (1, *(2,) * 6)),
        (212, (1, *(2,) * 8)),
        (2784, (1, 2, 2, 5, 2)),  # own state, action, living neighbours up to four
    ]
    (batch,) = game_of_life(50, 60, torus=True).kernels
    assert (len(batch), len(batch.table)) == (3000, 1)


@pytest.mark.slow
def test_a_million_cells_build_in_time() -> None:
    start = time.perf_counter()
    mdp = game_of_life(1000, 1000, torus=True)
    assert time.perf_counter() - start <= 10.0
    assert (mdp.n_coordinates, mdp.n_agents) == (1_000_000, 1_000_000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"height": 1}, ["height = 1", "≥ 2"]),
        ({"width": 2.0}, ["width = 2.0", "whole"]),
        ({"width": 2, "torus": True}, ["torus of 3 × 2", "at least 3", "torus = false"]),
        ({"torus": "yes"}, ["torus = 'yes'", "true or false"]),
        ({"p": 1.2}, ["p = 1.2", "[0, 1]"]),
        ({"noise": [0.1, 0.2]}, ["noise", "9 numbers for 3 × 3", "it holds 2"]),
        ({"noise": 0.1}, ["noise", "shape ()"]),
        ({"noise": "a" * 9}, ["noise", "one probability a cell"]),
        ({"noise": [0.1] * 8 + [1.5]}, ["noise[8] = 1.5", "[0, 1]"]),
        ({"noise": [0.1] * 8 + [None]}, ["noise[8] = None"]),
        ({"noise": [float("nan")] * 9}, ["noise[0] = nan", "finite"]),
        ({"cost": float("inf")}, ["cost = inf", "finite"]),
    ],
)
def test_bad_arguments(arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        game_of_life(**arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_noise_over_budget() -> None:
    with pytest.raises(BudgetError, match=r"noise: the tables of 250000 cells.*one p for all"):
        game_of_life(500, 500, noise=np.full(250_000, 0.1))
