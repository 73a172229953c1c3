"""Bounds on ρ, weights and (C, λ): theory.md section 4 as tests.

Soundness is decided in exact arithmetic: λ > ρ(M) if and only if elimination without exchanges on
λI − M meets positive pivots only (M-matrix), which `fractions` settles without rounding.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchloc.errors import InputError
from torchloc.spectral import (
    SpectralBound,
    SpectralBudget,
    norm_columns,
    norm_rows,
    spectral_radius,
)
from torchloc.spectral.solvers import (
    BandedSolver,
    DenseSolver,
    SparseSolver,
    choose_solver,
    triangular_solver,
)

TOLERANCE = 1e-6  # the relative gap that `spectral_radius` promises by default
ULP = 2.0**-52


def coo(rows, columns, values, size):
    data = np.broadcast_to(np.asarray(values, dtype=float), np.shape(rows))
    return sp.csr_array((data, (rows, columns)), shape=(size, size))


def ring(size, forward, backward=None):
    """Entry (i, i + 1) is forward, entry (i + 1, i) is backward."""
    here = np.arange(size)
    there = (here + 1) % size
    matrix = coo(here, there, forward, size)
    return matrix if backward is None else matrix + coo(there, here, backward, size)


def line(size, forward, backward=0.0):
    here = np.arange(size - 1)
    return coo(here, here + 1, forward, size) + coo(here + 1, here, backward, size)


def grid(shape, draw):
    """Two-way edges between neighbours of a box; `draw(m)` gives the weights."""
    nodes = np.arange(math.prod(shape)).reshape(shape)
    pairs = [
        (np.delete(nodes, -1, axis).ravel(), np.delete(nodes, 0, axis).ravel())
        for axis in range(len(shape))
    ]
    low = np.concatenate([pair[0] for pair in pairs])
    high = np.concatenate([pair[1] for pair in pairs])
    rows, columns = np.concatenate([low, high]), np.concatenate([high, low])
    return coo(rows, columns, draw(len(rows)), nodes.size)


def random_graph(size, degree, rng, span=None):
    values = (
        rng.random(size * degree) if span is None else 10 ** rng.uniform(-span, span, size * degree)
    )
    rows = np.repeat(np.arange(size), degree)
    return coo(rows, rng.integers(0, size, size * degree), values, size)


def gap(bound: SpectralBound) -> float:
    return (bound.upper - bound.lower) / bound.upper if bound.upper else 0.0


def holds(bound: SpectralBound, rho: float, slack: float = 0.0) -> bool:
    """lower ≤ ρ ≤ upper for a reference value that is itself off by `slack` relative."""
    return bound.lower <= rho * (1 + slack) and rho * (1 - slack) <= bound.upper


def exact(matrix) -> list[list[Fraction]]:
    full = matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)
    return [[Fraction(float(value)) for value in row] for row in full]


def above(matrix: list[list[Fraction]], rate: Fraction) -> bool:
    """Whether rate > ρ, exactly."""
    size = len(matrix)
    left = [[(rate if i == j else 0) - matrix[i][j] for j in range(size)] for i in range(size)]
    for k in range(size):
        if left[k][k] <= 0:
            return False
        for i in range(k + 1, size):
            if left[i][k]:
                factor = left[i][k] / left[k][k]
                for j in range(k, size):
                    left[i][j] -= factor * left[k][j]
    return True


def assert_sound(matrix, bound: SpectralBound) -> None:
    """lower ≤ ρ ≤ upper and M w ≤ λ_w w and C ≥ max w / min w, all in exact arithmetic."""
    entries, whisker = exact(matrix), Fraction(1, 2**200)
    assert bound.lower <= bound.upper
    assert above(entries, Fraction(bound.upper) * (1 + whisker) + Fraction(1, 2**2000))
    if bound.lower > 0:
        assert not above(entries, Fraction(bound.lower) * (1 - whisker))
    weighted = bound.weighted
    assert weighted is not None
    weights = [Fraction(value) for value in weighted.weights.tolist()]
    assert min(weights) > 0
    for row, weight in zip(entries, weights, strict=True):
        assert (
            sum(a * w for a, w in zip(row, weights, strict=True))
            <= Fraction(weighted.rate) * weight
        )
    if math.isfinite(weighted.constant):
        assert max(weights) <= Fraction(weighted.constant) * min(weights)


def assert_powers_bounded(matrix, bound: SpectralBound, steps: int = 60) -> None:
    """Every candidate bounds ‖M^t‖_∞, computed to a relative 2·t·(k + 2)·2⁻⁵³."""
    csr = sp.csr_array(matrix)
    vector = np.ones(csr.shape[0])
    for t in range(steps + 1):
        norm = vector.max() * (1 - 2 * t * (csr.shape[0] + 2) * ULP)
        for candidate in bound.candidates:
            assert norm <= candidate.constant * candidate.rate**t, (t, candidate)
        vector = csr @ vector


# ---------------------------------------------------------------------------------------------
# Closed forms


def closed_forms():
    yield "one", [[0.25]], 0.25
    yield "one, zero", [[0.0]], 0.0
    yield "all zero", sp.csr_array((7, 7)), 0.0
    for size in (2, 3, 4, 17, 500):
        yield f"directed ring {size}", ring(size, 1.0), 1.0
        yield f"nilpotent chain {size}", line(size, 0.7), 0.0
        yield f"Jordan block {size}", line(size, 1.0) + 0.5 * sp.eye_array(size), 0.5
        cosine = math.cos(math.pi / (size + 1))
        yield f"line {size}", line(size, 1.0, 1.0), 2 * cosine
        yield f"line with drift {size}", line(size, 1.0, 1e-6), 2e-3 * cosine
        yield (
            f"star {size}",
            coo([0] * (size - 1), range(1, size), 1.0, size)
            + coo(range(1, size), [0] * (size - 1), 1.0, size),
            math.sqrt(size - 1),
        )
        rng = np.random.default_rng(size)
        weights = 10 ** rng.uniform(-3, 3, size)
        mean = math.exp(math.fsum(np.log(weights)) / size)
        yield f"weighted directed ring {size}", ring(size, weights), mean
    for size in (3, 10, 501):
        yield f"two-way ring {size}", ring(size, 0.3, 0.2), 0.5
    for shape in ((7, 7), (30, 20), (9, 8, 7), (200, 3)):
        rho = sum(2 * math.cos(math.pi / (side + 1)) for side in shape)
        yield f"grid {shape}", grid(shape, np.ones), rho
    both = sp.kron(ring(12, 1.0, 1.0), sp.eye_array(9)) + sp.kron(
        sp.eye_array(12), ring(9, 1.0, 1.0)
    )
    yield "torus", both, 4.0
    bipartite = np.zeros((8, 8))
    bipartite[:3, 3:] = bipartite[3:, :3] = 1.0
    yield "bipartite", bipartite, math.sqrt(15)
    yield "rank one", np.outer([1, 2, 3.0], [1e-3, 1e3, 7]), 1e-3 + 2e3 + 21
    yield "diagonal", np.diag([0.1, 0.9, 0.3]), 0.9
    triangular = np.triu(np.ones((6, 6))) * 1e9
    np.fill_diagonal(triangular, [0.1, 0.2, 0.9, 0.3, 0.9, 0.0])
    yield "triangular", triangular, 0.9
    yield (
        "block triangular",
        np.block(
            [
                [np.array([[0, 2.0], [2, 0]]), 1e6 * np.ones((2, 2))],
                [np.zeros((2, 2)), np.eye(2)[::-1]],
            ]
        ),
        2.0,
    )
    yield "swap, far from balanced", [[0.0, 1e12], [1e-12, 0.0]], 1.0


FORMS = list(closed_forms())


@pytest.mark.parametrize(("matrix", "rho"), [f[1:] for f in FORMS], ids=[f[0] for f in FORMS])
def test_closed_forms_are_bracketed_to_the_tolerance(matrix, rho):
    """The reference is right to a few units of rounding of its sums of logarithms or cosines."""
    bound = spectral_radius(matrix)
    assert holds(bound, rho, 64 * ULP)
    assert bound.converged and bound.note == "" and gap(bound) <= TOLERANCE


def test_singletons_and_strict_triangles_are_exact():
    bound = spectral_radius(np.triu(np.full((40, 40), 3.0), 1))
    assert bound.lower == bound.upper == 0.0
    bound = spectral_radius(np.triu(np.full((40, 40), 1e9), 1) + np.diag(np.linspace(0, 0.7, 40)))
    assert bound.lower == bound.upper == 0.7
    shuffle = np.random.default_rng(0).permutation(40)
    mixed = np.triu(np.full((40, 40), 3.0), 1)[shuffle][:, shuffle]
    assert spectral_radius(mixed).upper == 0.0


@pytest.mark.parametrize("size", [2, 7, 100, 700])
@pytest.mark.parametrize("seed", range(3))
def test_symmetric_random_weights_agree_with_the_dense_eigenvalue(size, seed):
    """eigvalsh is backward stable: off by at most about n·2⁻⁵³·ρ (n 2⁻⁵² taken)."""
    rng = np.random.default_rng(seed)
    weights = rng.random(size)
    for matrix in (ring(size, weights, weights), line(size, weights[1:], weights[1:])):
        bound = spectral_radius(matrix)
        rho = np.linalg.eigvalsh(matrix.toarray())[-1]
        assert holds(bound, rho, size * ULP) and gap(bound) <= TOLERANCE


@pytest.mark.parametrize("size", [9, 200, 600])
def test_random_and_reducible_matrices_agree_with_the_dense_eigenvalue(size):
    """Entries of like size: the eigenvalue's condition number stays below 1e4 in these draws."""
    rng = np.random.default_rng(size)
    for degree in (1, 2, 5):
        matrix = random_graph(size, degree, rng)
        bound = spectral_radius(matrix)
        rho = abs(np.linalg.eigvals(matrix.toarray())).max()
        assert holds(bound, rho, 1e4 * size * ULP) and gap(bound) <= TOLERANCE


