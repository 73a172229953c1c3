"""Runs read back whole from their event files, drawn, and the default experiment end to end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from recorded import Recorder, prepare, train
from torch.utils.tensorboard import SummaryWriter

import torchloc as tl
from torchloc import checkpoint, study
from torchloc import environments as env
from torchloc.callbacks import TensorBoard
from torchloc.evaluation.joint import JointEvaluation
from torchloc.improvement import Improvement
from torchloc.trainer import Evaluation

PAIR = env.sysadmin(2, topology="line", table="ippc")
SINGLE = 2.0**-23
"""Relative step of the single precision that event files hold."""


def written(folder: Path, **options: Any) -> Recorder:
    """A run whose event file lies in `folder`."""
    board = TensorBoard(folder, heat_maps_every=99)
    jacobi = Improvement(order="jacobi")
    return train(PAIR, iterations=3, improvement=jacobi, callbacks=[board], **options)


def lines(axes: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in axes.get_lines()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    folder = tmp_path_factory.mktemp("run")
    return folder, written(folder)


def test_a_run_is_read_back_whole(run: tuple[Path, Recorder]) -> None:
    folder, recorder = run
    series = study.read_run(folder)
    assert set(series) == set(recorder.metrics[0])
    for tag, (steps, values) in series.items():
        assert steps.tolist() == [1.0, 2.0, 3.0] and values.dtype == np.float64
        wanted = np.array([m[tag] for m in recorder.metrics])
        np.testing.assert_allclose(values, wanted, rtol=SINGLE)


def test_long_runs_are_not_thinned_out(tmp_path: Path) -> None:
    """TensorBoard's own reader keeps a sample of 10,000 points unless told otherwise."""
    writer = SummaryWriter(str(tmp_path))
    for step in range(10_001):
        writer.add_scalar("reward/average", float(step), step)
    writer.close()
    steps, values = study.read_run(tmp_path)["reward/average"]
    np.testing.assert_array_equal(steps, np.arange(10_001))
    np.testing.assert_array_equal(values, np.arange(10_001))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_00000001.safetensors").touch()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(tl.InputError, match="holds no TensorBoard event file; is it a run"):
            study.read_run(folder)


def test_a_run_broken_off_at_once_has_nothing_to_draw(tmp_path: Path) -> None:
    trainer, _ = prepare(PAIR, callbacks=[TensorBoard(tmp_path)])
    trainer.iterations = 0
    trainer.run()
    series = study.read_run(tmp_path)
    assert series == {}
    with pytest.raises(tl.InputError, match="hold no reward/per_agent"):
        study.run_figure(series)


def test_the_figure_shows_reward_optimum_temperature_and_the_ladder(
    run: tuple[Path, Recorder], tmp_path: Path
) -> None:
    folder, recorder = run
    series = study.read_run(folder)
    figure = study.run_figure(series)
    left, right, cooling = figure.axes
    shown = lines(left)
    np.testing.assert_array_equal(shown["reward per agent"], series["reward/per_agent"])
    optimum = recorder.states[-1].optimum
    assert optimum is not None
    # The sum of two numbers in single precision.
    wanted = optimum.gain / PAIR.n_agents
    np.testing.assert_allclose(shown["joint optimum"][1], wanted, rtol=4 * SINGLE)
    np.testing.assert_array_equal(lines(cooling)["τ"], series["schedule/temperature"])
    assert cooling.get_yscale() == "log"
    ladder = lines(right)
    for label, rung in (("coupled", "coupled"), ("exact", "exact"), ("span", "span")):
        (line,) = (value for name, value in ladder.items() if name.startswith(label))
        np.testing.assert_array_equal(line, series[f"rho/{rung}"])
    np.testing.assert_array_equal(ladder["paper"], series["rho/paper"])
    target = tmp_path / "run.png"
    figure.savefig(target)
    assert target.stat().st_size > 10_000


def test_the_optimum_of_a_discounted_run_is_drawn_per_step() -> None:
    """V* stands for (1 − γ)⁻¹ steps of the reward that the figure shows."""
    recorder = train(PAIR, iterations=2, evaluation=Evaluation(discount=0.9))
    series = {
        tag: (np.arange(1.0, 3.0), np.array([m[tag] for m in recorder.metrics]))
        for tag in recorder.metrics[0]
    }
    optimum = recorder.states[-1].optimum
    assert optimum is not None
    shown = lines(study.run_figure(series).axes[0])
    rate = optimum.gain * (1.0 - 0.9) / PAIR.n_agents
    np.testing.assert_allclose(shown["joint optimum"][1], rate, rtol=1e-12)


