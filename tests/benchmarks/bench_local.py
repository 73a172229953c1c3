"""Truncated advantages of all agents from one policy, planning included, against the machine's rates.

Two-way ring with a random table of its own at every site: P_j reads s_{j−1}, s_j, s_{j+1}, a_j, agent
j sees the same three, reward on s_j, uniform weighting. Beside the seconds stand the peak memory, the
floating-point operations against the measured rate of a matrix product, the bytes that operands and
results take against the measured rate of a copy, and a ring-only script of some 40 lines, unsliced and
differentiated by torch, that does the same work. Every case runs in a process of its own. Meant for a
quiet machine.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

import torchloc as tl
from torchloc.environments import sysadmin
from torchloc.environments.sysadmin import sysadmin_on
from torchloc.evaluation.local import LocalEvaluation

pytestmark = pytest.mark.benchmark

THREADS = 1
Case = tuple[tl.FactoredMDP, tl.SoftmaxPolicy]


def own_tables(n: int, parents: np.ndarray) -> Case:
    """A binary model with a random law at every site; agents see what their coordinate reads."""
    rng = np.random.default_rng(0)
    sites, width = np.arange(n), parents.shape[1]
    up = rng.random((n, *(2,) * (width + 1)))
    kernels = tl.KernelBatch(sites, parents, sites[:, None], np.stack([1.0 - up, up], axis=-1))
    rewards = tl.RewardBatch(sites[:, None], np.zeros((n, 0), np.int64), rng.random((n, 2)))
    mdp = tl.FactoredMDP(np.full(n, 2), np.full(n, 2), [kernels], [rewards])
    return mdp, tl.SoftmaxPolicy.tabular(mdp, tl.parent_scopes(mdp), scale=1.0, seed=1)


def ring(n: int) -> Case:
    sites = np.arange(n)
    return own_tables(n, np.stack([(sites - 1) % n, sites, (sites + 1) % n], axis=1))


def torus(side: int) -> Case:
    row, column = np.divmod(np.arange(side * side), side)
    near = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
    columns = [(row + a) % side * side + (column + b) % side for a, b in near]
    return own_tables(side * side, np.stack(columns, axis=1))


def small_world(n: int) -> Case:
    mdp = sysadmin_on(nx.connected_watts_strogatz_graph(n, 4, 0.1, seed=1))
    return mdp, tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=1.0, seed=1)


def alike(n: int) -> Case:
    mdp = sysadmin(n=n)
    return mdp, tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))


BUILD: dict[str, Callable[[int], Case]] = {
    "ring": ring,
    "torus": torus,
    "small_world": small_world,
    "alike": alike,
}


def script(mdp: tl.FactoredMDP, policy: tl.SoftmaxPolicy, kappa: int) -> Tensor:
    """The ring alone, sites last, (2, 2, 2, 2, n) ḡ of all agents; every coordinate left, own, right."""
    kernel = torch.tensor(mdp.kernels[0].table).permute(1, 2, 3, 4, 5, 0).contiguous()
    reward = torch.tensor(mdp.rewards[0].table).T.contiguous()
    # Scopes are ascending, so their axes are turned to (left, own, right) where the ring closes.
    scope, n = policy.groups[0].scope, mdp.n_agents
    laws = policy.group_probabilities(0).reshape(n, 2, 2, 2, 2)
    around = (np.arange(n)[:, None] + [-1, 0, 1]) % n
    for row in np.flatnonzero((scope != around).any(axis=1)):
        order = [int(np.flatnonzero(scope[row] == i)[0]) for i in around[row]]
        laws[row] = laws[row].permute(*order, 3).clone()
    law = laws.permute(1, 2, 3, 4, 0).contiguous()

    def closed(law: Tensor) -> Tensor:
        return (kernel * law.unsqueeze(-2)).sum(dim=3)

    def pulled(values: Tensor, closed: Tensor, *, summed: bool) -> Tensor:
        radius = (values.ndim - 2) // 2
        rest = values.reshape(1, 1, 1, 2, -1, n)  # (A, s_{c−1}, s_c, t_c, later t, sites)
        for c in range(-radius, radius + 1):
            at = closed.roll(-c, dims=-1)[None, :, :, :, :, None]
            result = (
                at[..., 0, :, :] * rest[:, :, :, None, 0]
                + at[..., 1, :, :] * rest[:, :, :, None, 1]
            )
            # (A, s_{c−1}, s_c, s_{c+1}, later t, sites)
            result = result.sum(dim=1) if summed else result.flatten(0, 1)
            shape = (1 if summed else len(result), 2, 2, 2, -1, n) if c < radius else (-1, n)
            rest = result.reshape(shape)
        return rest if summed else rest.reshape(*(2,) * (2 * radius + 3), n)

    fixed = closed(law)
    values = reward
    for _ in range(kappa):
        more = pulled(values, fixed, summed=False)
        depth = (values.ndim - 2) // 2 + 1
        view = reward.reshape(*(1,) * depth, 2, *(1,) * depth, n)
        values = more + view
    first = law.clone().requires_grad_()
    total = pulled(values, closed(first), summed=True).sum() / 2 ** (2 * kappa + 3)
    (gradient,) = torch.autograd.grad(total, first)
    gradient = gradient * 8.0
    return gradient - gradient.mean(dim=3, keepdim=True)


def rates() -> dict[str, float]:
    """GFlop/s of a float64 matrix product and GB/s of a copy that leaves the cache."""
    a, b = (torch.rand(1024, 1024, dtype=torch.float64) for _ in range(2))
    c, d = torch.rand(2**24, dtype=torch.float64), torch.empty(2**24, dtype=torch.float64)
    product = least(lambda: a @ b, 8)
    copy = least(lambda: d.copy_(c), 8)
    return {"gflops": 2 * 1024**3 / product / 1e9, "gbytes": 16 * len(c) / copy / 1e9}


def least(run: Callable[[], object], repeats: int) -> float:
    best = math.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best


def work(local: LocalEvaluation) -> tuple[float, float]:
    """Flops and bytes of a reverse pass: the last step counts three times, once for each direction.

    Bytes: every operand and intermediate result written once and read once.
    """
    flops = entries = 0
    for ball in local.balls:
        last = ball.last.averaging()
        pulls = [step.pulling() for step in ball.steps]
        flops += len(ball) * (sum(one.flops for one in pulls) + 3 * last.flops)
        entries += len(ball) * (sum(one.live for one in pulls) + 3 * last.live)
    return float(flops), 16.0 * entries


def measure(kind: str, n: int, kappa: int, dtype: str, compare: bool) -> dict[str, float]:
    torch.set_num_threads(THREADS)
    mdp, policy = BUILD[kind](n)
    LocalEvaluation(*BUILD[kind](12 if kind != "torus" else 5), 1).logits(
        BUILD[kind](12 if kind != "torus" else 5)[1]
    )
    kind_of = getattr(torch, dtype)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def whole() -> LocalEvaluation:
        local = LocalEvaluation(mdp, policy, kappa, dtype=kind_of)
        local.logits(policy)
        return local

    begin = time.perf_counter()
    local = whole()
    first = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = min(first, least(whole, 2)) if first < 10 else first
    again = least(lambda: local.logits(policy), 2)
    flops, bytes_ = work(local)
    found = {
        "seconds": seconds,
        "again": again,
        "classes": len(local.balls),
        "peak": peak / 2**20,
        "model": before / 2**20,
        "flops": flops,
        "bytes": bytes_,
    } | rates()
    if compare:
        found["script"] = least(lambda: script(mdp, policy, kappa), 3)
        mine, theirs = local.logits(policy), script(mdp, policy, kappa)
        middle = mine.values[0][1 : n - 1].permute(1, 2, 3, 4, 0)
        found["difference"] = float((middle - theirs[..., 1 : n - 1]).abs().max())
    return found


def in_a_process(*arguments: object) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def show(name: str, m: dict[str, float]) -> None:
    beside = f", script {m['script']:.2f} s" if "script" in m else ""
    ideal = m["flops"] / m["gflops"] / 1e9, m["bytes"] / m["gbytes"] / 1e9
    print(
        f"\n{name}: {m['seconds']:.3f} s ({m['again']:.3f} s once planned{beside}), {m['classes']:.0f} "
        f"class(es), peak {m['peak']:.2f} GiB (model {m['model']:.2f}); {m['flops'] / 1e9:.2f} GFlop = "
        f"{ideal[0]:.2f} s at the {m['gflops']:.0f} GFlop/s of a matrix product, {m['bytes'] / 1e9:.2f} GB = "
        f"{ideal[1]:.2f} s at the {m['gbytes']:.0f} GB/s of a copy"
    )


@pytest.mark.parametrize(
    ("n", "kappa", "seconds"), [(100_000, 2, 0.5), (100_000, 3, 2.5), (10_000, 5, 9.0)]
)
def test_ring_of_own_tables(n: int, kappa: int, seconds: float) -> None:
    m = in_a_process("ring", n, kappa, "float64", 1)
    show(f"ring n={n} kappa={kappa}", m)
    assert m["difference"] < 1e-12
    assert m["seconds"] <= seconds and m["seconds"] <= m["script"]


def test_a_million_sites_in_linear_time() -> None:
    small = in_a_process("ring", 10_000, 2, "float64", 0)
    large = in_a_process("ring", 1_000_000, 2, "float64", 0)
    show("ring n=10000 kappa=2", small)
    show("ring n=1000000 kappa=2", large)
    print(f"ratio {large['seconds'] / small['seconds']:.0f} for 100 times the sites")
    assert large["seconds"] <= 6.0 and large["peak"] * 2**30 <= 8e9
    assert large["seconds"] <= 115 * small["seconds"]


def test_single_precision() -> None:
    show("ring n=100000 kappa=3 float32", in_a_process("ring", 100_000, 3, "float32", 0))


def test_identical_balls_are_computed_once() -> None:
    m = in_a_process("alike", 1_000_000, 3, "float64", 0)
    show("SysAdmin ring n=1000000 kappa=3, one policy for all", m)
    assert m["again"] <= 0.1 * m["bytes"] / m["gbytes"] / 1e9 + 2.0


def test_torus_and_irregular_graph() -> None:
    show("torus 300 x 300 kappa=1", in_a_process("torus", 300, 1, "float64", 0))
    show(
        "SysAdmin on a small-world graph n=2000 kappa=1",
        in_a_process("small_world", 2000, 1, "float64", 0),
    )


if __name__ == "__main__":
    kind, n, kappa, dtype, compare = sys.argv[1:]
    print(json.dumps(measure(kind, int(n), int(kappa), dtype, compare == "1")))