# ---------------------------------------------------------------------------------------------
# Where eigen-solvers fail


def test_a_localised_perron_vector_sinks_below_an_eigen_solver_and_not_here():
    """Entries falling as 0.9·10^{−i}: components like 10^{−i²/2}, beyond the range of a float."""
    size = 60
    weights = 0.9 * 10.0 ** -np.arange(size - 1)
    matrix = line(size, weights, weights)
    values, vectors = np.linalg.eigh(matrix.toarray())
    perron = np.abs(vectors[:, -1])
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.nanmax((matrix @ perron) / perron)
    assert not quotient < 1e3 * values[-1]
    bound = spectral_radius(matrix)
    assert holds(bound, values[-1], size * ULP) and gap(bound) <= TOLERANCE
    assert bound.weighted_rate <= 1.0011 * bound.upper


def test_a_strong_drift_misleads_dense_eigenvalues_and_not_here():
    size = 300
    matrix = line(size, 1.0, 1e-6)
    rho = 2e-3 * math.cos(math.pi / (size + 1))
    assert abs(np.linalg.eigvals(matrix.toarray())).max() > 1.5 * rho
    bound = spectral_radius(matrix)
    assert holds(bound, rho, 64 * ULP) and gap(bound) <= TOLERANCE


@pytest.mark.parametrize("size", [40, 5000, 40_000])
def test_random_lines_and_rings_localise(size):
    rng = np.random.default_rng(size)
    for draw in (
        rng.random,
        lambda n: rng.uniform(0.9, 1.1, n),
        lambda n: 10 ** rng.uniform(-6, 6, n),
    ):
        for matrix in (
            ring(size, draw(size), draw(size)),
            line(size, draw(size - 1), draw(size - 1)),
        ):
            bound = spectral_radius(matrix)
            assert gap(bound) <= TOLERANCE
            assert bound.upper <= norm_rows(matrix)
            symmetric = matrix.multiply(
                matrix.T
            ).sqrt()  # similar to it but for the ring's one loop
            if size == 40 and matrix.nnz == 2 * (size - 1):
                rho = np.linalg.eigvalsh(symmetric.toarray())[-1]
                assert holds(bound, rho, size * ULP)