def test_the_interval_of_a_simulated_run_is_shaded(tmp_path: Path) -> None:
    recorder = written(tmp_path, evaluation=Evaluation(engine="local", kappa=1, steps=20))
    figure = study.run_figure(study.read_run(tmp_path))
    (band,) = figure.axes[0].collections
    ends = band.get_paths()[0].vertices[:, 1]
    low = min(m["reward/per_agent_low"] for m in recorder.metrics)
    high = max(m["reward/per_agent_high"] for m in recorder.metrics)
    np.testing.assert_allclose([ends.min(), ends.max()], [low, high], rtol=SINGLE)
    figure.canvas.draw()


def test_the_figure_needs_no_optimum_and_no_reward(tmp_path: Path) -> None:
    """A model that pays nothing: every number 0, and its optimum is 0."""
    idle = tl.LocalKernel((), (0,), [[0.9, 0.1], [0.2, 0.8]])
    mdp = tl.FactoredMDP([2], [2], [idle], [tl.LocalReward((0,), (), [0.0, 0.0])])
    train(mdp, scopes=[[]], iterations=1, callbacks=[TensorBoard(tmp_path, heat_maps_every=9)])
    series = study.read_run(tmp_path)
    shown = lines(study.run_figure(series).axes[0])
    assert shown["joint optimum"][1].tolist() == [0.0, 0.0]
    del series["gap/per_agent_and_step"]
    assert set(lines(study.run_figure(series).axes[0])) == {"reward per agent"}


@pytest.mark.slow
@pytest.mark.alone
def test_the_default_experiment(tmp_path: Path) -> None:
    """sysadmin, jair ring, n = 8, c = .75, MLP policies, τ from 1 to .02, from the command line."""
    command = str(Path(sys.executable).parent / "torchloc-train")
    start = time.perf_counter()
    done = subprocess.run(
        [command],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs" / "default").iterdir()
    last = done.stdout.splitlines()[-1]
    assert last == f"tensorboard --logdir {folder}"
    rows = [line.strip("│").split("│") for line in done.stdout.splitlines() if line[:1] == "│"]
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert table["reward r̄"][1] == table["optimum, all joint policies"][1] == "0.887747"
    assert table["gap to it"][1] == "0.000000"
    assert table["coupled"][0] == "0.100000" and table["paper"][0] == "3.329900"
    assert table["coupled"][-1] == "yes" and table["paper"][-1] == "no"

    series = study.read_run(folder)
    assert all(steps.tolist() == list(range(1, 17)) for steps, _ in series.values())
    # The optimum to six digits from the literature's model, and to the planner's bracket, 1e-9 in
    # units of max |r| = n.
    assert series["reward/per_agent"][1][-1] == pytest.approx(0.887747, abs=1e-6)
    assert abs(series["gap/per_agent_and_step"][1][-1]) <= 1e-8
    found = checkpoint.load(folder)
    mdp = env.sysadmin()
    joint = JointEvaluation(mdp, found.policy)
    assert joint.average_reward / 8 == pytest.approx(0.8877471, abs=1e-7)
    assert found.iteration == 16 and OmegaConf.create(found.configuration).env.n == 8

    # The ladder moves: `paper` rises throughout, `coupled` falls.
    paper, coupled = series["rho/paper"][1], series["rho/coupled"][1]
    assert (np.diff(paper) >= -1e-6).all() and paper[0] < 2.0
    assert paper[-1] == pytest.approx(3.3299, abs=1e-4)
    assert coupled[0] > 0.4 and coupled[-1] == pytest.approx(0.1, abs=1e-4)
    # Every block kept its guarantee (the run would have stopped), and their sums are logged.
    assert (series["ledger/guarantee"][1] <= series["ledger/realised"][1] + 1e-8).all()
    print(f"default experiment: {seconds:.1f} s, {series['reward/per_agent'][1][-1]:.8f} a machine")
    assert seconds < 60.0
