"""Local functions pulled back through one step, against T^π on the joint space."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import reference as ref
import torch
from torch import Tensor
from twins import draw, twin_model, twin_policy

import torchloc as tl
from torchloc.closed_loop import PolicyTables
from torchloc.contraction import Dynamics, LocalFunctions, Pullback, pull_back
from torchloc.contraction import pullback as room

Array = np.ndarray
# Sums of products of computed probabilities with numbers of size 10 at most.
ATOL = 1e-12


def dynamics_of(mdp: tl.FactoredMDP, policy: tl.SoftmaxPolicy) -> Dynamics:
    return Dynamics(mdp.kernels, PolicyTables.read(policy), mdp.n_coordinates)


def random_functions(
    rng: np.random.Generator, sizes: tuple[int, ...], *, shared: bool = False
) -> Iterator[LocalFunctions]:
    """Functions of 0, 1, 2 and 3 coordinates in any order, those of equal sizes in one batch."""
    by_shape: dict[tuple[int, ...], list[Array]] = {}
    for _ in range(12):
        scope = rng.permutation(len(sizes))[: rng.integers(0, min(3, len(sizes)) + 1)]
        by_shape.setdefault(tuple(sizes[i] for i in scope), []).append(scope)
    for shape, scopes in by_shape.items():
        values = torch.from_numpy(rng.normal(size=(1 if shared else len(scopes), *shape)))
        owner = rng.integers(0, 100, len(scopes))  # several functions may have one owner
        scope = np.array(scopes, dtype=np.int64).reshape(len(scopes), len(shape))
        yield LocalFunctions(owner, scope, values)


def at_states(model: ref.Model, scope: Array, values: Tensor) -> Array:
    """(|S|,) a local function at every joint state."""
    return ref.at_states(model, scope.tolist(), values.numpy())


def rows(pullback: Pullback, values: Tensor) -> list[Tensor]:
    """The values of each function of a class."""
    assert values.shape[1:] == pullback.sizes and len(values) in (1, len(pullback.owner))
    return list(values.expand(len(pullback.owner), *values.shape[1:]))


def check(model: ref.Model, policy: ref.Policy, functions: LocalFunctions) -> None:
    """Every function comes out once, and is T^π f."""
    mdp = twin_model(model)
    step = ref.policy_transition(ref.transition(model), ref.product_policy(model, policy))
    expected, found = [], []
    for row, (owner, scope) in enumerate(zip(functions.owner, functions.scope, strict=True)):
        values = functions.values[0 if len(functions.values) == 1 else row]
        expected.append((int(owner), step @ at_states(model, scope, values)))
    for pullback in pull_back(functions, dynamics_of(mdp, twin_policy(mdp, policy))):
        assert len(pullback.scope) == len(pullback.owner)
        for owner, scope, values in zip(
            pullback.owner, pullback.scope, rows(pullback, pullback.contract()), strict=True
        ):
            assert len(set(scope.tolist())) == len(scope)
            assert tuple(model.state_sizes[i] for i in scope) == pullback.sizes
            found.append((int(owner), at_states(model, scope, values)))
    assert len(found) == len(expected)
    for owner, values in expected:
        gaps = [np.abs(values - mine).max() if at == owner else np.inf for at, mine in found]
        nearest = int(np.argmin(gaps))
        assert gaps[nearest] <= ATOL
        del found[nearest]


@pytest.mark.parametrize("seed", range(20))
def test_matches_the_joint_operator(seed: int) -> None:
    """Shared actions, overlapping scopes, forbidden actions, N ≠ K, sizes of 1: all are drawn."""
    options = {"minus_infinity": 0.2 * (seed % 2), "full_scopes": seed % 5 == 0}
    model, policy, _, _ = draw(seed, policy=options, n_coordinates=(1, 5), sizes=(1, 3))
    rng = np.random.default_rng(seed)
    for functions in random_functions(rng, model.state_sizes, shared=seed % 3 == 0):
        check(model, policy, functions)


def test_the_random_models_show_every_feature() -> None:
    models = [draw(seed, n_coordinates=(1, 5), sizes=(1, 3))[0] for seed in range(20)]
    assert any(ref.shared_agents(model) for model in models)
    assert any(model.n_coordinates < model.n_agents for model in models)
    assert any(model.n_coordinates > model.n_agents for model in models)
    assert any(1 in model.state_sizes for model in models)
    assert any(1 in model.action_sizes for model in models)
    assert any(not kernel[0] for model in models for kernel in model.kernels)


def test_an_agent_that_acts_twice_is_summed_once() -> None:
    """f = 1{s'_0 = s'_1} of two copies of one action is always 1, whatever the policy."""
    copy = np.eye(2)
    model = ref.Model((2, 2), (2,), [((), (0,), copy), ((), (0,), copy)], [])
    policy = ref.random_policy(np.random.default_rng(0), model, scopes=[(1, 0)])
    same = LocalFunctions(np.array([7]), np.array([[1, 0]]), torch.eye(2).double()[None])
    check(model, policy, same)
    mdp = twin_model(model)
    (pullback,) = pull_back(same, dynamics_of(mdp, twin_policy(mdp, policy)))
    torch.testing.assert_close(pullback.contract(), torch.ones(1, 2, 2, dtype=torch.float64))


def ring(n: int = 6, *, seed: int = 0) -> tuple[ref.Model, ref.Policy]:
    """Sites with kernels of their own that read both neighbours and their own agent."""
    rng = np.random.default_rng(seed)
    kernels = []
    for j in range(n):
        table = rng.dirichlet(np.ones(2), (2, 2, 2))
        kernels.append((((j - 1) % n, (j + 1) % n), (j,), table))
    model = ref.Model((2,) * n, (2,) * n, kernels, [])
    policy = ref.random_policy(rng, model, scopes=[(j, (j + 1) % n) for j in range(n)])
    return model, policy


def neighbours(n: int, rng: np.random.Generator, *, shared: bool = False) -> LocalFunctions:
    """One function of every two neighbours."""
    scope = np.stack([np.arange(n), (np.arange(n) + 1) % n], axis=1)
    values = torch.from_numpy(rng.normal(size=(1 if shared else n, 2, 2)))
    return LocalFunctions(np.arange(n), scope, values)


@pytest.mark.parametrize("shared", [False, True])
def test_sites_of_equal_structure_are_one_class(shared: bool) -> None:
    model, policy = ring()
    functions = neighbours(6, np.random.default_rng(1), shared=shared)
    check(model, policy, functions)
    mdp = twin_model(model)
    classes = list(pull_back(functions, dynamics_of(mdp, twin_policy(mdp, policy))))
    assert [pullback.owner.tolist() for pullback in classes] == [list(range(6))]


@pytest.mark.parametrize("entries", [1, 40, 100])
@pytest.mark.parametrize("shared", [False, True])
def test_cut_into_chunks_of_any_size(
    entries: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, policy = ring()
    mdp = twin_model(model)
    functions = neighbours(6, np.random.default_rng(1), shared=shared)
    (pullback,) = pull_back(functions, dynamics_of(mdp, twin_policy(mdp, policy)))
    whole = pullback.contract()
    monkeypatch.setattr(room, "CHUNK_ENTRIES", entries)
    calls = []
    plain = room.einsum
    monkeypatch.setattr(room, "einsum", lambda *a: calls.append(a) or plain(*a))
    # A path may sum in another order.
    torch.testing.assert_close(pullback.contract(), whole, rtol=0, atol=ATOL)
    a_chunk = max(1, entries // whole[0].numel())
    assert len(calls) == -(-6 // a_chunk) and len(whole) == 6


@pytest.mark.parametrize("seed", range(8))
def test_selected_values_are_those_of_the_whole(seed: int) -> None:
    model, policy = ring(seed=seed)
    mdp = twin_model(model)
    rng = np.random.default_rng(seed)
    functions = neighbours(6, rng)
    for pullback in pull_back(functions, dynamics_of(mdp, twin_policy(mdp, policy))):
        whole = pullback.contract()
        keep = {
            int(at): torch.from_numpy(rng.integers(0, 2, int(rng.integers(1, 4))))
            for at in rng.permutation(len(pullback.sizes))[: rng.integers(1, 4)]
        }
        for at, values in keep.items():
            whole = whole.index_select(1 + at, values)
        torch.testing.assert_close(pullback.contract(keep), whole, rtol=0, atol=ATOL)
    assert pullback.contract({}).shape == pullback.contract().shape


def test_steps_compose() -> None:
    """Two pull-backs of one batch, the second of what the first gave."""
    model, policy = ring(5)
    mdp = twin_model(model)
    dynamics = dynamics_of(mdp, twin_policy(mdp, policy))
    functions = neighbours(5, np.random.default_rng(3))
    step = ref.policy_transition(ref.transition(model), ref.product_policy(model, policy))
    seen = 0
    for first in pull_back(functions, dynamics):
        again = LocalFunctions(first.owner, first.scope, first.contract())
        for second in pull_back(again, dynamics):
            for owner, scope, values in zip(
                second.owner, second.scope, rows(second, second.contract()), strict=True
            ):
                f = at_states(model, functions.scope[owner], functions.values[owner])
                gap = at_states(model, scope, values) - step @ (step @ f)
                assert np.abs(gap).max() <= ATOL
                seen += 1
    assert seen == 5


def test_no_functions_and_constants() -> None:
    model, policy = ring(4)
    mdp = twin_model(model)
    dynamics = dynamics_of(mdp, twin_policy(mdp, policy))
    none = LocalFunctions(np.zeros(0, int), np.zeros((0, 1), int), torch.zeros(0, 2).double())
    assert list(pull_back(none, dynamics)) == []
    for values in (torch.tensor([2.5, -1.0]).double(), torch.tensor([2.5]).double()):
        constants = LocalFunctions(np.array([3, 3]), np.zeros((2, 0), int), values)
        (pullback,) = pull_back(constants, dynamics)
        assert pullback.sizes == () and pullback.owner.tolist() == [3, 3]
        assert pullback.contract().tolist() == values.tolist()


def test_a_result_over_budget_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, policy = ring()
    mdp = twin_model(model)
    functions = neighbours(6, np.random.default_rng(0))
    (pullback,) = pull_back(functions, dynamics_of(mdp, twin_policy(mdp, policy)))
    entries = 2 ** len(pullback.sizes)
    monkeypatch.setattr(room, "SITE_ENTRIES", entries)
    pullback.contract()
    monkeypatch.setattr(room, "SITE_ENTRIES", entries - 1)
    message = (
        rf"site 0 reads {len(pullback.sizes)} coordinates .* {entries} entries, {8 * entries} bytes, "
        rf"over the budget of {entries - 1} entries; use fewer steps or smaller scopes"
    )
    with pytest.raises(tl.BudgetError, match=message):
        pullback.contract()
    # What is selected counts, not what there is.
    pullback.contract({0: torch.tensor([1])})
