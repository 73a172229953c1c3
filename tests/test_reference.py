"""The oracle itself: hand-computed examples, plain loops, and the theorems on random models."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import reference as ref
from scipy.optimize import minimize

# Sums of a few hundred products of numbers of size one in float64.
ROUNDING = 1e-13
# Least squares on at most 300 states whose rows are mixed with uniform (condition below 1e4).
SOLVE = 1e-10
COIN = np.array([0.5, 0.5])


def uniform(model: ref.Model, scopes: list[tuple[int, ...]] | None = None) -> ref.Policy:
    scopes = [()] * model.n_agents if scopes is None else scopes
    shapes = [
        [model.state_sizes[i] for i in o] + [a]
        for o, a in zip(scopes, model.action_sizes, strict=True)
    ]
    return ref.Policy(scopes, [np.zeros(s) for s in shapes], np.ones(model.n_agents))


def bernoulli(p: np.ndarray) -> np.ndarray:
    """Tables of P(1) to tables of the two probabilities."""
    return np.stack([1.0 - p, p], axis=-1)


def jair_ring(n: int, cost: float = 0.75) -> ref.Model:
    idle = np.array([[0.0238, 0.475], [0.0475, 0.95]])
    table = bernoulli(np.stack([idle, np.ones((2, 2))], axis=-1))
    term = np.array([[0.0, -cost], [1.0, 1.0 - cost]])
    kernels = [(((j - 1) % n, j), (j,), table) for j in range(n)]
    return ref.Model((2,) * n, (2,) * n, kernels, [((j,), (j,), term) for j in range(n)])


def sis_ring(n: int, beta: list[float], delta: list[float], outside: float, cost: float):
    infected = np.add.outer([0, 1], [0, 1])
    catch = 1 - (1 - outside) * (1 - np.array(beta)) ** infected[..., None]
    table = bernoulli(np.stack([catch, np.broadcast_to(1 - np.array(delta), (2, 2, 2))], axis=2))
    term = np.array([[0.0, -cost], [-1.0, -1.0 - cost]])
    kernels = [(((j - 1) % n, (j + 1) % n, j), (j,), table) for j in range(n)]
    return ref.Model((2,) * n, (2,) * n, kernels, [((j,), (j,), term) for j in range(n)])


def one_coordinate(p: list[list[float]], r: list[float]) -> ref.Model:
    """An uncontrolled chain: one coordinate, one agent with one action."""
    return ref.Model((2,), (1,), [((0,), (), np.array(p))], [((0,), (), np.array(r))])


def random_case(seed: int, **options) -> tuple[np.random.Generator, ref.Model, ref.Policy]:
    rng = np.random.default_rng(seed)
    structure = ("general", "general", "periodic", "nilpotent")[seed % 4]
    options = {"unichain": True, "mixing": 0.1, "max_joint": 100, "structure": structure, **options}
    model = ref.random_model(rng, **options)
    return rng, model, ref.random_policy(rng, model, minus_infinity=0.25 * (seed % 2))


def spread(model: ref.Model, policy: ref.Policy, k: int) -> np.ndarray:
    return ref.at_states(model, policy.scopes[k], policy.log_probabilities[k])


# Examples by hand --------------------------------------------------------------------------------


def test_sleepy_agent() -> None:
    kernels = [((), (), COIN), ((), (0,), np.eye(2))]
    model = ref.Model((2, 2), (2, 2), kernels, [])
    p = np.array([[0.5, 0.5], [0.2, 0.8]])
    policy = ref.Policy([(0,), ()], [np.log(p), np.zeros(2)], np.ones(2))
    assert np.array_equal(ref.state_sensitivity(model), np.zeros((2, 2)))
    assert np.array_equal(ref.action_sensitivity(model), [[0, 0], [1, 0]])
    alpha = [[0, 0], [0.3, 0]]
    assert np.allclose(ref.influence(model, policy, "exact"), alpha, atol=1e-15, rtol=0)
    assert np.allclose(ref.marginal_influence(model, policy), alpha, atol=1e-15, rtol=0)


@pytest.mark.parametrize(("mutual", "radius"), [(False, 0.0), (True, 1.0)])
def test_leader_and_follower(mutual: bool, radius: float) -> None:
    leader = ((1,), (), np.eye(2)) if mutual else ((), (), COIN)
    model = ref.Model((2, 2), (2, 2), [leader, ((0,), (), np.eye(2))], [])
    policy = uniform(model)
    assert ref.influence(model, policy, "exact")[1, 0] == 1.0
    assert ref.spectral_radius(ref.influence(model, policy, "exact")) == pytest.approx(radius)
    # The follower repeats the leader one step late, which is a second closed class if mutual.
    matrix = ref.policy_transition(ref.transition(model), ref.product_policy(model, policy))
    assert len(ref.closed_classes(matrix)) == (3 if mutual else 1)
    if mutual:
        with pytest.raises(ValueError, match="3 closed classes"):
            ref.stationary(matrix)


def test_hub_and_spokes_paper_rung() -> None:
    kernels = [((), (), COIN), *[((), (0,), np.eye(2))] * 2]
    model = ref.Model((2, 2, 2), (2, 1, 1), kernels, [])
    lipschitz, tau = np.array([0.3, 0.5, 4.0]), 0.8
    level = (ref.grid([2, 2, 2]) @ lipschitz).reshape(2, 2, 2)
    logits = [np.stack([level, -level], axis=-1), np.zeros(1), np.zeros(1)]
    policy = ref.Policy([(0, 1, 2), (), ()], logits, np.full(3, tau))
    assert np.allclose(ref.logit_lipschitz(model, policy)[0], lipschitz, atol=1e-15, rtol=0)
    radius = ref.spectral_radius(ref.influence(model, policy, "paper"))
    assert radius == pytest.approx(0.5 / (2 * tau) + 1.0, abs=1e-14)


def test_line_of_messages_is_nilpotent_but_fails_the_action_supremum_norm() -> None:
    copy_if_sent = bernoulli(np.array([[0.0, 0.8], [0.0, 1.0]]))
    kernels = [((1,), (), np.eye(2)), ((2,), (1,), copy_if_sent), ((), (2,), np.eye(2))]
    model = ref.Model((2, 2, 2), (1, 2, 2), kernels, [])
    assert ref.spectral_radius(ref.state_sensitivity(model)) == 0.0
    supremum = [[0.0, 1.0, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]]
    assert np.allclose(ref.action_sup(model), supremum, atol=1e-15, rtol=0)


def test_c_pi_is_no_certificate_with_shared_actions() -> None:
    xor = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], float)
    model = ref.Model((2, 2), (2, 2), [((), (0,), np.eye(2)), ((), (0, 1), xor)], [])
    copies = np.where(np.eye(2) > 0, 0.0, -np.inf)
    policy = ref.Policy([(), (0,)], [np.zeros(2), copies], np.ones(2))
    matrix = ref.policy_transition(ref.transition(model), ref.product_policy(model, policy))
    equal = np.array([1.0, 0.0, 0.0, 1.0])
    assert np.array_equal(ref.marginal_influence(model, policy), np.zeros((2, 2)))
    assert np.array_equal(ref.oscillation(model, matrix @ equal), [1.0, 0.0])
    assert ref.shared_agents(model) == [0]
    assert np.array_equal(ref.coupled_influence(model, policy), [[0, 0], [1, 0]])


def test_delta_h_can_stay_below_delta_hat() -> None:
    model = one_coordinate([[0.25, 0.75], [0.75, 0.25]], [0.0, 1.0])
    solution, h = ref.chain(model, uniform(model)), ref.influence(model, uniform(model))
    assert ref.oscillation(model, solution.poisson) == pytest.approx(2 / 3, abs=1e-15)
    assert ref.delta_hat(h, np.ones(1), 60) == pytest.approx(2.0, abs=1e-15)
    assert ref.tail(h, np.ones(1), -1) == pytest.approx(2.0, abs=1e-15)


def test_half_the_tail_norm_bounds_the_value_error_up_to_a_constant_only() -> None:
    mean = bernoulli(ref.grid([2] * 8).mean(-1).reshape([2] * 8))
    others = [((), (), COIN)] * 7
    model = ref.Model(
        (2,) * 8, (1,), [(tuple(range(8)), (), mean), *others], [((0,), (), np.array([0.0, 1.0]))]
    )
    solution = ref.chain(model, uniform(model))
    error = solution.poisson - solution.truncated(0)
    tails = ref.tail(
        ref.influence(model, uniform(model)), ref.oscillation(model, solution.reward), 0
    )
    assert np.allclose(tails, 1 / 7, atol=1e-14, rtol=0)  # the infinity-norm bound is half of that
    assert np.abs(error).max() == pytest.approx(4 / 7, abs=1e-13)
    assert tails.sum() / 2 == pytest.approx(4 / 7, abs=1e-13)
    # With d.h = 0 and a skewed d the error exceeds half the tail; half its span never does.
    model = one_coordinate([[0.9, 0.1], [0.5, 0.5]], [0.0, 1.0])
    solution = ref.chain(model, uniform(model))
    error = solution.poisson - solution.truncated(0)
    tails = ref.tail(ref.influence(model, uniform(model)), np.ones(1), 0)
    assert tails == pytest.approx(2 / 3, abs=1e-14)
    assert np.abs(error).max() == pytest.approx(5 / 9, abs=1e-14)
    assert np.ptp(error) / 2 == pytest.approx(1 / 3, abs=1e-14)


def test_jair_ring() -> None:
    model = jair_ring(3)
    scopes = [((j - 1) % 3, j) for j in range(3)]
    policy = ref.greedy_policy(model, scopes, [np.array([[1, 1], [1, 0]])] * 3)
    assert ref.spectral_radius(ref.state_sensitivity(model)) == pytest.approx(1.3775, abs=1e-13)
    assert ref.spectral_radius(ref.influence(model, uniform(model))) == pytest.approx(0.68875)
    assert ref.spectral_radius(ref.influence(model, policy)) == pytest.approx(0.1, abs=1e-13)
    for rung in ref.RUNGS[1:]:
        assert ref.spectral_radius(ref.influence(model, policy, rung)) == pytest.approx(3.3299)
    assert ref.chain(model, policy).average / 3 == pytest.approx(0.887747, abs=5e-7)
    own = ref.greedy_policy(jair_ring(4), [(j,) for j in range(4)], [np.array([1, 0])] * 4)
    assert ref.chain(jair_ring(4), own).average / 4 == pytest.approx(0.85335, abs=5e-6)
    gains = {0.5: 0.909980, 0.75: 0.887747, 1.0: 0.865514, 1.5: 0.821048}
    for cost, gain in gains.items():
        assert ref.optimal_average(jair_ring(3, cost)) / 3 == pytest.approx(gain, abs=5e-7)
    best, _ = ref.best_deterministic(model, scopes)
    assert best == pytest.approx(ref.optimal_average(model), abs=1e-8)


def test_several_coupled_steps_on_rings() -> None:
    model = sis_ring(4, [0.4, 0.1], [0.2, 0.5], 0.01, 0.1)
    figures = {1: 1.135, 2: 1.054, 3: 1.008, 4: 0.979, 8: 0.926}
    for steps, figure in figures.items():
        matrix = ref.coupled_influence(model, uniform(model), steps)
        assert ref.spectral_radius(matrix) ** (1 / steps) == pytest.approx(figure, abs=5e-4)
    model = sis_ring(4, [0.2, 0.05], [0.3, 0.6], 0.01, 0.1)
    assert ref.spectral_radius(ref.state_sensitivity(model)) == pytest.approx(1.086, abs=1e-13)
    assert ref.optimal_average(model) / 4 == pytest.approx(-0.0248539, abs=5e-8)
    field = np.arange(-2, 3, 2)[np.add.outer([0, 1], [0, 1])][..., None] + np.array([0.0, 1.0])
    table = bernoulli(0.5 * (1 + np.tanh(0.6 * field)))
    kernels = [(((j - 1) % 4, (j + 1) % 4), (j,), table) for j in range(4)]
    term = np.array([[0.0, -0.2], [1.0, 0.8]])
    model = ref.Model((2,) * 4, (2,) * 4, kernels, [((j,), (j,), term) for j in range(4)])
    # The joint optimum: push up unless both neighbours are up.
    scopes = [((j - 1) % 4, (j + 1) % 4) for j in range(4)]
    policy = ref.greedy_policy(model, scopes, [np.array([[1, 1], [1, 0]])] * 4)
    average = ref.chain(model, policy).average
    assert average == pytest.approx(ref.optimal_average(model), abs=1e-9)
    figures = {1: 1.074, 2: 0.858, 3: 0.773, 4: 0.730, 8: 0.666}
    for steps, figure in figures.items():
        matrix = ref.coupled_influence(model, policy, steps)
        assert ref.spectral_radius(matrix) ** (1 / steps) == pytest.approx(figure, abs=5e-4)


def test_exact_and_coupled_are_not_monotone_in_temperature() -> None:
    model = jair_ring(3)
    scopes = [(j,) for j in range(3)]
    logits = np.array([[0.0, 1.0], [0.0, -0.05]])  # reboot a machine that is off; one that is on?

    def radius(tau: float, rung: str) -> float:
        policy = ref.Policy(scopes, [logits] * 3, np.full(3, tau))
        return ref.spectral_radius(ref.influence(model, policy, rung))

    coupled = [radius(tau, "coupled") for tau in (10.0, 0.2, 0.002)]
    assert coupled[0] > coupled[1] + 0.1 and coupled[2] > coupled[1] + 0.1
    assert coupled[2] == pytest.approx(1.0, abs=1e-9)
    for rung in ("span", "tanh", "paper"):
        values = [radius(tau, rung) for tau in (10.0, 2.0, 1.0, 0.2, 0.002)]
        assert (np.diff(values) >= -ROUNDING).all()
    logits = np.array([[0.0, 1.0], [0.0, 2.0]])
    exact = [radius(tau, "exact") for tau in (10.0, 1.0, 0.05)]
    assert exact[1] > max(exact[0], exact[2]) + 0.1


def test_minus_infinity_rules() -> None:
    model = ref.Model((2, 2), (3,), [((), (), COIN)] * 2, [])
    z = np.array([[[0.0, 1.0, -np.inf], [3.0, 1.0, -np.inf]], [[0.0, 1.0, 2.0]] * 2])
    policy = ref.Policy([(1, 0)], [z], np.array([2.0]))
    # Coordinate 0 (second axis): action 2 is dropped and the rest differ by (3, 0), centred 1.5.
    assert np.array_equal(ref.logit_spans(model, policy), [[3.0, np.inf]])
    assert np.array_equal(ref.logit_lipschitz(model, policy), [[1.5, np.inf]])
    for rung in ("span", "tanh", "paper"):
        sensitivity = ref.policy_sensitivity(model, policy, rung)
        assert sensitivity[0, 1] == 1.0
        assert sensitivity[0, 0] == (0.375 if rung == "paper" else math.tanh(0.375))


def test_softmax_bound_is_attained() -> None:
    for c in (0.1, 1.0, 7.0):
        # Two actions, odds e^(c/2) against e^(-c/2).
        model = one_coordinate([[0.5, 0.5]] * 2, [0.0, 0.0])
        model = ref.Model((2,), (2,), model.kernels, [])
        z = np.array([[c / 4, -c / 4], [-c / 4, c / 4]])
        policy = ref.Policy([(0,)], [z], np.ones(1))
        exact, spans = (ref.policy_sensitivity(model, policy, x) for x in ("exact", "span"))
        assert exact == pytest.approx(math.tanh(c / 4), abs=1e-15)
        assert spans == pytest.approx(exact, abs=1e-15)


def test_scope_average_and_error() -> None:
    model = ref.Model((2, 2), (2,), [((), (), COIN)] * 2, [])
    g = np.array([[0.0, 1.0], [4.0, 0.0], [2.0, 2.0], [6.0, 0.0]])
    law = np.array([0.75, 0.25, 0.0, 0.0])  # s_0 = 1 has no mass: uniform there
    average = ref.scope_average(model, (0,), g, law)
    assert np.array_equal(average, [[1.0, 0.75], [4.0, 1.0]])
    assert np.array_equal(ref.scope_error(model, (0,), g, average), [4.25 - 1.0 + 0.5, 3.0])
    assert np.array_equal(ref.scope_average(model, (), g, law), [1.0, 0.75])
    product = ref.product_law(model, [np.array([0.5, 0.5]), np.array([0.25, 0.75])])
    assert np.array_equal(ref.scope_average(model, (0,), g, product), [[3.0, 0.25], [5.0, 0.5]])


# Plain loops and independent solvers -------------------------------------------------------------


def differ_only(x: tuple[int, ...], y: tuple[int, ...], i: int) -> bool:
    return all((a != b) == (m == i) for m, (a, b) in enumerate(zip(x, y, strict=True)))


@pytest.mark.parametrize("seed", range(6))
def test_vectorised_definitions_against_plain_loops(seed: int) -> None:
    _, model, policy = random_case(seed, max_joint=40, sizes=(1, 3), unichain=seed % 2 == 0)
    states = list(itertools.product(*map(range, model.state_sizes)))
    actions = list(itertools.product(*map(range, model.action_sizes)))
    coordinates, agents = range(model.n_coordinates), range(model.n_agents)

    def law(j, s, a):
        parents, readers, table = model.kernels[j]
        return table[tuple(s[i] for i in parents) + tuple(a[k] for k in readers)]

    def pi(k, s):
        return policy.probabilities[k][tuple(s[i] for i in policy.scopes[k])]

    def tv(p, q):
        return sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2

    def weight(members, s, a):
        return math.prod(pi(k, s)[a[k]] for k in members)

    kernel = np.array(
        [
            [[math.prod(law(j, s, a)[t[j]] for j in coordinates) for t in states] for a in actions]
            for s in states
        ]
    )
    assert np.allclose(ref.transition(model), kernel, atol=ROUNDING, rtol=0)
    rewards = [
        [
            sum(t[tuple(s[i] for i in o) + tuple(a[k] for k in u)] for o, u, t in model.rewards)
            for a in actions
        ]
        for s in states
    ]
    assert np.allclose(ref.reward(model), rewards, atol=ROUNDING, rtol=0)
    shared = ref.shared_agents(model)
    private = [k for k in agents if k not in shared]

    def averaged(j, s, b):
        """Private actions out, the shared ones as in b."""
        fit = [a for a in actions if all(a[k] == b[k] for k in shared)]
        return sum(weight(private, s, a) * law(j, s, a) for a in fit)

    def coupling(k, s, t, a, b):
        p, q = pi(k, s), pi(k, t)
        low, gap = np.minimum(p, q), tv(p, q)
        diagonal = low[a] if a == b else 0.0
        return diagonal + ((p[a] - low[a]) * (q[b] - low[b]) / gap if gap > 0 else 0.0)

    picks = list(
        itertools.product(*[range(model.action_sizes[k]) if k in shared else [0] for k in agents])
    )
    shape = (model.n_coordinates, model.n_coordinates)
    direct, marginal, coupled = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    sensitivity = np.zeros((model.n_agents, model.n_coordinates))
    reach = np.zeros((model.n_coordinates, model.n_agents))
    for j, s in itertools.product(coordinates, states):
        for k, a, b in itertools.product(agents, actions, actions):
            if differ_only(a, b, k):
                reach[j, k] = max(reach[j, k], tv(law(j, s, a), law(j, s, b)))
        for i, t in itertools.product(coordinates, states):
            if not differ_only(s, t, i):
                continue
            for k in agents:
                sensitivity[k, i] = max(sensitivity[k, i], tv(pi(k, s), pi(k, t)))
            direct[j, i] = max(direct[j, i], *(tv(law(j, s, a), law(j, t, a)) for a in actions))
            ours, theirs = (
                sum(weight(agents, x, a) * law(j, x, a) for a in actions) for x in (s, t)
            )
            marginal[j, i] = max(marginal[j, i], tv(ours, theirs))
            total = sum(
                math.prod(coupling(k, s, t, a[k], b[k]) for k in shared)
                * tv(averaged(j, s, a), averaged(j, t, b))
                for a in picks
                for b in picks
            )
            coupled[j, i] = max(coupled[j, i], total)
    for computed, looped in [
        (ref.state_sensitivity(model), direct),
        (ref.action_sensitivity(model), reach),
        (ref.policy_sensitivity(model, policy), sensitivity),
        (ref.marginal_influence(model, policy), marginal),
        (ref.coupled_influence(model, policy), coupled),
    ]:
        assert np.allclose(computed, looped, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("objective", ["reward", "entropy"])
@pytest.mark.parametrize("seed", range(4))
def test_prox_step_against_a_numerical_optimiser(seed: int, objective: str) -> None:
    rng = np.random.default_rng(seed)
    z, g = rng.normal(size=3), rng.normal(size=3)
    tau, prox = rng.uniform(0.3, 2.0, size=2)
    old = z / tau - np.log(np.exp(z / tau).sum())

    def value(x: np.ndarray) -> float:
        log_mu = x - np.log(np.exp(x).sum())
        mu = np.exp(log_mu)
        bonus = tau * (objective == "entropy") * (mu @ log_mu)
        return float(mu @ g - bonus - prox * (mu @ (log_mu - old)))

    ours = value(ref.prox_logits(z, g, tau, prox, objective) / tau)
    found = -minimize(lambda x: -value(x), np.zeros(3), tol=1e-10).fun
    assert ours >= found - 1e-12
    # BFGS with finite differences stops at gradients of about 1e-6, so at values off by its square.
    assert found == pytest.approx(ours, abs=1e-9)
    if objective == "entropy":
        assert np.array_equal(ref.prox_logits(np.full(3, -np.inf), g, tau, 0.0, objective), g)


@pytest.mark.parametrize("seed", range(4))
def test_joint_optimum_against_enumeration(seed: int) -> None:
    _, model, _ = random_case(
        seed, n_coordinates=(1, 3), n_agents=(1, 2), sizes=(1, 2), max_joint=16
    )
    scopes = [tuple(range(model.n_coordinates))] * model.n_agents
    best, tables = ref.best_deterministic(model, scopes)
    assert best == pytest.approx(ref.optimal_average(model), abs=1e-8)  # the solver's tolerance
    policy = ref.greedy_policy(model, scopes, tables)
    assert ref.chain(model, policy).average == pytest.approx(best, abs=SOLVE)


@pytest.mark.parametrize("seed", range(8))
def test_stationary_law_and_values_against_their_equations(seed: int) -> None:
    rng, model, policy = random_case(seed)
    solution = ref.chain(model, policy, policy.temperature)
    law, matrix, r = solution.stationary, solution.matrix, solution.reward
    assert law.min() > -SOLVE and np.abs(law @ matrix - law).max() < SOLVE
    assert abs(law @ solution.poisson) < SOLVE
    assert np.ptp(ref.odoni_bounds(matrix, r, solution.poisson)) < SOLVE
    low, high = ref.odoni_bounds(matrix, r, rng.normal(size=len(r)))
    assert low - ROUNDING <= solution.average <= high + ROUNDING
    # Cesaro averages also serve periodic chains; the lazy chain has the same law and forgets.
    lazy = np.linalg.matrix_power(0.5 * (matrix + np.eye(len(r))), 1 << 12)
    assert np.allclose(lazy, law, atol=SOLVE, rtol=0)
    value, initial = ref.discounted_value(matrix, r, 0.9), rng.dirichlet(np.ones(len(r)))
    series = ref.truncated_value(matrix, r, 300, 0.9)  # 0.9^301 / 0.1 is below 2e-13
    assert np.allclose(series, value, atol=1e-11 * (1 + np.abs(r).max()), rtol=0)
    occupancy = ref.discounted_occupancy(matrix, initial, 0.9)
    assert occupancy @ r / 0.1 == pytest.approx(initial @ value, abs=SOLVE)
    advantages = ref.advantage(model, solution.kernel, solution.poisson, solution.average)
    means = (ref.product_policy(model, policy) * advantages).sum(-1)
    entropies = [t * ref.agent_entropy(model, policy, k) for k, t in enumerate(policy.temperature)]
    assert np.allclose(means, -np.sum(entropies, axis=0), atol=SOLVE, rtol=0)


# Theorems on random models -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_ladder_and_one_step_oscillation(seed: int) -> None:
    rng, model, policy = random_case(seed, unichain=False)
    ladder = [ref.marginal_influence(model, policy)]
    ladder += [ref.influence(model, policy, rung) for rung in ref.RUNGS]
    for lower, upper in itertools.pairwise(ladder):
        assert (lower <= upper + 2e-15 * (1 + upper)).all()
    if not ref.shared_agents(model):
        assert np.allclose(ladder[0], ladder[1], atol=ROUNDING, rtol=0)
    joint = ref.product_policy(model, policy)
    matrix = ref.policy_transition(ref.transition(model), joint)
    sites = rng.dirichlet(np.ones(model.n_coordinates))
    moved = ref.policy_transition(ref.asynchronous_transition(model, sites), joint)
    assert np.allclose(moved.sum(-1), 1.0, atol=ROUNDING, rtol=0)
    slow = ref.asynchronous_influence(ladder[0], sites)
    for f in (rng.normal(size=len(matrix)), (rng.random(len(matrix)) < 0.5).astype(float)):
        delta = ref.oscillation(model, f)
        assert (ref.oscillation(model, matrix @ f) <= ladder[1].T @ delta + ROUNDING).all()
        assert (ref.oscillation(model, moved @ f) <= slow.T @ delta + ROUNDING).all()


@pytest.mark.parametrize("seed", range(30))
def test_action_supremum_dominates_its_parts(seed: int) -> None:
    _, model, _ = random_case(seed, square=True, n_coordinates=(1, 3), sizes=(1, 2), max_joint=36)
    supremum = ref.action_sup(model)
    assert (supremum <= 1 + ROUNDING).all()
    parts = np.maximum(ref.state_sensitivity(model), ref.action_sensitivity(model))
    assert (parts <= supremum + ROUNDING).all()


@pytest.mark.parametrize("seed", range(16))
def test_several_steps(seed: int) -> None:
    rng, model, policy = random_case(seed, n_coordinates=(1, 3), max_joint=36)
    powers = [ref.coupled_influence(model, policy, m) for m in (1, 2, 3)]
    distance = ref.coupled_distance(model, policy, 1)
    for i in range(model.n_coordinates):
        s, t = ref.pairs(model, i)
        once = distance[s, t].max(0, initial=0.0)
        assert np.allclose(once, powers[0][:, i], atol=ROUNDING, rtol=0)
    solution = ref.chain(model, policy)
    f = rng.normal(size=len(solution.reward))
    for m, matrix in enumerate(powers, start=1):
        after = ref.oscillation(model, np.linalg.matrix_power(solution.matrix, m) @ f)
        assert (after <= matrix.T @ ref.oscillation(model, f) + ROUNDING).all()
    b = ref.oscillation(model, solution.reward)
    for m, kappa in itertools.product((1, 2, 3), (-1, 0, 1, 4)):
        error = solution.poisson - (solution.truncated(kappa) if kappa >= 0 else 0.0)
        bound = ref.several_step_tail(powers[:m], b, kappa)
        assert (ref.oscillation(model, error) <= bound + SOLVE).all()
        if m == 1:
            assert np.allclose(bound, ref.tail(powers[0], b, kappa), atol=SOLVE, rtol=0)


@pytest.mark.parametrize("seed", range(30))
def test_value_bounds_tails_and_advantage_errors(seed: int) -> None:
    rng, model, policy = random_case(seed)
    entropy = policy.temperature * (seed // 4 % 2)
    matrix, reach = ref.influence(model, policy), ref.action_sensitivity(model)
    solution = ref.chain(model, policy, entropy)
    b = ref.oscillation(model, solution.reward)
    assert (b <= ref.local_reward_bound(model, policy, entropy) + ROUNDING).all()
    sites = rng.dirichlet(np.ones(model.n_coordinates))
    moves = ref.asynchronous_transition(model, sites)
    slow = ref.chain(model, policy, entropy, kernel=moves)
    influence = ref.asynchronous_influence(ref.marginal_influence(model, policy), sites)
    value = ref.discounted_value(solution.matrix, solution.reward, 0.9)
    poisson = ref.oscillation(model, solution.poisson)
    assert (poisson <= ref.tail(matrix, b, -1) + SOLVE).all()
    for kappa in (0, 2):
        short = solution.truncated(kappa)
        bound = ref.delta_hat(matrix, b, kappa)
        assert (ref.oscillation(model, short) <= bound * (1 + ROUNDING) + ROUNDING).all()
        discounted = ref.truncated_value(solution.matrix, solution.reward, kappa, 0.9)
        for kernel, truth, guess, tails, weights, gamma in [
            (solution.kernel, solution.poisson, short, ref.tail(matrix, b, kappa), reach, 1.0),
            (solution.kernel, value, discounted, ref.tail(matrix, b, kappa, 0.9), 0.9 * reach, 0.9),
            (
                moves,
                slow.poisson,
                slow.truncated(kappa),
                ref.tail(influence, b, kappa),
                sites[:, None] * reach,
                1.0,
            ),
        ]:
            assert (ref.oscillation(model, truth - guess) <= tails + SOLVE).all()
            errors = ref.epsilon(weights, tails)
            assert (errors <= tails.sum() + SOLVE).all()
            for k in range(model.n_agents):
                exact, cut = (
                    ref.block_values(model, policy, ref.advantage(model, kernel, v, 0.0, gamma), k)
                    for v in (truth, guess)
                )
                assert ref.span(cut - exact).max() <= errors[k] + SOLVE


def test_the_reward_alone_does_not_bound_the_entropy_objective() -> None:
    model = ref.Model((2,), (2,), [((), (), COIN)], [((), (), np.array(0.0))])
    policy = ref.Policy([(0,)], [np.array([[0.0, 0.0], [0.0, 2.0]])], np.ones(1))
    solution = ref.chain(model, policy, 1.0)
    assert ref.oscillation(model, ref.policy_reward(model, policy)) == 0.0
    assert ref.oscillation(model, solution.poisson) > 0.1


def prox_block(seed: int, objective: str, discount: float) -> tuple[float, dict, float]:
    """A random block with every kind of error: its gain, named ledger and direct ledger."""
    rng, model, policy = random_case(seed)
    k, kappa = int(rng.integers(model.n_agents)), int(rng.integers(4))
    tau, prox = policy.temperature[k], float(np.exp(rng.uniform(-2, 2)))
    entropy = policy.temperature * (objective == "entropy")
    average = discount == 1.0

    def solve(candidate: ref.Policy):
        solution = ref.chain(model, candidate, entropy)
        if average:
            return solution, solution.poisson, solution.truncated(kappa)
        parts = solution.matrix, solution.reward
        value = ref.discounted_value(*parts, discount)
        return solution, value, ref.truncated_value(*parts, kappa, discount)

    old, value, short = solve(policy)
    exact, cut = (
        ref.block_values(model, policy, ref.advantage(model, old.kernel, v, 0.0, discount), k)
        for v in (value, short)
    )
    scope = policy.scopes[k]
    law = old.stationary if seed % 2 else ref.uniform_law(model)
    now = ref.scope_average(model, scope, cut, law)
    used = now + rng.normal(size=now.shape) * (0.0, 0.3)[seed // 2 % 2]
    error = rng.normal(size=now.shape) * (0.0, 0.01, 0.3, 3.0)[seed // 3 % 4]
    policy_new = policy.replace(
        k, ref.prox_logits(policy.logits[k], used, tau, prox, objective) + error
    )
    new, value_new, _ = solve(policy_new)
    initial = rng.dirichlet(np.ones(len(model.states)))
    gain = new.average - old.average if average else initial @ (value_new - value)
    law = new.stationary
    if not average:
        law = ref.discounted_occupancy(new.matrix, initial, discount)
    logs = law, spread(model, policy_new, k), spread(model, policy, k)
    bonus = tau * (objective == "entropy")
    assert ref.direct_ledger(*logs, exact, entropy=bonus, discount=discount) == pytest.approx(
        gain, abs=SOLVE * 100
    )
    epsilon = ref.span(cut - exact).max()
    if seed % 3 == 0:
        gamma = discount
        tails = ref.tail(
            ref.influence(model, policy), ref.oscillation(model, old.reward), kappa, gamma
        )
        epsilon = ref.epsilon(gamma * ref.action_sensitivity(model), tails)[k]
    direct = ref.direct_ledger(*logs, cut, entropy=bonus, epsilon=epsilon, discount=discount)
    named = ref.named_ledger(
        *logs,
        prox=prox,
        temperature=tau,
        objective=objective,
        epsilon=epsilon,
        omega=ref.at_states(model, scope, ref.scope_error(model, scope, cut, now)),
        fit=ref.at_states(model, scope, error),
        stale=ref.at_states(model, scope, used - now),
        discount=discount,
    )
    return gain, named, direct


@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("objective", ["reward", "entropy"])
@pytest.mark.parametrize("seed", range(15))
def test_ledger_is_below_the_realised_gain(seed: int, objective: str, discount: float) -> None:
    gain, named, direct = prox_block(seed, objective, discount)
    slack = SOLVE * 100  # two solves and a division by 1 - gamma
    assert direct <= gain + slack
    assert named["guarantee"] <= direct + slack
    assert min(named[name] for name in named if name != "guarantee") >= 0.0


@pytest.mark.parametrize("prox", [0.3, 1.0, 4.0])
def test_fit_error_factor_is_attained_and_prox_over_tau_fails_for_entropy(prox: float) -> None:
    model = ref.Model((1,), (2,), [((), (), np.ones(1))], [])
    tau, shift = 0.7, 0.5
    old = ref.Policy([()], [np.zeros(2)], np.array([tau]))
    error = np.array([shift, 0.0])  # the advantage is 0, so the target is no change
    new = old.replace(0, error)
    for objective in ("reward", "entropy"):
        weight = tau * (objective == "entropy")
        gain = ref.objective_value(model, new, weight) - ref.objective_value(model, old, weight)
        terms = ref.named_ledger(
            np.ones(1),
            spread(model, new, 0),
            spread(model, old, 0),
            prox=prox,
            temperature=tau,
            objective=objective,
            fit=error,
        )
        assert terms["guarantee"] == pytest.approx(gain, abs=1e-14)
        factor = prox / (prox + weight)  # of prox / tau against (prox + weight) / tau
        claimed = terms["prox_gain"] - factor * terms["fit_error"]
        assert (claimed > gain + 0.01) == (objective == "entropy")


def test_full_scopes_improve_and_the_anchored_gain_has_the_reversed_kl() -> None:
    printed = wrong_law = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        model = ref.random_model(rng, unichain=True, mixing=0.05, max_joint=60, n_agents=(1, 2))
        policy = ref.random_policy(rng, model, full_scopes=True, equal_temperatures=True)
        tau = policy.temperature[0]
        solution = ref.chain(model, policy)
        advantages = ref.advantage(model, solution.kernel, solution.poisson, solution.average)
        for k, scope in enumerate(policy.scopes):
            g = ref.block_values(model, policy, advantages, k)
            own = ref.scope_average(model, scope, g, solution.stationary)
            assert ref.scope_error(model, scope, g, own).max() < ROUNDING
            new = policy.replace(k, ref.prox_logits(policy.logits[k], own, tau, tau))
            after = ref.chain(model, new)
            logs = spread(model, new, k), spread(model, policy, k)
            forward, backward = ref.kl(*logs), ref.kl(*logs[::-1])
            gain = after.average - solution.average
            anchored = gain - tau * (after.stationary @ forward)
            assert gain >= -SOLVE and gain >= tau * (after.stationary @ forward) - SOLVE
            assert anchored >= tau * (after.stationary @ backward) - SOLVE
            printed += anchored < tau * (after.stationary @ forward) - 1e-6
            both = tau * (solution.stationary @ (forward + backward))
            wrong_law += both > gain + 1e-6
    assert printed > 0 and wrong_law > 0


def test_a_block_on_a_partial_scope_can_lose() -> None:
    # s' = a, and action 1 pays 2 in state 0 and costs 2 in state 1; the agent is blind. With
    # q = pi(1) the average is 2q(1 - 2q), best at q = 1/4; the step from q = 0.1 goes to q = 1.
    term = np.array([[0.0, 2.0], [0.0, -2.0]])
    model = ref.Model((2,), (2,), [((), (0,), np.eye(2))], [((0,), (0,), term)])
    old = ref.Policy([()], [np.log([0.9, 0.1])], np.ones(1))
    solution = ref.chain(model, old)
    assert solution.average == pytest.approx(0.16, abs=1e-14)
    advantages = ref.advantage(model, solution.kernel, solution.poisson, solution.average)
    g = ref.block_values(model, old, advantages, 0)
    average = ref.scope_average(model, (), g, solution.stationary)
    assert average[1] - average[0] == pytest.approx(1.2, abs=1e-13)
    new = old.replace(0, ref.prox_logits(old.logits[0], average, 1.0, 0.1))
    assert ref.objective_value(model, new) < -1.9


# The conflict graph ------------------------------------------------------------------------------


def conflict_graph(model: ref.Model, scopes: list, kappa: int, objective: str) -> np.ndarray:
    """Section 6's rule: reward terms spread backwards, whoever acts on them meets whoever has."""
    graph = np.zeros((model.n_agents, model.n_agents), bool)
    starts = [(set(agents), set(states)) for states, agents, _ in model.rewards]
    starts += [({k}, set()) for k in range(model.n_agents)] * (objective == "entropy")
    for met, seen in starts:
        met, seen = set(met), seen.union(*(scopes[k] for k in met))
        for k in met:
            graph[k, list(met)] = True
        for _ in range(kappa + 1):
            acting = {k for j in seen for k in model.kernels[j][1]}
            met |= acting
            for k in acting:
                graph[k, list(met)] = True
            seen = set().union(*(model.kernels[j][0] for j in seen), *(scopes[k] for k in acting))
    return graph & ~np.eye(model.n_agents, dtype=bool)


