"""Why a rung does not certify: components, cycles, levers and temperatures, against enumeration."""

from __future__ import annotations

import itertools
import math

import networkx as nx
import numpy as np
import pytest
import reference as ref
import scipy.sparse as sp
import torch
from certified import GAP
from twins import draw

import torchloc as tl
from torchloc.certificate import Environment, Ladder
from torchloc.certificate.diagnosis import (
    GRID,
    MONOTONE,
    certifying_temperatures,
    critical_component,
    diagnose,
    heaviest_cycle,
    perron,
)
from torchloc.environments import ising, sysadmin
from torchloc.spectral import spectral_radius

Array = np.ndarray
# Sums of up to ten logarithms and one exponential.
LOGS = 1e-13


def sparse(rng: np.random.Generator, n: int, density: float = 0.4) -> Array:
    """A nonnegative matrix with entries over three orders of magnitude."""
    entries = np.exp(rng.normal(scale=1.5, size=(n, n)))
    return np.where(rng.random((n, n)) < density, entries, 0.0)


def cycles(matrix: Array) -> dict[frozenset[tuple[int, int]], float]:
    """All simple cycles, each by its (cause, influenced) pairs, with the geometric mean weight."""
    graph = nx.DiGraph([(i, j) for j, i in np.argwhere(matrix > 0)])
    result = {}
    for nodes in nx.simple_cycles(graph):
        edges = list(itertools.pairwise([*nodes, nodes[0]]))
        weights = [matrix[j, i] for i, j in edges]
        result[frozenset(edges)] = float(np.exp(np.mean(np.log(weights))))
    return result