@pytest.mark.parametrize("draw", ["uniform", "weak", "wide"])
def test_grids(draw):
    rng = np.random.default_rng(1)
    sample = {
        "uniform": rng.random,
        "weak": lambda n: rng.uniform(0.99, 1.01, n),
        "wide": lambda n: 10 ** rng.uniform(-3, 3, n),
    }[draw]
    for shape in ((40, 40), (150, 100), (12, 12, 12), (25, 25, 25)):
        matrix = grid(shape, sample)
        bound = spectral_radius(matrix)
        assert gap(bound) <= TOLERANCE
        flipped = spectral_radius(sp.csc_array(matrix.T))
        assert max(bound.lower, flipped.lower) <= min(bound.upper, flipped.upper)


@pytest.mark.parametrize("span", [1, 6, 12])
@pytest.mark.parametrize("degree", [1, 2, 5])
def test_entries_over_24_decades(span, degree):
    rng = np.random.default_rng(span + degree)
    for size in (5, 60, 900, 6000):
        matrix = random_graph(size, degree, rng, span)
        bound = spectral_radius(matrix)
        assert gap(bound) <= TOLERANCE
        cycle = np.sqrt((matrix.multiply(matrix.T)).max())  # two entries in a circle
        assert max(cycle, matrix.diagonal().max()) <= bound.upper * (1 + 4 * ULP)
        assert bound.lower <= min(norm_rows(matrix), norm_columns(matrix))


