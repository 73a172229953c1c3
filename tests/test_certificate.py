"""Certificates against brute force: every number a bound, and the number that the theory names."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference as ref
from twins import draw, twin_model

import torchloc as tl
from torchloc.certificate import Certificate, Environment
from torchloc.environments import sysadmin
from torchloc.sensitivity import RUNGS
from torchloc.spectral import SpectralBound

Array = np.ndarray
# The oracle solves dense systems; with 5 % mixing their condition is below 1e4, times 1e-16.
SOLVE = 1e-10
# The oracle's products and sums carry some ten roundings of their own.
ORACLE = 1e-14
# What the package adds for the rounding of laws: some 50 agents' worth of max |z/τ| · 2⁻⁵³, logits up to 150.
ROUNDING = 1e-11
# The same for several steps on up to a dozen pairs of states of 3 values.
PAIRS = 1e-9
# Spectral brackets and tails (in the largest entry) are closed to this relative gap, tails below this radius.
GAP = 1e-6
CLEAR = 0.9
# Eigenvalues of a nearly defective block are off by the root of the rounding.
EIGENVALUE = 1e-7
STRUCTURES = ("general", "general", "periodic", "nilpotent")
SETTINGS = [
    {},
    {"objective": "entropy"},
    {"discount": 0.9},
    {"dynamics": "asynchronous"},
    {"objective": "entropy", "discount": 0.95, "dynamics": "asynchronous"},
]
MORE_SETTINGS = [*SETTINGS, {"steps": 3}, {"steps": 2, "discount": 0.9, "objective": "entropy"}]


@dataclass(frozen=True, eq=False)
class Case:
    """A random model and policy, certified, beside what the definitions say of them."""

    model: ref.Model
    policy: ref.Policy
    mdp: tl.FactoredMDP
    twin: tl.SoftmaxPolicy
    certificate: Certificate
    options: dict[str, Any]
    kappa: int
    sites: Array | None

    @property
    def discount(self) -> float:
        return self.options.get("discount", 1.0)

    @property
    def entropy(self) -> float | Array:
        return self.policy.temperature if self.options.get("objective") == "entropy" else 0.0

    def influence(self, rung: str) -> Array:
        """The rung's H by definition (C^π for the asynchronous coupled one)."""
        if self.sites is not None and rung == "coupled":
            return ref.marginal_influence(self.model, self.policy)
        return ref.influence(self.model, self.policy, rung)

    def propagator(self, rung: str) -> Array:
        """Mᵀ / γ by definition."""
        matrix = self.influence(rung)
        return matrix if self.sites is None else ref.asynchronous_influence(matrix, self.sites)

    @property
    def reach(self) -> Array:
        """(N, K) γ ν_j E^a[j, k]."""
        moves = np.ones(self.model.n_coordinates) if self.sites is None else self.sites
        return self.discount * moves[:, None] * ref.action_sensitivity(self.model)

    def values(self, kappas: tuple[int, ...]) -> tuple[Array, Array, list[Array]]:
        """The joint kernel, h, and ĥ_κ for every κ asked for."""
        if self.sites is None:
            kernel = ref.transition(self.model)
        else:
            kernel = ref.asynchronous_transition(self.model, self.sites)
        matrix = ref.policy_transition(kernel, ref.product_policy(self.model, self.policy))
        reward = ref.policy_reward(self.model, self.policy, self.entropy)
        if self.discount < 1.0:
            exact = ref.discounted_value(matrix, reward, self.discount)
        else:
            exact = ref.poisson(matrix, reward)
            reward = reward - ref.stationary(matrix) @ reward
        short = [ref.truncated_value(matrix, reward, k, self.discount) for k in kappas]
        return kernel, exact, short

    def spans(self, kernel: Array, exact: Array, short: Array) -> Array:
        """(K,) largest span over a_k of ĝ_k − g_k, from the values that they are made of."""
        gap = ref.advantage(self.model, kernel, short - exact, 0.0, self.discount)
        gap = gap - ref.reward(self.model)
        agents = range(self.model.n_agents)
        blocks = [ref.block_values(self.model, self.policy, gap, k) for k in agents]
        return np.array([ref.span(block).max() for block in blocks])


def case(seed: int, options: dict[str, Any], kappa: int = 2, **model: Any) -> Case:
    model = {"unichain": True, "max_joint": 100, "structure": STRUCTURES[seed % 4], **model}
    drawn = draw(seed, policy={"minus_infinity": 0.15 * (seed % 2)}, **model)
    sites = None
    if options.get("dynamics") == "asynchronous":
        sites = np.random.default_rng(seed).dirichlet(np.ones(drawn[0].n_coordinates))
    certificate = tl.certify(drawn[2], drawn[3], kappa, site_law=sites, **options)
    return Case(*drawn, certificate, options, kappa, sites)


# Against the definitions ------------------------------------------------------------------------


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_matches_definitions(seed: int, options: dict[str, Any]) -> None:
    check_definitions(case(seed, options))


