"""The hand rules: what they choose, and what they earn against enumeration."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import reference

from torchloc import environments as env
from torchloc.environments.rules import HandRule, hand_rule
from torchloc.errors import InputError
from torchloc.graphs import as_scopes, neighbourhood_scopes, parent_scopes
from torchloc.mdp import FactoredMDP

FAMILIES = {
    "sysadmin": env.sysadmin,
    "sis": env.sis,
    "ising": env.ising,
    "line_msg": env.line_msg,
    "hub_spoke": env.hub_spoke,
}


def made(family: str, hops: int = 1, **arguments: Any) -> tuple[FactoredMDP, Any, HandRule]:
    mdp = FAMILIES[family](**arguments)
    scopes = neighbourhood_scopes(mdp, hops)
    node = {"_target_": f"torchloc.environments.{family}", "_convert_": "all", **arguments}
    rule = hand_rule(node, mdp, scopes)
    assert rule is not None
    return mdp, scopes, rule


def earned(family: str, hops: int = 1, **arguments: Any) -> float:
    """Average reward of the whole system, on the joint chain."""
    mdp, scopes, rule = made(family, hops, **arguments)
    policy = oracle.from_probabilities(list(scopes), rule.tables)
    return reference.chain(oracle.as_reference(mdp), policy).average


# Values of the literature's models are printed with this many digits.
@pytest.mark.parametrize(
    ("arguments", "value", "digits"),
    [
        ({"n": 4}, 0.8877472, 5e-8),
        ({"n": 4, "hops": 2}, 0.8877472, 5e-8),
        ({"n": 4, "hops": 0}, 0.85335, 5e-6),
        ({"n": 4, "table": "ippc"}, 0.892204, 5e-7),
        ({"n": 4, "table": "ippc", "topology": "star"}, 0.902486, 5e-7),
    ],
)
def test_sysadmin(arguments: dict[str, Any], value: float, digits: float) -> None:
    assert earned("sysadmin", **arguments) / 4 == pytest.approx(value, abs=digits)


def test_sysadmin_is_the_rule_that_the_family_brings_along() -> None:
    mdp, _, rule = made("sysadmin", n=5)
    for table, known in zip(rule.tables, env.sysadmin_hand_rule(mdp), strict=True):
        np.testing.assert_array_equal(table, known)


def test_sysadmin_reads_predecessors_wherever_they_stand_in_the_scope() -> None:
    mdp = env.sysadmin(5)
    node = {"_target_": "torchloc.environments.sysadmin", "n": 5}
    scopes = as_scopes(mdp, [[(k + 2) % 5, k, (k - 1) % 5] for k in range(5)])
    rule = hand_rule(node, mdp, scopes)
    assert rule is not None
    # The first axis is of a machine that the rule does not read.
    for table in rule.tables:
        np.testing.assert_array_equal(table[..., 1], [[[1, 1], [1, 0]]] * 2)


def test_sis_treats_the_infected() -> None:
    mdp, scopes, rule = made("sis", n=5)
    states = oracle.as_reference(mdp).states
    for k, scope in enumerate(scopes):
        chosen = rule.tables[k][tuple(states[:, i] for i in scope)]
        np.testing.assert_array_equal(chosen, np.eye(2)[states[:, k]])


@pytest.mark.parametrize("reward", ["up", "magnetisation", "alignment"])
@pytest.mark.parametrize("control", ["up", "both"])
def test_ising_pushes_where_neighbours_do_not(reward: str, control: str) -> None:
    mdp, scopes, rule = made("ising", n=5, reward=reward, control=control)
    fields = [0, 1] if control == "up" else [-1, 0, 1]
    states = oracle.as_reference(mdp).states
    for k, scope in enumerate(scopes):
        neighbours = 2 * (states[:, (k - 1) % 5] + states[:, (k + 1) % 5]) - 2
        field = np.ones(len(states)) if reward == "alignment" else np.where(neighbours > 0, 0, 1)
        chosen = rule.tables[k][tuple(states[:, i] for i in scope)]
        np.testing.assert_array_equal(np.array(fields)[chosen.argmax(axis=1)], field)
        np.testing.assert_array_equal(chosen.sum(axis=1), 1.0)


def test_ising_on_the_supercritical_ring_is_the_optimum() -> None:
    """At β = .6, field 1 and price .2; the bracket of the optimum is 1e-10 wide."""
    best, _ = oracle.optimum(env.ising(6))
    assert earned("ising", n=6) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("reward", ["all", "sink"])
def test_line_msg_fills_the_line_with_ones(n: int, reward: str) -> None:
    """The message arrives for good: all ones, n − 1 transmissions a step."""
    others = 0.1 * (n - 1) if reward == "all" else 0.0
    expected = 1.0 + others - 0.05 * (n - 1)
    # A least-squares solve of 2^n ≤ 64 unknowns.
    assert earned("line_msg", n=n, cost=0.05, reward=reward) == pytest.approx(expected, abs=1e-10)


def test_line_msg_needs_no_more_than_the_parents() -> None:
    mdp = env.line_msg(4)
    rule = hand_rule(
        {"_target_": "torchloc.environments.line_msg", "n": 4}, mdp, parent_scopes(mdp)
    )
    assert rule is not None
    assert [table.tolist() for table in rule.tables] == [
        [1, 0],
        [[1, 0], [0, 1]],
        [[1, 0], [0, 1]],
        [0, 1],
    ]


def test_hub_spoke_holds_every_spoke_up() -> None:
    assert earned("hub_spoke", n=4, noise=0.2) == pytest.approx(3 * 0.9, abs=1e-12)


@pytest.mark.parametrize(
    "target",
    [
        "torchloc.environments.sleepy",
        "torchloc.environments.leader_follower",
        "torchloc.environments.random_mdp",
        "somebody.else.sysadmin",
    ],
)
def test_other_families_have_none(target: str) -> None:
    mdp = env.sysadmin(3)
    assert hand_rule({"_target_": target}, mdp, neighbourhood_scopes(mdp)) is None


def test_arguments_left_out_have_their_defaults() -> None:
    for family, build in FAMILIES.items():
        mdp = build()
        scopes = neighbourhood_scopes(mdp)
        rule = hand_rule({"_target_": f"torchloc.environments.{family}"}, mdp, scopes)
        assert rule is not None and len(rule.tables) == mdp.n_agents
        assert "\n" not in rule.text


def test_agents_that_act_alike_share_a_table() -> None:
    _, _, rule = made("sysadmin", n=50)
    # Agent 0 sees its predecessor, n − 1, after itself.
    assert len({id(table) for table in rule.tables}) <= 2


def test_a_scope_that_hides_what_the_rule_reads_is_refused() -> None:
    mdp = env.sis(4)
    blind = as_scopes(mdp, [[0], [], [2], [3]])
    with pytest.raises(InputError, match=r'"treat iff infected" reads coordinate 1, which agent 1'):
        hand_rule({"_target_": "torchloc.environments.sis", "n": 4}, mdp, blind)
