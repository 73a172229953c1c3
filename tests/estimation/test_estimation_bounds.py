"""The confidence bounds of sensitivities: formula, coverage, width, and what breaks them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import reference as ref
from scipy.stats import binom
from twins import twin_model

import torchloc as tl
from torchloc.certificate.given import EXACT, UCB
from torchloc.environments import sysadmin
from torchloc.errors import BudgetError, InputError
from torchloc.estimation import (
    LocalSimulator,
    TransitionLog,
    estimate_sensitivities,
    model_simulator,
    samples_for,
)
from torchloc.estimation.bounds import log_confidence, radius
from torchloc.estimation.logs import GRID

# A binomial test at this level fails by chance once in a million runs, whatever the seeds.
LEVEL = 1e-6


def parents_of(model: ref.Model) -> dict[str, list[tuple[int, ...]]]:
    return {
        "state_parents": [kernel[0] for kernel in model.kernels],
        "action_parents": [kernel[1] for kernel in model.kernels],
    }


def small_model(seed: int, **options: object) -> ref.Model:
    rng = np.random.default_rng(seed)
    return ref.random_model(rng, n_coordinates=(2, 3), n_agents=(1, 2), max_joint=60, **options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("declared", [False, True])
def test_entries_are_the_formula(seed: int, declared: bool) -> None:
    """Every entry against (1), written out pair by pair."""
    model = small_model(seed)
    mdp = twin_model(model)
    options = parents_of(model) if declared else {}
    estimate = estimate_sensitivities(
        model_simulator(mdp),
        delta=0.1,
        samples=20,
        generator=np.random.default_rng(seed),
        **options,
    )
    layout = estimate.contexts
    log_inverse = math.log(layout.n_entries / 0.1) if layout.n_entries else 0.0
    state, action = np.zeros(estimate.state.shape), np.zeros(estimate.action.shape)
    for batch, counts in zip(layout.batches, estimate.tally.counts, strict=True):
        table = counts.reshape(len(batch), *batch.sizes, batch.n_values)
        p = batch.states.shape[1]
        for row, column in itertools.product(range(len(batch)), range(len(batch.sizes))):
            if not batch.informative[column]:
                continue
            worst = 0.0
            for one, two in itertools.product(np.ndindex(batch.sizes), repeat=2):
                others = [i for i in range(len(one)) if i != column]
                if one >= two or any(one[i] != two[i] for i in others):
                    continue
                x, y = table[row][one], table[row][two]
                if not x.sum() or not y.sum():
                    worst = 1.0
                    continue
                gap = 0.5 * np.abs(x / x.sum() - y / y.sum()).sum()
                spread = 1 / x.sum() + 1 / y.sum()
                worst = max(worst, min(1.0, gap + math.sqrt(spread * log_inverse / 2)))
            j = batch.coordinates[row]
            if column < p:
                state[j, batch.states[row, column]] = worst
            else:
                action[j, batch.actions[row, column - p]] = worst
    np.testing.assert_allclose(estimate.state.toarray(), state, rtol=0, atol=1e-13)
    np.testing.assert_allclose(estimate.action.toarray(), action, rtol=0, atol=1e-13)
    assert estimate.samples == sum(int(counts.sum()) for counts in estimate.tally.counts)
    assert estimate.visited + estimate.unvisited == layout.n_contexts


@pytest.mark.parametrize(("structure", "delta"), [("general", 0.1), ("nilpotent", 0.5)])
def test_all_bounds_hold_with_the_probability_promised(structure: str, delta: float) -> None:
    check_coverage(structure, delta, 80)


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["general", "nilpotent"])
@pytest.mark.parametrize("delta", [0.5, 0.1, 0.01])
def test_all_bounds_hold_over_hundreds_of_estimates(structure: str, delta: float) -> None:
    check_coverage(structure, delta, 480)


def check_coverage(structure: str, delta: float, runs: int) -> None:
    """More failed estimates of small models than Bin(runs, δ) allows would be a wrong theorem."""
    failed = 0
    for seed in range(8):
        model = small_model(seed, structure=structure, concentration=(0.1, 1.0))
        source, parents = model_simulator(twin_model(model)), parents_of(model)
        state, action = ref.state_sensitivity(model), ref.action_sensitivity(model)
        generator = np.random.default_rng(1000 + seed)
        for _ in range(runs // 8):
            estimate = estimate_sensitivities(
                source, delta=delta, samples=10, generator=generator, **parents
            )
            below = (estimate.state.toarray() < state - 1e-15).any()
            below |= (estimate.action.toarray() < action - 1e-15).any()
            failed += bool(below)
    assert binom.sf(failed - 1, runs, delta) > LEVEL


def pair(p: float, q: float, samples: int, seed: int, delta: float, copies: int = 1) -> float:
    """The largest action entry of coordinates whose chance of 1 is p or q as their one action is 0 or 1."""

    def draw(j: np.ndarray, s: np.ndarray, a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (rng.random(len(j)) < np.where(a[:, 0] == 1, q, p)).astype(np.int64)

    estimate = estimate_sensitivities(
        LocalSimulator(draw, np.full(copies, 2), np.array([2])),
        delta=delta,
        samples=samples,
        generator=np.random.default_rng(seed),
        state_parents=[[]] * copies,
        action_parents=[[0]] * copies,
    )
    return float(estimate.action.toarray().mean())


def test_the_coverage_test_would_see_a_missing_radius() -> None:
    """Without its radius the bound of one pair fails about half of the time; with it, at most δ."""
    runs, delta, truth = 150, 0.2, 0.5
    width = math.sqrt(math.log(1 / delta) / 100)
    bounds = np.array([pair(0.25, 0.75, 100, seed, delta) for seed in range(runs)])
    assert binom.sf((bounds < truth).sum() - 1, runs, delta) > LEVEL
    assert binom.sf((bounds - width < truth).sum() - 1, runs, delta) < LEVEL


def test_width_falls_with_the_root_of_the_samples() -> None:
    """Excess over the truth at n and 16 n: a factor of 4.

    The excess is a width of exactly that rate plus the error of p̂ − q̂, whose mean is 0 here and whose mean over
    200 copies is below 5 · √(.375 / n) / √200.
    """
    excess = {n: pair(0.25, 0.75, n, 7, 0.1, copies=200) - 0.5 for n in (400, 6400)}
    for n, found in excess.items():
        width = math.sqrt(math.log(200 / 0.1) / n)
        assert abs(found - width) <= 5 * math.sqrt(0.375 / n / 200)
    assert excess[400] / excess[6400] == pytest.approx(4.0, rel=0.05)


def test_mean_distance_of_empirical_laws_is_never_too_small() -> None:
    """E TV(P̂, Q̂) ≥ TV(P, Q) exactly, by enumeration of all counts of 3 draws of 3 values."""
    rng = np.random.default_rng(0)
    draws = np.array(list(itertools.product(range(3), repeat=3)))
    laws = np.eye(3)[draws].mean(axis=1)
    for _ in range(20):
        p, q = rng.dirichlet(np.ones(3), 2)
        chance = p[draws].prod(axis=1)[:, None] * q[draws].prod(axis=1)
        distance = 0.5 * np.abs(laws[:, None] - laws).sum(axis=-1)
        assert (chance * distance).sum() >= 0.5 * np.abs(p - q).sum() - 1e-15


def stopped(runs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of visits n, and (runs, 2, n) empirical chances of 1 where the true ones are .35 and .65."""
    rng = np.random.default_rng(seed)
    hits = np.cumsum(rng.random((runs, 2, 1500)) < np.array([0.35, 0.65])[:, None], axis=2)
    n = np.arange(1, hits.shape[2] + 1)
    return n, hits / n


