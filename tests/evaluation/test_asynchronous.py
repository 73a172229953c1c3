"""Asynchronous dynamics on the joint engine: values, plans and ledgers against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference as ref
import torch
from twins import draw, twin_model, twin_policy

import torchloc as tl
from torchloc.certificate import Environment
from torchloc.colouring import conflict_graph
from torchloc.environments import ising
from torchloc.evaluation import joint as room
from torchloc.evaluation.dynamics import Move, StepPlan, moves
from torchloc.evaluation.joint import JointEvaluation
from torchloc.evaluation.planning import best_deterministic_local, optimal_control
from torchloc.improvement import Improvement, block_record, block_target, cyclic_sweep
from torchloc.mdp.dynamics import move_rates

# As for synchronous dynamics: one coordinate in at most four, so the systems are no worse than
# ten times as stiff, and their condition stays below 1e5.
ATOL = 1e-10
# Sums of nonnegative products over at most 300 joint states and actions, of size at most 5 or so.
SUM_ATOL = 1e-13
STRUCTURES = ("general", "general", "periodic", "nilpotent")


def _seeds(quick: int, all_: int) -> list:
    """The first ones in every run, the rest in the slow one."""
    slow = (pytest.param(seed, marks=pytest.mark.slow) for seed in range(quick, all_))
    return [*range(quick), *slow]


def _sites(seed: int, n: int) -> np.ndarray | None:
    """A law ν of at least 1/(2 N) a site; None, which means uniform, for every third seed."""
    if seed % 3 == 0:
        return None
    drawn = np.random.default_rng([seed, 1]).dirichlet(np.ones(n))
    return 0.5 / n + 0.5 * drawn


def _kernel(model: ref.Model, sites: np.ndarray | None) -> np.ndarray:
    n = model.n_coordinates
    return ref.asynchronous_transition(model, np.full(n, 1.0 / n) if sites is None else sites)


def _flat(tensor: torch.Tensor, model: ref.Model) -> np.ndarray:
    return tensor.numpy().reshape(len(model.states), *tensor.shape[model.n_coordinates :])


# Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["reward", "entropy"])
@pytest.mark.parametrize("seed", _seeds(12, 60))
def test_matches_definitions(seed: int, objective: str) -> None:
    model, policy, mdp, twin = draw(
        seed,
        unichain=True,
        structure=STRUCTURES[seed % 4],
        policy={"minus_infinity": 0.15 * (seed % 2)},
    )
    sites = _sites(seed, model.n_coordinates)
    entropy = policy.temperature if objective == "entropy" else 0.0
    chain = ref.chain(model, policy, entropy, kernel=_kernel(model, sites))
    joint = JointEvaluation(mdp, twin, objective=objective, dynamics="asynchronous", site_law=sites)
    np.testing.assert_allclose(joint.transition_matrix.numpy(), chain.matrix, atol=1e-14)
    np.testing.assert_allclose(_flat(joint.reward, model), chain.reward, atol=1e-13)
    np.testing.assert_allclose(_flat(joint.stationary, model), chain.stationary, atol=ATOL)
    assert abs(joint.average_reward - chain.average) < ATOL
    np.testing.assert_allclose(_flat(joint.poisson(), model), chain.poisson, atol=ATOL)
    low, high = joint.average_reward_bounds
    assert low - 1e-14 <= chain.average <= high + 1e-14
    assert joint.width == high - low <= 1e-10 * max(1.0, np.abs(chain.reward).max())
    bonus = chain.reward - ref.policy_reward(model, policy)
    for kappa in (0, 1, 3, None):
        value = chain.poisson if kappa is None else chain.truncated(kappa)
        if kappa is not None:
            np.testing.assert_allclose(_flat(joint.truncated_value(kappa), model), value, atol=ATOL)
        advantages = ref.advantage(model, chain.kernel, value, chain.average)
        mine = joint.advantage(kappa).numpy().reshape(advantages.shape)
        np.testing.assert_allclose(mine, advantages + bonus[:, None], atol=ATOL)
        for k in range(model.n_agents):
            expected = ref.block_values(model, policy, advantages, k) + bonus[:, None]
            mine = _flat(joint.block_logits(k, kappa), model)
            np.testing.assert_allclose(mine, expected, atol=ATOL)


@pytest.mark.parametrize("discount", [0.3, 0.95])
@pytest.mark.parametrize("seed", range(12))
def test_discounted_matches_definitions(seed: int, discount: float) -> None:
    rng = np.random.default_rng(seed)
    model = ref.random_model(rng)
    policy = ref.random_policy(rng, model)
    laws = [rng.dirichlet(np.ones(size)) for size in model.state_sizes]
    mdp = twin_model(model, initial=laws)
    sites = _sites(seed, model.n_coordinates)
    joint = JointEvaluation(
        mdp, twin_policy(mdp, policy), discount=discount, dynamics="asynchronous", site_law=sites
    )
    kernel = _kernel(model, sites)
    matrix = ref.policy_transition(kernel, ref.product_policy(model, policy))
    reward = ref.policy_reward(model, policy)
    start = ref.product_law(model, laws)
    value = ref.discounted_value(matrix, reward, discount)
    np.testing.assert_allclose(_flat(joint.poisson(), model), value, atol=ATOL)
    assert abs(joint.value - start @ value) < ATOL
    occupancy = ref.discounted_occupancy(matrix, start, discount)
    np.testing.assert_allclose(_flat(joint.stationary, model), occupancy, atol=ATOL)
    short = ref.truncated_value(matrix, reward, 2, discount)
    np.testing.assert_allclose(_flat(joint.truncated_value(2), model), short, atol=ATOL)
    advantages = ref.advantage(model, kernel, short, discount=discount)
    for k in range(model.n_agents):
        expected = ref.block_values(model, policy, advantages, k)
        np.testing.assert_allclose(_flat(joint.block_logits(k, 2), model), expected, atol=ATOL)


@pytest.mark.parametrize("seed", range(12))
def test_open_actions_and_adjoints(seed: int) -> None:
    """Every set of open actions; extra axes are a batch."""
    model, policy, mdp, twin = draw(seed, policy={"minus_infinity": 0.2 * (seed % 2)})
    sites = _sites(seed, model.n_coordinates)
    joint = JointEvaluation(mdp, twin, dynamics="asynchronous", site_law=sites)
    kernel = _kernel(model, sites)
    rng = np.random.default_rng(seed)
    f = torch.from_numpy(rng.normal(size=(*model.state_sizes, 2)))
    flat = f.numpy().reshape(len(model.states), 2)
    agents = range(model.n_agents)
    for size in range(model.n_agents + 1):
        for opened in itertools.combinations(agents, size):
            weight = ref.product_policy(model, policy, [k for k in agents if k not in opened])
            options = ref.grid([model.action_sizes[k] for k in opened])
            chosen = (model.actions[:, None, list(opened)] == options[None]).all(-1).astype(float)
            expected = np.einsum("sa,ab,sat,tx->sbx", weight, chosen, kernel, flat)
            mine = joint.operator(frozenset(opened))(f)
            sizes = (model.action_sizes[k] for k in opened)
            assert mine.shape == (*model.state_sizes, *sizes, 2)
            np.testing.assert_allclose(
                mine.numpy().ravel(), expected.ravel(), rtol=0, atol=SUM_ATOL
            )
    matrix = ref.policy_transition(kernel, ref.product_policy(model, policy))
    moved = joint.operator().adjoint(f).numpy().reshape(-1, 2)
    np.testing.assert_allclose(moved, matrix.T @ flat, rtol=0, atol=SUM_ATOL)


@pytest.mark.parametrize("seed", _seeds(4, 30))
def test_krylov_agrees_with_lu(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, mdp, twin = draw(seed, unichain=True, structure=STRUCTURES[seed % 4])
    options = {"dynamics": "asynchronous", "site_law": _sites(seed, model.n_coordinates)}
    dense = JointEvaluation(mdp, twin, **options)
    monkeypatch.setattr(room, "DENSE_STATES", 0)
    krylov = JointEvaluation(mdp, twin, **options)
    torch.testing.assert_close(krylov.stationary, dense.stationary, rtol=0, atol=ATOL)
    torch.testing.assert_close(krylov.poisson(), dense.poisson(), rtol=0, atol=10 * ATOL)
    assert krylov.width <= 1e-10 * max(1.0, float(krylov.reward.abs().max()))


@pytest.mark.parametrize("seed", range(20))
def test_closed_classes_are_counted(seed: int) -> None:
    model, policy, mdp, twin = draw(
        seed,
        concentration=(1e-3, 2e-3),
        n_coordinates=(1, 3),
        sizes=(2, 3),
        policy={"minus_infinity": 0.5},
    )
    sites = _sites(seed, model.n_coordinates)
    matrix = ref.policy_transition(_kernel(model, sites), ref.product_policy(model, policy))
    classes = len(ref.closed_classes(matrix))
    joint = JointEvaluation(mdp, twin, dynamics="asynchronous", site_law=sites)
    if classes == 1:
        assert joint.n_closed_classes == 1
    else:
        with pytest.raises(tl.SolveError, match=f"{classes} closed classes"):
            _ = joint.n_closed_classes


def test_one_coordinate_moves_as_if_synchronous() -> None:
    """N = 1: the same numbers, bit for bit."""
    _, _, mdp, twin = draw(3, n_coordinates=(1, 1), sizes=(3, 3), unichain=True)
    every, single = (
        JointEvaluation(mdp, twin, dynamics=x) for x in ("synchronous", "asynchronous")
    )
    assert torch.equal(every.poisson(), single.poisson())
    assert torch.equal(every.advantage(2), single.advantage(2))


def test_random_glauber_updates_have_the_gibbs_law() -> None:
    """Heat-bath updates, one site at a time, leave exp(β Σ_links s_i s_j) / Z invariant, for any ν.

    All sites at once do not: their law is another one.
    """
    beta, n = 0.7, 5
    mdp = ising(n, beta=beta, field=0.0, reward="alignment")
    policy = tl.SoftmaxPolicy.tabular(mdp, [()] * n)
    spins = 2 * ref.grid([2] * n) - 1
    weight = np.exp(beta * (spins * np.roll(spins, 1, axis=1)).sum(1))
    gibbs = (weight / weight.sum()).reshape([2] * n)
    for sites in (None, [0.1, 0.3, 0.2, 0.15, 0.25]):
        joint = JointEvaluation(mdp, policy, dynamics="asynchronous", site_law=sites)
        np.testing.assert_allclose(joint.stationary, gibbs, rtol=0, atol=ATOL)
    together = JointEvaluation(mdp, policy).stationary.numpy()
    assert np.abs(together - gibbs).max() > 1e-2


def test_a_site_that_never_moves_keeps_its_value() -> None:
    """At discount 1 it splits the chain into classes; discounted, it stays as it began."""
    flip = tl.LocalKernel((), (), [0.5, 0.5])
    mdp = tl.FactoredMDP([2, 2], [], [flip, flip], [tl.LocalReward((0,), (), [0.0, 1.0])])
    policy = tl.SoftmaxPolicy.tabular(mdp, [])
    options = {"dynamics": "asynchronous", "site_law": [0.0, 1.0]}
    with pytest.raises(tl.SolveError, match="2 closed classes"):
        _ = JointEvaluation(mdp, policy, **options).average_reward
    value = JointEvaluation(mdp, policy, discount=0.5, **options).poisson()
    torch.testing.assert_close(value, torch.tensor([[0.0, 0.0], [2.0, 2.0]]).double())


def test_renewed_evaluations_keep_the_dynamics_and_share_the_plans() -> None:
    model, policy, mdp, twin = draw(4, unichain=True, n_coordinates=(3, 3), n_agents=(2, 2))
    sites = np.array([0.5, 0.2, 0.3])
    joint = JointEvaluation(mdp, twin, dynamics="asynchronous", site_law=sites)
    plan = joint._plan(frozenset())
    expected = ref.chain(model, policy, kernel=_kernel(model, sites))
    sites[:] = 0.0
    other = joint.renewed(twin)
    assert other._plan(frozenset()) is plan and other.dynamics == "asynchronous"
    np.testing.assert_allclose(_flat(other.poisson(), model), expected.poisson, atol=ATOL)


@pytest.mark.parametrize("seed", range(10))
def test_blocks_of_coordinates_may_move_together(seed: int) -> None:
    """A mixture of moves of any coordinates: the rest stays where it is."""
    model, policy, mdp, twin = draw(seed, n_coordinates=(2, 4))
    rng = np.random.default_rng(seed)
    n = model.n_coordinates
    blocks = [tuple(np.flatnonzero(rng.random(n) < 0.5)) or (0,) for _ in range(3)]
    weights = rng.dirichlet(np.ones(3)).tolist()
    joint = ref.product_policy(model, policy)
    expected = np.zeros((len(model.states),) * 2)
    for weight, block in zip(weights, blocks, strict=True):
        held = [
            ((j,), (), np.eye(size)) if j not in block else model.kernels[j]
            for j, size in enumerate(model.state_sizes)
        ]
        partial = ref.Model(model.state_sizes, model.action_sizes, held, [])
        expected += weight * ref.policy_transition(ref.transition(partial), joint)
    steps = [Move(w, tuple(int(j) for j in b)) for w, b in zip(weights, blocks, strict=True)]
    operator = StepPlan(mdp, list(twin.scopes), steps).operator(mdp, twin.probabilities)
    eye = torch.eye(len(model.states), dtype=torch.float64).reshape(*model.state_sizes, -1)
    mine = operator(eye).reshape(len(model.states), -1)
    np.testing.assert_allclose(mine, expected, rtol=0, atol=SUM_ATOL)


# Improvement ----------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["reward", "entropy"])
@pytest.mark.parametrize("seed", _seeds(6, 30))
def test_ledger_of_exact_advantages(seed: int, objective: str) -> None:
    """ε = 0 at κ = None: `guarantee` is the gain itself, `balance` below it, as in the oracle."""
    model, policy, mdp, twin = draw(seed, unichain=True)
    sites, rng = _sites(seed, model.n_coordinates), np.random.default_rng(seed)
    before = JointEvaluation(
        mdp, twin, objective=objective, dynamics="asynchronous", site_law=sites
    )
    k = int(rng.integers(model.n_agents))
    tau = float(policy.temperature[k])
    target = block_target(before, k, None)
    old = torch.tensor(policy.logits[k]).reshape(target.average.shape)
    new = torch.from_numpy(rng.normal(size=old.shape))
    moved = policy.replace(k, new.numpy().reshape(policy.logits[k].shape))
    after = before.renewed(twin_policy(mdp, moved))
    record = block_record(
        before,
        after,
        target,
        old_logits=old,
        wanted_logits=new,
        new_logits=new,
        temperature=tau,
        prox=1.0,
        epsilon=0.0,
    )
    bonus = policy.temperature if objective == "entropy" else 0.0
    kernel = _kernel(model, sites)
    chain, then = (ref.chain(model, p, bonus, kernel=kernel) for p in (policy, moved))
    advantages = ref.advantage(model, kernel, chain.poisson, chain.average)
    direct = ref.direct_ledger(
        then.stationary,
        *(ref.at_states(model, p.scopes[k], p.log_probabilities[k]) for p in (moved, policy)),
        ref.block_values(model, policy, advantages, k),
        entropy=tau if objective == "entropy" else 0.0,
    )
    assert record.realised == pytest.approx(then.average - chain.average, abs=ATOL)
    assert record.guarantee == pytest.approx(direct, abs=ATOL)
    assert record.guarantee == pytest.approx(record.realised, abs=ATOL)


@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("objective", ["reward", "entropy"])
@pytest.mark.parametrize("seed", _seeds(2, 15))
def test_sweeps_gain_what_they_guarantee(seed: int, objective: str, discount: float) -> None:
    """Exact advantages with ε = 0, then truncated ones with the certified ε."""
    model, _, mdp, twin = draw(seed, unichain=True, mixing=0.3)
    sites = _sites(seed, model.n_coordinates)
    dynamics = {"discount": discount, "dynamics": "asynchronous", "site_law": sites}
    settings = Improvement(objective=objective)
    joint = JointEvaluation(mdp, twin, objective=objective, **dynamics)

    def certified(policy: tl.SoftmaxPolicy) -> torch.Tensor:
        options = {"kappa": 6, "objective": objective, "rungs": ("coupled",), **dynamics}
        return torch.from_numpy(tl.certify(mdp, policy, **options)["coupled"].epsilon)

    for kappa, epsilon in ((None, lambda _: torch.zeros(model.n_agents)), (6, certified)):
        after, records = cyclic_sweep(joint, twin, settings, kappa, epsilon)
        total = sum(record.realised for record in records)
        assert after.value - joint.value == pytest.approx(total, abs=1e-12 / (1.0 - 0.9))
        for record in records:
            assert record.balance <= record.guarantee + ATOL
            assert record.guarantee <= record.realised + record.slack
            if kappa is None:
                # Widths of both solves, each divided by 1 − γ already.
                assert record.guarantee == pytest.approx(record.realised, abs=record.slack)
        joint = after


def _truncation_within_epsilon(seed: int, objective: str) -> int:
    """Holds span_a(ĝ_k − g_k) ≤ ε_k for all agents, rungs and some κ; how many ε_k were finite."""
    model, _, mdp, twin = draw(
        seed,
        unichain=True,
        mixing=(0.4, 0.8)[seed % 2],
        policy={"scale": (0.05, 1.0)},
        n_coordinates=(2, 4),
    )
    sites = _sites(seed, model.n_coordinates)
    options = {"objective": objective, "dynamics": "asynchronous", "site_law": sites}
    joint = JointEvaluation(mdp, twin, **options)
    exact = [joint.block_logits(k) for k in range(model.n_agents)]
    environment, finite = Environment(mdp), 0
    for kappa in (0, 8):
        cert = tl.certify(mdp, twin, kappa=kappa, environment=environment, **options)
        for k, g in enumerate(exact):
            gap = joint.block_logits(k, kappa) - g
            span = float((gap.amax(dim=-1) - gap.amin(dim=-1)).max())
            for rung in ref.RUNGS:
                bound = cert[rung].epsilon[k]
                finite += bool(np.isfinite(bound))
                assert span <= bound + ATOL, (rung, kappa, k)
    return finite


@pytest.mark.parametrize("objective", ["reward", "entropy"])
def test_epsilon_bounds_the_span_of_the_truncation(objective: str) -> None:
    """ε_k = Σ_j ν_j E^a[j, k] tail_j, on every rung that certifies."""
    assert sum(_truncation_within_epsilon(seed, objective) for seed in range(2)) > 6


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["reward", "entropy"])
def test_epsilon_bounds_the_span_on_many_models(objective: str) -> None:
    assert sum(_truncation_within_epsilon(seed, objective) for seed in range(2, 50)) > 150


@pytest.mark.parametrize("seed", _seeds(3, 40))
def test_agents_without_a_conflict_do_not_see_each_other(seed: int) -> None:
    """The conflict graph of synchronous dynamics serves here too.

    Agents conflict iff one reward term meets both within κ steps back. Coordinates that stay keep
    what has been met, and nothing is met that was not met before.
    """
    model, policy, mdp, twin = draw(
        seed, n_coordinates=(3, 5), n_agents=(2, 4), sizes=(2, 2), max_parents=1, unichain=True
    )
    other = ref.random_policy(np.random.default_rng(seed), model, scopes=policy.scopes)
    joint = JointEvaluation(mdp, twin, dynamics="asynchronous")
    for kappa in (0, 2):
        conflicts = conflict_graph(mdp, twin.scopes, kappa, objective="reward").toarray() != 0
        before = [joint.block_logits(k, kappa) for k in range(model.n_agents)]
        for m in range(model.n_agents):
            changed = joint.renewed(twin_policy(mdp, policy.replace(m, other.logits[m])))
            for k in range(model.n_agents):
                if k != m and not conflicts[k, m]:
                    gap = changed.block_logits(k, kappa) - before[k]
                    gap = gap - gap.mean(dim=-1, keepdim=True)
                    assert float(gap.abs().max()) <= ATOL, (k, m, kappa)


# Optimal control ------------------------------------------------------------------------------


@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("seed", _seeds(4, 20))
def test_optimum_solves_bellmans_equation_of_the_oracle(seed: int, discount: float) -> None:
    """min(Bh − h) ≤ g* ≤ max(Bh − h) for any h: a bracket computed from the oracle's kernel."""
    model, _, mdp, _ = draw(seed, unichain=True, structure=STRUCTURES[seed % 4])
    sites = _sites(seed, model.n_coordinates)
    best = optimal_control(mdp, discount=discount, dynamics="asynchronous", site_law=sites)
    h, kernel = best.values.numpy().ravel(), _kernel(model, sites)
    scores = ref.reward(model) + discount * kernel @ h
    drift = scores.max(-1) - h
    tolerance = 1e-9 * max(1.0, np.abs(ref.reward(model)).max())
    width = drift.max() - drift.min()
    assert width <= (1.0 - discount if discount < 1.0 else 1.0) * tolerance + SUM_ATOL * 1e2
    if discount == 1.0:
        assert drift.min() - tolerance <= best.gain <= drift.max() + tolerance
    chosen = np.take_along_axis(scores, best.actions.numpy().reshape(-1, 1), axis=-1)
    np.testing.assert_allclose(chosen[:, 0], scores.max(-1), atol=ATOL)