def test_many_small_components_at_once():
    """Each component alone has the same bracket; ρ is their maximum (block triangular coupling)."""
    rng = np.random.default_rng(3)
    blocks = rng.random((30_000, 3, 3)) * 10.0 ** rng.uniform(-3, 0, (30_000, 1, 1))
    blocks[::7] *= np.eye(3)[[1, 2, 0]]  # some periodic ones
    rho = abs(np.linalg.eigvals(blocks)).max()
    base = 3 * np.arange(30_000)[:, None, None]
    rows = (base + np.arange(3)[:, None] + np.zeros((3, 3), int)).ravel()
    columns = (base + np.arange(3) + np.zeros((3, 3), int)).ravel()
    matrix = coo(rows, columns, blocks.ravel(), 90_000)
    matrix = matrix + coo(np.arange(0, 89_997, 3), np.arange(3, 90_000, 3), 1e5, 90_000)
    shuffle = rng.permutation(90_000)
    bound = spectral_radius(sp.csr_array(matrix[shuffle][:, shuffle]))
    assert holds(bound, rho, 1e3 * ULP) and gap(bound) <= TOLERANCE


def test_without_a_factorisation_filters_and_power_steps_do():
    """A box in space: its LU is refused by the budget, its gap is 1e-3, its ρ is known."""
    shape = (30, 30, 30)
    matrix = grid(shape, np.ones)
    bound = spectral_radius(matrix, budget=SpectralBudget(fill=1000))
    assert holds(bound, 6 * math.cos(math.pi / 31), 64 * ULP) and gap(bound) <= TOLERANCE


def test_a_spent_budget_is_said_with_the_bracket_reached():
    matrix = line(4000, 1.0, 1.0)
    rho = 2 * math.cos(math.pi / 4001)
    bound = spectral_radius(
        matrix, tolerance=1e-9, budget=SpectralBudget(power_steps=1, factorisations=1, solves=1)
    )
    assert not bound.converged and holds(bound, rho, 64 * ULP)
    assert "asked for" in bound.note and "factorisation" in bound.note
    bound = spectral_radius(matrix, tolerance=1e-9, budget=SpectralBudget(power_steps=1, fill=10))
    assert not bound.converged and holds(bound, rho, 64 * ULP) and "10 entries" in bound.note
    assert spectral_radius(matrix, tolerance=1e-9).converged


# ---------------------------------------------------------------------------------------------
# Exact soundness on random matrices


