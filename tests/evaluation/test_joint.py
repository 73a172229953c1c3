"""The joint engine against enumeration, its errors, and its widths."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from twins import draw, twin_model, twin_policy

import torchloc as tl
from torchloc.evaluation import joint as room
from torchloc.evaluation.joint import JointEvaluation

# The oracle solves dense systems; with 5 % mixing their condition is below 1e4, times 1e-16.
ATOL = 1e-10
SEEDS = range(40)
STRUCTURES = ("general", "general", "periodic", "nilpotent")


def _flat(tensor: torch.Tensor, model: ref.Model) -> np.ndarray:
    return tensor.numpy().reshape(len(model.states), *tensor.shape[model.n_coordinates :])


@pytest.mark.parametrize("objective", ["reward", "entropy"])
@pytest.mark.parametrize("seed", SEEDS)
def test_matches_definitions(seed: int, objective: str) -> None:
    structure = STRUCTURES[seed % 4]
    model, policy, mdp, twin = draw(
        seed, unichain=True, structure=structure, policy={"minus_infinity": 0.15 * (seed % 2)}
    )
    entropy = policy.temperature if objective == "entropy" else 0.0
    chain = ref.chain(model, policy, entropy)
    joint = JointEvaluation(mdp, twin, objective=objective)
    np.testing.assert_allclose(joint.transition_matrix.numpy(), chain.matrix, atol=1e-14)
    np.testing.assert_allclose(_flat(joint.reward, model), chain.reward, atol=1e-13)
    np.testing.assert_allclose(_flat(joint.stationary, model), chain.stationary, atol=ATOL)
    assert abs(joint.average_reward - chain.average) < ATOL
    np.testing.assert_allclose(_flat(joint.poisson(), model), chain.poisson, atol=ATOL)
    low, high = joint.average_reward_bounds
    assert low - 1e-14 <= chain.average <= high + 1e-14
    for kappa in (0, 1, 3):
        value = chain.truncated(kappa)
        np.testing.assert_allclose(_flat(joint.truncated_value(kappa), model), value, atol=ATOL)
        advantages = ref.advantage(model, chain.kernel, value, chain.average)
        bonus = chain.reward - ref.policy_reward(model, policy)
        mine = joint.advantage(kappa).numpy().reshape(advantages.shape)
        np.testing.assert_allclose(mine, advantages + bonus[:, None], atol=ATOL)
        for k in range(model.n_agents):
            np.testing.assert_allclose(
                _flat(joint.block_logits(k, kappa), model),
                ref.block_values(model, policy, advantages, k) + bonus[:, None],
                atol=ATOL,
            )


@pytest.mark.parametrize("seed", range(20))
def test_exact_advantage_averages_to_zero(seed: int) -> None:
    model, policy, mdp, twin = draw(seed, unichain=True)
    joint = JointEvaluation(mdp, twin, objective="entropy")
    for k in range(model.n_agents):
        law = ref.agent_policy(model, policy, k)
        mean = (law * _flat(joint.block_logits(k), model)).sum(-1)
        np.testing.assert_allclose(mean, 0.0, atol=ATOL)


@pytest.mark.parametrize("discount", [0.3, 0.95])
@pytest.mark.parametrize("seed", range(12))
def test_discounted_matches_definitions(seed: int, discount: float) -> None:
    rng = np.random.default_rng(seed)
    model = ref.random_model(rng)
    policy = ref.random_policy(rng, model)
    laws = [rng.dirichlet(np.ones(size)) for size in model.state_sizes]
    mdp = twin_model(model, initial=laws)
    joint = JointEvaluation(mdp, twin_policy(mdp, policy), discount=discount)
    kernel = ref.transition(model)
    matrix = ref.policy_transition(kernel, ref.product_policy(model, policy))
    reward = ref.policy_reward(model, policy)
    start = ref.product_law(model, laws)
    value = ref.discounted_value(matrix, reward, discount)
    np.testing.assert_allclose(_flat(joint.poisson(), model), value, atol=ATOL)
    assert abs(joint.value - start @ value) < ATOL
    np.testing.assert_allclose(
        _flat(joint.stationary, model),
        ref.discounted_occupancy(matrix, start, discount),
        atol=ATOL,
    )
    short = ref.truncated_value(matrix, reward, 2, discount)
    np.testing.assert_allclose(_flat(joint.truncated_value(2), model), short, atol=ATOL)
    advantages = ref.advantage(model, kernel, short, discount=discount)
    for k in range(model.n_agents):
        np.testing.assert_allclose(
            _flat(joint.block_logits(k, 2), model),
            ref.block_values(model, policy, advantages, k),
            atol=ATOL,
        )
    with pytest.raises(tl.InputError, match="use `value`"):
        _ = joint.average_reward


@pytest.mark.parametrize("seed", range(25))
def test_krylov_agrees_with_lu(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, mdp, twin = draw(seed, unichain=True, structure=STRUCTURES[seed % 4])
    dense = JointEvaluation(mdp, twin)
    monkeypatch.setattr(room, "DENSE_STATES", 0)
    krylov = JointEvaluation(mdp, twin)
    torch.testing.assert_close(krylov.stationary, dense.stationary, rtol=0, atol=ATOL)
    torch.testing.assert_close(krylov.poisson(), dense.poisson(), rtol=0, atol=10 * ATOL)
    assert krylov.width <= 1e-10 * max(1.0, float(krylov.reward.abs().max()))


@pytest.mark.parametrize("seed", range(30))
def test_closed_classes_are_counted(seed: int) -> None:
    model, policy, mdp, twin = draw(
        seed,
        concentration=(1e-3, 2e-3),
        n_coordinates=(1, 3),
        sizes=(2, 3),
        policy={"minus_infinity": 0.5},
    )
    matrix = ref.policy_transition(ref.transition(model), ref.product_policy(model, policy))
    matrix = np.where(matrix > 0, matrix, 0.0)
    classes = ref.closed_classes(matrix)
    joint = JointEvaluation(mdp, twin)
    if len(classes) == 1:
        assert joint.n_closed_classes == 1
    else:
        with pytest.raises(tl.SolveError, match=f"{len(classes)} closed classes"):
            _ = joint.n_closed_classes


def test_copying_pair_has_three_closed_classes_and_names_a_state_of_each() -> None:
    swap = [tl.LocalKernel((1,), (), np.eye(2)), tl.LocalKernel((0,), (), np.eye(2))]
    mdp = tl.FactoredMDP([2, 2], [], swap, [tl.LocalReward((0,), (), [0.0, 1.0])])
    policy = tl.SoftmaxPolicy.tabular(mdp, [])
    with pytest.raises(tl.SolveError, match=r"3 closed classes .*\(0, 0\).*\(0, 1\).*\(1, 1\)"):
        _ = JointEvaluation(mdp, policy).stationary
    discounted = JointEvaluation(mdp, policy, discount=0.5)
    assert abs(float(discounted.stationary.sum()) - 1.0) < 1e-14


def test_periodic_chain_works() -> None:
    cycle = tl.LocalKernel((0,), (), np.roll(np.eye(3), 1, axis=1))
    mdp = tl.FactoredMDP([3], [], [cycle], [tl.LocalReward((0,), (), [0.0, 0.0, 3.0])])
    joint = JointEvaluation(mdp, tl.SoftmaxPolicy.tabular(mdp, []))
    torch.testing.assert_close(joint.stationary, torch.full((3,), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(joint.poisson(), torch.tensor([-1.0, 0.0, 1.0]).double())


def test_budget_error_names_size_bytes_and_the_way_out() -> None:
    n = 30
    kernels = [tl.LocalKernel((), (), [0.5, 0.5]) for _ in range(n)]
    mdp = tl.FactoredMDP([2] * n, [], kernels, [])
    with pytest.raises(tl.BudgetError, match=r"1073741824 .8589934592 bytes.*smaller model"):
        JointEvaluation(mdp, tl.SoftmaxPolicy.tabular(mdp, []))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "both"}, "objective is 'both'"),
        ({"discount": 0.0}, "discount is 0"),
        ({"discount": 1.1}, "discount is 1.1"),
        ({"tolerance": 0.0}, "tolerance is 0"),
    ],
)
def test_settings_are_checked(options: dict, message: str) -> None:
    _, _, mdp, twin = draw(0)
    with pytest.raises(tl.InputError, match=message):
        JointEvaluation(mdp, twin, **options)


def test_failed_solve_is_loud() -> None:
    _, _, mdp, twin = draw(5, unichain=True)
    with pytest.raises(tl.SolveError, match="over the tolerance"):
        _ = JointEvaluation(mdp, twin, tolerance=1e-30).width


def test_evaluation_ignores_later_changes_of_the_policy() -> None:
    model, policy, mdp, twin = draw(7, unichain=True)
    joint = JointEvaluation(mdp, twin, objective="entropy")
    twin.set_temperature(17.0)
    for parameter in twin.parameters():
        parameter.data.add_(torch.rand_like(parameter))
    expected = ref.chain(model, policy, policy.temperature).average
    assert abs(joint.average_reward - expected) < ATOL
