"""Sweeps on every launcher: the same runs, failures that stay where they are, no process left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from torchloc import checkpoint, cli, config
from torchloc.cli import training
from torchloc.errors import SolveError

PARALLEL = ("joblib", "submitit_local")
QUIET = ("policy=tabular", "trainer.iterations=2", "logging.progress=false", "name=t")
Train = Callable[..., int]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`torchloc-train -m ARGUMENTS` in this process and an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, sweep: bool = True) -> int:
        flags = ["-m"] if sweep else []
        monkeypatch.setattr(sys, "argv", ["torchloc-train", *flags, "name=t", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.train()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code

    return run


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torchloc", "train", "-m", *arguments]


def console(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def jobs(folder: Path) -> dict[int, Path]:
    """The folders of the one sweep below, by the number of the job."""
    (sweep,) = (folder / "runs" / "t").iterdir()
    return {int(p.parent.name.partition("_")[0]): p.parent for p in sweep.glob("*/.hydra")}


def outcome(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "outcome.json").read_text(encoding="utf-8"))


def test_every_failure_has_a_line_and_the_other_jobs_run(
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def job(cfg: DictConfig, model: Any = None) -> None:
        if cfg.seed < 2:
            raise SolveError(f"no\nsolution at seed {cfg.seed}")

    monkeypatch.setattr(training, "run_job", job)
    # Neither a failure in a batch nor the launcher's choice shows in what the others do.
    sweep = ("seed=range(3)", "env.n=3", "launcher=basic", "hydra.sweeper.max_batch_size=1")
    assert train(*sweep) == cli.FAILED
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "torchloc-train: job 0 (seed=0): no solution at seed 0",
        "torchloc-train: job 1 (seed=1): no solution at seed 1",
        "torchloc-train: 2 of 3 jobs failed",
    ]
    (folder,) = (tmp_path / "runs" / "t").iterdir()
    assert shown.out == f"all jobs: tensorboard --logdir {folder}\n"
    found = jobs(tmp_path)
    assert found[2].name == "2_env.n=3,name=t,seed=2"
    ended = [outcome(found[k]) for k in range(3)]
    assert [each["status"] for each in ended] == ["failed", "failed", "done"]
    assert ended[1]["message"] == "no solution at seed 1" and ended[2]["message"] is None


def test_a_defect_shows_its_traceback_and_the_other_jobs_run(
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def job(cfg: DictConfig, model: Any = None) -> None:
        if cfg.seed == 0:
            raise RuntimeError("a bug")

    monkeypatch.setattr(training, "run_job", job)
    assert train("seed=0,1") == cli.FAILED
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "in job\n" in shown
    assert "torchloc-train: job 0 (seed=0): RuntimeError: a bug\n" in shown
    assert outcome(jobs(tmp_path)[1])["status"] == "done"


def test_an_interrupt_ends_the_sweep(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def job(cfg: DictConfig, model: Any = None) -> None:
        if cfg.seed == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "run_job", job)
    assert train("seed=0,1,2") == cli.INTERRUPTED
    ended = {number: outcome(folder)["status"] for number, folder in jobs(tmp_path).items()}
    assert ended == {0: "done", 1: "interrupted"}


@pytest.mark.slow
def test_a_name_that_is_swept_has_a_folder_each(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    def job(cfg: DictConfig, model: Any = None) -> None:
        if cfg.name == "b":
            raise SolveError("no solution")

    monkeypatch.setattr(training, "run_job", job)
    assert train("name=a,b") == cli.FAILED
    shown = capsys.readouterr()
    assert "job 1 (name=b): no solution" in shown.err
    folders = [path for name in "ab" for path in (tmp_path / "runs" / name).iterdir()]
    assert shown.out.splitlines() == [f"all jobs: tensorboard --logdir {path}" for path in folders]


@pytest.mark.parametrize(
    ("launcher", "extra"),
    [("joblib", "sweep"), ("submitit_local", "cluster"), ("submitit_slurm", "cluster")],
)
def test_a_launcher_without_its_extra_says_what_to_install(launcher: str, extra: str) -> None:
    error = MissingConfigException("gone", f"hydra/launcher/{launcher}", ["basic"])
    assert config.explain(error) == (
        f"launcher={launcher} needs an extra: pip install 'torchloc[{extra}]'"
    )


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_launchers_are_composed_with_our_defaults(
    launcher: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (f"launcher={launcher}", "threads=2", "--cfg", "hydra")
    assert train(*asked, sweep=False) == cli.DONE
    chosen = OmegaConf.create(capsys.readouterr().out).hydra.launcher
    if launcher == "joblib":
        assert (chosen.n_jobs, chosen.batch_size) == (-1, "1")
    else:
        assert chosen.timeout_min == 1440
        # A sweep's folder holds all that belongs to it.
        raw = OmegaConf.to_container(chosen, resolve=False)
        assert isinstance(raw, dict) and raw["submitit_folder"] == "${hydra.sweep.dir}/.submitit/%j"
        assert raw["cpus_per_task"] == "${threads}"


def swept(folder: Path, launcher: str) -> tuple[subprocess.CompletedProcess[str], dict[int, Path]]:
    """Networks of two seeds; a torus of 4 nodes does not exist, which only building it can tell."""
    done = console(
        folder,
        f"launcher={launcher}",
        *("policy=mlp", "policy.hidden=[4]", "env=random", "env.graph=torus", "env.n=9,4"),
        *("seed=1,2", "trainer.iterations=1", "improvement.fit_steps=2", "evaluation=local"),
        *("evaluation.kappa=1", "logging.progress=false", "name=t"),
    )
    return done, jobs(folder)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return swept(tmp_path_factory.mktemp("basic"), "basic")[1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", PARALLEL)
def test_a_parallel_sweep_is_the_sweep_of_one_process(
    launcher: str, one_process: dict[int, Path], tmp_path: Path
) -> None:
    done, found = swept(tmp_path, launcher)
    assert done.returncode == cli.FAILED, done.stderr
    lines = done.stderr.splitlines()
    assert [line.partition(":")[2].partition(":")[0] for line in lines] == [
        " job 2 (env.n=4 seed=1)",
        " job 3 (env.n=4 seed=2)",
        " 2 of 4 jobs failed",
    ]
    assert "n = 4 in 2 rows is no torus" in lines[0]
    assert "all jobs: tensorboard --logdir " in done.stdout
    status = [outcome(found[k])["status"] for k in range(4)]
    assert status == ["done", "done", "failed", "failed"]
    trained = []
    for k in (0, 1):
        ours, theirs = (checkpoint.load(folders[k]).policy for folders in (found, one_process))
        for agent in range(ours.n_agents):
            np.testing.assert_array_equal(ours.logits(agent).numpy(), theirs.logits(agent).numpy())
        trained.append(ours.logits(0))
    assert not trained[0].equal(trained[1])  # each job had its own seed


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["launcher=joblib", "hydra/launcher=submitit_local"])
def test_a_solve_that_fails_in_another_process_keeps_its_sentence(
    launcher: str, tmp_path: Path
) -> None:
    """Hydra's own name of a launcher will do as well."""
    done = console(tmp_path, launcher, *QUIET, "env=leader_follower", "env.mutual=true,false")
    assert done.returncode == cli.FAILED
    first, last = done.stderr.splitlines()
    assert first.startswith(
        "torchloc-train: job 0 (env.mutual=True): iteration 1: the chain has 3 closed "
    )
    assert last == "torchloc-train: 1 of 2 jobs failed"
    assert outcome(jobs(tmp_path)[1])["status"] == "done"