@st.composite
def matrices(draw, largest=6):
    """Small, mostly reducible or nearly so; entries from 1e-12 to 1e12, some equal, many zero."""
    size = draw(st.integers(1, largest))
    span = draw(st.sampled_from([0, 1, 6, 12]))
    entry = st.one_of(
        st.just(0.0), st.just(1.0), st.floats(-span, span).map(lambda power: 10.0**power)
    )
    values = draw(st.lists(entry, min_size=size * size, max_size=size * size))
    matrix = np.array(values).reshape(size, size)
    shape = draw(st.sampled_from(["full", "triangular", "blocks", "cycle"]))
    if shape == "triangular":
        matrix = np.triu(matrix)
    if shape == "blocks":
        matrix[size // 2 :, : size // 2] = 0.0
    if shape == "cycle":
        matrix *= np.roll(np.eye(size), 1, axis=1)
    order = draw(st.permutations(range(size)))
    return matrix[order][:, order]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(matrices())
def test_small_matrices_are_sound_in_exact_arithmetic(matrix):
    bound = spectral_radius(matrix)
    assert_sound(matrix, bound)
    assert bound.converged and gap(bound) <= TOLERANCE
    if bound.upper > 0:
        assert bound.weighted_rate <= bound.upper * 1.0011


@settings(max_examples=60, deadline=None, derandomize=True)
@given(matrices(4), st.sampled_from([0.5, 0.9, 0.99, 0.999]))
def test_candidates_bound_the_powers_in_exact_arithmetic(matrix, rho):
    upper = spectral_radius(matrix).upper
    scaled = matrix * (rho / upper) if upper else matrix
    bound = spectral_radius(scaled)
    assert bound.candidates and all(candidate.rate < 1 for candidate in bound.candidates)
    entries, size = exact(scaled), len(matrix)
    vector = [Fraction(1)] * size
    for t in range(61):
        norm = max(vector)
        for candidate in bound.candidates:
            assert norm <= Fraction(candidate.constant) * Fraction(candidate.rate) ** t
        vector = [sum(a * v for a, v in zip(row, vector, strict=True)) for row in entries]


@pytest.mark.slow
@settings(
    max_examples=2000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(matrices(8))
def test_thousands_of_small_matrices_are_sound(matrix):
    bound = spectral_radius(matrix)
    assert_sound(matrix, bound)
    assert bound.converged
    if 0 < bound.upper:
        scaled = matrix * (0.97 / bound.upper)
        assert_powers_bounded(scaled, spectral_radius(scaled))


def family(kind, size, draw, rng):
    """A random weighted graph of about `size` nodes, the weights from `draw(m)`."""
    child, node = np.arange(1, size), np.arange(size)
    if kind == "graph":
        rows = np.repeat(node, int(rng.integers(1, 6)))
        return coo(rows, rng.integers(0, size, len(rows)), draw(len(rows)), size)
    if kind == "grid":
        side = max(2, int(size**0.5))
        return grid((side, side), draw)
    if kind == "ring":
        return ring(size, draw(size), draw(size))
    if kind == "line":
        return line(size, draw(size - 1), draw(size - 1))
    if kind == "chords":
        ends = rng.integers(0, size, (2, 9))
        return ring(size, draw(size)) + coo(ends[0], ends[1], draw(9), size)
    if kind == "tree":
        up, down = rng.integers(0, child), child
    else:  # hubs: small numbers are chosen more often
        up, down = rng.integers(0, size, (2, size)).min(axis=0), node
    return coo(up, down, draw(len(up)), size) + coo(down, up, draw(len(up)), size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["graph", "grid", "ring", "line", "chords", "tree", "hubs"])
def test_hundreds_of_larger_matrices_close_the_gap(kind):
    """Sizes to 8000, entries over up to 24 decades; M and Mᵀ must agree."""
    rng = np.random.default_rng(0)
    for _ in range(80):
        size = int(np.exp(rng.uniform(np.log(9), np.log(8000))))
        span = float(rng.choice([0.0, 0.3, 1.0, 3.0, 12.0]))

        def draw(count, span=span):
            return 10 ** rng.uniform(-span, span, count) if span else rng.random(count)

        matrix = family(kind, size, draw, rng)
        bound, flipped = spectral_radius(matrix), spectral_radius(matrix.T)
        assert bound.converged and flipped.converged, (size, span, bound.note, flipped.note)
        assert max(bound.lower, flipped.lower) <= min(bound.upper, flipped.upper)


# ---------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("size", [3, 50, 700, 30_000])
def test_weights_hold_for_reducible_matrices_and_are_close(size):
    rng = np.random.default_rng(size)
    upstream = random_graph(size, 2, rng)
    matrix = sp.csr_array(
        sp.block_array([[upstream, random_graph(size, 1, rng)], [None, 0.3 * ring(size, 1.0)]])
    )
    bound = spectral_radius(matrix)
    weights = bound.weights
    assert weights is not None and weights.shape == (2 * size,) and (weights > 0).all()
    assert ((matrix @ weights) <= bound.weighted_rate * weights).all()
    assert bound.upper <= bound.weighted_rate * (1 + 4 * ULP)
    assert bound.weighted_rate <= 1.0011 * bound.upper


def test_solved_weights_have_the_quotient_of_theory():
    """w = (λI − M)⁻¹1 has (M w)_i/w_i = λ − 1/w_i, and exists for λ > ρ only."""
    matrix = random_graph(50, 3, np.random.default_rng(5)).toarray()
    bound = spectral_radius(matrix)
    rate = 1.05 * bound.upper
    w = np.linalg.solve(rate * np.eye(50) - matrix, np.ones(50))
    np.testing.assert_allclose((matrix @ w) / w, rate - 1 / w, rtol=1e-10)  # condition 1/0.05
    found = bound.weights_at(rate)
    assert found is not None
    np.testing.assert_allclose(found.weights / found.weights[0], w / w[0], rtol=1e-10)
    assert bound.weights_at(bound.upper) is None and bound.weights_at(0.9 * bound.upper) is None
    beyond = np.linalg.solve(0.98 * bound.lower * np.eye(50) - matrix, np.ones(50))
    assert not (beyond > 0).all()


def test_a_larger_rate_needs_a_smaller_constant():
    bound = spectral_radius(line(30, 0.4, 0.2))
    found = [bound.weights_at(rate) for rate in np.linspace(bound.upper * 1.01, 0.99, 6)]
    constants = [item.constant for item in found if item is not None]
    assert len(constants) == 6 and constants == sorted(constants, reverse=True)


def test_weights_of_nilpotent_matrices_stay_in_range():
    for size in (2, 40, 1000, 30_000):
        bound = spectral_radius(line(size, 0.5))
        assert bound.weights is not None
        assert np.abs(np.log10(bound.weights)).max() <= 281
        assert bound.weighted_rate <= 0.5 * (1 + 4 * ULP)
    assert spectral_radius(line(40, 0.5)).weighted_rate < 1e-2


def test_weights_beyond_the_range_of_floats_give_way_to_a_larger_rate():
    """The Perron vector spans 10^3000; a looser rate in range must come out, checked."""
    matrix = line(1000, 1.0, 1e-6)
    bound = spectral_radius(matrix)
    assert bound.weights is not None and bound.weighted_rate > bound.upper
    assert ((matrix @ bound.weights) <= bound.weighted_rate * bound.weights).all()


# ---------------------------------------------------------------------------------------------
# (C, λ)


def decaying():
    rng = np.random.default_rng(8)
    yield "Jordan", line(6, 1.0) + 0.5 * sp.eye_array(6)
    yield "nilpotent", line(9, 2.0)
    yield "swap", sp.csr_array([[0.0, 4.0], [0.1, 0.0]])
    yield "zero", sp.csr_array((3, 3))
    yield "ring", ring(30, 0.5 * rng.random(30), 0.5 * rng.random(30))
    yield "drift", line(12, 0.9, 0.01)
    yield "grid", grid((6, 6), lambda n: 0.24 * rng.random(n))
    yield "slow", 0.9999 * ring(7, 1.0)
    graph = random_graph(200, 4, rng)
    yield "random", graph * (0.95 / spectral_radius(graph).upper)
    graph = random_graph(40, 2, rng, 3)
    yield "wide", graph * (0.9 / spectral_radius(graph).upper)


DECAYING = list(decaying())


@pytest.mark.parametrize("matrix", [d[1] for d in DECAYING], ids=[d[0] for d in DECAYING])
def test_every_candidate_bounds_every_power(matrix):
    bound = spectral_radius(matrix)
    assert bound.candidates
    assert_powers_bounded(matrix, bound)
    assert all(bound.lower <= candidate.rate < 1 for candidate in bound.candidates)
    pairs = [(candidate.rate, -candidate.constant) for candidate in bound.candidates]
    assert pairs == sorted(pairs) and len({c for _, c in pairs}) == len(pairs)


@pytest.mark.parametrize("matrix", [d[1] for d in DECAYING], ids=[d[0] for d in DECAYING])
@pytest.mark.parametrize("eps", [10.0, 1e-2, 1e-8])
def test_kappa_bounds_the_tail_and_is_the_smallest_the_candidates_give(matrix, eps):
    bound = spectral_radius(matrix)
    kappa = bound.kappa_for(eps)
    assert isinstance(kappa, int)
    full = matrix.toarray()
    inverse = np.linalg.inv(np.eye(len(full)) - full)
    tail = np.linalg.norm(inverse @ np.linalg.matrix_power(full, kappa + 1), np.inf)
    assert tail <= eps * (1 + 1e-6)  # the inverse is right to about cond(I − M)·2⁻⁵²
    tails = [candidate.tail(kappa) for candidate in bound.candidates]
    assert min(tails) <= eps or kappa == (bound.nilpotency or 0) - 1
    if kappa:
        assert all(candidate.tail(kappa - 1) > eps for candidate in bound.candidates)
    assert bound.kappa_for(eps, scale=10.0) >= kappa and bound.kappa_for(eps, scale=0.0) == 0


def test_both_kinds_of_candidates_appear_and_transients_are_covered():
    matrix = line(6, 1.0) + 0.5 * sp.eye_array(6)
    kinds = {candidate.kind for candidate in spectral_radius(matrix).candidates}
    assert kinds == {"gelfand", "weighted"}
    peak = max(
        np.linalg.norm(np.linalg.matrix_power(matrix.toarray(), t), np.inf) for t in range(60)
    )
    assert peak > 10 and min(c.constant for c in spectral_radius(matrix).candidates) >= peak


def test_no_constant_serves_at_rho_itself_on_a_jordan_block():
    """‖M^t‖ρ^{−t} grows like t; the candidates' rates lie strictly above ρ."""
    jordan = np.array([[0.5, 1.0], [0.0, 0.5]])
    ratios = [
        np.linalg.norm(np.linalg.matrix_power(jordan, t), np.inf) / 0.5**t for t in (10, 100, 1000)
    ]
    assert ratios[0] > 10 and ratios[1] > 100 and ratios[2] > 1000
    bound = spectral_radius(jordan)
    assert bound.lower == bound.upper == 0.5
    assert all(candidate.rate > 0.5 for candidate in bound.candidates)


def test_the_worked_example_of_the_tail_rule():
    """λ^{κ+1}/(1 − λ) ≤ .01: ρ = .5, γ = .99 needs κ = 7 at γρ, and 916 at γ alone."""
    assert spectral_radius([[0.5]]).kappa_for(0.01) == 7
    assert spectral_radius([[0.99 * 0.5]]).kappa_for(0.01) == 7
    assert spectral_radius([[0.99]]).kappa_for(0.01) == 916


def test_nilpotent_matrices_need_no_more_than_their_index():
    for size in (1, 2, 9, 100):
        bound = spectral_radius(line(size, 3.0) if size > 1 else [[0.0]])
        assert bound.nilpotency == size
        assert bound.kappa_for(1e-300) == size - 1
    assert spectral_radius(line(3, 3.0)).kappa_for(100.0) == 0
    assert spectral_radius([[0.5]]).nilpotency is None


def test_at_rho_one_or_more_nothing_decays():
    for matrix in ([[1.0]], ring(5, 1.0), [[0.0, 2.0], [2.0, 0.0]]):
        bound = spectral_radius(matrix)
        assert bound.candidates == () and bound.kappa_for(1.0) == math.inf
        assert bound.nilpotency is None and bound.weights is not None


def test_a_rate_within_rounding_of_one_still_answers():
    kappa = spectral_radius([[1 - 2.0**-40]]).kappa_for(1.0)
    assert 2.0**40 * math.log(2.0**40) <= kappa <= 2.0**41 * math.log(2.0**41)


# ---------------------------------------------------------------------------------------------
# Scale, formats, input


@pytest.mark.parametrize("power", [-1040, -990, -400, 3, 400, 990])
def test_powers_of_two_move_the_bounds_and_nothing_else(power):
    """Entries down to 2^-1040 are subnormal: the bounds must hold there, the gap may widen."""
    matrix = random_graph(20, 3, np.random.default_rng(2)).toarray()
    matrix = np.ldexp(np.ldexp(matrix, 20).round(), -20)
    near, far = spectral_radius(matrix), spectral_radius(np.ldexp(matrix, power))
    assert far.lower <= np.ldexp(near.upper, power) and np.ldexp(near.lower, power) <= far.upper
    if power > -1000:
        assert far.converged


def test_every_format_gives_the_same_bounds():
    dense = random_graph(12, 3, np.random.default_rng(4)).toarray()
    want = spectral_radius(dense)
    for form in ("csr", "csc", "coo", "lil", "dok", "bsr", "dia"):
        for make in (sp.csr_array, sp.csr_matrix):
            got = spectral_radius(make(dense).asformat(form))
            assert (got.lower, got.upper) == (want.lower, want.upper)
    got = spectral_radius(dense.tolist())
    assert (got.lower, got.upper) == (want.lower, want.upper)
    assert spectral_radius(np.eye(3, dtype=bool)).upper == 1.0
    assert spectral_radius(np.array([[2, 0], [5, 1]])).lower == 2.0


def test_repeated_and_stored_zero_entries():
    repeated = sp.coo_array(([0.25] * 4 + [0.0], ([0, 0, 1, 1, 1], [1, 1, 0, 0, 1])), shape=(2, 2))
    data = repeated.data.copy()
    bound = spectral_radius(repeated)
    assert bound.lower <= 0.5 <= bound.upper and bound.converged
    assert repeated.nnz == 5 and (repeated.data == data).all()
    zeros = sp.csr_array(([0.0, 0.5], ([0, 1], [0, 0])), shape=(2, 2))
    assert spectral_radius(zeros).upper == 0.0 and zeros.nnz == 2


def test_the_same_input_gives_the_same_bits():
    matrix = grid((60, 60), np.random.default_rng(6).random)
    first, second = spectral_radius(matrix), spectral_radius(matrix.copy())
    assert (first.lower, first.upper, first.weighted_rate) == (
        second.lower,
        second.upper,
        second.weighted_rate,
    )


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.ones((2, 3)), ["(2, 3)", "square"]),
        (np.ones(4), ["(4,)", "square"]),
        (np.ones((0, 0)), ["(0, 0)", "square"]),
        ([[1.0, 2.0], [3.0]], ["array of numbers"]),
        (np.array([["a"]]), ["dtype"]),
        (np.array([[1j]]), ["dtype complex"]),
        ([[0.0, 1.0], [-0.5, 0.0]], ["(1, 0)", "-0.5", "at least 0"]),
        ([[0.0, np.nan], [0.5, 0.0]], ["(0, 1)", "nan"]),
        (sp.csc_array([[0.0, 1.0], [0.5, np.inf]]), ["(1, 1)", "inf"]),
        (sp.csr_matrix([[0.0, 1.0], [-np.inf, 2.0]]), ["(1, 0)", "-inf"]),
    ],
)
def test_bad_input_is_named(matrix, words):
    for call in (spectral_radius, norm_rows, norm_columns):
        with pytest.raises(InputError) as caught:
            call(matrix)
        assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("tolerance", [0.0, 1e-13, 1.0, math.nan])
