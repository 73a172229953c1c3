"""Closed classes from the 0/1 operator against strongly connected components."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pytest
import reference as ref
from torch import Tensor
from twins import draw

import torchloc as tl
from torchloc.evaluation.operator import JointOperator, Plan
from torchloc.evaluation.reachability import closed_classes

Array = np.ndarray


Operator = TypeVar("Operator", bound=JointOperator)


def _support(
    mdp: tl.FactoredMDP, policy: tl.SoftmaxPolicy, kind: type[Operator] = JointOperator
) -> Operator:
    plan = Plan(mdp, list(policy.scopes))
    return kind(plan, mdp, policy.probabilities, support=True)


def _chain(matrix: Array, kind: type[Operator] = JointOperator) -> Operator:
    """The operator of one coordinate that nobody controls."""
    mdp = tl.FactoredMDP([len(matrix)], [], [tl.LocalKernel((0,), (), matrix)], [])
    return _support(mdp, tl.SoftmaxPolicy.tabular(mdp, []), kind)


def _assert_one_state_a_class(found: list[int], matrix: Array) -> None:
    classes = ref.closed_classes(matrix)
    owners = [[c for c, members in enumerate(classes) if state in members] for state in found]
    assert sorted(owners) == [[c] for c in range(len(classes))]


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 5, 17, 40])
def test_random_sparse_chains(n: int, degree: int) -> None:
    rng = np.random.default_rng(100 * n + degree)
    seen = set()
    for _ in range(10):
        matrix = np.zeros((n, n))
        for row in matrix:
            row[rng.integers(0, n, degree)] = rng.uniform(0.1, 1.0)
        matrix /= matrix.sum(-1, keepdims=True)
        found = closed_classes(_chain(matrix), (n,))
        _assert_one_state_a_class(found, matrix)
        seen.add(len(found))
    assert n < 5 or degree > 1 or len(seen) > 1


@pytest.mark.parametrize("seed", range(25))
def test_random_sparse_models(seed: int) -> None:
    """Near-deterministic kernels and forbidden actions; tables of zeros and ones stand for both."""
    model, policy, _, _ = draw(seed, concentration=(0.05, 0.3), policy={"minus_infinity": 0.6})
    rng = np.random.default_rng(seed)
    kernels = []
    for states, actions, table in model.kernels:
        kept = (table > 0.05) | (table == table.max(-1, keepdims=True))
        kernels.append((states, actions, kept / kept.sum(-1, keepdims=True)))
    sparse = ref.Model(model.state_sizes, model.action_sizes, kernels, [])
    mdp = tl.FactoredMDP(
        model.state_sizes, model.action_sizes, [tl.LocalKernel(*kernel) for kernel in kernels], []
    )
    laws = [
        rng.permutation(law.reshape(-1, law.shape[-1])).reshape(law.shape) for law in policy.logits
    ]
    plain = ref.Policy(policy.scopes, laws, np.ones(len(laws)))
    twin = tl.SoftmaxPolicy.from_logits(mdp, policy.scopes, laws)
    matrix = ref.policy_transition(ref.transition(sparse), ref.product_policy(sparse, plain))
    _assert_one_state_a_class(closed_classes(_support(mdp, twin), sparse.state_sizes), matrix)


def test_every_state_may_be_absorbing() -> None:
    assert closed_classes(_chain(np.eye(6)), (6,)) == list(range(6))


def test_periodic_chains_are_one_class() -> None:
    assert len(closed_classes(_chain(np.roll(np.eye(7), 1, axis=1)), (7,))) == 1
    two = np.kron(np.eye(2), np.roll(np.eye(3), 1, axis=1))
    _assert_one_state_a_class(closed_classes(_chain(two), (6,)), two)


def test_a_tiny_probability_is_no_zero() -> None:
    leak = np.array([[1.0 - 1e-12, 1e-12, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    assert closed_classes(_chain(leak), (3,)) == [1]
    shut = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    assert closed_classes(_chain(shut), (3,)) == [0, 1]


class _Counted(JointOperator):
    """Counts how often it is applied."""

    calls = 0

    def __call__(self, values: Tensor) -> Tensor:
        self.calls += 1
        return super().__call__(values)

    def adjoint(self, weights: Tensor) -> Tensor:
        self.calls += 1
        return super().adjoint(weights)


@pytest.mark.parametrize("backwards", [False, True])
def test_long_transient_paths_cost_their_length_once(backwards: bool) -> None:
    """s → s + 1 up to an absorbing end: a search state by state would take n² / 2 applications."""
    n = 300
    matrix = np.diag(np.ones(n - 1), 1)
    matrix[-1, -1] = 1.0
    matrix = matrix[::-1, ::-1] if backwards else matrix
    counted = _chain(matrix, _Counted)
    assert closed_classes(counted, (n,)) == [0 if backwards else n - 1]
    assert counted.calls <= 4 * n


def test_indices_are_row_major() -> None:
    """Two absorbing coordinates of sizes 2 and 3: six classes, named in C order."""
    mdp = tl.FactoredMDP(
        [2, 3], [], [tl.LocalKernel((0,), (), np.eye(2)), tl.LocalKernel((1,), (), np.eye(3))], []
    )
    support = _support(mdp, tl.SoftmaxPolicy.tabular(mdp, []))
    assert closed_classes(support, (2, 3)) == list(range(6))
    pinned = tl.FactoredMDP(
        [2, 3],
        [],
        [tl.LocalKernel((), (), [0.0, 1.0]), tl.LocalKernel((), (), [0.0, 0.0, 1.0])],
        [],
    )
    found = closed_classes(_support(pinned, tl.SoftmaxPolicy.tabular(pinned, [])), (2, 3))
    assert found == [int(np.ravel_multi_index((1, 2), (2, 3)))]