# Critical component -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(16))
def test_the_critical_component_has_the_largest_radius(seed: int) -> None:
    """Full blocks on the diagonal, anything below it, all of it shuffled."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, size=rng.integers(1, 7))
    label = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    inside = label[:, None] == label[None, :]
    below = (label[:, None] > label[None, :]) & (rng.random(inside.shape) < 0.3)
    matrix = np.exp(rng.normal(size=inside.shape)) * (inside | below)
    # A large entry outside every block carries no cycle.
    matrix[below] *= 100.0
    radii = [ref.spectral_radius(matrix[np.ix_(label == c, label == c)]) for c in range(len(sizes))]
    component = critical_component(sp.csr_array(matrix))
    assert component.tolist() == np.flatnonzero(label == int(np.argmax(radii))).tolist()
    assert max(radii) == pytest.approx(ref.spectral_radius(matrix))


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (np.zeros((3, 3)), 1),
        (np.tril(np.ones((4, 4)), -1), 1),
        (np.diag([0.2, 0.9, 0.3]), 1),
        (np.ones((1, 1)), 1),
        (np.eye(5)[[1, 2, 3, 4, 0]], 5),
        (np.kron(np.eye(2), np.ones((2, 2))), 2),
    ],
    ids=["zero", "nilpotent", "diagonal", "single", "periodic", "tie"],
)
def test_components_of_degenerate_matrices(matrix: Array, expected: int) -> None:
    component = critical_component(sp.csr_array(matrix))
    assert len(component) == expected and (np.diff(component) > 0).all()
    inner = matrix[np.ix_(component, component)]
    assert ref.spectral_radius(inner) == pytest.approx(ref.spectral_radius(matrix))


def test_many_components_are_tried_only_while_one_may_be_larger() -> None:
    blocks = [np.array([[0.0, x], [x, 0.0]]) for x in np.linspace(0.1, 0.8, 300)]
    component = critical_component(sp.csr_array(sp.block_diag(blocks)))
    assert component.tolist() == [598, 599]


def test_perron_vectors_of_periodic_and_positive_matrices() -> None:
    rng = np.random.default_rng(0)
    for matrix in (np.eye(6)[[1, 2, 3, 4, 5, 0]], np.exp(rng.normal(size=(5, 5)))):
        vector = perron(sp.csr_array(matrix))
        rho = ref.spectral_radius(matrix)
        # The steps end at relative changes of 1e-12.
        np.testing.assert_allclose(matrix @ vector, rho * vector, rtol=1e-9)


# Heaviest cycle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(25))
def test_the_heaviest_cycle_is_that_of_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    matrix = sparse(rng, n)
    known = cycles(matrix)
    edges, mean = heaviest_cycle(sp.csr_array(matrix), rng.random(n))
    if not known:
        assert edges == [] and mean == 0.0
        return
    assert mean == pytest.approx(max(known.values()), rel=LOGS)
    assert known[frozenset(edges)] == pytest.approx(mean, rel=LOGS)
    assert all(end == start for (_, end), (start, _) in itertools.pairwise([*edges, edges[0]]))
    assert len({start for start, _ in edges}) == len(edges)
    # Karp's bound, up to the rounding of the eigenvalues of a nearly defective block.
    assert mean <= ref.spectral_radius(matrix) * (1 + 1e-6)


def test_the_mean_is_the_radius_of_a_single_cycle() -> None:
    weights = np.array([1e-9, 3.0, 1e6, 0.5, 2.0])
    matrix = np.zeros((5, 5))
    for i, weight in enumerate(weights):
        matrix[(i + 1) % 5, i] = weight
    edges, mean = heaviest_cycle(sp.csr_array(matrix), np.ones(5))
    assert sorted(edges) == [(i, (i + 1) % 5) for i in range(5)]
    assert mean == pytest.approx(float(np.prod(weights)) ** 0.2, rel=LOGS)


def test_only_the_most_important_nodes_of_a_large_matrix_are_searched() -> None:
    n = 1500
    matrix = sp.diags_array(np.linspace(0.1, 0.9, n)).tocsr()
    importance = np.arange(n)[::-1].astype(float)  # the heaviest loops are left out
    edges, mean = heaviest_cycle(matrix, importance)
    assert edges == [(999, 999)] and mean == pytest.approx(matrix[999, 999], rel=LOGS)


# The whole diagnosis ------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", ["coupled", "exact", "span", "tanh", "paper", "scope"])
@pytest.mark.parametrize("seed", range(2))
def test_a_diagnosis_speaks_of_its_rung(seed: int, rung: str) -> None:
    _, _, mdp, twin = draw(seed, n_coordinates=(3, 5), n_agents=(2, 4), sizes=(2, 2))
    certificate = tl.certify(mdp, twin)
    told = diagnose(certificate, twin, rung, top=3)
    matrix = certificate[rung].matrix.toarray()
    assert told.rung == rung and told.floor is certificate.floor
    assert told.rho is certificate[rung].rho
    inner = matrix[np.ix_(told.component, told.component)]
    assert ref.spectral_radius(inner) == pytest.approx(ref.spectral_radius(matrix), abs=1e-7)
    assert set(edge.cause for edge in told.cycle) <= set(told.component.tolist())
    for edge in told.cycle:
        assert edge.weight == matrix[edge.influenced, edge.cause] > 0
    if told.cycle:
        mean = math.exp(math.fsum(math.log(e.weight) for e in told.cycle) / len(told.cycle))
        assert told.cycle_rate == pytest.approx(mean, rel=LOGS)
        assert told.cycle_rate <= told.rho.upper * (1 + LOGS)
    assert len(told.levers) <= 3
    shares = [lever.share for lever in told.levers]
    assert shares == sorted(shares, reverse=True) and all(share >= 0 for share in shares)
    if rung == "coupled":
        assert told.levers == ()
    for lever in told.levers:
        assert lever.coordinate in twin.scopes[lever.agent]


@pytest.mark.parametrize("rung", ["exact", "paper"])
@pytest.mark.parametrize("seed", range(6))
def test_slopes_are_derivatives_of_the_radius(seed: int, rung: str) -> None:
    """Central differences of ρ(E^s + E^a Π) in every entry of Π that the agent can have."""
    _, _, mdp, twin = draw(
        seed,
        n_coordinates=(3, 4),
        n_agents=(2, 3),
        sizes=(2, 2),
        concentration=(0.3, 3.0),
        policy={"full_scopes": True, "scale": (0.3, 1.0)},
    )
    certificate = tl.certify(mdp, twin)
    ladder = Ladder(certificate.environment, twin)
    state, action = ladder.state.toarray(), ladder.action.toarray()
    sensitivity = ladder.policy_rung(rung).toarray()
    told = diagnose(certificate, twin, rung, top=99)
    eigenvalues = np.sort(np.abs(np.linalg.eigvals(certificate[rung].matrix.toarray())))
    if len(eigenvalues) > 1 and eigenvalues[-1] - eigenvalues[-2] < 0.02:
        pytest.fail("choose seeds whose radius is a simple eigenvalue")
    slopes = np.zeros_like(sensitivity)
    for lever in told.levers:
        assert lever.sensitivity == sensitivity[lever.agent, lever.coordinate]
        slopes[lever.agent, lever.coordinate] = lever.slope
    step = 1e-6
    for k, i in np.argwhere(sensitivity > 0):
        moved = np.zeros_like(sensitivity)
        moved[k, i] = step
        ends = [ref.spectral_radius(state + action @ (sensitivity + x)) for x in (moved, -moved)]
        # The error of central differences is about step² and 1e-15 / step, over the gap.
        assert slopes[k, i] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)


def test_ignoring_a_coordinate_lowers_the_radius_by_about_its_share() -> None:
    mdp = sysadmin(4)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), seed=1, scale=0.02)
    certificate = tl.certify(mdp, policy)
    lever = diagnose(certificate, policy, "exact").levers[0]
    ladder = Ladder(certificate.environment, policy)
    sensitivity = ladder.policy_rung("exact").toarray()
    assert sensitivity[lever.agent, lever.coordinate] == lever.sensitivity
    sensitivity[lever.agent, lever.coordinate] = 0.0
    less = ref.spectral_radius(ladder.state.toarray() + ladder.action.toarray() @ sensitivity)
    # First order: the rest is of the size of the share squared.
    gap = certificate["exact"].rho.upper - less
    assert gap == pytest.approx(lever.share, abs=10 * lever.share**2)


def test_a_diagnosis_needs_a_rung_of_its_certificate() -> None:
    mdp = sysadmin(3)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    certificate = tl.certify(mdp, policy, rungs=("coupled", "paper"), steps=2)
    assert diagnose(certificate, policy, "coupled_2").levers == ()
    with pytest.raises(tl.InputError, match="'exact'; this certificate has coupled, paper, coup"):
        diagnose(certificate, policy)


# Temperatures -------------------------------------------------------------------------------------


def warm(temperature: float | list[float] = 0.5) -> tuple[tl.FactoredMDP, tl.SoftmaxPolicy]:
    """A magnet below its critical point, and agents that see everything: the floor is below 1."""
    mdp = ising(6, beta=0.25)
    scopes = tl.neighbourhood_scopes(mdp, hops=3)
    return mdp, tl.SoftmaxPolicy.tabular(mdp, scopes, seed=3, scale=3.0, temperature=temperature)


def certifies(
    environment: Environment, policy: tl.SoftmaxPolicy, rung: str, multiple: float, discount: float
) -> bool:
    """Whether γρ < 1 at a multiple of the policy's temperatures, on a policy of its own."""
    tables = [policy.logits(k) for k in range(policy.n_agents)]
    trial = tl.SoftmaxPolicy.from_logits(
        environment.mdp, policy.scopes, tables, temperature=policy.temperature * multiple
    )
    matrix = Ladder(environment, trial).matrix(rung)
    return discount * spectral_radius(matrix).upper < 1.0


