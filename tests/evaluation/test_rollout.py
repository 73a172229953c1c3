"""Intervals against the coverage that they claim, estimates against exact values, and errors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from scipy import stats
from twins import draw, twin_model, twin_policy

import torchloc as tl
from torchloc.environments import sysadmin
from torchloc.evaluation.joint import JointEvaluation
from torchloc.evaluation.rollout import (
    BATCHES,
    FEWEST,
    LENGTH,
    Rollout,
    autocorrelation_time,
    batch_means,
    simulate,
)
from torchloc.evaluation.simulator import Simulator

CONFIDENCE = 1.0 - 1e-5
"""Where an interval must hold an exact value: some fifty do, on fixed seeds."""
STAY = 0.9
THIRDS = [(slice(0, 2), 2), (slice(2, 4), 2), (slice(4, 7), 3)]
"""Seven steps in three batches, and their lengths."""


def sticky() -> tl.FactoredMDP:
    """A binary chain that stays with probability .9, reward 1 in state 1: ρ_k = .8^k, r̄ = 1/2."""
    law = np.array([[STAY, 1.0 - STAY], [1.0 - STAY, STAY]])
    reward = tl.LocalReward((0,), (), [0.0, 1.0])
    return tl.FactoredMDP([2], [], [tl.LocalKernel((0,), (), law)], [reward])


def silent(mdp: tl.FactoredMDP) -> tl.SoftmaxPolicy:
    return tl.SoftmaxPolicy.tabular(mdp, [()] * mdp.n_agents)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def slow_rewards() -> np.ndarray:
    """(2000, 2000) rewards of the sticky chain, stationary from the first step."""
    mdp = sticky()
    simulator = Simulator(mdp, silent(mdp))
    random = generator(0)
    states = simulator.start(2000, random)
    rewards = np.empty((2000, 2000))
    for t in range(len(rewards)):
        following, actions = simulator.step(states, random)
        rewards[t] = simulator.reward(states, actions).numpy()
        states = following
    return rewards


# -- intervals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "replicas", "batches"), [(60, 1, 20), (60, 4, 5), (30, 25, 1)])
def test_equal_batches_give_the_student_interval_of_their_means(
    length: int, replicas: int, batches: int
) -> None:
    samples = np.random.default_rng(0).normal(size=(length, replicas))
    mean, half = batch_means(samples, batches, 0.9)
    parts = samples.reshape(batches, -1, replicas).mean(axis=1).ravel()
    low, high = stats.t.interval(0.9, parts.size - 1, parts.mean(), stats.sem(parts))
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-12)


def test_unequal_batches_keep_every_step_and_the_coverage() -> None:
    """White noise, 7 steps in batches of 2, 2 and 3: exactly Student with 3·2 − 1 degrees."""
    samples = np.random.default_rng(1).normal(size=(5000, 7, 2))
    found = [batch_means(part, 3, 0.9) for part in samples]
    first = samples[0]
    parts = [(first[rows, r].mean(), size) for r in (0, 1) for rows, size in THIRDS]
    spread = sum(size * (y - first.mean()) ** 2 for y, size in parts) / 5
    assert found[0][1] == pytest.approx(stats.t.ppf(0.95, 5) * math.sqrt(spread / 14), rel=1e-12)
    assert [m for m, _ in found[:50]] == pytest.approx(samples[:50].mean(axis=(1, 2)).tolist())
    covered = sum(abs(mean) <= half for mean, half in found)
    assert abs(covered - 4500) <= 5 * math.sqrt(5000 * 0.9 * 0.1)


@pytest.mark.parametrize("replicas", [1, 4, 20])
def test_coverage_on_a_slowly_mixing_chain(replicas: int, slow_rewards: np.ndarray) -> None:
    """The nominal 95 %, less what finite batches cost, which is known for this chain.

    n steps with ρ_k = λ^k and unit variance have a mean of variance V(n) = (1/n)(1 + 2 Σ_{k<n} (1 −
    k/n) λ^k); the interval's own estimate for c batches of length b has expectation (V(b) −
    V(T)/R)/(c − 1) instead of V(T)/R. Allowed: four standard deviations of the count, and .01 for
    batch means that are not quite normal.
    """
    steps, columns = slow_rewards.shape
    batches, runs = BATCHES // replicas, columns // replicas
    decay, k = 2.0 * STAY - 1.0, np.arange(1, steps)

    def variance(n: int) -> float:
        return (1.0 + 2.0 * float(((1.0 - k / n) * decay**k)[: n - 1].sum())) / n

    true = variance(steps) / replicas
    estimate = (variance(steps // batches) - true) / (BATCHES - 1)
    quantile = stats.t.ppf(0.975, BATCHES - 1) * math.sqrt(estimate / true)
    nominal = 2.0 * float(stats.t.cdf(quantile, BATCHES - 1)) - 1.0
    assert 0.935 <= nominal <= 0.95 + 1e-12
    covered = naive = 0
    for run in range(runs):
        part = slow_rewards[:, run * replicas : (run + 1) * replicas]
        mean, half = batch_means(part, batches, 0.95)
        covered += abs(mean - 0.5) <= half
        naive += abs(mean - 0.5) <= 1.96 * part.std() / math.sqrt(part.size)
    slack = 4.0 * math.sqrt(nominal * (1.0 - nominal) / runs) + 0.01
    assert abs(covered / runs - nominal) <= slack
    # Steps taken for independent make it narrower by √((1 + λ)/(1 − λ)) = 3, which covers .49.
    assert naive / runs < 0.65


@pytest.mark.parametrize(
    ("steps", "replicas", "least", "most"), [(100, 1, 5, 5), (800, 1, 6, 19), (300, 4, 2, 5)]
)
def test_batches_stay_long_against_the_autocorrelation_time(
    steps: int, replicas: int, least: int, most: int
) -> None:
    """As many as ten of these times (9 steps on this chain) each allow: 5 to 20, of all replicas."""
    mdp = sticky()
    found = simulate(mdp, silent(mdp), steps=steps, replicas=replicas, seed=1)
    each = found.n_batches // replicas
    allowed = int(steps / (LENGTH * found.autocorrelation_time))
    assert each == max(least, min(math.ceil(BATCHES / replicas), allowed))
    assert least <= each <= most


def test_autocorrelation_time(slow_rewards: np.ndarray) -> None:
    # (1 + λ)/(1 − λ) = 9 here; a million steps pin it to some per cent.
    assert autocorrelation_time(slow_rewards[:, :500]) == pytest.approx(9.0, rel=0.05)
    noise = np.random.default_rng(2).normal(size=(4000, 50))
    assert autocorrelation_time(noise) == pytest.approx(1.0, abs=0.05)
    assert autocorrelation_time(np.full((50, 3), 2.0)) == 1.0
    # Each step is taken back by the next: the mean has no variance.
    assert autocorrelation_time(np.tile([[0.0], [1.0]], (500, 4))) <= 0.01


def test_autocorrelation_time_pools_many_replicas_in_parts(
    monkeypatch: pytest.MonkeyPatch, slow_rewards: np.ndarray
) -> None:
    samples = slow_rewards[:, :60]
    whole = autocorrelation_time(samples)
    monkeypatch.setattr("torchloc.evaluation.rollout._CHUNK", 14_000)  # 7 replicas at a time
    assert autocorrelation_time(samples) == pytest.approx(whole, rel=1e-12)


# -- against exact values --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_intervals_hold_the_exact_averages(seed: int) -> None:
    """Rewards of agents and states, N ≠ K, shared actions, mixed sizes, empty and partial scopes."""
    structure = ("general", "general", "nilpotent")[seed % 3]
    _, _, mdp, twin = draw(
        seed, unichain=True, structure=structure, policy={"minus_infinity": 0.15 * (seed % 2)}
    )
    joint = JointEvaluation(mdp, twin, objective="entropy")
    replicas = (100, 7)[seed % 2]
    options: dict[str, Any] = {"steps": 150, "burn_in": 80, "replicas": replicas, "seed": seed}
    found = simulate(mdp, twin, objective="entropy", confidence=CONFIDENCE, **options)
    scale = max(1.0, float(joint.reward.abs().max()))
    # Deterministic models have no width, but sums are rounded.
    rounding = 1e-12 * scale
    assert abs(found.average_reward - joint.reward_rate) <= found.half_width + rounding
    assert abs(found.objective_value - joint.value) <= found.objective_half_width + rounding
    assert found.objective_half_width <= scale
    each = found.n_batches // replicas
    assert found.n_batches == each * replicas >= FEWEST and found.batch_length == 150 // each
    plain = simulate(mdp, twin, **options)
    assert plain.objective_value == plain.average_reward == found.average_reward
    assert plain.objective_half_width == plain.half_width


@pytest.mark.parametrize("seed", range(8))
def test_last_states_are_samples_of_the_stationary_law(seed: int) -> None:
    """χ² at 1e-6 of 4000 independent last states, coordinate by coordinate and jointly."""
    model, _, mdp, twin = draw(seed + 50, unichain=True, sizes=(2, 4))
    law = JointEvaluation(mdp, twin).stationary
    found = simulate(mdp, twin, steps=1, burn_in=80, replicas=4000, seed=seed)
    joint = np.ravel_multi_index(tuple(found.states.numpy()), model.state_sizes)
    counts = np.bincount(joint, minlength=law.numel())
    expected = 4000 * law.numpy().ravel()
    few = expected < 5.0
    wanted = np.append(expected[~few], expected[few].sum())
    seen = np.append(counts[~few], counts[few].sum())
    statistic = float(((seen - wanted)[wanted > 0] ** 2 / wanted[wanted > 0]).sum())
    assert stats.chi2.sf(statistic, max(1, int((wanted > 0).sum()) - 1)) > 1e-6


def with_local_rewards(model: ref.Model) -> tuple[ref.Model, list[np.ndarray]]:
    """The model with one reward of its own a coordinate."""
    rng = np.random.default_rng(0)
    values = [rng.normal(size=size) for size in model.state_sizes]
    terms = [((i,), (), value) for i, value in enumerate(values)]
    return dataclasses.replace(model, rewards=terms), values


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_marginals_are_the_frequencies_that_the_rewards_saw(seed: int, discount: float) -> None:
    """Σ_i Σ_x m_i(x) c_i(x) is the average of Σ_i c_i(s_i), step by step; so the interval holds m."""
    model, policy, _, _ = draw(seed + 20, unichain=True, sizes=(1, 4))
    model, values = with_local_rewards(model)
    mdp = twin_model(model)
    steps = None if discount < 1.0 else 40
    found = simulate(
        mdp, twin_policy(mdp, policy), steps=steps, replicas=30, discount=discount, seed=seed
    )
    mass = found.marginals.numpy()
    padded = np.array([np.pad(v, (0, mass.shape[1] - len(v))) for v in values])
    inside = np.arange(mass.shape[1]) < mdp.state_sizes[:, None]
    assert mass[~inside].sum() == 0.0 and mass.min() >= 0.0
    np.testing.assert_allclose(mass.sum(axis=1), 1.0, rtol=0, atol=1e-13)
    # The discounted average divides by Σ γ^t of all time, the marginals by that of the kept steps.
    kept = 1.0 - discount**found.steps if discount < 1.0 else 1.0
    assert kept * float((mass * padded).sum()) == pytest.approx(found.average_reward, abs=1e-12)


@pytest.mark.parametrize("discount", [0.3, 0.9])
@pytest.mark.parametrize("seed", range(6))
def test_discounted_intervals_hold_the_exact_value(seed: int, discount: float) -> None:
    rng = np.random.default_rng(seed)
    model = ref.random_model(rng)
    policy = ref.random_policy(rng, model)
    laws = [rng.dirichlet(np.ones(size)) for size in model.state_sizes]
    mdp = twin_model(model, initial=laws)
    twin = twin_policy(mdp, policy)
    joint = JointEvaluation(mdp, twin, objective="entropy", discount=discount)
    found = simulate(
        mdp,
        twin,
        replicas=500,
        seed=seed,
        objective="entropy",
        discount=discount,
        confidence=CONFIDENCE,
    )
    assert discount**found.steps <= 1e-4 < discount ** (found.steps - 1)
    rounding = 1e-12 * max(1.0, abs(joint.value))
    assert abs(found.objective_value - joint.value) <= found.objective_half_width + rounding
    assert abs(found.average_reward - joint.reward_rate) <= found.half_width + rounding
    largest = float(joint.reward.abs().max()) / (1.0 - discount)
    assert found.objective_half_width <= 0.5 * max(1.0, largest)


def test_the_remainder_of_a_discounted_sum_is_in_the_interval_and_no_more() -> None:
    """Reward 1 for ever: the sum misses γ^T/(1 − γ) without any variance."""
    one = tl.LocalReward((), (), np.float64(1.0))
    mdp = tl.FactoredMDP([2], [], [tl.LocalKernel((), (), [0.5, 0.5])], [one])
    for options in ({"steps": 5}, {"tolerance": 0.3}):
        found = simulate(mdp, silent(mdp), replicas=2, discount=0.8, **options)
        left = 0.8**found.steps / 0.2
        assert found.objective_value == pytest.approx(5.0 - left, rel=1e-14)
        assert found.objective_half_width == pytest.approx(left, rel=1e-14)
        assert found.half_width == pytest.approx(0.2 * left, rel=1e-14)


def test_a_model_without_a_law_starts_uniformly_and_with_one_from_it() -> None:
    """Frozen coordinates: the average over replicas is the mean of the initial law."""
    keep = [tl.LocalKernel((0,), (), np.eye(3))]
    reward = [tl.LocalReward((0,), (), [0.0, 1.0, 2.0])]
    for initial, mean in ((None, 1.0), ([[0.0, 0.25, 0.75]], 1.75)):
        mdp = tl.FactoredMDP([3], [], keep, reward, initial=initial)
        found = simulate(mdp, silent(mdp), steps=1, replicas=4000, confidence=CONFIDENCE)
        assert abs(found.average_reward - mean) <= found.half_width <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [5, 24])
def test_coverage_of_whole_runs(replicas: int) -> None:
    """300 seeds of a ring with agents: 95 % within four standard deviations and .01."""
    mdp = sysadmin(n=4)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=1.0, seed=1)
    exact = JointEvaluation(mdp, policy, objective="entropy")
    simulator = Simulator(mdp, policy)
    covered = np.zeros(2)
    for seed in range(300):
        found = simulate(
            mdp,
            policy,
            steps=150,
            burn_in=30,
            replicas=replicas,
            seed=seed,
            objective="entropy",
            simulator=simulator,
        )
        covered += [
            abs(found.average_reward - exact.reward_rate) <= found.half_width,
            abs(found.objective_value - exact.value) <= found.objective_half_width,
        ]
    slack = 4.0 * math.sqrt(0.95 * 0.05 / 300) + 0.01
    assert (np.abs(covered / 300 - 0.95) <= slack).all()


# -- seeds, starts, reuse --------------------------------------------------------------------------


def same(one: Rollout, other: Rollout) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Rollout)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


@pytest.fixture
def ring() -> tuple[tl.FactoredMDP, tl.SoftmaxPolicy]:
    mdp = sysadmin(n=6)
    return mdp, tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=1.0)


def test_a_seed_determines_everything(ring: tuple[tl.FactoredMDP, tl.SoftmaxPolicy]) -> None:
    torch.manual_seed(1)
    one = simulate(*ring, steps=30, seed=5)
    torch.manual_seed(2)
    assert same(one, simulate(*ring, steps=30, seed=5))
    assert same(one, simulate(*ring, steps=30, generator=generator(5)))
    assert not same(one, simulate(*ring, steps=30, seed=6))


def test_a_given_simulator_changes_nothing_but_the_time(
    ring: tuple[tl.FactoredMDP, tl.SoftmaxPolicy],
) -> None:
    mdp, policy = ring
    other = tl.SoftmaxPolicy.tabular(mdp, policy.scopes, scale=2.0, seed=9, temperature=0.5)
    reused = simulate(mdp, policy, steps=30, objective="entropy", simulator=Simulator(mdp, other))
    assert same(reused, simulate(mdp, policy, steps=30, objective="entropy"))


def test_a_run_goes_on_from_the_last_states(ring: tuple[tl.FactoredMDP, tl.SoftmaxPolicy]) -> None:
    random = generator(3)
    whole = simulate(*ring, steps=30, replicas=20, burn_in=4, generator=generator(3))
    first = simulate(*ring, steps=10, replicas=20, burn_in=4, generator=random)
    second = simulate(*ring, steps=20, replicas=20, start=first.states, generator=random)
    assert torch.equal(second.states, whole.states)
    parts = 10 * first.average_reward + 20 * second.average_reward
    assert parts == pytest.approx(30 * whole.average_reward, rel=1e-13)
    pooled = 10 * first.marginals + 20 * second.marginals
    assert torch.allclose(pooled, 30 * whole.marginals, rtol=1e-13, atol=0.0)


def test_one_start_serves_all_replicas(ring: tuple[tl.FactoredMDP, tl.SoftmaxPolicy]) -> None:
    start = torch.tensor([1, 0, 1, 1, 0, 0])
    found = simulate(*ring, steps=1, replicas=20, start=start)
    assert torch.equal(found.marginals[:, 1], start.double())
    wide = start[:, None].expand(6, 20)
    assert same(found, simulate(*ring, steps=1, replicas=20, start=wide))


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number ≥ 1"),
        ({"steps": 10.0}, "steps is 10.0; it must be a whole number"),
        ({"steps": None}, "steps is None; an average reward needs"),
        ({"burn_in": -1}, "burn_in is -1; it must be a whole number ≥ 0"),
        ({"replicas": 0}, "replicas is 0; it must be a whole number ≥ 1"),
        ({"replicas": True}, "replicas is True"),
        ({"steps": 9, "replicas": 2}, "steps is 9: too few samples .* at least 10 steps, or 20"),
        ({"confidence": 1.0}, "confidence is 1.0; it must lie strictly between 0 and 1"),
        ({"confidence": math.nan}, "confidence is nan"),
        ({"objective": "both"}, "objective is 'both'"),
        ({"discount": 0.0}, "discount is 0.0"),
        ({"discount": 1.5}, "discount is 1.5"),
        ({"discount": 0.5, "burn_in": 3}, "burn_in is 3 with discount 0.5"),
        ({"discount": 0.5, "replicas": 1}, "replicas is 1: a discounted run"),
        ({"discount": 0.5, "tolerance": 0.0}, "tolerance is 0.0"),
        ({"start": torch.zeros(5, 8).int()}, r"start has shape \(5, 8\); it must be \(6, 8\)"),
        ({"start": torch.zeros(6, 1).int()}, r"start has shape \(6, 1\)"),
        ({"start": torch.zeros(6)}, "start is of type torch.float32; give a tensor of integers"),
        ({"start": [0] * 6}, "start is of type list; give a tensor of integers"),
        (
            {"start": torch.tensor([0, 1, 0, 2, 0, 0])},
            "start: coordinate 3 has value 2 in replica 0, but it has 2 states",
        ),
        ({"start": torch.full((6, 8), -1)}, "start: coordinate 0 has value -1"),
    ],
)
def test_bad_settings_are_named(
    options: dict[str, Any],
    message: str,
    ring: tuple[tl.FactoredMDP, tl.SoftmaxPolicy],
) -> None:
    with pytest.raises(tl.InputError, match=message):
        simulate(*ring, **{"steps": 40, **options})


def test_another_models_policy_and_simulator_are_refused(
    ring: tuple[tl.FactoredMDP, tl.SoftmaxPolicy],
) -> None:
    mdp, policy = ring
    other = sysadmin(n=7)
    with pytest.raises(tl.InputError):
        simulate(other, policy, steps=40)
    theirs = tl.SoftmaxPolicy.tabular(other, tl.neighbourhood_scopes(other))
    with pytest.raises(tl.InputError, match="the simulator was made for another model"):
        simulate(other, theirs, steps=40, simulator=Simulator(mdp, policy))
    with pytest.raises(tl.InputError, match="1 kept steps of 1 replicas are too few"):
        batch_means(np.zeros((1, 1)), 1, 0.9)