def test_adaptive_stopping_breaks_a_fixed_size_and_not_the_grid() -> None:
    """A run that is stopped when (1) with its own length looks smallest violates it; the grid covers any stop."""
    runs, delta, truth = 2000, 0.2, 0.3
    n, rates = stopped(runs, 3)
    gap = np.abs(rates[:, 1] - rates[:, 0])
    naive = (gap + radius(n, n, log_confidence(1, delta))).min(axis=1)
    assert binom.sf((naive < truth).sum() - 1, runs, delta) < LEVEL
    sized = np.searchsorted(GRID, n, side="right") - 1
    used = GRID[sized]
    covered = (gap[:, used - 1] + radius(used, used, log_confidence(1, delta, len(GRID)))).min(
        axis=1
    )
    assert binom.sf((covered < truth).sum() - 1, runs, delta) > LEVEL


def test_samples_for_is_the_smallest_and_is_kept() -> None:
    sizes = {"state_sizes": [2, 3], "action_sizes": [2]}
    for width, delta in ((0.5, 0.5), (0.1, 0.05), (0.013, 1e-6)):
        plan = samples_for(width, delta, **sizes)
        assert plan.entries == 6 and plan.contexts == 2 * 12
        log = log_confidence(6, delta)
        assert plan.width == radius(plan.samples, plan.samples, log) <= width
        assert radius(plan.samples - 1, plan.samples - 1, log) > width
        assert plan.draws == 24 * plan.samples < 2 * plan.steps
    one = samples_for(0.5, 0.5, state_sizes=[1], action_sizes=[1])
    assert one.entries == 0 and one.contexts == 1
    mdp = sysadmin(4)
    scopes = {
        "state_parents": [[3, 0], [0, 1], [1, 2], [2, 3]],
        "action_parents": [[0], [1], [2], [3]],
    }
    plan = samples_for(
        0.2, 0.05, state_sizes=mdp.state_sizes, action_sizes=mdp.action_sizes, **scopes
    )
    estimate = estimate_sensitivities(
        model_simulator(mdp),
        delta=0.05,
        samples=plan.samples,
        generator=np.random.default_rng(0),
        **scopes,
    )
    assert estimate.unvisited == 0
    for counts in estimate.tally.counts:
        assert counts.sum(axis=-1).min() >= plan.samples
    # √((S − 1)/(2n)) bounds the mean excess of a pair; four times that leaves room for the worst of 8.
    slack = plan.width + 4 * math.sqrt(1 / (2 * plan.samples))
    assert (estimate.state.toarray() <= tl.state_sensitivity(mdp).toarray() + slack).all()


