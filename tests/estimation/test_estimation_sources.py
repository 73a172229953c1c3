"""Where draws come from: logs, simulators of the whole system and of single coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from scipy.stats import chi2
from twins import draw, twin_model

import torchloc as tl
from torchloc.environments import line_msg, sysadmin
from torchloc.errors import InputError
from torchloc.estimation import (
    LocalSimulator,
    StepSimulator,
    TransitionLog,
    estimate_sensitivities,
    model_simulator,
)
from torchloc.estimation.contexts import contexts
from torchloc.estimation.logs import GRID


def ignored(done: int, total: int) -> None:
    """No bar."""


def test_first_visits_are_counted_by_hand() -> None:
    """Visits of coordinate 0 in state 0: following 1, 0, 0; in state 1: following 1."""
    states, following = [[0], [0], [1], [0]], [[1], [0], [1], [0]]
    log = TransitionLog(states, np.zeros((4, 0), int), following, [2], [])
    layout = contexts([2], [], None, None)
    for samples, expected in (
        (1, [[1 - 1, 1], [0, 1]]),
        (2, [[1, 1], [0, 0]]),
        (3, [[2, 1], [0, 0]]),
        (4, [[0, 0], [0, 0]]),
        (None, [[2, 1], [0, 1]]),
    ):
        tally = log.tally(layout, samples, None, ignored)
        assert tally.counts[0].tolist() == [expected], samples
        assert tally.sizes_tried == (len(GRID) if samples is None else 1)


@pytest.mark.parametrize("samples", [None, 3])
@pytest.mark.parametrize("seed", range(3))
def test_first_visits_against_a_loop(seed: int, samples: int | None) -> None:
    model, _, mdp, policy = draw(seed, n_coordinates=(2, 4), max_joint=80)
    log = TransitionLog.rollout(
        mdp, policy, steps=40, replicas=5, generator=torch.Generator().manual_seed(seed)
    )
    parents = [kernel[0] for kernel in model.kernels], [kernel[1] for kernel in model.kernels]
    tally = log.tally(contexts(mdp.state_sizes, mdp.action_sizes, *parents), samples, None, ignored)
    for batch, counts in zip(tally.contexts.batches, tally.counts, strict=True):
        for row, j in enumerate(batch.coordinates):
            seen: dict[tuple[int, ...], list[int]] = {}
            for s, a, t in zip(log.states, log.actions, log.following, strict=True):
                context = (*s[batch.states[row]], *a[batch.actions[row]])
                seen.setdefault(tuple(map(int, context)), []).append(int(t[j]))
            for number, context in enumerate(np.ndindex(batch.sizes)):
                visits = seen.get(tuple(context), [])
                fits = GRID[len(visits) >= GRID].max(initial=0)
                used = fits if samples is None else samples * (len(visits) >= samples)
                expected = np.bincount(visits[:used], minlength=batch.n_values)
                assert counts[row, number].tolist() == expected.tolist()


def test_a_log_is_what_the_simulator_did() -> None:
    mdp = sysadmin(4)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    log = TransitionLog.rollout(
        mdp, policy, steps=6, replicas=2, generator=torch.Generator().manual_seed(1)
    )
    assert len(log) == 12
    # Two replicas a step, a step after the other: what followed is the next state of the same replica.
    assert (log.following[:-2] == log.states[2:]).all()


@pytest.mark.parametrize("seed", range(4))
def test_simulated_draws_have_the_model_s_law(seed: int) -> None:
    """χ² of all contexts together, at a level of 1e-6; impossible values never appear."""
    model = ref.random_model(np.random.default_rng(seed), n_coordinates=(2, 3), max_joint=40)
    mdp = twin_model(model)
    parents = [kernel[0] for kernel in model.kernels], [kernel[1] for kernel in model.kernels]
    layout = contexts(mdp.state_sizes, mdp.action_sizes, *parents)
    rng = np.random.default_rng(seed)
    tally = model_simulator(mdp).tally(layout, 500, rng, ignored)
    statistic, freedom = 0.0, 0
    for batch, counts in zip(layout.batches, tally.counts, strict=True):
        for row, j in enumerate(batch.coordinates):
            laws = model.kernels[j][2].reshape(batch.n_contexts, -1)
            assert counts[row].sum(axis=-1).min() >= 500
            expected = laws * counts[row].sum(axis=-1, keepdims=True)
            assert (counts[row][laws == 0.0] == 0).all()
            # Cells of fewer than 5 expected draws do not follow the χ² law; they are left out as a whole.
            usable = (expected >= 5.0).all(axis=-1)
            statistic += ((counts[row] - expected)[usable] ** 2 / expected[usable]).sum()
            freedom += int(usable.sum()) * (batch.n_values - 1)
    assert freedom == 0 or statistic < chi2.isf(1e-6, freedom)


def test_a_local_simulator_is_asked_in_the_declared_order() -> None:
    """Coordinate 0 copies its second declared parent, whose order is not that of the numbers."""

    def draw(j: np.ndarray, s: np.ndarray, a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.where(j == 0, s[:, 1], 0)

    source = LocalSimulator(draw, np.array([3, 3, 3]), np.array([], dtype=int))
    estimate = estimate_sensitivities(
        source,
        delta=0.1,
        samples=2000,
        generator=np.random.default_rng(0),
        state_parents=[[2, 0], [2, 0], [2, 0]],
    )
    found = estimate.state.toarray()
    assert found[0, 0] == 1.0 and found[0, 2] < 0.1 and found[1:].max() < 0.1
    assert found[:, 1].tolist() == [0.0, 0.0, 0.0]


def test_simulators_that_return_nonsense_are_told() -> None:
    rng = np.random.default_rng(0)

    def local(value: object) -> LocalSimulator:
        return LocalSimulator(lambda j, s, a, rng: value, np.array([2]), np.array([2]))

    def step(value: object) -> StepSimulator:
        return StepSimulator(lambda s, a, rng: value, np.array([2]), np.array([2]))

    for source, words in (
        (local(np.zeros(3, int)), r"draw returned shape \(3,\); it must be \(8,\)"),
        (local(np.full(8, 0.5)), "draw returned float64 values"),
        (local(np.full(8, 2)), "draw returned 2 for coordinate 0, which has 2 values"),
        (local(np.full(8, -1)), "draw returned -1 for coordinate 0"),
        (step(np.zeros(3, int)), r"the simulator's step returned shape \(3,\)"),
        (step(np.zeros((1, 1), int)), "the simulator's step returned shape"),
    ):
        with pytest.raises(InputError, match=words):
            estimate_sensitivities(source, delta=0.1, samples=2, generator=rng)
    wrong = StepSimulator(lambda s, a, rng: s + 5, np.array([2]), np.array([2]))
    with pytest.raises(
        InputError, match=r"row 0 has value [56] for coordinate 0, which has 2 values"
    ):
        estimate_sensitivities(wrong, delta=0.1, samples=2, generator=rng)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (([0], [[0]], [[0]]), r"states has shape \(1,\); it must be \(T, 1\)"),
        (([[0, 0]], [[0]], [[0]]), r"states has shape \(1, 2\)"),
        (([[0]], [[0, 1]], [[0]]), r"actions has shape \(1, 2\); it must be \(T, 1\)"),
        (([[0]], [[0], [0]], [[0]]), "actions has 2 rows, but states has 1"),
        (([[0]], [[0]], [[0], [1]]), "following has 2 rows"),
        (([[0], [2]], [[0], [0]], [[0], [0]]), "states: row 1 has value 2 for coordinate 0"),
        (([[0]], [[-1]], [[0]]), "actions: row 0 has value -1 for agent 0, which has 3 values"),
        (([[0.5]], [[0]], [[0]]), "states is of type float64; give whole numbers"),
    ],
)
def test_logs_that_do_not_fit_are_told(arrays: tuple[list, list, list], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TransitionLog(*arrays, [2], [3])


def test_rollouts_of_no_length_are_told() -> None:
    mdp = line_msg(3)
    policy = tl.SoftmaxPolicy.tabular(mdp, [[0], [1], [2]])
    with pytest.raises(InputError, match="steps is 0"):
        TransitionLog.rollout(mdp, policy, steps=0, generator=torch.Generator())


def test_a_log_is_frozen_and_its_own() -> None:
    states = np.array([[0], [1]])
    log = TransitionLog(states, [[0], [0]], states, [2], [1])
    states[0] = 1
    assert log.states.tolist() == [[0], [1]]
    with pytest.raises(ValueError, match="read-only"):
        log.states[0] = 1
