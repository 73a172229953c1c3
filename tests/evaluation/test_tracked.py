"""A policy that moves a few agents at a time has the numbers of a fresh evaluation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from evaluation.averages import Setting, random_laws
from torch import Tensor
from twins import draw, twin_policy

import torchloc as tl
from torchloc.closed_loop import PolicyTables
from torchloc.evaluation import local as plans
from torchloc.evaluation import problem
from torchloc.evaluation.local import LocalEvaluation
from torchloc.evaluation.tracked import LocalLogits, Tracked
from torchloc.policy import SoftmaxPolicy

Array = np.ndarray
# The same sums in another order, of numbers of size 10 at most.
SAME = 1e-13
SETTINGS: list[Setting] = list(itertools.product((1, 2, 0), ("entropy", "reward"), (0.7, 1.0)))


def evaluation(mdp: tl.FactoredMDP, policy: SoftmaxPolicy, setting: Setting) -> LocalEvaluation:
    kappa, objective, discount = setting
    return LocalEvaluation(mdp, policy, kappa, objective=objective, discount=discount)


def variants(tracked: Tracked, sizes: Array, *selection: Any) -> list[LocalLogits]:
    """Uniform, by a product law, and over given states."""
    rng = np.random.default_rng(0)
    states = torch.from_numpy(np.stack([rng.integers(size, size=4) for size in sizes], axis=1))
    laws = random_laws(rng, sizes.tolist())
    return [
        tracked.logits(*selection),
        tracked.logits(*selection, weighting=laws),
        tracked.logits(*selection, states=states),
    ]


def assert_fresh(tracked: Tracked, local: LocalEvaluation, policy: SoftmaxPolicy) -> None:
    """As if the policy had been read anew."""
    sizes = local.mdp.state_sizes
    fresh = local.track(policy, keep=False)
    for mine, new in zip(variants(tracked, sizes), variants(fresh, sizes), strict=True):
        for x, y in zip(mine, new, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=SAME)


def mixed(old: ref.Policy, new: ref.Policy, moved: Array) -> ref.Policy:
    """The old policy with some agents' logits from the new one."""
    logits = [y if flag else x for x, y, flag in zip(old.logits, new.logits, moved, strict=True)]
    return ref.Policy(old.scopes, logits, old.temperature)


@pytest.mark.parametrize("seed", range(6))
def test_random_models_and_moves(seed: int) -> None:
    """Shared and private actions, one, some, all or no agents, to new logits and back."""
    check_moves(seed, keep=True)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("seed", range(6, 60))
def test_many_random_models_and_moves(seed: int, keep: bool) -> None:
    check_moves(seed, keep=keep)


def check_moves(seed: int, *, keep: bool) -> None:
    options = {"n_coordinates": (2, 4), "n_agents": (2, 4), "max_joint": 600}
    model, policy, mdp, twin = draw(seed, policy={"minus_infinity": 0.3 * (seed % 2)}, **options)
    rng = np.random.default_rng(seed)
    local = evaluation(mdp, twin, SETTINGS[seed % len(SETTINGS)])
    tracked = local.track(twin, keep=keep)
    start = policy
    tracked.logits()
    for share in (0.3, 0.6, 0.0, 0.5):
        moved = rng.random(model.n_agents) < share
        other = ref.random_policy(rng, model, scopes=policy.scopes)
        policy = mixed(policy, other if share != 0.5 else start, moved)
        twin = twin_policy(mdp, policy)
        tracked.moved(twin, moved)
        if share < 0.6:  # what is not asked for in between is not lost
            assert_fresh(tracked, local, twin)


def ring(n: int, *, equal: bool, shared: bool = False, seed: int = 0) -> tl.FactoredMDP:
    """Two-way, binary, a reward on every two neighbours; all sites equal or all different.

    Agent j acts on site j; `shared`, also on the next one.
    """
    rng, sites = np.random.default_rng(seed), np.arange(n)
    count = 1 if equal else n
    near = np.stack([(sites - 1) % n, sites, (sites + 1) % n], axis=1)
    kernels = tl.KernelBatch(
        sites,
        near,
        near[:, 1::-1][:, : 1 + shared],
        rng.dirichlet(np.ones(2), (count, 2, 2, 2, 2) + (2,) * shared),
    )
    rewards = tl.RewardBatch(near[:, 1:], sites[:, None], rng.normal(size=(count, 2, 2, 2)))
    return tl.FactoredMDP([2] * n, [2] * n, [kernels], [rewards])


def ring_policy(mdp: tl.FactoredMDP, logits: Array) -> SoftmaxPolicy:
    n = mdp.n_agents
    scopes = [((j - 1) % n, j) for j in range(n)]
    return SoftmaxPolicy.from_logits(mdp, scopes, list(logits), temperature=0.7)


