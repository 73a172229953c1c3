from __future__ import annotations

import numpy as np
import oracle
import pytest
import reference

from torchloc.environments import firefighting
from torchloc.environments.rules import HandRule, hand_rule
from torchloc.errors import BudgetError, InputError
from torchloc.evaluation.planning import optimal_control
from torchloc.graphs import as_scopes, neighbourhood_scopes
from torchloc.mdp import FactoredMDP

Array = np.ndarray
PUBLISHED = {"spread": 0.8, "growth": 0.4, "douse": 0.6, "ignition": 0.0}
OTHER = {"spread": 0.7, "growth": 0.25, "douse": 0.35, "ignition": 0.15}


def next_law(
    j: int,
    s: Array,
    a: Array,
    levels: int,
    spread: float,
    growth: float,
    douse: float,
    ignition: float,
) -> Array:
    """The law of house j's next level, from the words of the model."""
    visitors = sum(int(k + a[k] == j) for k in range(len(a)))
    beside = any(s[i] > 0 for i in (j - 1, j + 1) if 0 <= i < len(s))
    law = np.zeros(levels)
    if visitors == 2:
        law[0] = 1.0
        return law
    if visitors == 1:
        goal, chance = max(s[j] - 1, 0), douse if beside else 1.0
    elif beside:
        goal, chance = min(s[j] + 1, levels - 1), spread
    else:
        goal, chance = min(s[j] + 1, levels - 1), growth if s[j] > 0 else ignition
    law[goal] += chance
    law[s[j]] += 1.0 - chance
    return law


@pytest.mark.parametrize("rates", [PUBLISHED, OTHER])
@pytest.mark.parametrize(("n", "levels"), [(1, 2), (1, 5), (2, 3), (3, 3), (4, 2)])
def test_law_and_reward(n: int, levels: int, rates: dict[str, float]) -> None:
    mdp = firefighting(n, levels, **rates)
    assert (mdp.n_coordinates, mdp.n_agents) == (n + 1, n)
    model = oracle.as_reference(mdp)
    expected = np.array(
        [
            [[next_law(j, s, a, levels, **rates) for a in model.actions] for s in model.states]
            for j in range(n + 1)
        ]
    )
    for j, kernel in enumerate(model.kernels):
        # One rounding for each of two entries.
        table = reference.at_pairs(model, kernel)
        np.testing.assert_allclose(table, expected[j], rtol=0, atol=2.0**-52)
    # A sum of at most five expectations of levels below 5.
    oracle_reward = -(expected @ np.arange(levels)).sum(axis=0)
    np.testing.assert_allclose(reference.reward(model), oracle_reward, rtol=0, atol=2.0**-47)


def test_defaults_are_the_published_numbers_from_uniform_levels() -> None:
    one, two = firefighting(), firefighting(3, 3, **PUBLISHED)
    for left, right in zip(one.kernels, two.kernels, strict=True):
        np.testing.assert_array_equal(left.table, right.table)
    assert one.initial is not None
    np.testing.assert_array_equal(one.initial, np.full((4, 3), 1 / 3))


def test_some_entries_by_hand() -> None:
    kernels = oracle.as_reference(firefighting(2, 3)).kernels
    states, actions, table = kernels[1]
    assert (states, actions) == ((0, 1, 2), (0, 1))
    away, here = (0, 1), (1, 0)
    # Agent 0 is at house 1 with action 1, agent 1 with action 0.
    np.testing.assert_allclose(table[1, 1, 0][away], [0, 0.2, 0.8], rtol=0, atol=2.0**-53)
    np.testing.assert_allclose(table[0, 1, 0][away], [0, 0.6, 0.4], rtol=0, atol=2.0**-53)
    np.testing.assert_array_equal(table[0, 0, 0][away], [1, 0, 0])
    np.testing.assert_array_equal(table[1, 2, 1][here], [1, 0, 0])
    np.testing.assert_allclose(table[0, 2, 1][0, 0], [0, 0.6, 0.4], rtol=0, atol=2.0**-53)
    np.testing.assert_array_equal(table[0, 2, 0][1, 1], [0, 1, 0])


@pytest.mark.parametrize("rates", [PUBLISHED, OTHER])
@pytest.mark.parametrize(("n", "levels"), [(1, 4), (2, 3), (3, 2)])
def test_influence_by_enumeration(n: int, levels: int, rates: dict[str, float]) -> None:
    oracle.check_influence(firefighting(n, levels, **rates))


@pytest.mark.parametrize("levels", [2, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 30])
def test_floor(n: int, levels: int) -> None:
    mdp = firefighting(n, levels)
    expected = np.eye(n + 1) + 0.8 * (np.eye(n + 1, k=1) + np.eye(n + 1, k=-1))
    np.testing.assert_allclose(oracle.state_influence(mdp), expected, rtol=0, atol=2.0**-52)
    # Eigenvalues of a symmetric matrix.
    assert oracle.floor(mdp) == pytest.approx(1 + 1.6 * np.cos(np.pi / (n + 2)), abs=1e-13)