@pytest.mark.parametrize(
    ("temperature", "discount"),
    [(0.5, 1.0), ([0.1, 0.5, 2.0, 7.0, 0.3, 1.0], 0.9)],
    ids=["equal", "unequal"],
)
def test_thresholds_certify_and_a_hundredth_less_does_not(
    temperature: float | list[float], discount: float
) -> None:
    mdp, policy = warm(temperature)
    environment = Environment(mdp)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    found = certifying_temperatures(environment, policy, MONOTONE, discount=discount)
    assert [told.rung for told in found] == list(MONOTONE)
    for told in found:
        assert told.threshold is not None and told.multiples == (told.threshold,)
        assert certifies(environment, policy, told.rung, told.threshold, discount)
        assert not certifies(environment, policy, told.rung, told.threshold * 0.99, discount)
        curve = [
            certifies(environment, policy, told.rung, told.threshold * 2.0**power, discount)
            for power in (-4, -1, 1, 4)
        ]
        assert curve == sorted(curve)
    span, tanh, paper = (told.threshold for told in found)
    assert span is not None and tanh is not None and paper is not None
    assert span <= tanh * (1 + 1e-3) and tanh <= paper * (1 + 1e-3)  # the accuracy asked for
    after = policy.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_accuracy_is_that_of_the_threshold() -> None:
    mdp, policy = warm()
    environment = Environment(mdp)
    (fine,) = certifying_temperatures(environment, policy, ("paper",), accuracy=1e-6)
    (rough,) = certifying_temperatures(environment, policy, ("paper",), accuracy=0.5)
    assert fine.threshold is not None and rough.threshold is not None
    assert fine.threshold * (1 - 1e-5) <= rough.threshold <= fine.threshold * 1.5
    assert not certifies(environment, policy, "paper", fine.threshold * (1 - 1e-5), 1.0)


