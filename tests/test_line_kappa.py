"""`line_msg` with reward at the sink: agent i learns to transmit exactly if κ ≥ i."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recorded import cooling, train
from scipy.special import entr

import torchloc as tl
from torchloc import checkpoint, study
from torchloc import environments as env
from torchloc.evaluation.joint import JointEvaluation
from torchloc.graphs import parent_scopes
from torchloc.improvement import Improvement
from torchloc.trainer import Evaluation


def line_laws(n: int, kappa: int, *, relay: float, cost: float, tau: float) -> np.ndarray:
    """(n, 2) P(a_i = 1 | s_{i+1}) that soft policy iteration (η = 0) reaches on `line_msg`, sink only.

    Agent i's action moves s_i alone, and that only agent i − 1 sees. Raising s_i from 0 to 1 adds to
    ĥ_κ, with ψ_j = −c π_j(1) + τ Ent π_j and q = (relay, 1) the law of the relay,

        w_i(κ) = ψ_{i−1}(1) − ψ_{i−1}(0) + (π_{i−1}(1|1) − relay π_{i−1}(1|0)) w_{i−1}(κ − 1),
        w_0(κ) = 1,   w_1(κ) = w_0(κ − 1),   w = 0 at κ < 0  (nobody sees s_0, or s_1 but s'_0 = s_1)

    so that ĝ_i(s, 1) − ĝ_i(s, 0) = −c + q(s_{i+1}) w_i(κ), a function of what agent i sees. A sweep
    in the order 0, 1, … meets agents j < i already updated, so one sweep at the final τ is the end.

    The reward at the sink enters w_i(κ) exactly if κ ≥ i. If not, w_i ≤ 0: ψ as a function of the
    logit falls on both sides of −c, and the two logits of agent j lie on one side, −c + w_j farther
    out than −c + relay w_j. Then agent i transmits with the myopic probability σ(−c/τ) at most.
    """

    def law(gap: np.ndarray) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-gap / tau))

    def psi(p: float) -> float:
        return -cost * p + tau * float(entr(p) + entr(1.0 - p))

    def worth(i: int, horizon: int) -> float:
        if horizon < 0 or i == 0:
            return float(horizon >= 0)
        if i == 1:
            return worth(0, horizon - 1)
        low, high = laws[i - 1]
        return psi(high) - psi(low) + (high - relay * low) * worth(i - 1, horizon - 1)

    laws = np.full((n, 2), law(np.array(-cost)))
    for i in range(1, n):
        sends = np.array([relay, 1.0] if i < n - 1 else [1.0, 1.0])
        laws[i] = law(-cost + sends * worth(i, kappa))
    return laws


def line_gain(laws: np.ndarray, *, relay: float, cost: float) -> float:
    """r̄ of these laws: P(s_i = 1) goes down the line, from the source to the sink."""
    up, spent = laws[-1, 1], laws[-1, 1] + laws[0, 1]
    for low, high in laws[-2:0:-1]:
        spent += up * high + (1.0 - up) * low
        up = up * high + (1.0 - up) * relay * low
    return up - cost * spent


def trained_laws(policy: tl.SoftmaxPolicy) -> np.ndarray:
    """(n, 2) P(a_i = 1 | s_{i+1}); both columns are equal for agents that see nothing."""
    tables = [policy.probabilities(k)[..., 1].numpy() for k in range(policy.n_agents)]
    return np.stack([np.broadcast_to(table, (2,)) for table in tables])


def check_line(laws: np.ndarray, kappa: int, *, relay: float, cost: float, tau: float) -> None:
    """The trained laws are the derived ones, and agent i ≥ 1 transmits exactly if κ ≥ i."""
    n = len(laws)
    wanted = line_laws(n, kappa, relay=relay, cost=cost, tau=tau)
    # Logits are exact to the tolerance of the solves, 1e-10 for rewards ≤ 1: a law to that over 4τ,
    # and a few hops of such errors.
    np.testing.assert_allclose(laws, wanted, atol=1e-8)
    myopic = 1.0 / (1.0 + math.exp(cost / tau))
    assert myopic == pytest.approx(0.3775, abs=5e-5)
    for i in range(1, n):
        if kappa >= i:
            assert laws[i, 1] > myopic + 0.05
        else:
            assert (laws[i] <= myopic + 1e-8).all()
    # Nothing reads agent 0's action, which just costs.
    np.testing.assert_allclose(laws[0], myopic, atol=1e-8)


LINE = {"relay": 0.5, "cost": 0.01}


@pytest.mark.parametrize("kappa", range(5))
def test_an_agent_of_the_line_transmits_exactly_if_kappa_reaches_it(kappa: int) -> None:
    mdp = env.line_msg(4, reward="sink", **LINE)
    recorder = train(
        mdp,
        scopes=parent_scopes(mdp),
        schedule=cooling(1.0, 0.02),
        evaluation=Evaluation(kappa=kappa),
        improvement=Improvement(prox=0.0),
    )
    laws = trained_laws(recorder.states[-1].policy)
    check_line(laws, kappa, tau=0.02, **LINE)
    gain = recorder.metrics[-1]["reward/average"]
    assert gain == pytest.approx(line_gain(laws, **LINE), abs=1e-9)


@pytest.mark.slow
def test_line_kappa_as_one_multirun(tmp_path: Path) -> None:
    """n = 8, κ = 0 … 8 from the command line, read back from its checkpoints and event files."""
    command = [Path(sys.executable).parent / "torchloc-train", "-m", "experiment=line_kappa"]
    done = subprocess.run(
        [*map(str, command), "evaluation.kappa=range(0,9)"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "runs" / "line_kappa").iterdir()
    folders = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [path.name for path in folders] == [f"{k}_evaluation.kappa={k}" for k in range(9)]
    mdp = env.line_msg(8, reward="sink", **LINE)
    gains = []
    for kappa, folder in enumerate(folders):
        policy = checkpoint.load(folder).policy
        laws = trained_laws(policy)
        check_line(laws, kappa, tau=0.02, **LINE)
        gain = JointEvaluation(mdp, policy).reward_rate
        assert gain == pytest.approx(line_gain(laws, **LINE), abs=1e-9)
        series = study.read_run(folder)
        # Event files hold single precision.
        assert series["reward/average"][1][-1] == pytest.approx(gain, rel=2.0**-23)
        # All transmit: the message always arrives and agents 1 … 7 pay.
        gap = series["gap/joint_optimum"][1][-1]
        assert gap == pytest.approx(1.0 - 7 * LINE["cost"] - gain, abs=1e-6)
        gains.append(gain)
    assert all(b > a + 1e-4 for a, b in itertools.pairwise(gains[:8]))
    # No action of this line is felt after eight steps.
    assert gains[8] == pytest.approx(gains[7], abs=1e-9)
    wanted = (0.2025, 0.5799, 0.7656, 0.8548, 0.8929, 0.9071, 0.9118, 0.9124, 0.9124)
    np.testing.assert_allclose(gains, wanted, atol=5e-5)
    print("gains for κ = 0 … 8:", " ".join(f"{gain:.6f}" for gain in gains))
    assert len(re.findall("gap to it", done.stdout)) == 9
