"""Adaptive schedules and radii: what they choose, and what a run makes of them."""

from __future__ import annotations

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from recorded import Recorder

import torchloc as tl
from torchloc.annealing import certified_radius, truncation_bias
from torchloc.certificate import Environment, Ladder
from torchloc.environments import ising, line_msg, sis, sysadmin
from torchloc.improvement import Gains
from torchloc.schedules import (
    GRID,
    Certified,
    Tradeoff,
    certified_kappa,
    certified_temperature,
    geometric,
    staircase,
    tradeoff_temperature,
)
from torchloc.spectral import spectral_radius

ends = st.floats(min_value=1e-3, max_value=1.0)
falls = st.floats(min_value=0.05, max_value=0.95)


@given(start=ends, end=ends, stairs=st.integers(2, 9), iterations=st.integers(2, 40))
def test_stairs_are_equally_long_and_hit_both_ends(
    start: float, end: float, stairs: int, iterations: int
) -> None:
    # Ends an ulp apart leave no room for stairs.
    assume(start == end or abs(math.log(start / end)) > 1e-9)
    taus = [
        staircase(i / (iterations - 1), start=start, end=end, stairs=stairs)
        for i in range(iterations)
    ]
    assert (taus[0], taus[-1]) == (start, end)
    assert len(set(taus)) <= stairs
    assert taus == sorted(taus, reverse=start > end)


@given(end=ends, share=ends, scale=st.floats(1e-3, 10.0), fall=falls)
def test_bisection_finds_the_lowest_temperature_that_passes(
    end: float, share: float, scale: float, fall: float
) -> None:
    """ρ(τ) = scale/τ crosses the target at scale/target."""
    previous = end + share * (1.0 - end)
    found = certified_temperature(
        previous, lambda t: scale / t, start=1.0, end=end, target=0.9, fall=fall, monotone=True
    )
    low, exact = max(end, fall * previous), scale / 0.9
    assert low <= found <= 1.0
    if exact <= low * (1 - 1e-12):
        assert found == low
    elif exact < 1.0:
        assert exact * (1 - 1e-12) <= found <= exact * 1.002
    else:
        assert found == 1.0


def test_the_lowest_temperature_of_a_grid_that_passes_is_taken() -> None:
    """Where ρ is not monotone, an island of certified temperatures counts."""
    seen: list[float] = []

    def rho(tau: float) -> float:
        seen.append(tau)
        return 0.5 if 0.3 < tau < 0.4 else 2.0 - tau

    take = partial(certified_temperature, start=1.0, end=0.1, fall=0.2, monotone=False)
    assert 0.3 < take(1.0, rho, target=0.9) < 0.4
    assert len(seen) <= GRID
    # Where nothing passes, the least ρ: here that of the highest temperature.
    assert take(1.0, lambda tau: 2.0 - tau, target=0.9) == 1.0


def test_cooling_goes_on_while_it_is_worth_it() -> None:
    cool = partial(tradeoff_temperature, start=1.0, end=0.1, fall=0.5)
    assert cool(0.4, gain=1.0, bias=0.5) == 0.2
    assert cool(0.15, gain=1.0, bias=0.5) == 0.1
    assert cool(0.4, gain=0.5, bias=0.5) == 0.4
    assert cool(0.4, gain=math.inf, bias=math.inf) == 0.4


@given(ratio=st.floats(0.1, 0.9), share=st.floats(0.01, 1.0), most=st.integers(0, 20))
def test_the_radius_is_the_smallest_that_is_enough(ratio: float, share: float, most: int) -> None:
    kappa = certified_kappa(lambda k: ratio**k, gain=1.0, share=share, at_most=most)
    assert kappa == most or ratio**kappa <= share
    assert kappa == 0 or ratio ** (kappa - 1) > share
    assert certified_kappa(lambda k: math.inf, gain=1.0, share=share, at_most=most) == most


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Certified(end=2.0), r"end = 2\.0 is above start = 1\.0"),
        (lambda: Certified(fall=1.0), r"fall = 1\.0; it must lie between 0 and 1"),
        (lambda: Certified(rung="scope"), "rung = 'scope'; choose one of coupled, exact"),
        (lambda: Certified(target=0.0), r"target = 0\.0"),
        (lambda: Tradeoff(start=0.0), r"start = 0\.0 is no temperature"),
        (lambda: Tradeoff(fall=-0.5), r"fall = -0\.5"),
        (lambda: staircase(0.5, start=1.0, end=0.1, stairs=1), "stairs = 1; a staircase has"),
        (lambda: tl.Evaluation(kappa="best"), "kappa is 'best'.* auto or certified"),  # pyright: ignore[reportArgumentType]
        (lambda: tl.Evaluation(kappa_most=-1), "kappa_most is -1"),
        (lambda: tl.Evaluation(kappa_share=0.0), r"kappa_share is 0\.0"),
    ],
)
def test_settings_are_checked(make, message: str) -> None:
    with pytest.raises(tl.InputError, match=message):
        make()


def train(mdp: tl.FactoredMDP, **options) -> Recorder:
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=0.5)
    recorder = Recorder()
    options = {"iterations": 8, **options}
    tl.Trainer(mdp, policy, callbacks=[recorder], **options).run()
    return recorder


