"""Several coupled steps against enumeration, against the truth, and on rings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference as ref
import scipy.sparse as sp
from twins import draw, twin_model, twin_policy

import torchloc as tl
from torchloc import contraction, coupling
from torchloc.closed_loop import PolicyTables
from torchloc.coupling import CoupledSteps, coupled_steps
from torchloc.environments import ising, sis, sysadmin
from torchloc.evaluation.planning import optimal_control
from torchloc.sensitivity import coupled_influence

Array = np.ndarray
# A coupling subtracts computed probabilities: a rounding a term, and that of e^x on logits to ~100.
ATOL = 1e-12
# Products of numbers that are at most 1, on both sides.
ORACLE = 1e-14
SMALL: dict[str, Any] = {"max_joint": 36, "n_coordinates": (1, 3), "unichain": True}
SHARED: dict[str, Any] = {"max_joint": 48, "n_coordinates": (2, 3), "sizes": (2, 3)}


def steps_of(mdp: tl.FactoredMDP, policy: tl.SoftmaxPolicy, steps: int) -> list[Array]:
    """K^(1), …, K^(steps), dense."""
    found = coupled_steps(mdp, PolicyTables.read(policy), steps)
    assert len(found.matrices) == len(found.cones) == steps
    return [matrix.toarray() for matrix in found.matrices]


# Against the definition ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_matches_definition(seed: int) -> None:
    options = SHARED if seed % 2 else SMALL
    model, policy, mdp, twin = draw(seed, policy={"minus_infinity": 0.2 * (seed % 3)}, **options)
    for m, matrix in enumerate(steps_of(mdp, twin, 3), start=1):
        expected = ref.coupled_influence(model, policy, m)
        np.testing.assert_allclose(matrix, expected, atol=ATOL, err_msg=f"m = {m}")


def test_the_random_models_have_shared_actions_and_private_ones() -> None:
    shared = [len(ref.shared_agents(draw(seed, **SHARED)[0])) for seed in range(1, 24, 2)]
    assert min(shared) == 0 and max(shared) >= 2 and sum(map(bool, shared)) >= 5


@pytest.mark.parametrize("seed", range(100, 112))
def test_one_step_is_the_coupled_rung(seed: int) -> None:
    _, _, mdp, twin = draw(seed, policy={"minus_infinity": 0.2})
    (matrix,) = steps_of(mdp, twin, 1)
    one = coupled_influence(mdp, PolicyTables.read(twin)).toarray()
    np.testing.assert_allclose(matrix, one, atol=ATOL)


def test_shared_and_private_actions_of_one_kernel() -> None:
    """Agent 0 moves both coordinates, agent 1 the second alone; scopes overlap with the parents."""
    rng = np.random.default_rng(5)
    kernels = [
        ((1,), (0,), rng.dirichlet(np.ones(3), (2, 3))),
        ((0, 1), (1, 0), rng.dirichlet(np.ones(2), (3, 2, 2, 3))),
    ]
    model = ref.Model((3, 2), (3, 2), kernels, [])
    policy = ref.random_policy(rng, model, scopes=[(1, 0), (1,)])
    assert ref.shared_agents(model) == [0]
    mdp = twin_model(model)
    for m, matrix in enumerate(steps_of(mdp, twin_policy(mdp, policy), 4), start=1):
        expected = ref.coupled_influence(model, policy, m)
        assert (expected > 1e-3).all()
        np.testing.assert_allclose(matrix, expected, atol=ATOL)


@pytest.mark.parametrize(
    "kernels",
    [
        [((), (), np.array([0.3, 0.7])), ((), (), np.array([0.5, 0.5]))],
        [((0,), (), np.eye(2)), ((1,), (), np.eye(2)[::-1])],
        [((), (), np.array([0.3, 0.7])), ((0,), (), np.eye(2))],
    ],
    ids=["no parents", "copies", "chain"],
)
def test_models_without_agents(kernels: list[ref.Term]) -> None:
    model = ref.Model((2, 2), (), kernels, [])
    policy = ref.Policy([], [], np.zeros(0))
    mdp = twin_model(model)
    for m, matrix in enumerate(steps_of(mdp, tl.SoftmaxPolicy.tabular(mdp, []), 3), start=1):
        assert (matrix == ref.coupled_influence(model, policy, m)).all()


def test_coordinates_of_size_one_carry_nothing() -> None:
    rng = np.random.default_rng(1)
    kernels = [
        ((0, 1), (0,), np.ones((1, 2, 2, 1))),
        ((1, 0), (0,), rng.dirichlet([1, 1], (2, 1, 2))),
    ]
    model = ref.Model((1, 2), (2,), kernels, [])
    policy = ref.random_policy(rng, model, scopes=[(0, 1)])
    mdp = twin_model(model)
    for m, matrix in enumerate(steps_of(mdp, twin_policy(mdp, policy), 3), start=1):
        assert matrix[0].max() == matrix[:, 0].max() == 0.0
        np.testing.assert_allclose(matrix, ref.coupled_influence(model, policy, m), atol=ATOL)


# Against the truth --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(200, 216))
def test_bounds_the_oscillation_after_m_steps(seed: int) -> None:
    options = {"n_coordinates": (2, 4), "n_agents": (1, 3), "max_joint": 150}
    model, policy, mdp, twin = draw(seed, policy={"minus_infinity": 0.15 * (seed % 2)}, **options)
    step = ref.policy_transition(ref.transition(model), ref.product_policy(model, policy))
    rng = np.random.default_rng(seed)
    values = [*rng.normal(size=(6, len(step))), *(rng.random((6, len(step))) < 0.5).astype(float)]
    for m, matrix in enumerate(steps_of(mdp, twin, 3), start=1):
        moved = np.linalg.matrix_power(step, m)
        for f in values:
            bound = matrix.T @ ref.oscillation(model, f)
            assert (ref.oscillation(model, moved @ f) <= bound + ATOL).all()


def test_is_attained() -> None:
    """One coordinate and no action: K^(m) = |λ₂|^m, and f = s attains it."""
    up = np.array([0.2, 0.7])
    kernel = ((0,), (), np.stack([1 - up, up], axis=-1))
    mdp = twin_model(ref.Model((2,), (), [kernel], []))
    for m, matrix in enumerate(steps_of(mdp, tl.SoftmaxPolicy.tabular(mdp, []), 6), start=1):
        assert matrix[0, 0] == pytest.approx(0.5**m, rel=ORACLE)


def test_with_private_actions_a_step_more_costs_at_most_a_factor_of_the_first() -> None:
    """K^(1+q) ≤ K^(1) K^(q): total variation obeys the triangle inequality along a path of states."""
    private = 0
    for seed in range(300, 340):
        model, _, mdp, twin = draw(seed, n_coordinates=(2, 4), sizes=(2, 3))
        if ref.shared_agents(model):
            continue
        private += 1
        first, *later = powers = steps_of(mdp, twin, 4)
        for short, longer in zip(powers, later, strict=False):
            assert (longer <= first @ short + ORACLE * len(first)).all()
    assert private >= 10


def test_blocks_of_several_steps_do_not_multiply() -> None:
    """K^(3) ≰ K^(2) K^(1): where two coordinates differ at once, the coupling can be worse than both.

    Coordinates 1 and 2 copy coordinate 0. Coordinate 3 is 0 or 1 (by s_1) half the time, else 2 or 3
    (by s_2). Coordinate 4 tells 0 and 1 from 2 and 3, and little else.
    """
    law = np.zeros((2, 2, 4))
    for one, two in np.ndindex(2, 2):
        law[one, two, one] += 0.5
        law[one, two, 2 + two] += 0.5
    told = np.array([0.0, 0.1, 0.9, 1.0])
    copy = ((0,), (), np.eye(2))
    kernels = [
        ((), (), np.array([0.5, 0.5])),
        copy,
        copy,
        ((1, 2), (), law),
        ((3,), (), np.stack([1 - told, told], axis=-1)),
    ]
    mdp = twin_model(ref.Model((2, 2, 2, 4, 2), (), kernels, []))
    one, two, three = steps_of(mdp, tl.SoftmaxPolicy.tabular(mdp, []), 3)
    assert two[4, 1] == two[4, 2] == pytest.approx(0.5 * 0.1)
    assert (two @ one)[4, 0] == pytest.approx(0.1)
    # Half of the mass that moves goes to its own neighbour, half across: ¼ (.1 + 1 + .8 + .1).
    assert three[4, 0] == pytest.approx(0.25 * (0.1 + 1.0 + 0.8 + 0.1))
    assert (three <= one @ two + ORACLE).all()


# Rings --------------------------------------------------------------------------------------------


def ring(family: str, n: int = 4) -> tuple[tl.FactoredMDP, tl.SoftmaxPolicy]:
    """Theory, section 3: an epidemic left alone; a magnet under its optimal rule."""
    if family == "epidemic":
        mdp = sis(n, infection=(0.4, 0.1), recovery=(0.2, 0.5), outside=0.01)
        return mdp, tl.SoftmaxPolicy.tabular(mdp, [()] * n)
    mdp = ising(n, beta=0.6, field=1.0, cost=0.2, reward="up")
    push = np.eye(2)[np.array([[1, 1], [1, 0]])]  # unless both neighbours are up
    scopes = [((j - 1) % n, (j + 1) % n) for j in range(n)]
    return mdp, tl.SoftmaxPolicy.from_probabilities(mdp, scopes, [push] * n)


@pytest.mark.parametrize(
    ("family", "figures"),
    [
        ("epidemic", {1: 1.135, 2: 1.054, 3: 1.008, 4: 0.979, 8: 0.926}),
        ("magnet", {1: 1.074, 2: 0.858, 3: 0.773, 4: 0.730, 8: 0.666}),
    ],
)
def test_figures_of_the_theory(family: str, figures: dict[int, float]) -> None:
    mdp, policy = ring(family)
    if family == "magnet":
        gain = tl.JointEvaluation(mdp, policy).average_reward
        assert gain == pytest.approx(optimal_control(mdp).gain, abs=1e-8)
    matrices = steps_of(mdp, policy, max(figures))
    for m, rate in figures.items():
        # The figures have three decimals.
        assert ref.spectral_radius(matrices[m - 1]) ** (1 / m) == pytest.approx(rate, abs=5e-4)


@pytest.mark.parametrize("family", ["epidemic", "magnet"])
def test_rungs_of_the_certificate_decay_at_the_rate_per_step(family: str) -> None:
    mdp, policy = ring(family)
    certificate = tl.certify(mdp, policy, rungs=("coupled",), steps=4)
    powers = steps_of(mdp, policy, 4)
    b = certificate["coupled"].reward_oscillation
    for m in (2, 3, 4):
        rung = certificate[f"coupled_{m}"]
        radius = ref.spectral_radius(powers[m - 1])
        # Brackets close to a relative gap of 1e-6; their m-th root is closer still.
        assert rung.rate == pytest.approx(radius ** (1 / m), rel=1e-6)
        assert rung.certified == (radius < 1.0)
        for kappa in (-1, 0, 5, 30):
            expected = ref.several_step_tail(powers[:m], b, kappa)
            if radius >= 1.0:
                assert np.isinf(rung.tail_at(kappa)).all() and np.isinf(expected).all()
                continue
            # The solve of the oracle has a condition of 1 / (1 − ρ) < 20, times 1e-16.
            assert (rung.tail_at(kappa) >= expected * (1 - ATOL)).all()
            np.testing.assert_allclose(rung.tail_at(kappa), expected, rtol=1e-5)
        assert (rung.poisson == rung.tail_at(-1)).all()


def test_a_long_ring_is_a_short_one_seen_locally() -> None:
    """No cone of two steps closes on a ring of 7: its rows are those of a ring of 12."""
    rows = {}
    for n in (7, 12):
        mdp, policy = ring("magnet", n)
        found = coupled_steps(mdp, PolicyTables.read(policy), 2)
        assert found.cones == (1, 3)
        for m, matrix in enumerate(found.matrices, start=1):
            dense = matrix.toarray()
            for j in range(n):
                np.testing.assert_allclose(np.roll(dense[j], -j), dense[0], atol=ATOL)
                reached = {(j + d) % n for d in range(-m, m + 1)}
                assert set(np.flatnonzero(dense[j])) <= reached
            rows[n, m] = [dense[0, d] for d in range(-m, m + 1)]
    for m in (1, 2):
        np.testing.assert_allclose(rows[7, m], rows[12, m], atol=ATOL)


def test_many_sites_are_one_class() -> None:
    mdp = sysadmin(2000)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    found = coupled_steps(mdp, PolicyTables.read(policy), 3)
    assert isinstance(found, CoupledSteps) and isinstance(found.matrices[2], sp.csr_array)
    small = coupled_steps(
        sysadmin(9), PolicyTables.read(tl.SoftmaxPolicy.tabular(sysadmin(9), [()] * 9)), 3
    )
    for large, little in zip(found.matrices, small.matrices, strict=True):
        assert large.nnz == 2000 * little.nnz // 9
        np.testing.assert_allclose(large.sum(axis=1), little.sum(axis=1)[0], atol=ATOL)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, -3])
def test_needs_at_least_one_step(steps: int) -> None:
    mdp, policy = ring("epidemic")
    with pytest.raises(tl.InputError, match=rf"steps is {steps}; .* ≥ 1"):
        coupled_steps(mdp, PolicyTables.read(policy), steps)


def test_a_pair_kernel_over_budget_is_refused_with_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mdp, policy = ring("epidemic")
    # Three binary parents and the coordinate itself, in pairs: 4⁴ entries.
    monkeypatch.setattr(coupling, "PAIR_ENTRIES", 255)
    message = r"pair kernel of coordinate 0 has 256 entries, 2048 bytes, over the budget of 255"
    with pytest.raises(tl.BudgetError, match=message):
        coupled_steps(mdp, PolicyTables.read(policy), 1)


def test_a_cone_over_budget_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp, policy = ring("epidemic", 12)
    monkeypatch.setattr(contraction.pullback, "SITE_ENTRIES", 4**5 - 1)
    tables = PolicyTables.read(policy)
    # K^(2) holds one coordinate's pairs apart on a cone of five: 2⁴ · 1 entries.
    assert len(coupled_steps(mdp, tables, 2).matrices) == 2
    message = r"reads 5 coordinates .* 1024 entries, 8192 bytes, over the budget .* fewer steps"
    with pytest.raises(tl.BudgetError, match=message):
        coupled_steps(mdp, tables, 3)


def test_steps_by_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = sis(6)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    tables = PolicyTables.read(policy)
    assert len(coupling.coupled_steps(mdp, tables, None).matrices) == coupling.AUTO_STEPS
    # One step reads 3 pairs of 4 values at 6 sites: 384 entries; two steps read 5.
    monkeypatch.setattr(coupling, "AUTO_ENTRIES", 1000)
    by_budget = coupling.coupled_steps(mdp, tables, None)
    assert len(by_budget.matrices) == 2
    by_hand = coupling.coupled_steps(mdp, tables, 2)
    for mine, other in zip(by_budget.matrices, by_hand.matrices, strict=True):
        np.testing.assert_array_equal(mine.toarray(), other.toarray())
    certificate = tl.certify(mdp, policy, steps="auto")
    assert "coupled_2" in certificate and "coupled_3" not in certificate
    with pytest.raises(tl.InputError, match="steps is 'many'"):
        tl.certify(mdp, policy, steps="many")


def test_steps_by_budget_end_where_a_cone_is_too_large() -> None:
    """Eight parents each: one step reads 8 coordinates in pairs, two read nearly all 48 of them."""
    rng = np.random.default_rng(0)
    n, p = 48, 8
    parents = np.array([rng.permutation(n)[:p] for _ in range(n)])
    table = rng.dirichlet(np.ones(2), (1,) + (2,) * p)
    none = np.zeros((n, 0), dtype=np.int64)
    mdp = tl.FactoredMDP([2] * n, [], [tl.KernelBatch(np.arange(n), parents, none, table)], [])
    tables = PolicyTables.read(tl.SoftmaxPolicy.tabular(mdp, []))
    found = coupled_steps(mdp, tables, None)
    assert len(found.matrices) == len(found.cones) == 1
    with pytest.raises(tl.BudgetError, match="over the budget"):
        coupled_steps(mdp, tables, 2)