def test_every_action_is_shared_by_two_houses() -> None:
    influence = oracle.action_influence(firefighting(4))
    assert influence.shape == (5, 4)
    np.testing.assert_array_equal(influence, np.eye(5, 4) + np.eye(5, 4, k=-1))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("ignition", [0.0, 0.05, 0.2])
def test_optimal_gain(n: int, ignition: float) -> None:
    """−ignition for n ≥ 2.

    No more: n agents leave a house alone, whose next level is at least `ignition` in expectation.
    No less: all others are quiet and visited, and when the fire is at one end, everybody shifts by
    one house, so that it is put out and the house alone is the other end.
    """
    mdp = firefighting(n, 3, ignition=ignition)
    gain, _ = oracle.optimum(mdp)
    assert gain == pytest.approx(-ignition, abs=1e-10)
    plan = optimal_control(mdp)
    assert plan.lower - 1e-12 <= -ignition <= plan.upper + 1e-12


@pytest.mark.parametrize(("n", "value"), [(2, -4.22318121), (3, -4.49012606)])
def test_optimal_discounted_value_of_the_published_model(n: int, value: float) -> None:
    """Levels 3, γ = .95, uniform initial levels."""
    mdp = firefighting(n, 3)
    model = oracle.as_reference(mdp)
    kernel, reward = reference.transition(model), reference.reward(model)
    best = np.zeros(len(kernel))
    for _ in range(700):  # .95^700 · 8 / .05 < 5e-14
        best = (reward + 0.95 * kernel @ best).max(axis=1)
    assert best.mean() == pytest.approx(value, abs=5e-9)
    plan = optimal_control(mdp, discount=0.95)
    assert plan.lower - 1e-12 <= best.mean() <= plan.upper + 1e-12


def ruled(n: int, **arguments: float) -> tuple[FactoredMDP, list[tuple[int, ...]], HandRule]:
    mdp = firefighting(n, **arguments)
    scopes = neighbourhood_scopes(mdp)
    env = {"_target_": "torchloc.environments.firefighting", "n": n, **arguments}
    rule = hand_rule(env, mdp, scopes)
    assert rule is not None
    return mdp, list(scopes), rule


def test_hand_rule_goes_to_the_higher_level() -> None:
    mdp, scopes, rule = ruled(3)
    states = oracle.as_reference(mdp).states
    for k, scope in enumerate(scopes):
        chosen = rule.tables[k][tuple(states[:, i] for i in scope)]
        np.testing.assert_array_equal(chosen, np.eye(2)[(states[:, k + 1] > states[:, k]) * 1])


@pytest.mark.parametrize("n", [2, 3])
def test_hand_rule_against_chance_and_the_optimum(n: int) -> None:
    mdp, scopes, rule = ruled(n, ignition=0.1)
    model = oracle.as_reference(mdp)
    policy = oracle.from_probabilities(scopes, rule.tables)
    earned = reference.chain(model, policy).average
    chance = reference.chain(model, oracle.uniform(mdp)).average
    assert chance < earned <= -0.1 + 1e-12


def test_hand_rule_needs_both_houses() -> None:
    mdp = firefighting(2)
    blind = as_scopes(mdp, [[0, 1], [1]])
    with pytest.raises(InputError, match="reads coordinate 2, which agent 1 does not see"):
        hand_rule({"_target_": "torchloc.environments.firefighting", "n": 2}, mdp, blind)


def test_inner_houses_share_a_table() -> None:
    mdp = firefighting(100_000)
    assert sorted((len(batch), len(batch.table)) for batch in mdp.kernels) == [
        (1, 1),
        (1, 1),
        (99_999, 1),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, ["n = 0", "≥ 1"]),
        ({"n": 2.0}, ["n = 2.0", "whole"]),
        ({"levels": 1}, ["levels = 1", "≥ 2"]),
        ({"spread": 1.1}, ["spread = 1.1", "[0, 1]"]),
        ({"growth": -0.1}, ["growth = -0.1"]),
        ({"douse": float("nan")}, ["douse = nan", "finite"]),
        ({"ignition": "often"}, ["ignition = 'often'"]),
    ],
)
def test_bad_arguments(arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        firefighting(**arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_levels_over_budget() -> None:
    most = firefighting(2, 9).kernels
    assert max(batch.table.shape for batch in most) == (1, 9, 9, 9, 2, 2, 9)
    with pytest.raises(BudgetError, match=r"levels = 10: .*320,000 bytes.*at most 9 levels"):
        firefighting(2, 10)
