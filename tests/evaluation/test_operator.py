"""The factored operator against dense products, its plans, and their budgets."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import reference as ref
import torch
from torch import Tensor
from twins import draw, twin_model, twin_policy

import torchloc as tl
from torchloc.environments import sysadmin
from torchloc.evaluation import operator as room
from torchloc.evaluation.operator import JointOperator, Plan

Law = Callable[[int], Tensor]
# Sums of nonnegative products over at most 300 joint states and actions, of size at most 5 or so.
ATOL = 1e-13


def _operator(
    mdp: tl.FactoredMDP, policy: tl.SoftmaxPolicy, *open_actions: int, support: bool = False
) -> JointOperator:
    plan = Plan(mdp, list(policy.scopes), frozenset(open_actions))
    return JointOperator(plan, mdp, policy.probabilities, support=support)


def _values(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape))


def _given(model: ref.Model, policy: ref.Policy, open_actions: tuple[int, ...]) -> np.ndarray:
    """E[s' | s, a_open] by enumeration: (|S|, Π A_open, |S|)."""
    others = [k for k in range(model.n_agents) if k not in open_actions]
    weight = ref.product_policy(model, policy, others)
    options = ref.grid([model.action_sizes[k] for k in open_actions])
    chosen = (model.actions[:, None, list(open_actions)] == options[None]).all(-1)
    return np.einsum("sa,ab,sat->sbt", weight, chosen.astype(float), ref.transition(model))


# Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_open_actions_condition_on_them(seed: int) -> None:
    """Every set of open actions, none and all included."""
    model, policy, mdp, twin = draw(seed, policy={"minus_infinity": 0.2 * (seed % 2)})
    f = _values(np.random.default_rng(seed), *model.state_sizes)
    for size in range(model.n_agents + 1):
        for open_actions in itertools.combinations(range(model.n_agents), size):
            result = _operator(mdp, twin, *open_actions)(f)
            shape = (*model.state_sizes, *(model.action_sizes[k] for k in open_actions))
            expected = _given(model, policy, open_actions) @ f.numpy().ravel()
            assert result.shape == shape
            np.testing.assert_allclose(result, expected.reshape(shape), rtol=0, atol=ATOL)


@pytest.mark.parametrize("extra", [(), (1,), (5,), (2, 3)])
@pytest.mark.parametrize("seed", range(8))
def test_extra_axes_are_a_batch(seed: int, extra: tuple[int, ...]) -> None:
    model, policy, mdp, twin = draw(seed, n_agents=(2, 3))
    f = _values(np.random.default_rng(seed), *model.state_sizes, *extra)
    flat = f.numpy().reshape(len(model.states), -1)
    matrix = _given(model, policy, ())[:, 0]
    operator = _operator(mdp, twin)
    np.testing.assert_allclose(
        operator(f), (matrix @ flat).reshape(f.shape), rtol=0, atol=ATOL, strict=True
    )
    np.testing.assert_allclose(
        operator.adjoint(f), (matrix.T @ flat).reshape(f.shape), rtol=0, atol=ATOL, strict=True
    )
    opened = _operator(mdp, twin, 1)(f)
    assert opened.shape == (*model.state_sizes, model.action_sizes[1], *extra)
    given = _given(model, policy, (1,)) @ flat
    np.testing.assert_allclose(opened, given.reshape(opened.shape), rtol=0, atol=ATOL)


@pytest.mark.parametrize("seed", range(25))
def test_operator_and_its_adjoint_agree(seed: int) -> None:
    model, _, mdp, twin = draw(seed, n_coordinates=(2, 4))
    operator = _operator(mdp, twin)
    rng = np.random.default_rng(seed)
    f, d = (_values(rng, *model.state_sizes, 2) for _ in range(2))
    torch.testing.assert_close(
        (operator(f) * d).sum(), (f * operator.adjoint(d)).sum(), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("seed", range(20))
def test_laws_stay_laws(seed: int) -> None:
    model, _, mdp, twin = draw(seed, policy={"minus_infinity": 0.2})
    operator = _operator(mdp, twin)
    ones = torch.ones(model.state_sizes, dtype=torch.float64)
    np.testing.assert_allclose(operator(ones), 1.0, rtol=0, atol=ATOL)
    law = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(len(model.states))))
    moved = operator.adjoint(law.reshape(model.state_sizes))
    assert (moved >= 0).all() and abs(float(moved.sum()) - 1.0) <= ATOL


