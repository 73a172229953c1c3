"""Balls against the backward closure of their sources, site by site, and against T^π."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from twins import draw, twin_model, twin_policy

import torchloc as tl
from torchloc.closed_loop import PolicyTables
from torchloc.contraction.balls import Ball, BallTooLarge, Planner
from torchloc.contraction.network import Network
from torchloc.contraction.sites import Sites
from torchloc.contraction.steps import Step
from torchloc.policy import SoftmaxPolicy

Array = np.ndarray
# Sums of products of computed probabilities with numbers of size 10 at most.
ATOL = 1e-12
MODELS: list[dict[str, Any]] = [
    {"n_coordinates": (1, 6), "n_agents": (1, 4), "max_joint": 1500},
    {"structure": "nilpotent", "n_coordinates": (2, 6), "max_joint": 1500},
    {"n_coordinates": (2, 5), "max_parents": 1, "max_joint": 1500},
]


def drawn(seed: int) -> tuple[ref.Model, ref.Policy, tl.FactoredMDP, SoftmaxPolicy]:
    options = {"max_scope": 2} if seed % 2 else {}
    return draw(seed, policy=options, **MODELS[seed % len(MODELS)])


def planner(
    mdp: tl.FactoredMDP, policy: SoftmaxPolicy, budget: int = 2**30, **options: Any
) -> Planner:
    return Planner(Sites(mdp, policy), policy, budget, **options)


def sources(rng: np.random.Generator, n: int, width: int, count: int = 8) -> Array:
    """(count, width) coordinates, each once a row."""
    return np.array([rng.permutation(n)[:width] for _ in range(count)]).reshape(count, width)


def backwards(model: ref.Model, scopes: Sequence[tuple[int, ...]], v: set[int]) -> set[int]:
    """What T^π f reads if f reads V: state parents of V and the scopes of who acts on V."""
    agents = {k for j in v for k in model.kernels[j][1]}
    return {i for j in v for i in model.kernels[j][0]} | {i for k in agents for i in scopes[k]}


def chain(ball: Ball) -> Iterator[Step]:
    yield from ball.steps
    yield ball.last


def columns(values: Sequence[Array], row: int) -> list[int]:
    return [int(column[row]) for column in values]


# Which balls there are ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(7))
def test_every_source_stands_once_for_each_power(seed: int) -> None:
    model, policy, mdp, twin = drawn(seed)
    rng = np.random.default_rng(seed)
    plan = planner(mdp, twin)
    for width in range(min(3, model.n_coordinates) + 1):
        scope = sources(rng, model.n_coordinates, width)
        for kappa in (0, 1, 3):
            carried: list[int] = []
            powers: dict[int, list[int]] = {row: [] for row in range(len(scope))}
            for ball in plan.balls(5, scope, kappa):
                assert ball.source == 5
                assert len(ball) == len(ball.rows) > 0
                if ball.carried:
                    assert len(ball.steps) == kappa
                    carried += ball.rows.tolist()
                for row in ball.rows if not ball.carried else []:
                    powers[int(row)].append(1 + len(ball.steps))
            for row, own in enumerate(scope.tolist()):
                v, alive = set(own), []
                nested = kappa == 0 or set(own) <= backwards(model, policy.scopes, v)
                while v and len(alive) <= kappa:
                    alive.append(len(alive) + 1)
                    v = backwards(model, policy.scopes, v)
                if not own:
                    assert powers[row] == [] and row not in carried
                elif nested:
                    assert carried.count(row) == 1 and powers[row] == []
                else:
                    assert row not in carried and sorted(powers[row]) == alive


@pytest.mark.parametrize("seed", range(8))
def test_every_step_reads_what_its_sites_read(seed: int) -> None:
    model, policy, mdp, twin = drawn(seed)
    rng = np.random.default_rng(seed)
    plan = planner(mdp, twin)
    scope = sources(rng, model.n_coordinates, min(2, model.n_coordinates))
    for ball in plan.balls(0, scope, 2):
        for at in range(len(ball)):
            own = scope[ball.rows[at]].tolist()
            now = own
            for step in chain(ball):
                kinds = [plan.sites.classes[kind] for kind in step.kinds]
                place = zip(kinds, columns(step.sites, at), strict=True)
                assert [int(site.rows[row]) for site, row in place] == now
                reads = columns(step.scope, at)
                assert len(set(reads)) == len(reads)
                assert set(reads) == backwards(model, policy.scopes, set(now))
                assert step.result_sizes == tuple(model.state_sizes[i] for i in reads)
                acting = [
                    int(twin.groups[group].agents[row])
                    for group, row in zip(step.groups, columns(step.agents, at), strict=True)
                ]
                shared = {
                    k
                    for j in now
                    for k in model.kernels[j][1]
                    if sum(k in kernel[1] for kernel in model.kernels) > 1
                }
                assert len(acting) == len(set(acting)) and set(acting) == shared
                u, q = len(reads), len(acting)
                assert step.sizes[u : u + q] == tuple(model.action_sizes[k] for k in acting)
                assert step.sizes[u + q :] == tuple(model.state_sizes[j] for j in now)
                assert step.before == tuple(range(u + q, u + q + len(now)))
                if ball.carried and (step.source is not None or ball.steps):
                    assert [reads[axis] for axis in step.source or ()] == own
                now = reads


def test_equal_structure_is_one_ball_however_large_the_ring() -> None:
    for n in (5, 6, 40):
        sites = np.arange(n)
        near = np.stack([(sites - 1) % n, sites, (sites + 1) % n], axis=1)
        table = np.random.default_rng(0).dirichlet(np.ones(2), (n, 2, 2, 2, 2))
        batch = tl.KernelBatch(sites, near, sites[:, None], table)
        mdp = tl.FactoredMDP([2] * n, [2] * n, [batch], [])
        policy = SoftmaxPolicy.tabular(mdp, [((j + 1) % n, j) for j in range(n)])
        for kappa in (0, 1, 3):
            (ball,) = planner(mdp, policy).balls(0, sites[:, None], kappa)
            assert ball.carried and ball.rows.tolist() == list(range(n))
            widths = [len(step.scope) for step in chain(ball)]
            assert widths == [min(n, 3 + 2 * t) for t in range(kappa + 1)]


def test_a_shared_action_stands_once_in_a_step() -> None:
    copy = np.eye(2)
    model = ref.Model((2, 2), (2,), [((), (0,), copy), ((), (0,), copy)], [])
    policy = ref.random_policy(np.random.default_rng(0), model, scopes=[(1, 0)])
    mdp = twin_model(model)
    plan = planner(mdp, twin_policy(mdp, policy))
    (ball,) = plan.balls(0, np.array([[1, 0]]), 0)
    assert len(ball.last.groups) == 1
    assert [len(axes) for axes in ball.last.reads] == [2, 2]
    assert ball.last.reads[0][0] == ball.last.reads[1][0] == ball.last.sees[0][-1] == 2


@pytest.mark.parametrize("seed", range(0, 12, 3))
def test_some_rows_of_a_ball(seed: int) -> None:
    model, _, mdp, twin = drawn(seed)
    rng = np.random.default_rng(seed)
    scope = sources(rng, model.n_coordinates, 1, count=30)
    for ball in planner(mdp, twin).balls(0, scope, 1):
        rows = rng.integers(len(ball), size=4)
        part = ball.at(rows)
        assert part.rows.tolist() == ball.rows[rows].tolist() and len(part) == 4
        assert (part.carried, part.source) == (ball.carried, ball.source)
        for mine, whole in zip(chain(part), chain(ball), strict=True):
            for field in ("sites", "agents", "scope"):
                for x, y in zip(getattr(mine, field), getattr(whole, field), strict=True):
                    assert x.tolist() == y[rows].tolist()
            assert (mine.kinds, mine.groups, mine.reads) == (whole.kinds, whole.groups, whole.reads)


# What they compute --------------------------------------------------------------------------------


def joint_step(model: ref.Model, policy: ref.Policy) -> Array:
    return ref.policy_transition(ref.transition(model), ref.product_policy(model, policy))


@pytest.mark.parametrize("seed", range(10))
def test_networks_of_a_step_are_the_operator(seed: int) -> None:
    """T^π f as a table, summed over states, and at one state; each coordinate has a reader."""
    model, policy, mdp, twin = drawn(seed)
    rng = np.random.default_rng(seed)
    plan = planner(mdp, twin)
    tables = PolicyTables.read(twin)
    matrix = joint_step(model, policy)
    scope = sources(rng, model.n_coordinates, min(2, model.n_coordinates), count=5)
    for ball in plan.balls(0, scope, 0):
        step = ball.last
        kernels = []
        for kind, rows in zip(step.kinds, step.sites, strict=True):
            site = plan.sites.classes[kind]
            laws = [tables.of_agents(site.local.agents[rows, k]) for k in site.closed]
            table = site.local.table
            table = table.expand(len(site), *table.shape[1:])[torch.from_numpy(rows)]
            kernels.append(site.averaging()([x.movedim(0, -1) for x in (table, *laws)]))
        laws = [
            tables.of_agents(tables.groups[group].agents[rows]).movedim(0, -1)
            for group, rows in zip(step.groups, step.agents, strict=True)
        ]
        f = torch.from_numpy(rng.normal(size=(*step.sizes[len(step.sizes) - len(step.kinds) :], 1)))
        operands = [f, *kernels, *laws]
        size = len(ball)
        for axis, host in enumerate(step.hosts):
            assert axis in step.operands[host]
        pulled = step.pulling()(operands).expand(*step.result_sizes, size)
        total = step.averaging()(operands).expand(size)
        for at in range(size):
            own, reads = scope[ball.rows[at]].tolist(), columns(step.scope, at)
            expected = matrix @ ref.at_states(model, own, f[..., 0].numpy())
            mine = ref.at_states(model, reads, pulled[..., at].numpy())
            np.testing.assert_allclose(mine, expected, rtol=0, atol=ATOL)
            assert abs(float(pulled[..., at].sum() - total[at])) <= ATOL * len(model.states)
            state = [int(rng.integers(size)) for size in model.state_sizes]
            given = [f]
            for kind, kernel in zip(step.kinds, kernels, strict=True):
                site = plan.sites.classes[kind]
                row = int(step.sites[len(given) - 1][at])
                seen = [state[i] for i in site.reads[row].tolist()]
                given.append(kernel.expand(*kernel.shape[:-1], size)[(*seen, ..., [at])])
            for group, rows, law in zip(step.groups, step.agents, laws, strict=True):
                seen = [state[i] for i in twin.groups[group].scope[rows[at]].tolist()]
                given.append(law.expand(*law.shape[:-1], size)[(*seen, ..., [at])])
            flat = int(np.ravel_multi_index(state, model.state_sizes))
            assert abs(float(step.sampling()(given)) - expected[flat]) <= ATOL


# Budgets ------------------------------------------------------------------------------------------


def star(leaves: int) -> tuple[tl.FactoredMDP, SoftmaxPolicy]:
    """A line of five beside a hub that reads its leaves; every site has its own agent."""
    rng, parents = np.random.default_rng(0), []
    for j in range(5):
        parents.append([i for i in (j - 1, j, j + 1) if 0 <= i < 5])
    parents.append([5, *range(6, 6 + leaves)])
    parents += [[5, j] for j in range(6, 6 + leaves)]
    kernels = [
        tl.LocalKernel(near, (j,), rng.dirichlet(np.ones(2), (2,) * (len(near) + 1)))
        for j, near in enumerate(parents)
    ]
    n = len(parents)
    mdp = tl.FactoredMDP([2] * n, [2] * n, kernels, [])
    return mdp, SoftmaxPolicy.tabular(mdp, [(k,) for k in range(n)])


def bytes_of(ball: Ball) -> int:
    """Of the largest tensor of a plan, by the networks that it will run."""
    peaks = [step.pulling().peak for step in ball.steps]
    return 8 * max([ball.last.averaging().peak, *peaks])


@pytest.mark.parametrize("kappa", [0, 1, 2])
def test_a_ball_over_the_budget_is_refused_with_its_size(kappa: int) -> None:
    mdp, policy = star(6)
    every = np.arange(mdp.n_coordinates)[:, None]
    largest = max(bytes_of(ball) for ball in planner(mdp, policy).balls(0, every, kappa))
    assert list(planner(mdp, policy, largest).balls(0, every, kappa))
    with pytest.raises(BallTooLarge) as caught:
        list(planner(mdp, policy, largest - 1).balls(0, every, kappa))
    assert isinstance(caught.value, tl.BudgetError) and caught.value.kappa == kappa
    message = str(caught.value)
    assert message.startswith(f"at kappa={kappa} the ball of agent ")
    assert f"{largest} bytes" in message and f"budget of {largest - 1}" in message
    agent = int(message.split("agent ")[1].split()[0])
    assert agent >= 5  # of the star, not of the line


@pytest.mark.parametrize("kappa", [0, 1, 2])
def test_refused_rows_are_collected_and_the_others_planned(kappa: int) -> None:
    mdp, policy = star(6)
    every = np.arange(mdp.n_coordinates)[:, None]
    sizes = {}
    for ball in planner(mdp, policy).balls(0, every, kappa):
        sizes |= dict.fromkeys(ball.rows.tolist(), bytes_of(ball))
    for budget in sorted({*sizes.values()}):
        refused: list[tuple[int, Array]] = []
        found = list(planner(mdp, policy, budget - 1, refused=refused).balls(3, every, kappa))
        out = sorted(int(row) for _, rows in refused for row in rows)
        assert all(source == 3 for source, _ in refused)
        assert out == sorted(row for row, size in sizes.items() if size >= budget)
        kept = sorted(int(row) for ball in found for row in ball.rows)
        assert kept == sorted(set(sizes) - set(out))


def test_a_place_without_agents_is_a_coordinate() -> None:
    kernel = tl.LocalKernel((0, 1, 2), (), np.full((2, 2, 2, 2), 0.5))
    mdp = tl.FactoredMDP([2] * 3, [], [kernel] * 3, [])
    policy = SoftmaxPolicy.tabular(mdp, [])
    with pytest.raises(BallTooLarge, match="ball of coordinate 1 needs a tensor of 128 bytes"):
        list(planner(mdp, policy, 100).balls(0, np.array([[1]]), 0))


def test_no_search_is_started_for_a_result_over_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hub's result has 2¹³ entries; no order of contraction is looked for."""
    mdp, policy = star(12)
    monkeypatch.setattr(Network, "of", lambda *_: pytest.fail("a search was started"))
    with pytest.raises(BallTooLarge, match=f"{8 * 2**13} bytes"):
        list(planner(mdp, policy, 2**15).balls(0, np.array([[5]]), 1))


def test_what_runs_keeps_to_the_budget_that_was_checked() -> None:
    """Some rows of a ball, or one that stands for all, are as large as planned."""
    n = 80
    sites = np.arange(n)
    near = np.stack([(sites + d) % n for d in (-2, 1, 2)], axis=1)
    table = np.random.default_rng(0).dirichlet(np.ones(3), (1, 3, 3, 3))
    batch = tl.KernelBatch(sites, near, np.zeros((n, 0), int), table)
    mdp = tl.FactoredMDP([3] * n, [], [batch], [])
    policy = SoftmaxPolicy.tabular(mdp, [])
    found = list(planner(mdp, policy).balls(0, sites[:, None], 2))
    planned = max(map(bytes_of, found))
    again = list(planner(mdp, policy, planned).balls(0, sites[:, None], 2))
    assert [len(ball) for ball in again] == [n] * 3
    for ball in again:
        for part in (ball, ball.at(np.array([0])), ball.at(sites[:65])):
            assert bytes_of(part) <= planned
