"""A run that goes on is the run that never stopped: the same log values and policy, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from recorded import Recorder

import torchloc as tl
from torchloc import checkpoint, cli
from torchloc.callbacks import Checkpoint
from torchloc.cli.locking import LOCK, owned
from torchloc.environments import ising, sis, sysadmin
from torchloc.schedules import Certified, Tradeoff, geometric
from torchloc.study import read_run

ITERATIONS, STOP = 6, 3


def tabular(mdp: tl.FactoredMDP, **options: Any) -> tl.SoftmaxPolicy:
    return tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), **options)


def mlp(mdp: tl.FactoredMDP, **options: Any) -> tl.SoftmaxPolicy:
    return tl.SoftmaxPolicy.mlp(mdp, tl.neighbourhood_scopes(mdp), hidden=(6,), **options)


def cool(progress: float) -> float:
    return geometric(progress, start=1.0, end=0.05)


RUNS: dict[str, tuple[Callable, Callable, dict[str, Any]]] = {
    "tabular": (sysadmin, tabular, {}),
    "mlp": (sis, mlp, {}),
    "shared": (sis, lambda mdp: mlp(mdp, sharing=True), {}),
    "certified": (sysadmin, tabular, {"schedule": Certified()}),
    "tradeoff": (sis, tabular, {"schedule": Tradeoff(fall=0.6)}),
    "certified radius": (
        sysadmin,
        tabular,
        {"evaluation": tl.Evaluation(kappa="certified", kappa_most=5)},
    ),
    "kept local": (ising, tabular, {"locality": tl.Locality(target=1.2)}),
    "priced": (ising, tabular, {"locality": tl.Locality(target=1.2, price=0.2)}),
    "asynchronous": (sysadmin, tabular, {"dynamics": "asynchronous"}),
    "discounted": (sis, tabular, {"evaluation": tl.Evaluation(discount=0.9)}),
    "policy held": (sysadmin, tabular, {"hold": "policy"}),
    "chromatic": (sysadmin, tabular, {"improvement": tl.Improvement(order="chromatic")}),
    "local": (sysadmin, tabular, {"evaluation": tl.Evaluation(engine="local", kappa=1)}),
    "local, batches": (
        sis,
        mlp,
        {
            "evaluation": tl.Evaluation(engine="local", kappa="certified", kappa_most=2),
            "improvement": tl.Improvement(fit_method="adam", fit_batch=3, fit_steps=20),
        },
    ),
}


class StopAfter(tl.Callback):
    """Ctrl-C at the end of an iteration, with what a checkpoint of it holds."""

    def __init__(self, iteration: int, folder: Path) -> None:
        self.iteration, self.folder = iteration, folder

    def on_iteration_end(self, trainer: tl.Trainer, state: tl.TrainState) -> None:
        if state.iteration == self.iteration:
            checkpoint.save(state.snapshot, self.folder)
            raise KeyboardInterrupt


def run(name: str, *callbacks: tl.Callback, resume: Any = None) -> Recorder:
    model, make, options = RUNS[name]
    mdp, recorder = model(4), Recorder()
    policy = make(mdp) if resume is None else resume.policy
    options = {"schedule": cool, "iterations": ITERATIONS, "seed": 3, **options}
    trainer = tl.Trainer(mdp, policy, callbacks=[recorder, *callbacks], resume=resume, **options)
    trainer.run()
    return recorder


def logged(metrics: dict[str, float]) -> dict[str, float]:
    return {tag: value for tag, value in metrics.items() if not tag.startswith("seconds/")}


QUICK = ("tabular", "mlp", "certified radius", "priced", "local")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_the_run_that_goes_on_is_the_run_that_never_stopped(name: str, tmp_path: Path) -> None:
    whole = run(name)
    with pytest.raises(KeyboardInterrupt):
        run(name, StopAfter(STOP, tmp_path))
    rest = run(name, resume=checkpoint.load(tmp_path))
    assert [state.iteration for state in rest.states] == list(range(STOP + 1, ITERATIONS + 1))
    for ours, theirs in zip(rest.metrics, whole.metrics[STOP:], strict=True):
        assert logged(ours) == logged(theirs)
    after, wanted = (r.states[-1].policy.state_dict() for r in (rest, whole))
    for key, value in wanted.items():
        assert torch.equal(after[key], value), key
    assert torch.equal(rest.states[-1].policy.temperature, whole.states[-1].policy.temperature)


# The command ----------------------------------------------------------------------------------

QUIET = ("env.n=3", "policy=tabular", "logging.progress=false", "name=t")
Train = Callable[..., int]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`torchloc-train ARGUMENTS` in this process and an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["torchloc-train", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.train()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code

    return command


def the_run(folder: Path) -> Path:
    (found,) = (folder / "runs" / "t").iterdir()
    return found


def test_a_moved_run_goes_on_in_its_own_folder(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(*QUIET, "trainer.iterations=5") == 0
    whole = the_run(tmp_path).rename(tmp_path / "whole")

    from torchloc.callbacks import TensorBoard

    told = TensorBoard.on_iteration_end

    def stop(self: TensorBoard, trainer: tl.Trainer, state: tl.TrainState) -> None:
        told(self, trainer, state)
        if state.iteration == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(TensorBoard, "on_iteration_end", stop)
        assert train(*QUIET, "trainer.iterations=5") == 130
    moved = the_run(tmp_path).rename(tmp_path / "elsewhere")
    assert json.loads((moved / "outcome.json").read_text())["status"] == "interrupted"
    assert train(f"resume={moved}") == 0
    assert json.loads((moved / "outcome.json").read_text())["status"] == "done"
    assert not list((tmp_path / "runs" / "t").iterdir())
    ours, theirs = read_run(moved), read_run(whole)
    for tag, (steps, values) in theirs.items():
        assert ours[tag][0].tolist() == steps.tolist(), tag
        if not tag.startswith("seconds/"):
            assert ours[tag][1].tolist() == values.tolist(), tag
    policies = [checkpoint.load(folder).policy.state_dict() for folder in (moved, whole)]
    assert all(torch.equal(policies[0][name], value) for name, value in policies[1].items())


def test_a_finished_run_can_be_extended(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = ("schedule=constant", *QUIET)
    assert train(*constant, "trainer.iterations=2") == 0
    short = the_run(tmp_path)
    assert train(f"resume={short}") == 2
    assert "the run is finished, after 2 iterations; to extend it add" in capsys.readouterr().err
    assert train(f"resume={short}", "trainer.iterations=4") == 0
    extended = short.rename(tmp_path / "extended")
    assert train(*constant, "trainer.iterations=4") == 0
    policies = [checkpoint.load(f).policy.state_dict() for f in (extended, the_run(tmp_path))]
    assert all(torch.equal(policies[0][name], value) for name, value in policies[1].items())
    assert read_run(extended)["reward/average"][0].tolist() == [1.0, 2.0, 3.0, 4.0]


def hostile(text: str) -> Callable[[Path], None]:
    """Puts a configuration into the newest checkpoint of a run."""

    def write(folder: Path) -> None:
        policy = checkpoint.load(folder).policy
        snapshot = checkpoint.Snapshot.take(9, policy, torch.Generator())
        checkpoint.save(snapshot, folder, configuration=text)

    return write


CFG = "trainer: {iterations: 99}\nenv: {_target_: torchloc.environments.sysadmin}\n"


@pytest.mark.parametrize(
    ("fault", "more", "message"),
    [
        (None, ("env.n=4",), "env.n cannot change in a run that goes on: it would be another run"),
        (None, ("trainer.iterations=x",), "trainer.iterations = 'x' has the wrong type"),
        (None, ("-m",), "resume goes with neither --multirun nor --cfg"),
        (None, ("resume=b",), "give one run folder, or one checkpoint file"),
        (hostile(""), (), "its checkpoint holds no configuration; only a policy"),
        (
            hostile("env: {_target_: os.system, command: ls}"),
            (),
            "env is built by os.system, which",
        ),
        (hostile("policy: {_target_: builtins.exec}"), (), "policy is built by builtins.exec"),
        (hostile("[1, 2]"), (), "the configuration is no mapping of settings"),
        (hostile("seed: -1"), (), "seed = -1 is not allowed"),
        (hostile("colour: red"), (), "colour"),
    ],
)
def test_what_cannot_go_on_is_refused_in_one_line(
    fault: Any, more: tuple[str, ...], message: str, train: Train, tmp_path: Path, capsys: Any
) -> None:
    assert train(*QUIET, "trainer.iterations=1") == 0
    folder = the_run(tmp_path)
    if fault is not None:
        fault(folder)
    before = sorted(path.name for path in folder.iterdir())
    capsys.readouterr()
    assert train(f"resume={folder}", *more) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_damaged_checkpoint_offers_the_one_before(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*QUIET, "trainer.iterations=3", "checkpoint.every=1") == 0
    folder = the_run(tmp_path)
    older, newest = checkpoint.saved(folder)
    data = bytearray(newest.read_bytes())
    data[-3] ^= 4
    newest.write_bytes(data)
    capsys.readouterr()
    assert train(f"resume={folder}", "trainer.iterations=4") == 2
    told = capsys.readouterr().err
    assert "is damaged: its content does not have the digest" in told
    assert f"the one before it is whole: give {older}" in told
    assert train(f"resume={older}", "trainer.iterations=4") == 0
    assert checkpoint.load(folder).iteration == 4


def test_two_runs_cannot_write_one_folder(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*QUIET, "trainer.iterations=1") == 0
    folder = the_run(tmp_path)
    capsys.readouterr()
    before = (folder / "outcome.json").read_text()
    with FileLock(folder / LOCK):
        (folder / ".owner.json").write_text('{"pid": 17, "host": "box", "since": "noon"}')
        assert train(f"resume={folder}", "trainer.iterations=2") == 2
    told = capsys.readouterr().err
    assert "is being written by process 17 on box, since noon; wait until it ends" in told
    assert (folder / "outcome.json").read_text() == before
    with owned(folder), pytest.raises(tl.InputError, match="is being written by process"):
        with owned(folder):
            pass


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    """SIGKILL at random moments; every run goes on from what the one before had saved."""
    draw = np.random.default_rng(0)
    command = [sys.executable, "-m", "torchloc", "train"]
    settings = [*QUIET, "trainer.iterations=400", "checkpoint.every=1", "logging.heat_maps_every=0"]
    done = subprocess.run([*command, *settings], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    whole = the_run(tmp_path).rename(tmp_path / "whole")
    arguments, folder = settings, None
    for _ in range(20):
        with subprocess.Popen(
            [*command, *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            before = newest(folder)
            while process.poll() is None and newest(folder) == before:
                time.sleep(0.01)
                folder = folder or next((tmp_path / "runs" / "t").glob("*"), None)
            assert process.poll() is None, "the run ended before it was killed"
            time.sleep(float(draw.uniform(0.0, 0.15)))
            process.kill()
        arguments = [f"resume={folder}"]
    assert folder is not None and not (folder / "outcome.json").exists()
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, theirs = read_run(folder), read_run(whole)
    assert set(ours) == set(theirs)
    for tag, (steps, values) in theirs.items():
        assert ours[tag][0].tolist() == steps.tolist(), tag
        if not tag.startswith("seconds/"):
            assert ours[tag][1].tolist() == values.tolist(), tag
    policies = [checkpoint.load(one).policy.state_dict() for one in (folder, whole)]
    assert all(torch.equal(policies[0][name], value) for name, value in policies[1].items())
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def newest(folder: Path | None) -> Path | None:
    """The newest checkpoint of a run folder."""
    found = [] if folder is None else checkpoint.saved(folder)
    return found[-1] if found else None


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_with_the_last_checkpoint_whole(
    tmp_path: Path,
) -> None:
    """No file may pass 20 kB: tables of 2⁸ observations an agent do not fit, those of 2² do."""
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from torchloc import cli; sys.argv = ['torchloc-train', *sys.argv[1:]]; cli.train()"
    )
    command = [
        sys.executable,
        "-c",
        limited,
        "policy=tabular",
        "logging.tensorboard=false",
        "name=t",
    ]
    command += ["trainer.iterations=2", "logging.progress=false", "checkpoint.every=1"]
    small = subprocess.run([*command, "env.n=3"], cwd=tmp_path, capture_output=True, check=False)
    assert small.returncode == 0, small.stderr
    folder = the_run(tmp_path)
    whole = checkpoint.load(folder)
    large = [*command, "env.n=8", "scopes.hops=7", f"hydra.run.dir={folder}"]
    done = subprocess.run(large, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be written: " in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert checkpoint.load(folder).iteration == whole.iteration
    assert not list(folder.glob(".*.tmp"))


def test_an_exception_of_a_users_callback_loses_nothing(tmp_path: Path) -> None:
    class Mistaken(tl.Callback):
        def on_iteration_end(self, trainer: tl.Trainer, state: tl.TrainState) -> None:
            if state.iteration == STOP:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run("tabular", Checkpoint(tmp_path), Mistaken())
    rest = run("tabular", resume=checkpoint.load(tmp_path))
    whole = run("tabular")
    assert logged(rest.metrics[-1]) == logged(whole.metrics[-1])


@pytest.mark.slow
def test_another_number_of_threads_changes_only_rounding(tmp_path: Path) -> None:
    """To 1e-9: sums of another order."""
    whole = run("mlp")
    with pytest.raises(KeyboardInterrupt):
        run("mlp", StopAfter(STOP, tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rest = run("mlp", resume=checkpoint.load(tmp_path))
    finally:
        torch.set_num_threads(threads)
    for tag, value in logged(whole.metrics[-1]).items():
        assert rest.metrics[-1][tag] == pytest.approx(value, rel=1e-9, abs=1e-9), tag
