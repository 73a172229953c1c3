"""What is left after functions were added to others is the same sum, each function once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from torch import Tensor
from twins import draw

import torchloc as tl
from torchloc.evaluation import sources as room
from torchloc.evaluation.sources import Sources
from torchloc.mdp import FactoredMDP
from torchloc.policy import SoftmaxPolicy

Array = np.ndarray
# Sums of a few dozen numbers of size 1.
ATOL = 1e-13
MODELS: list[dict[str, Any]] = [
    {"n_coordinates": (1, 6), "n_agents": (1, 4), "n_rewards": (1, 9), "max_joint": 1500},
    {"n_coordinates": (2, 3), "n_agents": (3, 4), "n_rewards": (6, 12), "max_joint": 1500},
]


def drawn(seed: int) -> tuple[ref.Model, FactoredMDP, SoftmaxPolicy]:
    options = {"max_scope": 1} if seed % 3 else {}
    model, _, mdp, policy = draw(seed, policy=options, **MODELS[seed % 2])
    return model, mdp, policy


def scopes_of(sources: Sources, policy: SoftmaxPolicy) -> list[tuple[Array, tuple[int, ...]]]:
    """(n, v) coordinates and v sizes of every kind of function."""
    kinds = [(site.reads, site.read_sizes) for site in sources.rewards]
    if sources.entropies:
        kinds += [(group.scope, group.sizes) for group in policy.groups]
    return kinds


def random_functions(kinds: Sequence[tuple[Array, tuple[int, ...]]], seed: int) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=(*sizes, len(scope)))) for scope, sizes in kinds]


def spread(model: ref.Model, scope: Array, values: Tensor) -> Array:
    """The sum of (*sizes, B) functions of (B, v) coordinates at every joint state: (|S|,)."""
    total = np.zeros(len(model.states))
    for b, coordinates in enumerate(scope.tolist()):
        total += ref.at_states(model, coordinates, values[..., b].numpy())
    return total


def members(sources: Sources) -> list[tuple[int, int]]:
    """(kind, row) of every function, as a source of its own or as a guest."""
    own = [(source.kind, int(row)) for source in sources.classes for row in source.rows]
    guests = [
        (guest.kind, int(row))
        for source in sources.classes
        for guest in source.guests
        for row in guest.rows
    ]
    return own + guests


@pytest.mark.parametrize("entropies", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_totals_are_the_sum_of_all_functions(seed: int, entropies: bool) -> None:
    model, mdp, policy = drawn(seed)
    sources = Sources.of(mdp, policy, entropies=entropies)
    kinds = scopes_of(sources, policy)
    functions = random_functions(kinds, seed)
    before = [values.clone() for values in functions]
    expected = sum(spread(model, scope, f) for (scope, _), f in zip(kinds, functions, strict=True))
    found = np.zeros(len(model.states))
    for source in sources.classes:
        total = source.total(functions)
        assert total.shape == (*source.sizes, len(source.rows))
        assert source.sizes == tuple(model.state_sizes[i] for i in source.scope[0])
        found += spread(model, source.scope, total)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)
    assert all(torch.equal(x, y) for x, y in zip(functions, before, strict=True))


@pytest.mark.parametrize("candidates", [0, 1, 16])
@pytest.mark.parametrize("seed", range(12))
def test_every_function_stands_once(
    seed: int, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_CANDIDATES", candidates)
    _, mdp, policy = drawn(seed)
    sources = Sources.of(mdp, policy, entropies=True)
    kinds = scopes_of(sources, policy)
    every = [(kind, row) for kind, (scope, _) in enumerate(kinds) for row in range(len(scope))]
    assert sorted(members(sources)) == every
    for source in sources.classes:
        assert (source.scope == kinds[source.kind][0][source.rows]).all()
        assert candidates or not source.guests
        for guest in source.guests:
            hosts = source.scope[guest.hosts][:, list(guest.axes)]
            assert (hosts == kinds[guest.kind][0][guest.rows]).all()


def test_the_models_of_these_tests_have_guests_of_every_sort() -> None:
    found = [Sources.of(*drawn(seed)[1:], entropies=True) for seed in range(12)]
    classes = [(len(sources.rewards), x) for sources in found for x in sources.classes]
    guests = [(n, source, guest) for n, source in classes for guest in source.guests]
    assert any(guest.kind >= n for n, _, guest in guests)
    assert any(list(guest.axes) != sorted(guest.axes) for _, _, guest in guests)
    assert any(len(guest.axes) < source.scope.shape[1] for _, source, guest in guests)
    assert any(len(guest.axes) == source.scope.shape[1] for _, source, guest in guests)
    assert any(len(set(guest.hosts.tolist())) < len(guest.hosts) for _, _, guest in guests)
    assert any(len({guest.kind for guest in source.guests}) > 1 for _, source in classes)
    assert any(not source.sizes for _, source in classes)
    # Functions that share a coordinate with a wider one, but not all of them.
    assert any(
        set(wide.scope.ravel()) & set(source.scope[row])
        for sources in found
        for wide, source in itertools.combinations(sources.classes, 2)
        for row in range(len(source.rows))
        if len(source.sizes) > 1
    )


def test_a_function_within_another_is_its_guest() -> None:
    """r(s_2, s_0) takes r(s_0), r(s_0, s_2) and the entropy of who sees s_2; r(s_1) is its own."""
    rng = np.random.default_rng(0)
    kernels = [tl.LocalKernel((), (), [0.5, 0.5])] * 3
    rewards = [
        tl.LocalReward((2, 0), (), rng.normal(size=(2, 2))),
        tl.LocalReward((0,), (), rng.normal(size=2)),
        tl.LocalReward((0, 2), (), rng.normal(size=(2, 2))),
        tl.LocalReward((1,), (), rng.normal(size=2)),
    ]
    mdp = tl.FactoredMDP([2] * 3, [2], kernels, rewards)
    policy = SoftmaxPolicy.tabular(mdp, [(2,)])
    sources = Sources.of(mdp, policy, entropies=True)
    assert [len(source.rows) for source in sources.classes] == [2, 1]
    wide, single = sources.classes
    assert wide.scope.tolist() == [[2, 0], [0, 2]] and single.scope.tolist() == [[1]]
    taken = sorted((guest.kind, guest.hosts.tolist(), guest.axes) for guest in wide.guests)
    assert taken == [(1, [0], (1,)), (2, [0], (0,))]
    assert Sources.of(mdp, policy, entropies=False).entropies is False


def test_nothing_to_earn() -> None:
    mdp = tl.FactoredMDP([2], [2], [tl.LocalKernel((), (0,), np.eye(2))], [])
    policy = SoftmaxPolicy.tabular(mdp, [()])
    assert Sources.of(mdp, policy, entropies=False).classes == ()
    (entropy,) = Sources.of(mdp, policy, entropies=True).classes
    assert entropy.sizes == () and entropy.total([torch.tensor([0.7])]).tolist() == [
        pytest.approx(0.7)
    ]