@pytest.mark.parametrize(
    "temperature", [0.5, [0.1, 0.5, 2.0, 7.0, 0.3, 1.0]], ids=["equal", "unequal"]
)
def test_other_rungs_are_tried_on_a_grid(temperature: float | list[float]) -> None:
    mdp, policy = warm(temperature)
    environment = Environment(mdp)
    found = certifying_temperatures(environment, policy, ("coupled", "exact"))
    for told in found:
        expected = [m for m in GRID if certifies(environment, policy, told.rung, m, 1.0)]
        assert told.threshold is None and list(told.multiples) == expected
    coupled, exact = found
    assert 0 < len(exact.multiples) < len(GRID)
    assert set(exact.multiples) <= set(coupled.multiples)


def test_no_temperature_certifies_above_the_floor() -> None:
    mdp = sysadmin(3)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), seed=1, scale=1.0)
    environment = Environment(mdp)
    assert environment.floor.lower > 1.0
    rungs = ("coupled", "exact", "span", "tanh", "paper", "scope")
    coupled, *others = certifying_temperatures(environment, policy, rungs)
    assert coupled.multiples
    for told in others:
        assert told.multiples == () and told.threshold is None
    # .7 of the floor is below 1: there discounting certifies what no temperature did.
    exact, span = certifying_temperatures(environment, policy, ("exact", "span"), discount=0.7)
    assert exact.multiples and span.threshold is not None


def test_policies_that_look_at_nothing_or_are_not_there_certify_at_any_temperature() -> None:
    mdp = ising(4, beta=0.2)
    blind = tl.SoftmaxPolicy.tabular(mdp, [()] * 4, seed=1, scale=2.0)
    coupled, span = certifying_temperatures(Environment(mdp), blind, ("exact", "span"))
    assert coupled.multiples == GRID and span.threshold == pytest.approx(1e-9)
    copy = tl.LocalKernel((0,), (), [[0.9, 0.1], [0.5, 0.5]])
    alone = tl.FactoredMDP([2], [], [copy], [])
    nobody = tl.SoftmaxPolicy.tabular(alone, [])
    for told in certifying_temperatures(Environment(alone), nobody):
        assert told.multiples
    told = diagnose(tl.certify(alone, nobody), nobody, "exact")
    assert told.levers == () and told.cycle_rate == pytest.approx(0.4, rel=GAP)


def test_a_forbidden_action_certifies_by_logits_at_all_temperatures_or_none() -> None:
    """−∞ on one side of a pair makes its entry of Π 1, whatever τ is."""
    rule = np.where(np.eye(2) > 0, 0.0, -np.inf)
    for beta, certified in ((0.2, True), (0.5, False)):
        mdp = ising(4, beta=beta, field=2.0)
        policy = tl.SoftmaxPolicy.from_logits(mdp, [(j,) for j in range(4)], [rule] * 4)
        environment = Environment(mdp)
        radius = spectral_radius(Ladder(environment, policy).matrix("scope"))
        assert environment.floor.upper < 1.0 and (radius.upper < 1.0) == certified
        for told in certifying_temperatures(environment, policy, MONOTONE):
            assert told.threshold == (pytest.approx(1e-9) if certified else None)
