from __future__ import annotations

import numpy as np
import oracle
import pytest
import reference

from torchloc.environments import line_msg
from torchloc.errors import InputError
from torchloc.graphs import parent_scopes


@pytest.mark.parametrize("n", [2, 3, 4])
def test_law_and_reward(n: int) -> None:
    mdp = line_msg(n, relay=0.7, cost=0.3)

    def law(j: int, s: tuple[int, ...], a: tuple[int, ...]) -> float:
        if j == 0:
            return s[1]
        if j == n - 1:
            return a[j]
        return a[j] * (1.0 if s[j + 1] else 0.7)

    oracle.check_law(mdp, law)
    oracle.check_reward(mdp, lambda s, a: s[0] + 0.1 * s[1:].sum() - 0.3 * a.sum())
    oracle.check_reward(line_msg(n, cost=0.3, reward="sink"), lambda s, a: s[0] - 0.3 * a.sum())


def test_influence() -> None:
    mdp = line_msg(4, relay=0.75)
    oracle.check_influence(mdp)
    expected = np.diag([1.0, 0.25, 0.25], 1)
    np.testing.assert_array_equal(oracle.state_influence(mdp), expected)
    assert (oracle.action_influence(mdp) == np.diag([0.0, 1.0, 1.0, 1.0])).all()


@pytest.mark.parametrize("n", [2, 3, 8, 40])
def test_environment_is_nilpotent(n: int) -> None:
    matrix = oracle.state_influence(line_msg(n))
    assert oracle.floor(line_msg(n)) == 0
    assert (np.linalg.matrix_power(matrix, n) == 0).all()


def test_only_a_spectral_test_certifies() -> None:
    mdp = line_msg(4)
    model = oracle.as_reference(mdp)
    assert reference.action_sup(model).sum(axis=1).max() >= 1
    scopes = list(parent_scopes(mdp))
    assert scopes == [(), (2,), (3,), ()]
    policy = oracle.from_probabilities(scopes, [np.full((2,) * (len(o) + 1), 0.5) for o in scopes])
    ahead = reference.influence(model, policy, "scope")
    assert reference.spectral_radius(ahead) == 0
    # An agent that sees itself may close a loop.
    itself = oracle.from_probabilities([(k,) for k in range(4)], [np.full((2, 2), 0.5)] * 4)
    assert reference.spectral_radius(reference.influence(model, itself, "scope")) >= 1


def test_optimum_of_the_kappa_experiment() -> None:
    # All but the idle agent 0 transmit always: the message arrives for certain at 4 · .01 a step.
    gain, actions = oracle.optimum(line_msg(5, reward="sink", relay=0.5, cost=0.01))
    assert gain == pytest.approx(0.96, abs=1e-10)
    assert not actions[:, 0].any()
    assert actions[-1].tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 1}, ["n = 1", "≥ 2"]),
        ({"relay": 1.2}, ["relay = 1.2", "[0, 1]"]),
        ({"cost": float("inf")}, ["cost = inf", "finite"]),
        ({"reward": "source"}, ["reward = 'source'", "all, sink"]),
    ],
)
def test_bad_arguments(arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        line_msg(**arguments)
    assert all(word in str(error.value) for word in words), str(error.value)