def test_the_tolerance_has_a_range(tolerance):
    with pytest.raises(InputError, match="tolerance"):
        spectral_radius([[1.0]], tolerance=tolerance)


@pytest.mark.parametrize(("eps", "scale"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, -1.0)])
def test_kappa_for_refuses_senseless_requests(eps, scale):
    with pytest.raises(InputError):
        spectral_radius([[0.5]]).kappa_for(eps, scale)


def test_norms_are_rounded_up_and_tight():
    rng = np.random.default_rng(9)
    matrix = rng.random((50, 50))
    entries = exact(matrix)
    rows = max(sum(row) for row in entries)
    columns = max(sum(row[j] for row in entries) for j in range(50))
    for norm, want in ((norm_rows(matrix), rows), (norm_columns(matrix), columns)):
        assert want <= Fraction(norm) <= want * (1 + Fraction(1, 10**13))  # 2(k + 2)·2⁻⁵³
    assert norm_rows(np.zeros((2, 2))) == norm_columns(np.zeros((2, 2))) == 0.0


# ---------------------------------------------------------------------------------------------
# Factorisations


@pytest.mark.parametrize(
    ("matrix", "kind"),
    [
        (np.ones((300, 300)), DenseSolver),
        (ring(5000, 1.0), BandedSolver),
        (ring(5000, 1.0, 1.0), BandedSolver),
        (grid((300, 300), np.ones), SparseSolver),
        (random_graph(20_000, 4, np.random.default_rng(0)), type(None)),
    ],
    ids=["dense", "directed ring", "two-way ring", "grid", "random"],
)
def test_the_factorisation_is_chosen_by_its_fill(matrix, kind):
    solver = choose_solver(sp.csr_array(matrix), SpectralBudget())
    assert type(solver) is kind
    assert choose_solver(sp.csr_array(matrix), SpectralBudget(fill=10)) is None