class BeforeSweeps(tl.Callback):
    """ρ of a rung with the logits that an iteration starts from, at the temperature it takes."""

    def __init__(self, rung: str) -> None:
        self.rung = rung
        self.held: list[float] = []
        self._policy: tl.SoftmaxPolicy | None = None

    def on_iteration_start(self, trainer: tl.Trainer, state: tl.TrainState) -> None:
        self._policy = copy.deepcopy(state.policy)

    def on_iteration_end(self, trainer: tl.Trainer, state: tl.TrainState) -> None:
        assert self._policy is not None
        self._policy.set_temperature(state.metrics["schedule/temperature"])
        matrix = Ladder(Environment(trainer.mdp), self._policy).matrix(self.rung)
        self.held.append(spectral_radius(matrix).upper)


@pytest.mark.parametrize("rung", ["coupled", "exact", "span", "tanh", "paper"])
def test_a_certified_run_keeps_its_rung_whenever_it_takes_a_temperature(rung: str) -> None:
    mdp = ising(4, beta=0.3)
    watch, recorder = BeforeSweeps(rung), Recorder()
    schedule = Certified(rung=rung, target=0.8, start=2.0, fall=0.6)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    tl.Trainer(mdp, policy, schedule=schedule, iterations=10, callbacks=[watch, recorder]).run()
    assert max(watch.held) <= 0.8
    taus = [m["schedule/temperature"] for m in recorder.metrics]
    assert taus[0] == 2.0
    assert all(b >= max(0.02, 0.6 * a) * (1 - 1e-12) for a, b in itertools.pairwise(taus))
    if rung in ("span", "tanh", "paper"):
        # It would have cooled further had it been allowed: the rung is what stopped it.
        assert taus[-1] > 2.0 * 0.6**9


def test_a_rung_that_never_certifies_keeps_the_run_hot() -> None:
    taus = [
        m["schedule/temperature"]
        for m in train(sysadmin(4), schedule=Certified(rung="paper")).metrics
    ]
    assert set(taus) == {1.0}


def test_tradeoff_stops_when_the_bias_is_above_the_gain() -> None:
    recorder = train(sis(4), schedule=Tradeoff(fall=0.5), iterations=10)
    taus = [m["schedule/temperature"] for m in recorder.metrics]
    for state, tau, after in zip(recorder.states, taus, taus[1:], strict=False):
        bias = truncation_bias(state.certificate.epsilon, state.gains)
        gain = float(state.gains.prox_gain.sum())
        assert after == pytest.approx(max(0.02, 0.5 * tau) if gain > bias else tau)


def test_the_certified_radius_is_small_where_influence_ends_and_never_above_its_limit() -> None:
    evaluation = tl.Evaluation(kappa="certified", kappa_most=5)
    schedule = partial(geometric, start=1.0, end=0.05)
    for mdp in (line_msg(5), sysadmin(4), sis(4)):
        recorder = train(mdp, schedule=schedule, evaluation=evaluation)
        kappas = [int(m["schedule/kappa"]) for m in recorder.metrics]
        assert kappas[0] == 5
        assert max(kappas) <= 5
        work = [m["work/ball"] for m in recorder.metrics]
        assert [w for _, w in sorted(zip(kappas, work, strict=True))] == sorted(work)
    assert (
        min(
            int(m["schedule/kappa"])
            for m in train(line_msg(5), schedule=schedule, evaluation=evaluation).metrics
        )
        < 5
    )


@pytest.mark.parametrize("engine", ["joint", "local"])
@pytest.mark.parametrize("order", ["cyclic", "chromatic", "jacobi"])
def test_every_engine_and_order_adapts(engine: str, order: str) -> None:
    recorder = train(
        sysadmin(4),
        schedule=Certified(),
        improvement=tl.Improvement(order=order),  # pyright: ignore[reportArgumentType]
        evaluation=tl.Evaluation(engine=engine, kappa="certified", kappa_most=2),  # pyright: ignore[reportArgumentType]
        iterations=4,
    )
    gains = recorder.states[-1].gains
    assert gains is not None
    assert bool((gains.prox_gain > 0.0).all())
    assert recorder.metrics[-1]["schedule/temperature"] < 1.0


def test_estimates_of_the_gain_are_those_of_the_ledger() -> None:
    """A Jacobi sweep of one agent that sees everything moves as a cyclic one; only the law differs."""
    rung = tl.certify(sysadmin(3), tl.SoftmaxPolicy.tabular(sysadmin(3), [[0, 1, 2]] * 3))
    zero = Gains.none(3)
    assert certified_radius(rung["coupled"], zero, share=0.1, at_most=4) == 0
    assert truncation_bias(rung["paper"].epsilon, zero) == 0.0
    moved = Gains(torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    assert truncation_bias(rung["paper"].epsilon, moved) == math.inf


def test_ball_sizes_count_what_an_action_can_reach() -> None:
    """Ring with one predecessor, self and predecessor seen: one more coordinate a step."""
    mdp = sysadmin(6)
    from torchloc.evaluation.radius import ball_sizes

    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    for kappa in range(8):
        assert ball_sizes(mdp, policy, kappa).tolist() == [min(1 + kappa, 6)] * 6


def test_a_held_policy_has_nothing_to_certify_by() -> None:
    mdp = sysadmin(3)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    with pytest.raises(tl.InputError, match="hold is 'policy', so τ changes no law"):
        tl.Trainer(mdp, policy, schedule=Certified(), hold="policy")