@pytest.mark.parametrize("seed", range(6))
def test_local_enumeration_matches_definitions(seed: int) -> None:
    model, _, mdp, _ = draw(seed, unichain=True, sizes=(1, 2), n_coordinates=(1, 3))
    scopes = ref.random_policy(np.random.default_rng(seed), model, max_scope=1).scopes
    sites = _sites(seed, model.n_coordinates)
    best = best_deterministic_local(mdp, scopes, dynamics="asynchronous", site_law=sites)
    gains = [
        ref.chain(model, ref.greedy_policy(model, scopes, tables), kernel=_kernel(model, sites))
        for tables in ref.deterministic_policies(model, scopes)
    ]
    assert best.gain == pytest.approx(max(chain.average for chain in gains), abs=ATOL)
    assert best.multichain == 0


# Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamics": "sometimes"}, "dynamics is 'sometimes'; choose synchronous or asynchronous"),
        ({"site_law": [0.5, 0.5]}, "site_law is given, but dynamics is synchronous"),
        ({"dynamics": "asynchronous", "site_law": [1.0]}, r"shape \(1,\).*the 2 coordinates"),
        ({"dynamics": "asynchronous", "site_law": [0.5, 0.6]}, "sum 1.1; it must be a law"),
        ({"dynamics": "asynchronous", "site_law": [1.5, -0.5]}, "it must be a law"),
        ({"dynamics": "asynchronous", "site_law": [np.nan, 1.0]}, "it must be a law"),
        ({"dynamics": "asynchronous", "site_law": "uniform"}, "site_law must be a rectangular"),
    ],
)
def test_settings_are_checked(options: dict, message: str) -> None:
    kernels = [tl.LocalKernel((), (), [0.5, 0.5]) for _ in range(2)]
    mdp = tl.FactoredMDP([2, 2], [], kernels, [])
    policy = tl.SoftmaxPolicy.tabular(mdp, [])
    for call in (
        lambda: JointEvaluation(mdp, policy, **options),
        lambda: optimal_control(mdp, **options),
        lambda: best_deterministic_local(mdp, [], **options),
    ):
        with pytest.raises(tl.InputError, match=message):
            call()


def test_rates_are_a_law_to_the_last_digit() -> None:
    """A law that misses 1 within the tolerance is divided by its sum: rows of T must sum to 1."""
    loose = np.array([0.25, 0.25, 0.5 + 5e-10])
    assert abs(move_rates(3, "asynchronous", loose).sum() - 1.0) <= 2.3e-16
    assert move_rates(3, "synchronous").tolist() == [1.0, 1.0, 1.0]
    _, _, mdp, _ = draw(2, n_coordinates=(3, 3))
    assert [m.coordinates for m in moves(mdp, "asynchronous", [0.5, 0.0, 0.5])] == [(0,), (2,)]
    assert [m.weight for m in moves(mdp, "synchronous")] == [1.0]
