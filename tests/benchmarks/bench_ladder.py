"""The ladder at a million coordinates, and several coupled steps on rings of ten thousand."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import pytest
import torch

import torchloc as tl
from torchloc.certificate import Environment, Ladder
from torchloc.closed_loop import PolicyTables
from torchloc.coupling import coupled_steps
from torchloc.environments import sis, sysadmin
from torchloc.sensitivity import RUNGS, coupled_influence

pytestmark = pytest.mark.benchmark


def _report(name: str, start: float, limit: float) -> None:
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: {seconds:.1f} s (limit {limit:g} s), peak so far {peak:.2f} GiB")
    assert seconds <= limit


def test_million_machines() -> None:
    """All rungs but coupled in 20 s, coupled in 60 s; memory is linear: the tables are 64 bytes a row."""
    torch.set_num_threads(2)
    mdp = sysadmin(n=1_000_000)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=1.0)
    start = time.perf_counter()
    ladder = Ladder(Environment(mdp), policy)
    for rung in RUNGS[1:]:
        matrix = ladder.matrix(rung)
        assert matrix.nnz == 2 * mdp.n_coordinates
    _report("all rungs but coupled, n = 1e6, rounded up", start, 20)
    start = time.perf_counter()
    assert coupled_influence(mdp, ladder.tables).nnz == 2 * mdp.n_coordinates
    _report("coupled, n = 1e6", start, 60)
    start = time.perf_counter()
    certificate = tl.certify(mdp, policy, rungs=("coupled",))
    print(f"rho ≤ {certificate['coupled'].rho.upper:.6f}, ε ≤ {certificate.epsilon.max():.4g}")
    _report("certify by coupled with ρ, tail and ε, n = 1e6", start, 120)


@pytest.mark.parametrize(("name", "build"), [("one-way", sysadmin), ("two-way", sis)])
def test_three_coupled_steps(name: str, build: Callable[[int], tl.FactoredMDP]) -> None:
    """m = 3 on a ring of 10,000 in 60 s."""
    torch.set_num_threads(2)
    mdp = build(10_000)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=1.0)
    start = time.perf_counter()
    steps = coupled_steps(mdp, PolicyTables.read(policy), 3)
    assert len(steps.matrices) == 3
    _report(f"K^(3), {name} ring of 10,000", start, 60)
