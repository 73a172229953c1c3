"""The conflict graph against enumeration, the colouring against its definition, and their growth."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np
import pytest
import reference as ref
import scipy.sparse as sp
import torch
from environments.oracle import as_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import draw, twin_model

import torchloc as tl
from torchloc import colouring as room
from torchloc.colouring import colour_classes, conflict_graph, first_fit
from torchloc.environments import hub_spoke, ising, line_msg, sis, sysadmin, sysadmin_on
from torchloc.errors import BudgetError, InputError
from torchloc.graphs import Scopes, neighbourhood_scopes
from torchloc.mdp import FactoredMDP, KernelBatch, LocalKernel, LocalReward, RewardBatch

OBJECTIVES = ("reward", "entropy")
Array = np.ndarray


def graph_of(
    mdp: FactoredMDP, scopes: Sequence[tuple[int, ...]] | Scopes, kappa: int, objective: str
) -> Array:
    graph = conflict_graph(mdp, scopes, kappa, objective=objective)
    dense = graph.toarray()
    assert dense.dtype == np.bool_ and graph.has_sorted_indices and graph.nnz == dense.sum()
    assert not dense.diagonal().any() and np.array_equal(dense, dense.T)
    return dense


def rule(model: ref.Model, scopes: Sequence[tuple[int, ...]], kappa: int, objective: str) -> Array:
    """Section 6, term by term: terms spread backwards, whoever acts on them meets whoever has."""
    many = [size > 1 for size in model.action_sizes]
    wide = [size > 1 for size in model.state_sizes]
    graph = np.zeros((model.n_agents, model.n_agents), bool)
    terms = [({k for k in agents if many[k]}, set(states)) for states, agents, _ in model.rewards]
    if objective == "entropy":
        terms += [({k}, set()) for k in range(model.n_agents) if many[k]]
    for met, reads in terms:
        acting, read = met, reads.union(*(scopes[k] for k in met))
        for step in range(kappa + 2):
            met = met | acting
            for k, other in itertools.product(acting, met):
                graph[k, other] = graph[other, k] = k != other
            if step:
                read = set().union(
                    *(model.kernels[i][0] for i in read), *(scopes[k] for k in acting)
                )
            read = {i for i in read if wide[i]}
            acting = {k for i in read for k in model.kernels[i][1] if many[k]}
    return graph


def support_balls(model: ref.Model, scopes: Sequence[tuple[int, ...]], radius: int) -> Array:
    """Agents who act on coordinates at most `radius` links of the closed-loop support graph apart."""
    links = np.eye(model.n_coordinates, dtype=int)
    for j, (states, agents, _) in enumerate(model.kernels):
        for i in {*states}.union(*(scopes[k] for k in agents)):
            links[i, j] = links[j, i] = 1
    acts = np.zeros((model.n_coordinates, model.n_agents), dtype=int)
    for j, (_, agents, _) in enumerate(model.kernels):
        acts[j, list(agents)] = 1
    near = np.linalg.matrix_power(links, radius)
    return (acts.T @ near @ acts > 0) & ~np.eye(model.n_agents, dtype=bool)


# Dependences, by enumeration ----------------------------------------------------------------------


def dependences(seeds: Sequence[int], kappas: Sequence[int], **options: object) -> dict[str, int]:
    """Counts over random models; a dependence outside the graph fails."""
    count = dict.fromkeys(("real", "edges", "symmetrised", "outside a ball"), 0)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        model = ref.random_model(rng, **options)
        mdp = twin_model(model)
        scopes = ref.random_policy(rng, model, max_scope=2).scopes
        for objective, kappa in itertools.product(OBJECTIVES, kappas):
            graph = graph_of(mdp, scopes, kappa, objective)
            assert np.array_equal(graph, rule(model, scopes, kappa, objective))
            real = ref.true_dependence(model, scopes, kappa, rng, objective, trials=2)
            assert not (real & ~graph).any(), (seed, objective, kappa)
            count["real"] += int(real.sum())
            count["edges"] += int(graph.sum())
            count["symmetrised"] += int((real | real.T).sum())
            count["outside a ball"] += int((real & ~support_balls(model, scopes, kappa)).sum())
    return count


CORNERS = {"n_agents": (2, 4), "max_joint": 128}
"""Shared and unread actions, N ≠ K, near-deterministic kernels, spaces of size 1, no self-loops."""
GENERIC = {
    "n_coordinates": (2, 4),
    "n_agents": (2, 4),
    "sizes": (2, 2),
    "max_parents": 2,
    "concentration": (0.5, 3.0),
    "max_joint": 128,
}


@pytest.mark.parametrize("first", [0, 6])
def test_every_dependence_is_an_edge(first: int) -> None:
    count = dependences(range(first, first + 6), range(4), **CORNERS)
    assert count["real"] > 60


def test_where_tables_are_generic_every_edge_is_a_dependence() -> None:
    count = dependences(range(100, 110), (0, 1, 3), **GENERIC)
    assert count["edges"] == count["symmetrised"] > 200
    assert count["outside a ball"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_dependences_on_many_models(part: int) -> None:
    seeds = range(1000 + 30 * part, 1030 + 30 * part)
    assert dependences(seeds, range(4), **CORNERS)["real"] > 300
    count = dependences(seeds, range(4), **GENERIC)
    assert count["edges"] == count["symmetrised"] > 500
    assert count["outside a ball"] > 100


@pytest.mark.parametrize(
    "mdp",
    [
        sysadmin(n=4),
        sysadmin(n=4, topology="star", table="ippc"),
        sis(4, graph="line"),
        ising(4, reward="alignment", control="both"),
        line_msg(4),
        hub_spoke(4),
    ],
    ids=["sysadmin ring", "sysadmin star", "sis line", "ising links", "line_msg", "hub_spoke"],
)
def test_every_dependence_of_the_families_is_an_edge(mdp: FactoredMDP) -> None:
    model, rng = as_reference(mdp), np.random.default_rng(0)
    for objective, kappa, hops in itertools.product(OBJECTIVES, (0, 1), (0, 1)):
        scopes = list(neighbourhood_scopes(mdp, hops))
        graph = graph_of(mdp, scopes, kappa, objective)
        assert np.array_equal(graph, rule(model, scopes, kappa, objective))
        real = ref.true_dependence(model, scopes, kappa, rng, objective, trials=1)
        assert not (real & ~graph).any()


def chain(n: int) -> ref.Model:
    """Coordinate j copies the action of agent j; only coordinate 0 pays."""
    copies = [((), (j,), np.eye(2)) for j in range(n)]
    return ref.Model((2,) * n, (2,) * n, copies, [((0,), (), np.array([0.0, 1.0]))])


def test_a_ball_of_the_support_graph_misses_a_dependence() -> None:
    # Agents 0 and 2 act on the two coordinates that one reward term multiplies, and nothing else
    # joins them: the support graph has no link at all.
    copies = [((), (j,), np.eye(2)) for j in range(3)]
    model = ref.Model((2,) * 3, (2,) * 3, copies, [((0, 2), (), np.eye(2))])
    scopes = [()] * 3
    real = ref.true_dependence(model, scopes, 0, np.random.default_rng(0))
    assert np.argwhere(real).tolist() == [[0, 2], [2, 0]]
    assert not support_balls(model, scopes, 9).any()
    assert np.array_equal(graph_of(twin_model(model), scopes, 0, "reward"), real)


def test_the_graph_grows_by_one_link_a_step() -> None:
    # Agent j sees coordinate j + 1, so the reward is reached by agents 0 … κ.
    mdp, scopes = twin_model(chain(5)), [(1,), (2,), (3,), (4,), ()]
    for kappa in (*range(6), 10**9):
        reached = np.arange(5) <= kappa
        expected = np.outer(reached, reached) & ~np.eye(5, dtype=bool)
        assert np.array_equal(graph_of(mdp, scopes, kappa, "reward"), expected)


def test_agents_at_the_ends_of_a_delay_line_meet_when_it_has_passed() -> None:
    # Coordinate j repeats j + 1; agent 0 writes coordinate 0, which pays, and agent 1 the last one.
    kernels = [((1,), (0,), np.full((2, 2, 2), 0.5)), *(((j,), (), np.eye(2)) for j in (2, 3))]
    model = ref.Model(
        (2,) * 4, (2,) * 2, [*kernels, ((), (1,), np.eye(2))], [((0,), (), np.array([0.0, 1.0]))]
    )
    meet = [graph_of(twin_model(model), [(), ()], kappa, "reward").any() for kappa in range(6)]
    assert meet == [False, False, False, True, True, True]


def test_entropies_count_from_the_next_step_on() -> None:
    # No rewards: agent 0 acts on what agent 1 sees, and so on Ent π_1. Nobody acts on what 0 sees.
    model = ref.Model((2, 2), (2, 2, 2), [((), (0,), np.eye(2)), ((), (2,), np.eye(2))], [])
    scopes = [(), (0,), ()]
    assert not graph_of(twin_model(model), scopes, 3, "reward").any()
    graph = graph_of(twin_model(model), scopes, 0, "entropy")
    assert np.argwhere(graph).tolist() == [[0, 1], [1, 0]]
    real = ref.true_dependence(model, scopes, 0, np.random.default_rng(0), "entropy")
    assert np.argwhere(real).tolist() == [[0, 1]]


def test_spaces_of_size_one_carry_nothing() -> None:
    # Agent 1 has one action and coordinate 1 one state: both would link agents 0 and 2.
    kernels = [((1,), (0, 1), np.full((1, 2, 1, 2), 0.5)), ((), (2,), np.ones((2, 1)))]
    terms = [((0, 1), (1,), np.zeros((2, 1, 1)))]
    model = ref.Model((2, 1), (2, 1, 2), kernels, terms)
    for objective in OBJECTIVES:
        assert not graph_of(twin_model(model), [(1,), (0, 1), ()], 3, objective).any()


# Moving together ----------------------------------------------------------------------------------


def moved(
    mdp: FactoredMDP, policy: tl.SoftmaxPolicy, parts: Sequence[Array], kappa: int, objective: str
) -> list[torch.Tensor]:
    """Logits after a pass over `parts`: z + ḡ, ḡ uniform on the unseen, from the policy before a part."""
    tables = [policy.logits(k).detach() for k in range(policy.n_agents)]
    for part in parts:
        now = tl.SoftmaxPolicy.from_logits(
            mdp, policy.scopes, tables, temperature=policy.temperature
        )
        joint = tl.JointEvaluation(mdp, now, objective=objective)
        for k in part:
            g = joint.over_scope(int(k), joint.block_logits(int(k), kappa)).mean(1)
            g = g - g.mean(-1, keepdim=True)
            tables[k] = tables[k] + g.reshape(tables[k].shape)
    return tables


def test_a_colour_moved_together_is_a_sequential_pass() -> None:
    # Logits are of order 1 and ĝ has no division: 1e-12 is thousands of roundings.
    together, controls = 0, 0.0
    for seed, objective in itertools.product(range(5), OBJECTIVES):
        model, _, mdp, policy = draw(
            seed,
            unichain=True,
            n_agents=(3, 4),
            max_joint=128,
            policy={"max_scope": 1, "scale": (0.5, 1.0), "temperature": (0.5, 1.0)},
        )
        parts = colour_classes(
            first_fit(conflict_graph(mdp, policy.scopes, 1, objective=objective))
        )
        together += sum(len(part) > 1 for part in parts)
        order = [np.array([k]) for part in parts for k in part]
        one = moved(mdp, policy, order, 1, objective)
        for other in (parts, [part[::-1][[i]] for part in parts for i in range(len(part))]):
            both = zip(one, moved(mdp, policy, other, 1, objective), strict=True)
            assert all(torch.allclose(x, y, rtol=0, atol=1e-12) for x, y in both)
        every = moved(mdp, policy, [np.arange(model.n_agents)], 1, objective)
        gaps = [float((x - y).abs().max()) for x, y in zip(one, every, strict=True)]
        controls = max(controls, *gaps)
    assert together >= 5
    assert controls > 1e-3


# Colourings ---------------------------------------------------------------------------------------


def greedy(edges: set[tuple[int, int]], size: int) -> list[int]:
    colours: list[int] = []
    for k in range(size):
        taken = {colours[i] for i in range(k) if (i, k) in edges or (k, i) in edges}
        colours.append(next(c for c in itertools.count() if c not in taken))
    return colours


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 12),
    pairs=st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=60),
    rows=st.integers(1, 13),
)
def test_first_fit_is_first_fit(size: int, pairs: set[tuple[int, int]], rows: int) -> None:
    edges = {(i % size, k % size) for i, k in pairs}  # one-sided, and some on the diagonal
    matrix = np.zeros((size, size))
    matrix[tuple(np.array(sorted(edges), int).reshape(-1, 2).T)] = 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_ROWS", rows)
        colours = first_fit(sp.csr_array(matrix))
    assert colours.dtype == np.int64
    assert colours.tolist() == greedy(edges, size)


def test_first_fit_leaves_its_argument_alone_and_reads_any_format() -> None:
    data, where = np.array([1.0, 0.0, 2.0]), (np.array([1, 2, 2]), np.array([0, 0, 1]))
    matrix = sp.csr_array((data, where), shape=(3, 3))  # with an explicit zero at (2, 0)
    assert first_fit(matrix).tolist() == [0, 1, 0]
    assert matrix.nnz == 3
    assert first_fit(sp.coo_matrix(matrix)).tolist() == [0, 1, 0]
    assert first_fit(sp.csr_array((0, 0))).tolist() == []
    assert first_fit(sp.csr_array((3, 3))).tolist() == [0, 0, 0]


def test_many_colours() -> None:
    # More than an int64 has bits.
    complete = sp.csr_array(np.ones((200, 200), dtype=bool))
    assert first_fit(complete).tolist() == list(range(200))


def test_colour_classes() -> None:
    parts = colour_classes(np.array([2, 0, 2, 0, 0]))
    assert [part.tolist() for part in parts] == [[1, 3, 4], [], [0, 2]]
    assert colour_classes([]) == ()
    rng = np.random.default_rng(0)
    colours = rng.integers(7, size=1000)
    parts = colour_classes(colours)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    assert all(
        (np.diff(part) > 0).all() and (colours[part] == c).all() for c, part in enumerate(parts)
    )


def ring(n: int, *, two_way: bool, acts: bool = False) -> tuple[FactoredMDP, Scopes]:
    """Site j reads its neighbours, itself and agent j, who sees the same; reward on s_j (and a_j)."""
    sites = np.arange(n)
    seen = np.stack([(sites - 1) % n, sites, (sites + 1) % n][: 3 if two_way else 2], axis=1)
    table = np.full((1, *(2,) * seen.shape[1], 2, 2), 0.5)
    mdp = FactoredMDP(
        np.full(n, 2),
        np.full(n, 2),
        [KernelBatch(sites, seen, sites[:, None], table)],
        [
            RewardBatch(
                sites[:, None], sites[:, None] if acts else [], np.ones((1, 2, 2)[: 2 + acts])
            )
        ],
    )
    return mdp, Scopes(seen.shape[1] * np.arange(n + 1), seen.ravel())


def proper(graph: sp.csr_array, colours: Array) -> bool:
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    return bool((colours[rows] != colours[graph.indices]).all())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("acts", [False, True])
@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize("kappa", range(4))
def test_rings_need_as_many_colours_as_agents_that_meet(
    kappa: int, two_way: bool, acts: bool, objective: str
) -> None:
    # A reward on s_j is reached from κ sites on one or both sides; one more if its agent looks.
    reach = kappa + (acts or objective == "entropy")
    period = (2 * reach if two_way else reach) + 1
    for n in (40 * period, 80 * period):
        mdp, scopes = ring(n, two_way=two_way, acts=acts)
        graph = conflict_graph(mdp, scopes, kappa, objective=objective)
        assert (np.diff(graph.indptr) == 2 * (period - 1)).all()
        assert np.array_equal(first_fit(graph), np.arange(n) % period)
    counts = set()
    for n in (40 * period + 1, 80 * period + 1):  # the end of the ring meets its beginning
        mdp, scopes = ring(n, two_way=two_way, acts=acts)
        graph = conflict_graph(mdp, scopes, kappa, objective=objective)
        colours = first_fit(graph)
        assert proper(graph, colours)
        assert np.array_equal(colours[: n - period], np.arange(n - period) % period)
        counts.add(int(colours.max()) + 1)
    assert len(counts) == 1 and max(counts) <= 2 * period - 1


@pytest.mark.parametrize(
    "build",
    [lambda rows: ising(rows**2, lattice="torus"), lambda rows: sis(rows**2, graph="torus")],
)
@pytest.mark.parametrize(("kappa", "degree"), [(0, 12), (1, 40)])
def test_colours_of_a_torus_do_not_grow(
    build: Callable[[int], FactoredMDP], kappa: int, degree: int
) -> None:
    counts = []
    for rows in (30, 60):
        mdp = build(rows)
        graph = conflict_graph(mdp, neighbourhood_scopes(mdp), kappa)
        colours = first_fit(graph)
        # Two diamonds of radius κ + 1 meet within a diamond of radius 2κ + 2.
        assert (np.diff(graph.indptr) == degree).all()
        assert proper(graph, colours)
        counts.append(int(colours.max()) + 1)
    assert max(counts) <= degree + 1
    assert counts[1] <= counts[0]


def test_an_irregular_graph() -> None:
    mdp = sysadmin_on(nx.gnm_random_graph(300, 450, seed=1))
    for kappa in (0, 1):
        graph = conflict_graph(mdp, neighbourhood_scopes(mdp), kappa, objective="entropy")
        colours = first_fit(graph)
        assert proper(graph, colours)
        assert 2 < colours.max() <= np.diff(graph.indptr).max()


# Corners ------------------------------------------------------------------------------------------


def test_models_without_agents_or_rewards() -> None:
    alone = FactoredMDP([2], [], [LocalKernel((0,), (), np.eye(2))], [])
    assert conflict_graph(alone, [], 2, objective="entropy").shape == (0, 0)
    free = FactoredMDP([2], [2, 2], [LocalKernel((0,), (0, 1), np.full((2,) * 4, 0.5))], [])
    assert conflict_graph(free, [(), ()], 2).nnz == 0
    idle = FactoredMDP(
        [2], [2, 2], [LocalKernel((), (), [0.5, 0.5])], [LocalReward((), (1, 0), np.eye(2))]
    )
    assert conflict_graph(idle, [(), ()], 0).toarray().tolist() == [[False, True], [True, False]]


def test_sets_that_repeat_are_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).random((200, 5)) < 0.4
    wanted = {tuple(row) for row in matrix if row.any()}
    kept = [tuple(row) for row in room._distinct(sp.csr_array(matrix)).toarray()]
    assert len(kept) == len(wanted) and set(kept) == wanted
    # Where different sets share a hash, some may stand twice, but none is lost.
    monkeypatch.setattr(room, "_hashes", lambda rows: np.zeros(rows.shape[0], np.uint64))
    kept = [tuple(row) for row in room._distinct(sp.csr_array(matrix)).toarray()]
    assert set(kept) == wanted


def test_agents_that_all_meet_are_refused_before_the_memory_is_gone() -> None:
    mdp = sysadmin(n=100_000)
    blind = np.zeros(99_999, np.int64)
    everything = Scopes(np.concatenate([[0, 100_000], 100_000 + blind]), np.arange(100_000))
    with pytest.raises(BudgetError, match=r"10000\d{6} pairs.*one reward term.*smaller kappa"):
        conflict_graph(mdp, everything, 0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: conflict_graph(m, [()] * 4, -1), "kappa = -1"),
        (lambda m: conflict_graph(m, [()] * 4, 1.0), "kappa = 1.0"),
        (lambda m: conflict_graph(m, [()] * 4, True), "kappa = True"),
        (lambda m: conflict_graph(m, [()] * 4, 1, objective="both"), "objective is 'both'"),
        (lambda m: conflict_graph(m, [()] * 3, 1), "3 agents"),
        (lambda m: first_fit(sp.csr_array((2, 3))), r"shape \(2, 3\).*square"),
        (lambda m: colour_classes([0, -2]), "vertex 1 has -2"),
        (lambda m: colour_classes([0.5]), "whole number"),
    ],
)
def test_bad_input(call: Callable[[FactoredMDP], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(sysadmin(n=4))


# Size ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.alone
def test_time_grows_linearly() -> None:
    def seconds(n: int) -> float:
        mdp, scopes = ring(n, two_way=True, acts=True)
        best = np.inf
        for _ in range(3):
            start = time.perf_counter()
            colour_classes(first_fit(conflict_graph(mdp, scopes, 2, objective="entropy")))
            best = min(best, time.perf_counter() - start)
        return best

    # Ten times the sites; caches that no longer hold them may cost up to three times more.
    assert seconds(100_000) <= 30 * seconds(10_000)
