"""Bounds on ρ and weights at a million coordinates: seconds and peak memory against their limits.

Every case runs in a process of its own, so that its peak memory is its own:
`python tests/benchmarks/bench_spectral.py NAME` runs one and prints a line of JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp

from torchloc.spectral import spectral_radius

pytestmark = pytest.mark.benchmark

SIZE = 1_000_000
GIGABYTES = 4.0


def entries(rows, columns, values, size):
    data = np.broadcast_to(np.asarray(values, dtype=float), np.shape(rows))
    return sp.csr_array((data, (rows, columns)), shape=(size, size))


def ring(forward, backward=None):
    here = np.arange(SIZE)
    there = (here + 1) % SIZE
    matrix = entries(here, there, forward, SIZE)
    return matrix if backward is None else matrix + entries(there, here, backward, SIZE)


def line(forward, backward):
    here = np.arange(SIZE - 1)
    matrix = entries(here, here + 1, forward, SIZE)
    return matrix + entries(here + 1, here, backward, SIZE) if np.any(backward) else matrix


def box(shape, low, high, rng):
    nodes = np.arange(int(np.prod(shape))).reshape(shape)
    first, second = [], []
    for axis in range(len(shape)):
        first.append(np.delete(nodes, -1, axis).ravel())
        second.append(np.delete(nodes, 0, axis).ravel())
    rows = np.concatenate(first + second)
    columns = np.concatenate(second + first)
    return entries(rows, columns, rng.uniform(low, high, len(rows)), nodes.size)


def random_graph(degree, rng):
    rows = np.repeat(np.arange(SIZE), degree)
    return entries(rows, rng.integers(0, SIZE, SIZE * degree), rng.random(SIZE * degree), SIZE)


def small_components(rng):
    """100,000 components of size 3, every other one a cycle."""
    count = 100_000
    blocks = rng.random((count, 3, 3))
    blocks[::2] *= np.eye(3)[[1, 2, 0]]
    base = 3 * np.arange(count)[:, None, None]
    rows = np.broadcast_to(base + np.arange(3)[:, None], (count, 3, 3)).ravel()
    columns = np.broadcast_to(base + np.arange(3), (count, 3, 3)).ravel()
    return entries(rows, columns, blocks.ravel(), 3 * count)


def star():
    leaves, hub = np.arange(1, SIZE), np.zeros(SIZE - 1, dtype=int)
    return entries(hub, leaves, 1.0, SIZE) + entries(leaves, hub, 1.0, SIZE)


CASES: dict[str, tuple[float, Callable[[np.random.Generator], sp.csr_array]]] = {
    "directed ring, uniform": (10, lambda rng: ring(1.0)),
    "two-way ring, uniform": (10, lambda rng: ring(1.0, 1.0)),
    "directed ring, weights in (0, 1)": (10, lambda rng: ring(rng.random(SIZE))),
    "directed ring, weights in (.1, 1)": (10, lambda rng: ring(rng.uniform(0.1, 1, SIZE))),
    "two-way ring, weights in (0, 1)": (10, lambda rng: ring(rng.random(SIZE), rng.random(SIZE))),
    "two-way ring, weights in (.9, 1.1)": (
        10,
        lambda rng: ring(rng.uniform(0.9, 1.1, SIZE), rng.uniform(0.9, 1.1, SIZE)),
    ),
    "random graph, 5 a row": (10, lambda rng: random_graph(5, rng)),
    "grid, weights in (0, 1)": (25, lambda rng: box((1000, 1000), 0, 1, rng)),
    "grid, weights in (.5, 1.5)": (25, lambda rng: box((1000, 1000), 0.5, 1.5, rng)),
    "grid, weights in (.9, 1.1)": (25, lambda rng: box((1000, 1000), 0.9, 1.1, rng)),
    "grid, weights in (.99, 1.01)": (25, lambda rng: box((1000, 1000), 0.99, 1.01, rng)),
    "grid, uniform": (25, lambda rng: box((1000, 1000), 1, 1, rng)),
    "box, weights in (0, 1)": (25, lambda rng: box((100, 100, 100), 0, 1, rng)),
    "box, uniform": (25, lambda rng: box((100, 100, 100), 1, 1, rng)),
    "line, drift 1 to .001": (10, lambda rng: line(1.0, 1e-3)),
    "nilpotent chain": (25, lambda rng: line(0.5, 0.0)),
    "star": (10, lambda rng: star()),
    "components of size 3": (10, small_components),
}


def run_case(name: str) -> dict[str, float | str | bool]:
    """Time one case: the bracket, then the weights."""
    matrix = CASES[name][1](np.random.default_rng(0))
    start, busy = time.perf_counter(), time.process_time()
    bound = spectral_radius(matrix)
    bracketed = time.perf_counter()
    rate = bound.weighted_rate
    weighted = time.perf_counter()
    return {
        "lower": bound.lower,
        "upper": bound.upper,
        "converged": bound.converged,
        "rate": rate,
        "seconds": bracketed - start,
        "weights": weighted - bracketed,
        "busy": time.process_time() - busy,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


@pytest.mark.parametrize("name", CASES)
def test_a_million_coordinates(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, __file__, name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(
            f"\n{name:36s} {found['seconds']:6.2f} s + weights {found['weights']:5.2f} s "
            f"(processor {found['busy']:.2f} s), "
            f"{found['gigabytes']:.2f} GB, rho in [{found['lower']:.9g}, {found['upper']:.9g}], "
            f"weighted rate {found['rate']:.7g}"
        )
    assert found["converged"]
    assert found["seconds"] + found["weights"] <= CASES[name][0]
    assert found["gigabytes"] <= GIGABYTES


if __name__ == "__main__":
    print(json.dumps(run_case(sys.argv[1])))