def check_definitions(it: Case) -> None:
    b = ref.local_reward_bound(it.model, it.policy, it.entropy)
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


def encloses(bound: SpectralBound, value: float) -> bool:
    """Whether a bracket holds a computed eigenvalue, and is as narrow as promised."""
    slack = EIGENVALUE * max(value, 1.0)
    narrow = bound.upper - bound.lower <= GAP * bound.upper
    return narrow and bound.lower - slack <= value <= bound.upper + slack


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
    b = ref.local_reward_bound(it.model, it.policy, it.entropy)
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
    for seed in range(1000 + 40 * block, 1040 + 40 * block):
        it = case(seed, options, kappa=seed % 5)
        if seed % 4 == block % 4:
            check_definitions(it)
        for name, ratio in check_truth(it).items():
            tightest[name] = max(tightest.get(name, 0.0), ratio)
    for name, ratio in tightest.items():
        record_property(f"tightest {name}", ratio)
        assert ratio <= 1.0 + SOLVE


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
    """h − ĥ_{κ+1} = γT (h − ĥ_κ) up to a constant, so its weighted norm falls by λ_w at every step."""
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
    """P(1 | s, a) = .2 + .5 s + .2 a, reward s, blind agent: h − ĥ_κ = ρ^{κ+1}/(1 − ρ) s and a constant."""
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


# κ(ε) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(400, 412))
def test_kappa_for_is_the_smallest(seed: int) -> None:
    it = case(seed, SETTINGS[seed % len(SETTINGS)])
    for rung in it.certificate.values():
        if CLEAR < rung.contraction.upper < 1.0:
            continue  # thousands of terms
        for epsilon in (1e3, 0.1, 1e-3, 1e-8):
            kappa = rung.kappa_for(epsilon)
            if not rung.certified:
                assert kappa == (math.inf if (it.reach > 0).any() else 0)
                continue
            assert kappa >= 0 and kappa == int(kappa)
            assert (rung.epsilon_at(int(kappa)) <= epsilon).all()
            if kappa > 0:
                assert (rung.epsilon_at(int(kappa) - 1) > epsilon).any()


def test_kappa_for_of_an_uncertified_rung_is_infinite() -> None:
    certificate = tl.certify(*ring())
    assert certificate["exact"].kappa_for(1e9) == math.inf
    assert certificate["coupled"].kappa_for(1e9) == 0
    with pytest.raises(tl.InputError, match="epsilon is 0"):
        certificate["coupled"].kappa_for(0.0)
    with pytest.raises(tl.InputError, match="epsilon is nan"):
        certificate["coupled"].kappa_for(math.nan)


# Infinities -------------------------------------------------------------------------------------


def ring(n: int = 3) -> tuple[tl.FactoredMDP, tl.SoftmaxPolicy]:
    """Certified by coupling, by nothing else."""
    mdp = sysadmin(n)
    return mdp, tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))


def test_infinities_are_explicit_and_zero_times_infinity_is_zero() -> None:
    """Coordinate 0 copies itself; agent 0 moves it, agent 1 moves nothing, agent 2 coordinate 1."""
    stay = np.stack([np.eye(2), 0.5 * np.ones((2, 2))], axis=1)
    kernels = [((0,), (0,), stay), ((), (2,), np.eye(2))]
    model = ref.Model((2, 2), (2, 2, 2), kernels, [((0,), (), np.array([0.0, 1.0]))])
    mdp = twin_model(model)
    policy = tl.SoftmaxPolicy.tabular(mdp, [()] * 3)
    certificate = tl.certify(mdp, policy, kappa=4)
    blunt = certificate["exact"]
    assert not blunt.certified and blunt.rho.upper >= 1.0
    assert np.isinf(blunt.tail).all() and np.isinf(blunt.poisson).all()
    assert blunt.epsilon.tolist() == [np.inf, 0.0, np.inf]
    np.testing.assert_allclose(blunt.delta_hat, [5.0, 0.0], rtol=ROUNDING)
    sharp = certificate["coupled"]  # agent 0 acts half the time, so coordinate 0 forgets
    assert sharp.certified and np.isfinite(sharp.tail).all()
    assert (certificate.epsilon == sharp.epsilon).all()
    np.testing.assert_allclose(sharp.tail, [2.0**-4, 0.0], rtol=GAP, atol=GAP * 2.0**-4)


def test_discount_certifies_what_the_average_reward_cannot() -> None:
    mdp, policy = ring()
    plain = tl.certify(mdp, policy)["exact"]
    discounted = tl.certify(mdp, policy, discount=0.7)["exact"]
    assert not plain.certified and discounted.certified
    assert discounted.rho.upper == plain.rho.upper
    assert encloses(discounted.contraction, 0.7 * 1.3775)
    assert np.isfinite(discounted.epsilon).all()