@pytest.mark.parametrize(
    ("equal", "shared", "chunk"),
    [(True, False, 1), (True, True, 2**17), (False, False, 2**17), (False, True, 2**17)],
)
def test_a_ring_moves_site_by_site(
    equal: bool, shared: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites that are equal part, and meet again."""
    monkeypatch.setitem(problem._CHUNK, "cpu", chunk)
    n, rng = 6, np.random.default_rng(1)
    mdp = ring(n, equal=equal, shared=shared)
    logits = np.tile(rng.normal(size=(2, 2, 2)), (n, 1, 1, 1))
    policy = ring_policy(mdp, logits)
    local = evaluation(mdp, policy, (1, "reward", 0.9))
    tracked = local.track(policy)
    tracked.logits()
    same = rng.normal(size=(2, 2, 2))
    for agents in ([3], [5, 0], list(range(n))):
        logits = logits.copy()
        logits[agents] = same if len(agents) == n else rng.normal(size=(len(agents), 2, 2, 2))
        policy = ring_policy(mdp, logits)
        moved = np.isin(np.arange(n), agents)
        tracked.moved(policy, moved)
        assert_fresh(tracked, local, policy)


def test_a_selection_of_a_tracked_policy() -> None:
    """The colours of a sweep: each is asked for after the one before it moved."""
    n, rng = 12, np.random.default_rng(2)
    mdp = ring(n, equal=False)
    logits = rng.normal(size=(n, 2, 2, 2))
    policy = ring_policy(mdp, logits)
    local = evaluation(mdp, policy, (1, "entropy", 1.0))
    tracked = local.track(policy)
    for colour in ([0, 5], [1, 6], [7, 2, 11], [3]):
        selection = local.select(colour)
        found = tracked.logits(selection)
        fresh = local.logits(policy)
        for k in colour:
            torch.testing.assert_close(found[k], fresh[k], rtol=0, atol=SAME)
        logits[colour] = rng.normal(size=(len(colour), 2, 2, 2))
        policy = ring_policy(mdp, logits)
        tracked.moved(policy, selection.agents)


def test_only_what_reads_the_moved_agents_is_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n, kappa = 60, 2
    mdp = ring(n, equal=False)
    logits = np.random.default_rng(3).normal(size=(n, 2, 2, 2))
    policy = ring_policy(mdp, logits)
    local = evaluation(mdp, policy, (kappa, "reward", 1.0))
    counts: list[int] = []
    plain = problem.carried

    def counted(given: Any, ball: Any, start: int, stop: int) -> Tensor:
        counts.append(stop - start)
        return plain(given, ball, start, stop)

    monkeypatch.setattr(problem, "carried", counted)
    tracked = local.track(policy)
    tracked.logits()
    assert sum(counts) == n
    counts.clear()
    tracked.logits()
    assert counts == []
    logits = logits.copy()
    logits[30] += 1.0
    policy = ring_policy(mdp, logits)
    tracked.moved(policy, np.arange(n) == 30)
    tracked.logits(local.select([5]))
    assert counts == []
    tracked.logits()
    # Term m reads sites m - 1 to m + 1, two steps carry it through the kernels of m - 2 to m + 2.
    assert sum(counts) == 2 * kappa + 1
    assert_fresh(tracked, local, policy)


def test_nothing_is_kept_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = ring(8, equal=False)
    policy = ring_policy(mdp, np.random.default_rng(4).normal(size=(8, 2, 2, 2)))
    local = evaluation(mdp, policy, (2, "reward", 1.0))
    # Eight functions of seven sites.
    needed = problem.Memory.bytes_of(local.balls)
    assert needed == 8 * 8 * 2**7
    monkeypatch.setattr(plans, "KEPT_BYTES", needed)
    assert local.track(policy).problem.memory is not None
    monkeypatch.setattr(plans, "KEPT_BYTES", needed - 1)
    tracked = local.track(policy)
    assert tracked.problem.memory is None
    assert_fresh(tracked, local, policy)


@pytest.mark.parametrize("equal", [True, False])
def test_many_moves_store_no_more_than_the_sites(equal: bool) -> None:
    n, rng = 10, np.random.default_rng(5)
    mdp = ring(n, equal=equal)
    logits = np.tile(rng.normal(size=(2, 2, 2)), (n, 1, 1, 1))
    policy = ring_policy(mdp, logits)
    local = evaluation(mdp, policy, (1, "reward", 1.0))
    tracked = local.track(policy)
    for turn in range(4 * n):
        logits = logits.copy()
        logits[turn % n] = rng.normal(size=(2, 2, 2))
        policy = ring_policy(mdp, logits)
        tracked.moved(policy, np.arange(n) == turn % n)
    held = tracked.problem.numbers
    for table in (*held.laws, *held.kernels, *held.sources):
        assert table.values.shape[-1] <= 2 * n
    assert_fresh(tracked, local, policy)


def test_tables_of_a_policy_can_be_tracked() -> None:
    mdp = ring(6, equal=False)
    policy = ring_policy(mdp, np.random.default_rng(6).normal(size=(6, 2, 2, 2)))
    local = evaluation(mdp, policy, (1, "entropy", 1.0))
    assert_fresh(local.track(PolicyTables.read(policy)), local, policy)
