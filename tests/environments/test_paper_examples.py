"""sleepy, leader_follower and hub_spoke: the paper's worked examples."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import reference

from torchloc.environments import hub_spoke, leader_follower, sleepy
from torchloc.errors import InputError

Array = np.ndarray


def two_action_logits(slopes: Array) -> Array:
    """(2,)*n + (2,) centred logits ±x, x = Σ slope_i s_i: Lipschitz constants L_i = slope_i."""
    x = sum(
        np.array([0.0, slope]).reshape([2 if i == j else 1 for j in range(len(slopes))])
        for i, slope in enumerate(slopes)
    )
    return np.stack([-x, x], axis=-1)


def test_sleepy_law() -> None:
    mdp = sleepy(law=0.3)
    oracle.check_law(mdp, lambda j, s, a: 0.3 if j == 0 else float(a[0]))
    oracle.check_reward(mdp, lambda s, a: s[1])


def test_sleepy_influence() -> None:
    mdp = sleepy()
    oracle.check_influence(mdp)
    assert (oracle.state_influence(mdp) == 0).all()
    assert oracle.action_influence(mdp).tolist() == [[0, 0], [1, 0]]
    assert reference.action_sup(oracle.as_reference(mdp)).tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize("alpha", [0.0, 0.125, 1.0])
def test_sleepy_policy_bounds_the_influence_by_alpha(alpha: float) -> None:
    mdp = sleepy()
    table = np.array([[0.5, 0.5], [0.5, 0.5]]) + 0.5 * alpha * np.array([[1, -1], [-1, 1]])
    policy = oracle.from_probabilities([(0,), (1,)], [table, np.full((2, 2), 0.5)])
    bound = reference.influence(oracle.as_reference(mdp), policy, "exact")
    # Probabilities pass through a logarithm and back.
    np.testing.assert_allclose(bound, [[0, 0], [alpha, 0]], rtol=0, atol=2.0**-50)
    assert reference.spectral_radius(bound) == 0


def test_leader_follower_law() -> None:
    oracle.check_law(leader_follower(law=0.3), lambda j, s, a: s[0] if j else 0.3)
    oracle.check_law(leader_follower(mutual=True), lambda j, s, a: s[1 - j])
    oracle.check_reward(leader_follower(), lambda s, a: s[1])


@pytest.mark.parametrize(("mutual", "rho"), [(False, 0.0), (True, 1.0)])
def test_leader_follower_influence(mutual: bool, rho: float) -> None:
    mdp = leader_follower(mutual=mutual)
    oracle.check_influence(mdp)
    assert oracle.state_influence(mdp).tolist() == [[0, float(mutual)], [1, 0]]
    assert (oracle.action_influence(mdp) == 0).all()
    bound = reference.influence(oracle.as_reference(mdp), oracle.uniform(mdp), "scope")
    assert reference.spectral_radius(bound) == pytest.approx(rho, abs=1e-15)


@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0])
def test_hub_spoke_law(noise: float) -> None:
    mdp = hub_spoke(3, law=0.3, noise=noise)
    oracle.check_law(mdp, lambda j, s, a: (1 - noise) * a[0] + noise / 2 if j else 0.3)
    oracle.check_reward(mdp, lambda s, a: s[1:].sum())
    oracle.check_influence(mdp)


def test_hub_spoke_influence() -> None:
    mdp = hub_spoke(4, noise=0.25)
    assert (oracle.state_influence(mdp) == 0).all()
    expected = np.zeros((4, 4))
    expected[1:, 0] = 0.75
    np.testing.assert_array_equal(oracle.action_influence(mdp), expected)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_hub_spoke_radius_of_the_paper_rung(temperature: float) -> None:
    mdp, slopes = hub_spoke(4), np.array([3.0, 0.5, 1.0, 2.5])
    blind = np.zeros(2)
    policy = reference.Policy(
        [(0, 1, 2, 3), (), (), ()],
        [two_action_logits(slopes), blind, blind, blind],
        np.full(4, temperature),
    )
    bound = reference.influence(oracle.as_reference(mdp), policy, "paper")
    expected = np.minimum(1.0, slopes[1:] / (2 * temperature)).sum()
    assert reference.spectral_radius(bound) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("n", [3, 5])
def test_hub_spoke_is_certified_above_its_threshold(n: int) -> None:
    slope = 0.8
    threshold = (n - 1) * slope / 2
    model = oracle.as_reference(hub_spoke(n))
    for factor, certified in ((0.99, False), (1.01, True)):
        policy = reference.Policy(
            [tuple(range(n)), *[()] * (n - 1)],
            [two_action_logits(np.full(n, slope)), *[np.zeros(2)] * (n - 1)],
            np.full(n, factor * threshold),
        )
        rho = reference.spectral_radius(reference.influence(model, policy, "paper"))
        assert (rho < 1) is certified


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sleepy(law=-0.1), ["law = -0.1", "[0, 1]"]),
        (lambda: sleepy(law=float("nan")), ["law = nan"]),
        (lambda: leader_follower(law=2), ["law = 2"]),
        (lambda: leader_follower(mutual="yes"), ["mutual = 'yes'", "true or false"]),
        (lambda: hub_spoke(2), ["n = 2", "≥ 3"]),
        (lambda: hub_spoke(noise=1.01), ["noise = 1.01"]),
        (lambda: hub_spoke(law=None), ["law = None"]),
    ],
)
def test_bad_arguments(call: object, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)
