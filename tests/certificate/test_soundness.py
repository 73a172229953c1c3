"""Certificates against brute force: every number a bound, and the number that the theory names."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import reference as ref
from certified import (
    CLEAR,
    GAP,
    MORE_SETTINGS,
    ORACLE,
    PAIRS,
    ROUNDING,
    SETTINGS,
    SOLVE,
    Array,
    Case,
    case,
    encloses,
)
from twins import twin_model

import torchloc as tl
from torchloc.sensitivity import RUNGS

# Against the definitions ------------------------------------------------------------------------


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_matches_definitions(seed: int, options: dict[str, Any]) -> None:
    check_definitions(case(seed, options))


def check_definitions(it: Case) -> None:
    b = it.reward_bound
    floor = ref.state_sensitivity(it.model)
    assert encloses(it.certificate.floor, ref.spectral_radius(floor))
    for name in RUNGS:
        rung = it.certificate[name]
        matrix, step = it.influence(name), it.propagator(name)
        operator = it.discount * step.T
        assert_rounded_up(rung.matrix.toarray(), matrix)
        assert_rounded_up(rung.operators[0].toarray(), operator)
        assert_rounded_up(rung.reward_oscillation, b)
        assert_rounded_up(rung.reach.toarray(), it.reach)
        assert_rounded_up(rung.row_norm, matrix.sum(1).max())
        assert_rounded_up(rung.column_norm, matrix.sum(0).max())
        assert_rounded_up(rung.delta_hat, ref.delta_hat(step, b, it.kappa, it.discount))
        # The package's matrix, not the definition: the oracle's rounding can close a loop.
        assert encloses(rung.rho, ref.spectral_radius(rung.matrix.toarray()))
        radius = ref.spectral_radius(rung.operators[0].toarray())
        assert encloses(rung.contraction, radius)
        assert rung.certified == (rung.contraction.upper < 1.0)
        assert_rounded_up(rung.epsilon, ref.epsilon(it.reach, rung.tail))
        assert_tail(rung.poisson, step, b, -1, it.discount, radius)
        assert_tail(rung.tail, step, b, it.kappa, it.discount, radius)
        assert_tail(rung.tail_at(7), step, b, 7, it.discount, radius)
        for kappa, tail in ((it.kappa, rung.tail), (7, rung.tail_at(7))):
            uniform = rung.uniform_tail_at(kappa)
            if rung.certified:
                assert tail.max() <= uniform * (1 + GAP)
            else:
                assert uniform == math.inf


def assert_rounded_up(
    mine: Array | float, definition: Array | float, rounding: float = ROUNDING
) -> None:
    """At least the definition, which is itself rounded, and nowhere notably above it."""
    finite = np.where(np.isfinite(definition), definition, 0.0)
    scale = 1.0 + np.max(finite, initial=0.0)
    assert (mine >= definition - ORACLE * scale).all()
    np.testing.assert_allclose(mine, definition, rtol=rounding, atol=rounding * scale)


def assert_tail(
    mine: Array, step: Array, b: Array, kappa: int, discount: float, radius: float
) -> None:
    """∞ at radius 1 and above; where the solve of the oracle is well conditioned, its value."""
    if radius >= 1.0 + GAP:
        assert np.isinf(mine).all()
    if radius <= CLEAR:
        exact = ref.tail(step, b, kappa, discount)
        scale = np.abs(exact).max(initial=0.0)
        assert (mine >= exact - ORACLE * (1.0 + scale)).all()
        np.testing.assert_allclose(mine, exact, rtol=GAP, atol=GAP * scale + ROUNDING)


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("seed", range(20, 28))
def test_several_steps_match_definitions(seed: int, discount: float) -> None:
    it = case(seed, {"steps": 3, "discount": discount}, max_joint=36, n_coordinates=(1, 3))
    b = it.reward_bound
    assert list(it.certificate) == [*RUNGS, "coupled_2", "coupled_3"]
    powers = [ref.coupled_influence(it.model, it.policy, m) for m in (1, 2, 3)]
    moved = [discount**q * power for q, power in enumerate(powers, start=1)]
    for m in (2, 3):
        rung = it.certificate[f"coupled_{m}"]
        assert rung.steps == len(rung.operators) == m
        assert_rounded_up(rung.matrix.toarray(), powers[m - 1], PAIRS)
        for operator, power in zip(rung.operators, moved, strict=False):
            assert_rounded_up(operator.toarray(), power.T, PAIRS)
        assert encloses(rung.contraction, ref.spectral_radius(rung.operators[-1].toarray()))
        assert rung.rate == pytest.approx(rung.contraction.upper ** (1 / m), rel=1e-14)
        if rung.contraction.upper > CLEAR:
            continue
        for kappa in (-1, 0, 1, 4):
            exact = ref.several_step_tail(moved[:m], b, kappa)
            scale = np.abs(exact).max(initial=0.0)
            # The oracle subtracts the head of the series from all of it.
            rounding = PAIRS * (1.0 + ref.several_step_tail(moved[:m], b, -1).max())
            assert (rung.tail_at(kappa) >= exact - rounding).all()
            np.testing.assert_allclose(
                rung.tail_at(kappa), exact, rtol=GAP, atol=GAP * scale + rounding
            )


# Against the truth ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", MORE_SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(100, 108))
def test_bounds_hold(seed: int, options: dict[str, Any]) -> None:
    check_truth(case(seed, options, kappa=seed % 4))


def check_truth(it: Case) -> dict[str, float]:
    """Every bound against the exact values; the tightest ratio truth / bound of each."""
    kernel, exact, (short,) = it.values((it.kappa,))
    slack = SOLVE * (1.0 + np.abs(exact).max())
    tightest = {"poisson": 0.0, "delta_hat": 0.0, "tail": 0.0, "epsilon": 0.0}

    def holds(name: str, truth: Array, bound: Array) -> None:
        assert (truth <= bound + slack).all(), name
        shown = (bound > 1e-6) & np.isfinite(bound)
        ratio = truth[shown] / bound[shown]
        tightest[name] = max(tightest[name], float(ratio.max(initial=0.0)))

    error = ref.oscillation(it.model, exact - short)
    spans = it.spans(kernel, exact, short)
    for rung in it.certificate.values():
        holds("poisson", ref.oscillation(it.model, exact), rung.poisson)
        holds("delta_hat", ref.oscillation(it.model, short), rung.delta_hat)
        holds("tail", error, rung.tail)
        holds("epsilon", spans, rung.epsilon)
        centred = (exact - exact.mean()) - (short - short.mean())  # any law centres as well as d
        assert np.abs(centred).max() <= rung.bias + slack
        assert np.ptp(centred) <= rung.bias + slack
    assert (spans <= it.certificate.epsilon + slack).all()
    assert (error <= it.certificate.tail + slack).all()
    return tightest


@pytest.mark.slow
@pytest.mark.parametrize("options", MORE_SETTINGS, ids=str)
@pytest.mark.parametrize("block", range(8))
def test_bounds_hold_on_thousands_of_models(
    block: int, options: dict[str, Any], record_property: Any
) -> None:
    tightest: dict[str, float] = {}
    for seed in range(1000 + 20 * block, 1020 + 20 * block):
        it = case(seed, options, kappa=seed % 5)
        if seed % 4 == block % 4:
            check_definitions(it)
        for name, ratio in check_truth(it).items():
            tightest[name] = max(tightest.get(name, 0.0), ratio)
    for name, ratio in tightest.items():
        record_property(f"tightest {name}", ratio)


# Order, rates, tightness ------------------------------------------------------------------------


@pytest.mark.parametrize("options", MORE_SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(200, 204))
def test_rungs_run_from_sharp_to_blunt(seed: int, options: dict[str, Any]) -> None:
    certificate = case(seed, options).certificate
    assert tuple(certificate)[: len(RUNGS)] == RUNGS
    for sharp, blunt in itertools.pairwise(certificate[name] for name in RUNGS):
        # The sharper rungs subtract probabilities and carry that rounding as an absolute slack.
        assert (sharp.matrix.toarray() <= blunt.matrix.toarray() + ROUNDING).all()
        assert sharp.rho.lower <= blunt.rho.upper + ROUNDING
        assert (sharp.delta_hat <= blunt.delta_hat * (1 + ROUNDING) + ROUNDING).all()
        if blunt.contraction.upper < CLEAR:
            assert sharp.certified
            assert (sharp.tail <= blunt.tail * (1 + GAP) + ROUNDING).all()
    for best, name in ((certificate.tail, "tail"), (certificate.epsilon, "epsilon")):
        np.testing.assert_array_equal(
            best, np.min([getattr(rung, name) for rung in certificate.values()], axis=0)
        )


@pytest.mark.parametrize("options", MORE_SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(300, 304))
def test_truncation_error_falls_at_the_claimed_rate(seed: int, options: dict[str, Any]) -> None:
    """h − ĥ_{κ+1} = γT (h − ĥ_κ) up to a constant: its weighted norm falls by λ_w a step."""
    it = case(seed, options)
    kappas = tuple(range(8))
    _, exact, short = it.values(kappas)
    slack = SOLVE * (1.0 + np.abs(exact).max())
    errors = np.array([ref.oscillation(it.model, exact - cut) for cut in short])
    for rung in it.certificate.values():
        m = rung.steps
        for steps, operator in enumerate(rung.operators, start=1):
            moved = errors[:-steps] @ operator.toarray().T
            assert (errors[steps:] <= moved + slack).all()
        if not rung.certified:
            continue
        weights, rate = rung.contraction.weights, rung.contraction.weighted_rate
        assert rate < 1.0 and (weights > 0).all()
        size = (errors / weights).max(axis=1)
        assert (size[m:] <= rate * size[:-m] + slack / weights.min()).all()
        tails = np.array([rung.tail_at(kappa) for kappa in kappas])
        assert (errors <= tails + slack).all()
        # The tail falls as fast, up to what its closing adds.
        claimed = (tails / weights).max(axis=1)
        added = GAP * tails.max(axis=1)[m:] / weights.min() + ROUNDING
        assert (claimed[m:] <= rate * claimed[:-m] + added).all()


def test_rate_tail_and_epsilon_are_attained() -> None:
    """P(1 | s, a) = .2 + .5 s + .2 a, reward s, blind agent: h − ĥ_κ = ρ^{κ+1}/(1 − ρ) s + c."""
    up = 0.2 + np.add.outer([0.0, 0.5], [0.0, 0.2])
    kernel = ((0,), (0,), np.stack([1 - up, up], axis=-1))
    model = ref.Model((2,), (2,), [kernel], [((0,), (), np.array([0.0, 1.0]))])
    mdp = twin_model(model)
    policy = tl.SoftmaxPolicy.tabular(mdp, [()])
    joint = tl.JointEvaluation(mdp, policy)
    for name, rung in tl.certify(mdp, policy).items():
        for kappa in range(12):
            tail = 0.5 ** (kappa + 1) / 0.5
            error = joint.poisson() - joint.truncated_value(kappa)
            assert float(error.max() - error.min()) == pytest.approx(tail, abs=SOLVE)
            assert rung.tail_at(kappa)[0] == pytest.approx(tail, rel=GAP), name
            gap = joint.block_logits(0, kappa) - joint.block_logits(0)
            span = float((gap.amax(-1) - gap.amin(-1)).max())
            assert span == pytest.approx(0.2 * tail, abs=SOLVE)
            assert rung.epsilon_at(kappa)[0] == pytest.approx(0.2 * tail, rel=GAP)