def test_tags_and_unvisited_contexts() -> None:
    log = TransitionLog([[0, 0]] * 9, [[0]] * 9, [[1, 0]] * 9, [2, 1], [2])
    estimate = estimate_sensitivities(
        log, delta=0.1, state_parents=[[0, 1], [0]], action_parents=[[0], [0]]
    )
    assert estimate.state.toarray().tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert estimate.action.toarray().tolist() == [[1.0], [0.0]]
    # A parent or a coordinate with one value cannot matter: known, not estimated.
    assert estimate.state_tags.tolist() == [UCB, EXACT, EXACT]
    assert estimate.action_tags.tolist() == [UCB, EXACT]
    assert (estimate.absent, estimate.weakest) == ("assumed", "assumed")
    # 9 visits of either coordinate's one context; 8 is the next size in the grid.
    assert (estimate.visited, estimate.unvisited, estimate.samples) == (2, 6, 16)
    whole = estimate_sensitivities(log, delta=0.1)
    assert (whole.absent, whole.weakest, whole.contexts.declared) == ("exact", "ucb", False)


def test_a_hundred_thousand_contexts_at_once() -> None:
    """25,000 coordinates with 4 contexts each, one call of the simulator a chunk."""
    n, calls = 25_000, []

    def draw(j: np.ndarray, s: np.ndarray, a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        calls.append(len(j))
        return (rng.random(len(j)) < 0.2 + 0.6 * s[:, 0] * a[:, 0]).astype(np.int64)

    site = np.arange(n)[:, None]
    estimate = estimate_sensitivities(
        LocalSimulator(draw, np.full(n, 2), np.full(n, 2)),
        delta=0.05,
        samples=5,
        generator=np.random.default_rng(0),
        state_parents=np.roll(site, 1),
        action_parents=site,
    )
    assert estimate.contexts.n_contexts == 100_000 and estimate.samples == sum(calls) == 500_000
    assert len(calls) == 1
    assert estimate.counts == {"exact": 0, "ucb": 50_000, "assumed": 0}
    assert (estimate.state.data >= 0.6).all() and (
        estimate.state.indices == np.roll(site, 1)[:, 0]
    ).all()


def test_bad_arguments_are_told() -> None:
    log = TransitionLog([[0]], [[0]], [[0]], [2], [2])
    mdp = sysadmin(3)
    rng = np.random.default_rng(0)
    for call, words in (
        (lambda: estimate_sensitivities(log, delta=0.0), "delta is 0.0"),
        (lambda: estimate_sensitivities(log, delta=0.1, samples=0), "samples is 0"),
        (lambda: estimate_sensitivities(log, delta=0.1, samples=float("nan")), "samples is nan"),
        (lambda: estimate_sensitivities(model_simulator(mdp), delta=0.1), "samples is missing"),
        (
            lambda: estimate_sensitivities(model_simulator(mdp), delta=0.1, samples=5),
            "generator is missing",
        ),
        (
            lambda: estimate_sensitivities(log, delta=0.1, state_parents=[[1]]),
            "coordinate 0 names coordinate 1",
        ),
        (lambda: estimate_sensitivities(log, delta=0.1, action_parents=[[0], []]), "has 2 lists"),
        (lambda: estimate_sensitivities(log, delta=0.1, state_parents=[[0, 0]]), "stands twice"),
        (lambda: samples_for(0.0, 0.1, state_sizes=[2], action_sizes=[]), "width is 0.0"),
        (lambda: samples_for(0.1, 1.0, state_sizes=[2], action_sizes=[]), "delta is 1.0"),
        (
            lambda: samples_for(0.1, 0.1, state_sizes=[0], action_sizes=[]),
            "state_sizes: entry 0 is 0",
        ),
        (lambda: samples_for(0.1, 0.1, state_sizes=[], action_sizes=[]), "state_sizes is empty"),
    ):
        with pytest.raises(InputError, match=words.replace("(", r"\(")):
            call()
    with pytest.raises(BudgetError, match="declare fewer parents"):
        estimate_sensitivities(model_simulator(sysadmin(13)), delta=0.1, samples=5, generator=rng)
    with pytest.raises(BudgetError, match="declare the parents"):
        samples_for(0.1, 0.1, state_sizes=np.full(10_000, 2), action_sizes=[2])


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bar_is_drawn_when_asked_for(shown: bool, capsys: pytest.CaptureFixture) -> None:
    estimate_sensitivities(
        model_simulator(sysadmin(3)),
        delta=0.1,
        samples=5,
        generator=np.random.default_rng(0),
        progress=shown,
    )
    out, err = capsys.readouterr()
    assert out == "" and ("counting" in err) == shown