@pytest.mark.parametrize("seed", range(16))
def test_no_dependence_outside_the_conflict_graph(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = ref.random_model(rng, n_agents=(2, 3), sizes=(1, 2), max_joint=64, max_parents=2)
    scopes = ref.random_policy(rng, model, max_scope=2).scopes
    for objective, kappa in itertools.product(("reward", "entropy"), (0, 1)):
        true = ref.true_dependence(model, scopes, kappa, rng, objective, trials=2)
        assert not (true & ~conflict_graph(model, scopes, kappa, objective)).any()


def test_dependence_reaches_one_link_further_with_each_step() -> None:
    # Coordinate j copies the action of agent j, who sees coordinate j + 1; only coordinate 0 pays.
    model = ref.Model(
        (2,) * 4,
        (2,) * 4,
        [((), (j,), np.eye(2)) for j in range(4)],
        [((0,), (), np.array([0.0, 1.0]))],
    )
    scopes = [(1,), (2,), (3,), ()]
    for kappa in range(4):
        rng = np.random.default_rng(kappa)
        true = ref.true_dependence(model, scopes, kappa, rng)
        expected = [[k <= kappa and m < k for m in range(4)] for k in range(4)]
        assert np.array_equal(true, expected)


# Generators --------------------------------------------------------------------------------------


def test_generators_reach_the_corners() -> None:
    seen: set[str] = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        model = ref.random_model(rng)
        policy = ref.random_policy(rng, model, minus_infinity=0.3)
        readers = [sum(k in x[1] for x in model.kernels) for k in range(model.n_agents)]
        largest = max((x[2].max() for x in model.kernels if x[2].shape[-1] > 1), default=0.0)
        seen |= {
            name
            for name, holds in {
                "more coordinates": model.n_coordinates > model.n_agents,
                "more agents": model.n_coordinates < model.n_agents,
                "size one state": 1 in model.state_sizes,
                "size one action": 1 in model.action_sizes,
                "shared": max(readers) > 1,
                "unread": min(readers) == 0,
                "near deterministic": 1 - 1e-6 < largest,
                "empty scope": () in policy.scopes,
                "unsorted scope": any(list(o) != sorted(o) for o in policy.scopes),
                "overlap": sum(map(len, policy.scopes)) > len(set().union(*policy.scopes)),
                "minus infinity": any(np.isneginf(z).any() for z in policy.logits),
                "unequal temperatures": len(set(policy.temperature)) > 1,
                "unsorted parents": any(list(x[0]) != sorted(x[0]) for x in model.kernels),
            }.items()
            if holds
        }
        for j, (states, actions, table) in enumerate(model.kernels):
            shape = [model.state_sizes[i] for i in states]
            shape += [model.action_sizes[k] for k in actions]
            assert table.shape == (*shape, model.state_sizes[j]) and table.min() >= 0
            assert np.allclose(table.sum(-1), 1.0, atol=ROUNDING, rtol=0)
        for p in policy.probabilities:
            assert np.allclose(p.sum(-1), 1.0, atol=ROUNDING, rtol=0)
    assert len(seen) == 13


@pytest.mark.parametrize("seed", range(8))
def test_structures(seed: int) -> None:
    rng, model, policy = random_case(seed)
    solution = ref.chain(model, policy)
    assert len(ref.closed_classes(solution.matrix)) == 1
    if seed % 4 == 2:
        eigenvalues = np.linalg.eigvals(solution.matrix)
        assert (np.abs(np.abs(eigenvalues) - 1) < SOLVE).sum() == model.state_sizes[0] >= 2
    if seed % 4 == 3:
        assert ref.spectral_radius(ref.state_sensitivity(model)) == 0.0
    again = random_case(seed)[1]
    assert all(
        np.array_equal(x[2], y[2]) for x, y in zip(model.kernels, again.kernels, strict=True)
    )
    square = ref.random_model(rng, square=True)
    assert square.n_coordinates == square.n_agents
