"""Rows under a weight, against sums by definition; shares against what defines max-min fairness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference as ref
import scipy.sparse as sp
from twins import draw

from torchloc.certificate import Environment, Ladder
from torchloc.errors import InputError
from torchloc.locality import fill, largest_rows, row_loads
from torchloc.spectral import spectral_radius

Array = np.ndarray
# Sums and quotients of up to a dozen nonnegative terms.
SUMS = 1e-14
# What the package adds outward to E^s, E^a and Π, and differences of these sums.
ROUNDING = 1e-11
# Eigenvalues of a nearly defective block are off by the root of the rounding.
EIGENVALUE = 1e-7


def problem(seed: int) -> tuple[sp.csr_array, Array, Array, Array]:
    """A random packing problem: E^a, room, low and high with E^a low ≤ room."""
    rng = np.random.default_rng(seed)
    n, k = rng.integers(1, 9, size=2)
    action = np.where(rng.random((n, k)) < 0.5, rng.random((n, k)), 0.0)
    low = rng.random(k) * (rng.random(k) < 0.5)
    high = low + rng.exponential(size=k) * (rng.random(k) < 0.9)
    room = action @ low + rng.exponential(size=n) * (rng.random(n) < 0.9)
    return sp.csr_array(action), room, low, high


@pytest.mark.parametrize("seed", range(6))
def test_loads_are_the_definition_and_bound_rho(seed: int) -> None:
    model, policy, mdp, twin = draw(seed)
    environment = Environment(mdp)
    weights = np.exp(np.random.default_rng(seed).normal(size=mdp.n_coordinates))
    for rung in ("exact", "span", "tanh", "paper", "scope"):
        sensitivity = Ladder(environment, twin).policy_rung(rung)
        loads = row_loads(environment.state, environment.action, sensitivity, weights)
        matrix = ref.influence(model, policy, rung)
        expected = [sum(row * weights) / w for row, w in zip(matrix, weights, strict=True)]
        np.testing.assert_allclose(loads, expected, rtol=ROUNDING, atol=ROUNDING)
        assert ref.spectral_radius(matrix) <= loads.max() * (1 + EIGENVALUE) + EIGENVALUE


def test_weights_of_the_matrix_itself_hold_its_rows_and_those_of_the_transpose_do_not() -> None:
    """H = [[0, 4], [0, .5]] moves 1 to 0 only: reducible, with a row of its own and a zero column."""
    matrix = sp.csr_array([[0.0, 4.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    state, action = matrix, sp.csr_array((3, 1))
    nothing = sp.csr_array((1, 3))
    right = spectral_radius(matrix).weights_at(0.6)
    wrong = spectral_radius(matrix.T).weights_at(0.6)
    assert right is not None and wrong is not None
    held = row_loads(state, action, nothing, right.weights)
    assert held.max() <= 0.6 * (1 + SUMS) and held[2] == 0.0
    assert row_loads(state, action, nothing, wrong.weights).max() > 0.6
    assert row_loads(sp.csr_array(matrix.T), action, nothing, wrong.weights).max() <= 0.6 * (
        1 + SUMS
    )


@pytest.mark.parametrize("weights", [np.ones(3), np.array([1.0, 0.0]), np.array([1.0, np.nan])])
def test_weights_that_are_none_are_refused(weights: Array) -> None:
    zero = sp.csr_array((2, 2))
    with pytest.raises(InputError, match="weights"):
        row_loads(zero, zero, zero, weights)


@pytest.mark.parametrize("seed", range(12))
def test_one_agent_may_move_to_its_largest_row_and_no_further(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = 5, 4
    state = sp.csr_array(rng.random((n, n)) * 0.1)
    action = sp.csr_array(np.where(rng.random((n, k)) < 0.6, rng.random((n, k)), 0.0))
    sensitivity = sp.csr_array(rng.random((k, n)) * 0.2)
    weights = np.exp(rng.normal(size=n))
    target = 1.2 * row_loads(state, action, sensitivity, weights).max()
    largest = largest_rows(state, action, sensitivity, weights, target)
    for agent in range(k):
        if not (action.toarray()[:, agent] > 0).any():
            assert largest[agent] == math.inf
            continue
        rows = sensitivity.toarray()
        rows[agent] = 0.0
        rows[agent, 0] = largest[agent] / weights[0]
        loads = row_loads(state, action, sp.csr_array(rows), weights)
        np.testing.assert_allclose(loads.max(), target, rtol=SUMS * 10)


@pytest.mark.parametrize("seed", range(60))
def test_shares_fill_the_rows_and_are_max_min_fair(seed: int) -> None:
    action, room, low, high = problem(seed)
    filled, share = fill(action, room, low, high)
    np.testing.assert_array_equal(filled, low + share * (high - low))
    assert (share >= 0).all() and (share <= 1).all()
    used = action @ filled
    slack = ROUNDING * (1.0 + used)
    assert (used <= room + slack).all()
    full = used >= room - slack
    for agent in np.flatnonzero(share < 1.0):
        # A bottleneck: a full row in which no other agent that gained has a larger share.
        rows = np.flatnonzero((action.toarray()[:, agent] > 0) & full)
        fair = [
            (share[(action.toarray()[row] > 0) & (high > low)] <= share[agent] + ROUNDING).all()
            for row in rows
        ]
        assert any(fair)


def test_agents_that_act_on_nothing_get_all_they_wish() -> None:
    filled, share = fill(sp.csr_array((2, 2)), np.zeros(2), np.zeros(2), np.array([3.0, 0.0]))
    assert filled.tolist() == [3.0, 0.0] and share.tolist() == [1.0, 1.0]


def test_a_full_row_gives_nothing_more() -> None:
    filled, share = fill(sp.csr_array([[1.0, 1.0]]), np.array([1.0]), np.full(2, 0.5), np.ones(2))
    assert filled.tolist() == [0.5, 0.5] and share.tolist() == [0.0, 0.0]