def test_asynchronous_contraction_is_about_one_minus_one_minus_rho_over_n() -> None:
    mdp, policy = ring(10)
    rung = tl.certify(mdp, policy, dynamics="asynchronous")["coupled"]
    assert encloses(rung.rho, 0.68875)
    assert encloses(rung.contraction, 1 - (1 - 0.68875) / 10)
    still = np.array([1.0] + [0.0] * 9)  # nine sites never move: nothing contracts
    stuck = tl.certify(mdp, policy, dynamics="asynchronous", site_law=still)["coupled"]
    assert not stuck.certified and stuck.contraction.upper >= 1.0


def test_models_without_agents_or_rewards_are_certified() -> None:
    copy = tl.LocalKernel((0,), (), [[0.9, 0.1], [0.5, 0.5]])
    alone = tl.FactoredMDP([2], [], [copy], [tl.LocalReward((0,), (), [0.0, 1.0])])
    for rung in tl.certify(alone, tl.SoftmaxPolicy.tabular(alone, []), kappa=0).values():
        assert rung.tail[0] == pytest.approx(2 / 3, rel=GAP)
        assert rung.epsilon.shape == (0,) and rung.kappa_for(1e-9) == 0
    idle = tl.FactoredMDP([2], [2], [copy], [])
    for rung in tl.certify(idle, tl.SoftmaxPolicy.tabular(idle, [(0,)])).values():
        assert rung.reward_oscillation[0] == rung.tail[0] == rung.delta_hat[0] == 0.0


# The mapping and bad input ----------------------------------------------------------------------


def test_certificate_is_a_mapping_of_the_rungs_asked_for() -> None:
    mdp, policy = ring()
    certificate = tl.certify(mdp, policy, 5, 0.9, rungs=("paper", "coupled"), objective="entropy")
    assert list(certificate) == ["paper", "coupled"] and len(certificate) == 2
    assert "paper" in certificate and "exact" not in certificate
    assert certificate.get("exact") is None
    assert [rung.rung for rung in certificate.values()] == ["paper", "coupled"]
    assert all(rung.kappa == 5 for rung in certificate.values())
    assert (certificate.kappa, certificate.discount) == (5, 0.9)
    assert (certificate.dynamics, certificate.objective) == ("synchronous", "entropy")
    with pytest.raises(KeyError, match="no rung 'exact'; this certificate has paper, coupled"):
        certificate["exact"]


def test_environment_is_computed_once_and_must_belong_to_the_model() -> None:
    mdp, policy = ring()
    environment = Environment(mdp)
    shared, own = tl.certify(mdp, policy, environment=environment), tl.certify(mdp, policy)
    assert shared.environment is environment and shared.floor is environment.floor
    for name, rung in own.items():
        assert (rung.matrix.toarray() == shared[name].matrix.toarray()).all()
        assert (rung.tail == shared[name].tail).all()
    with pytest.raises(tl.InputError, match="environment"):
        tl.certify(mdp, policy, environment=Environment(sysadmin(3, cost=0.1)))


def test_certificate_ignores_later_changes_of_the_policy() -> None:
    mdp, policy = ring()
    certificate = tl.certify(mdp, policy)
    expected = tl.certify(mdp, policy)["coupled"].tail
    policy.networks[0].table.data[..., 0] += 3.0
    policy.set_temperature(0.1)
    assert (certificate["coupled"].tail == expected).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": -1}, "kappa is -1"),
        ({"kappa": 1.5}, "kappa is 1.5"),
        ({"kappa": math.nan}, "kappa is nan"),
        ({"kappa": math.inf}, "kappa is inf"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": math.nan}, "steps is nan"),
        ({"steps": 2, "dynamics": "asynchronous"}, "for synchronous dynamics; use steps=1"),
        ({"discount": 0.0}, "discount is 0"),
        ({"discount": 1.01}, "discount is 1.01"),
        ({"discount": math.nan}, "discount is nan"),
        ({"dynamics": "both"}, "dynamics is 'both'; choose synchronous or asynchronous"),
        ({"objective": "both"}, "objective is 'both'; choose reward or entropy"),
        ({"rungs": ("exact", "sharp")}, "rungs holds 'sharp'; choose from coupled, exact"),
        ({"rungs": ()}, "rungs is empty"),
        ({"site_law": [1, 0, 0]}, "site_law is given, but dynamics is synchronous"),
        ({"dynamics": "asynchronous", "site_law": [0.5, 0.5]}, r"site_law has shape \(2,\)"),
        ({"dynamics": "asynchronous", "site_law": [0.5, 0.6, 0.1]}, "sum 1.2"),
        ({"dynamics": "asynchronous", "site_law": [1.5, -0.5, 0.0]}, "a law on the 3 coord"),
        ({"dynamics": "asynchronous", "site_law": [0.5, 0.5, math.nan]}, "sum nan"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(tl.InputError, match=message):
        tl.certify(*ring(), **options)


def test_a_policy_of_another_model_is_refused() -> None:
    mdp, _ = ring()
    _, other = ring(4)
    with pytest.raises(tl.InputError, match="names 4 agents, but the model has 3"):
        tl.certify(mdp, other)