@pytest.mark.parametrize("matrix_entries", [1, 64, 8192])
@pytest.mark.parametrize("gone_entries", [1, 4, 32])
def test_blocks_of_any_size_give_the_same(
    matrix_entries: int, gone_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MATRIX_ENTRIES", matrix_entries)
    monkeypatch.setattr(room, "GONE_ENTRIES", gone_entries)
    for seed in range(6):
        model, policy, mdp, twin = draw(seed, n_coordinates=(3, 5), n_agents=(2, 3))
        operator = _operator(mdp, twin)
        f = _values(np.random.default_rng(seed), *model.state_sizes)
        matrix = _given(model, policy, ())[:, 0]
        flat = f.numpy().ravel()
        np.testing.assert_allclose(operator(f).numpy().ravel(), matrix @ flat, rtol=0, atol=ATOL)
        moved = operator.adjoint(f).numpy().ravel()
        np.testing.assert_allclose(moved, matrix.T @ flat, rtol=0, atol=ATOL)


@pytest.mark.parametrize("seed", range(20))
def test_support_has_the_pattern_of_the_chain(seed: int) -> None:
    model, policy, mdp, twin = draw(
        seed, concentration=(1e-3, 1e-1), policy={"minus_infinity": 0.5}
    )
    operator = _operator(mdp, twin, support=True)
    n = len(model.states)
    eye = torch.eye(n, dtype=torch.float64).reshape(*model.state_sizes, n)
    paths = operator(eye).reshape(n, n).numpy()
    # Factor by factor: a product of tiny probabilities may underflow, but is not 0.
    kernels = [(s, a, (table > 0).astype(float)) for s, a, table in model.kernels]
    possible = ref.transition(ref.Model(model.state_sizes, model.action_sizes, kernels, []))
    allowed = [
        (ref.agent_policy(model, policy, k) > 0)[:, model.actions[:, k]]
        for k in range(model.n_agents)
    ]
    counts = ref.policy_transition(possible, np.prod(allowed, axis=0))
    # Entries count joint actions of the agents that some kernel reads, so they are whole and exact.
    np.testing.assert_array_equal(paths > 0, counts > 0)
    np.testing.assert_array_equal(paths, np.round(paths))


# Structure ------------------------------------------------------------------------------------


def _unread() -> tuple[tl.FactoredMDP, tl.SoftmaxPolicy]:
    """s'_0 is a copy of a_0 ~ π(· | s_2); nobody reads s_0 and s_1, nothing reads a_1."""
    kernels = [
        tl.LocalKernel((), (0,), np.eye(3)),
        tl.LocalKernel((), (), [0.25, 0.75]),
        tl.LocalKernel((2,), (), [[0.5, 0.5], [0.1, 0.9]]),
    ]
    mdp = tl.FactoredMDP([3, 2, 2], [3, 2], kernels, [])
    tables = [[[0.0, 1.0, 2.0], [2.0, -1.0, 0.0]], [0.0, 1.0]]
    return mdp, tl.SoftmaxPolicy.from_logits(mdp, [(2,), ()], tables)


def test_coordinates_and_actions_that_nobody_reads() -> None:
    mdp, policy = _unread()
    f = _values(np.random.default_rng(0), 3, 2, 2)
    operator = _operator(mdp, policy)
    laws = (
        policy.probabilities(0),
        torch.tensor([0.25, 0.75]),
        torch.tensor([[0.5, 0.5], [0.1, 0.9]]),
    )
    expected = torch.einsum("ca,b,cd,abd->c", *(law.double() for law in laws), f)
    result = operator(f)
    assert result.shape == (3, 2, 2)
    torch.testing.assert_close(result, expected.expand(3, 2, 2), rtol=0, atol=1e-7)
    d = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close((result * d).sum(), (f * operator.adjoint(d)).sum())
    opened = _operator(mdp, policy, 0, 1)(f)
    assert opened.shape == (3, 2, 2, 3, 2)
    assert torch.equal(opened[..., 0], opened[..., 1])
    given = torch.einsum("b,cd,abd->ca", *(law.double() for law in laws[1:]), f)
    torch.testing.assert_close(opened[0, 0, :, :, 0], given, rtol=0, atol=1e-7)


def test_spaces_of_one_element_get_no_axis() -> None:
    """More of them than a tensor has axes, all seen by every agent."""
    n = 40
    table = np.array([[0.25, 0.75], [0.5, 0.5]])
    ones = [tl.LocalKernel(tuple(range(n)), (0,), np.ones((1,) * (n + 2))) for _ in range(n)]
    last = tl.LocalKernel((*range(n), n), (1,), table.reshape(*(1,) * n, 2, 1, 2))
    mdp = tl.FactoredMDP([1] * n + [2], [1, 1], [*ones, last], [])
    policy = tl.SoftmaxPolicy.tabular(mdp, [range(n + 1), ()])
    operator = _operator(mdp, policy)
    f = torch.tensor([3.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(
        operator(f.reshape(*(1,) * n, 2)).ravel(), torch.from_numpy(table) @ f, rtol=0, atol=4e-16
    )
    torch.testing.assert_close(
        operator.adjoint(f.reshape(*(1,) * n, 2)).ravel(), f @ torch.from_numpy(table)
    )
    assert operator.plan.peak == 2


def test_one_state_and_one_action_in_all() -> None:
    mdp = tl.FactoredMDP([1], [1], [tl.LocalKernel((0,), (0,), np.ones((1, 1, 1)))], [])
    policy = tl.SoftmaxPolicy.tabular(mdp, [(0,)])
    f = torch.tensor([5.0], dtype=torch.float64)
    assert torch.equal(_operator(mdp, policy)(f), f)
    assert torch.equal(_operator(mdp, policy).adjoint(f), f)
    assert torch.equal(_operator(mdp, policy, 0)(f), f[:, None])


@pytest.mark.parametrize("n", [4, 7, 10])
def test_a_ring_needs_twice_its_joint_states(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel by kernel; fused blocks may do with less, and never need more."""
    mdp = sysadmin(n=n)
    scopes = list(tl.neighbourhood_scopes(mdp))
    fused = Plan(mdp, scopes)
    assert 2**n <= fused.peak <= 2 ** (n + 1)
    monkeypatch.setattr(room, "MATRIX_ENTRIES", 1)
    single = Plan(mdp, scopes)
    assert len(single.steps) == n
    assert single.peak == 2 ** (n + 1)
    opened = Plan(mdp, scopes, frozenset([0]))
    assert opened.peak <= 2 ** (n + 2)


def test_two_way_rings_need_four_times_theirs() -> None:
    """Each coordinate reads both neighbours: two of the first block's wait until the end."""
    for n in (5, 9):
        kernels = [
            tl.LocalKernel(((j - 1) % n, j, (j + 1) % n), (), np.full((2, 2, 2, 2), 0.5))
            for j in range(n)
        ]
        assert Plan(tl.FactoredMDP([2] * n, [], kernels, []), []).peak <= 2 ** (n + 2)


@pytest.mark.parametrize(("matrix_entries", "gone_entries"), [(8192, 32), (256, 32), (8192, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_fused_blocks_respect_their_limits(
    seed: int, matrix_entries: int, gone_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MATRIX_ENTRIES", matrix_entries)
    monkeypatch.setattr(room, "GONE_ENTRIES", gone_entries)
    if seed:
        _, _, mdp, policy = draw(seed, n_coordinates=(4, 7), max_joint=10_000)
        scopes = list(policy.scopes)
    else:
        mdp = sysadmin(n=12)
        scopes = list(tl.neighbourhood_scopes(mdp))
    plan = Plan(mdp, scopes)
    driven = [f for step in plan.steps for f in step.factors if f.source[0] == "kernel"]
    assert len(driven) == mdp.n_coordinates == len(set(driven))
    laws = [f.source[1] for step in plan.steps for f in step.factors if f.source[0] == "law"]
    assert len(laws) == len(set(laws))
    fused = 0
    for step in plan.steps:
        kernels = [f for f in step.factors if f.source[0] == "kernel"]
        if len(kernels) > 1:
            fused += 1
            assert plan.size((*step.batch, *step.new, *step.gone)) <= matrix_entries
            assert plan.size(step.gone) <= gone_entries
        assert set(step.after) == (set(step.before) - set(step.gone)) | set(step.new)
    if not seed:
        assert fused


def test_plans_over_the_memory_budget_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = sysadmin(n=6)
    scopes = list(tl.neighbourhood_scopes(mdp))
    peak = Plan(mdp, scopes).peak
    monkeypatch.setattr(room, "PEAK_BYTES", 8 * peak)
    assert Plan(mdp, scopes).peak == peak
    monkeypatch.setattr(room, "PEAK_BYTES", 8 * peak - 1)
    with pytest.raises(tl.BudgetError, match=rf"{8 * peak} bytes.*use a smaller model"):
        Plan(mdp, scopes)


def test_thirty_coordinates_are_refused_without_being_allocated() -> None:
    kernels = [tl.LocalKernel((j,), (), np.eye(2)) for j in range(30)]
    with pytest.raises(tl.BudgetError, match=rf"{2**30} entries \({2**33} bytes\)"):
        Plan(tl.FactoredMDP([2] * 30, [], kernels, []), [])


def test_open_actions_have_no_adjoint() -> None:
    mdp, policy = _unread()
    with pytest.raises(ValueError, match="open actions has no adjoint"):
        _operator(mdp, policy, 1).adjoint(torch.ones(3, 2, 2, dtype=torch.float64))


def test_one_plan_serves_many_policies() -> None:
    """A plan holds structure only: operators made from it do not disturb each other."""
    model, policy, mdp, twin = draw(4, n_agents=(2, 3))
    other = ref.random_policy(np.random.default_rng(1), model, scopes=policy.scopes)
    plan = Plan(mdp, list(twin.scopes))
    pairs = [(p, twin_policy(twin_model(model), p)) for p in (policy, other)]
    operators = [JointOperator(plan, mdp, q.probabilities) for _, q in pairs]
    f = _values(np.random.default_rng(0), *model.state_sizes)
    for (plain, _), operator in zip(pairs, operators, strict=True):
        expected = _given(model, plain, ())[:, 0] @ f.numpy().ravel()
        np.testing.assert_allclose(operator(f).numpy().ravel(), expected, rtol=0, atol=ATOL)