PROBE = """
import os, pathlib, torchloc.environments
def model(n):
    text = " ".join(os.environ.get(name, "-") for name in {names})
    pathlib.Path(f"{{n}}.txt").write_text(text)
    return torchloc.environments.sysadmin(n)
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", PARALLEL)
def test_jobs_have_one_thread_each(launcher: str, tmp_path: Path) -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    (tmp_path / "probe.py").write_text(PROBE.format(names=names))
    (tmp_path / "mine" / "env").mkdir(parents=True)
    (tmp_path / "mine" / "env" / "probe.yaml").write_text("_target_: probe.model\nn: 3\n")
    arguments = ["--config-dir", "mine", f"launcher={launcher}", "env=probe", "env.n=3,4", *QUIET]
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        command(*arguments),
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == cli.DONE, done.stderr
    for n in (3, 4):
        assert (tmp_path / f"{n}.txt").read_text() == "1 1 1"


def alive(group: int) -> list[str]:
    """The processes of a group that still run."""
    listing = ["ps", "-A", "-ww", "-o", "pgid=,stat=,args="]
    shown = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in shown.splitlines()]
    return [line[-1] for line in lines if int(line[0]) == group and line[1][0] != "Z"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", PARALLEL)
@pytest.mark.parametrize(
    ("number", "code", "to_all"),
    [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)],
    ids=["ctrl-c", "sigterm"],
)
def test_an_interrupt_leaves_no_process(
    launcher: str, number: signal.Signals, code: int, to_all: bool, tmp_path: Path
) -> None:
    """Ctrl-C reaches every process of a terminal's group, SIGTERM the command alone."""
    long = ("trainer.iterations=100000", "checkpoint.every=1", "env.n=3", "seed=0,1,2")
    process = subprocess.Popen(
        command(f"launcher={launcher}", *QUIET[:1], *QUIET[2:], *long),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("runs/t/*/*/checkpoint_*.safetensors")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        if to_all:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        shown, _ = process.communicate(timeout=60)
        assert process.returncode == code, shown
        deadline = time.monotonic() + 20
        while (left := alive(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == []
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