def test_a_tree_is_seen_to_have_no_fill():
    child = np.arange(1, 40_000)
    parent = (child - 1) // 3
    tree = coo(child, parent, 1.0, 40_000) + coo(parent, child, 1.0, 40_000)
    assert isinstance(choose_solver(tree, SpectralBudget()), SparseSolver)


@pytest.mark.parametrize("solver", ["dense", "banded", "sparse", "triangular"])
def test_factorisations_solve(solver):
    rng = np.random.default_rng(7)
    matrix = line(50, rng.random(49)) if solver == "triangular" else ring(50, rng.random(50), 0.5)
    matrix = sp.csr_array(matrix)
    made = {
        "dense": lambda: DenseSolver(50),
        "banded": lambda: choose_solver(sp.csr_array(ring(100, 1.0, 1.0)), SpectralBudget()),
        "sparse": lambda: SparseSolver(50, 1.0),
        "triangular": lambda: triangular_solver(matrix, np.arange(50)[::-1].copy()),
    }[solver]()
    if solver == "banded":
        matrix = sp.csr_array(ring(100, rng.random(100), 0.5))
        assert isinstance(made, BandedSolver)
    assert made is not None
    solve = made.factor(matrix, 2.5)
    assert solve is not None
    right = rng.random(matrix.shape[0])
    residual = 2.5 * solve(right) - matrix @ solve(right) - right
    assert np.abs(residual).max() <= 1e-13 * np.abs(solve(right)).max() * 2.5


@pytest.mark.parametrize("solver", [DenseSolver(2), SparseSolver(2, 1.0)], ids=["dense", "sparse"])
def test_a_singular_factorisation_is_no_error(solver):
    assert solver.factor(sp.csr_array([[0.0, 1.0], [1.0, 0.0]]), 1.0) is None
