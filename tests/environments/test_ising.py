from __future__ import annotations

import numpy as np
import oracle
import pytest
import reference

from torchloc.environments import ising
from torchloc.errors import InputError

RING = [[3, 1], [0, 2], [1, 3], [2, 0]]
SQUARE = [[1, 2], [0, 3], [0, 3], [1, 2]]


@pytest.mark.parametrize(("lattice", "neighbours"), [("ring", RING), ("grid", SQUARE)])
@pytest.mark.parametrize(("control", "fields"), [("up", [0, 0.8]), ("both", [-0.8, 0, 0.8])])
def test_law(lattice: str, neighbours: list[list[int]], control: str, fields: list[float]) -> None:
    mdp = ising(4, lattice=lattice, beta=0.4, field=0.8, control=control)

    def law(j: int, s: tuple[int, ...], a: tuple[int, ...]) -> float:
        local = sum(2 * s[i] - 1 for i in neighbours[j]) + fields[a[j]]
        return 1 / (1 + np.exp(-2 * 0.4 * local))

    oracle.check_law(mdp, law)


@pytest.mark.parametrize("control", ["up", "both"])
def test_rewards(control: str) -> None:
    def price(a: np.ndarray) -> float:
        return 0.3 * ((a != 1).sum() if control == "both" else a.sum())

    options = {"n": 4, "cost": 0.3, "control": control}
    oracle.check_reward(ising(**options), lambda s, a: s.sum() - price(a))
    oracle.check_reward(
        ising(**options, reward="magnetisation"), lambda s, a: (2 * s - 1).sum() - price(a)
    )

    def aligned(s: np.ndarray, a: np.ndarray) -> float:
        spins = 2 * s - 1
        return (spins * np.roll(spins, 1)).sum() - price(a)

    oracle.check_reward(ising(**options, reward="alignment"), aligned)


@pytest.mark.parametrize("lattice", ["ring", "torus", "grid"])
def test_alignment_counts_every_link_once(lattice: str) -> None:
    mdp = ising(12, lattice=lattice, reward="alignment")
    links = mdp.rewards[0].states
    assert len(links) == {"ring": 12, "torus": 24, "grid": 17}[lattice]
    assert len(np.unique(links, axis=0)) == len(links)


@pytest.mark.parametrize(
    "mdp",
    [
        ising(3),
        ising(4, control="both"),
        ising(4, lattice="grid", beta=0.9),
        ising(6, lattice="grid", beta=-0.7),
    ],
)
def test_influence_by_enumeration(mdp: object) -> None:
    oracle.check_influence(mdp)


@pytest.mark.parametrize("beta", [0.1, 0.2747, 0.6])
@pytest.mark.parametrize(("lattice", "n", "factor"), [("ring", 6, 1), ("torus", 12, 2)])
def test_floor_without_a_field(lattice: str, n: int, factor: int, beta: float) -> None:
    mdp = ising(n, lattice=lattice, beta=beta, field=0.0)
    entries = oracle.state_influence(mdp)
    # A difference of two tanh within an ulp or two each, and eigenvalues of a symmetric matrix.
    np.testing.assert_allclose(entries[entries > 0], 0.5 * np.tanh(2 * beta), rtol=0, atol=2.0**-51)
    assert oracle.floor(mdp) == pytest.approx(factor * np.tanh(2 * beta), abs=1e-13)


def test_torus_threshold() -> None:
    assert oracle.floor(ising(9, lattice="torus", beta=0.2746, field=0.0)) < 1
    assert oracle.floor(ising(9, lattice="torus", beta=0.2747, field=0.0)) > 1


@pytest.mark.parametrize("h", [0.0, 0.5, 1.0, 2.5])
def test_floor_with_a_field(h: float) -> None:
    beta = 0.6
    fields, rest = np.array([-h, 0.0, h])[:, None], np.array([-1.0, 1.0])
    gap = 0.5 * (np.tanh(beta * (rest + 1 + fields)) - np.tanh(beta * (rest - 1 + fields)))
    mdp = ising(5, beta=beta, field=h, control="both")
    assert oracle.floor(mdp) == pytest.approx(2 * gap.max(), abs=1e-13)


@pytest.mark.parametrize("control", ["up", "both"])
def test_several_step_figures(control: str) -> None:
    """Ring of 4, β = .6, h = 1, action cost .2, reward Σ up, optimal policy."""
    mdp = ising(4, control=control)
    model = oracle.as_reference(mdp)
    _, actions = oracle.optimum(mdp)
    policy = oracle.greedy(mdp, actions)
    matrix = reference.policy_transition(
        reference.transition(model), reference.product_policy(model, policy)
    )
    modulus = np.sort(np.abs(np.linalg.eigvals(matrix)))
    assert modulus[-2] == pytest.approx(0.607, abs=5e-4)
    one = reference.coupled_influence(model, policy)
    assert reference.spectral_radius(one) == pytest.approx(1.074, abs=5e-4)


@pytest.mark.slow
def test_more_steps() -> None:
    mdp = ising(4)
    model = oracle.as_reference(mdp)
    policy = oracle.greedy(mdp, oracle.optimum(mdp)[1])
    for steps, rate in ((2, 0.858), (3, 0.773), (4, 0.730), (8, 0.666)):
        matrix = reference.coupled_influence(model, policy, steps)
        assert reference.spectral_radius(matrix) ** (1 / steps) == pytest.approx(rate, abs=5e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 2}, ["n = 2", "ring", "3"]),
        ({"lattice": "hexagon"}, ["lattice = 'hexagon'", "ring, torus, grid"]),
        ({"n": 4, "lattice": "torus"}, ["n = 4", "torus", "at least 3"]),
        ({"lattice": "grid", "rows": 0}, ["rows = 0"]),
        ({"beta": float("nan")}, ["beta = nan"]),
        ({"field": "strong"}, ["field = 'strong'"]),
        ({"control": "down"}, ["control = 'down'", "up, both"]),
        ({"cost": None}, ["cost = None"]),
        ({"reward": "energy"}, ["reward = 'energy'", "up, magnetisation, alignment"]),
    ],
)
def test_bad_arguments(arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        ising(**arguments)
    assert all(word in str(error.value) for word in words), str(error.value)
