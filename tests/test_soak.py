"""Long runs and large sweeps: memory, files and pace stay flat, and nothing is left behind."""

from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from torchloc.cli.locking import LOCK

RUN = """
import json, os, resource, sys, time
from pathlib import Path
import torchloc as tl
from torchloc import environments, trainer as room
from torchloc.callbacks import Checkpoint, TensorBoard

room.REFERENCE_PAIRS = 0
folder, iterations, engine = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
mdp = environments.sysadmin(2, topology="line", table="ippc")

def resident():
    # Of what is no longer used only the peak can be had where there is no /proc.
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

class Watch(tl.Callback):
    def on_iteration_end(self, trainer, state):
        size = sum(path.stat().st_size for path in folder.glob("events.*"))
        kept.append((resident(), size, time.process_time()))

kept = []
policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
callbacks = [TensorBoard(folder, heat_maps_every=0), Checkpoint(folder, every=50), Watch()]
evaluation = tl.Evaluation(engine=engine, steps=16, burn_in=0, replicas=2, kappa=1)
tl.Trainer(mdp, policy, schedule=lambda p: 0.3, iterations=iterations, callbacks=callbacks,
           improvement=tl.Improvement(order="chromatic"), evaluation=evaluation).run()
print(json.dumps(kept))
"""


def long_run(folder: Path, iterations: int, engine: str) -> list[tuple[int, int, float]]:
    """Resident bytes, bytes of events and processor seconds after every iteration, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), str(iterations), engine],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_flat(kept: list[tuple[int, int, float]], folder: Path) -> None:
    """Memory within 5 % after a tenth, as many bytes and processor seconds an iteration late as early."""
    memory, events, seconds = zip(*kept, strict=True)
    # The last iteration draws heat maps, with a library that is loaded for it.
    memory, events = memory[len(memory) // 10 : -1], events[:-1]
    assert max(memory) <= 1.05 * memory[0] and min(memory) >= 0.95 * memory[0]
    half = len(events) // 2
    early, late = events[half - 1] - events[0], events[-1] - events[-half]
    assert late <= 1.05 * early and events[-1] <= 4000 * len(events)
    paces = [after - before for before, after in itertools.pairwise(seconds[:-1])]
    third = len(paces) // 3
    # Caches and clocks are shared with whatever else runs: the quick twentieth tells what the work itself takes.
    early, late = (statistics.quantiles(part, n=20)[0] for part in (paces[:third], paces[-third:]))
    # Some seconds are too short to tell growth from what else the machine does.
    assert late <= 1.3 * early or len(kept) < 1000
    assert len(list(folder.glob("checkpoint_*"))) == 2
    assert len(list(folder.glob("events.*"))) == 1
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("engine", ["joint", "local"])
def test_a_run_of_many_iterations_stays_flat(engine: str, tmp_path: Path) -> None:
    check_flat(long_run(tmp_path, 200, engine), tmp_path)


@pytest.mark.benchmark
@pytest.mark.parametrize("engine", ["joint", "local"])
def test_ten_thousand_iterations_stay_flat(engine: str, tmp_path: Path) -> None:
    check_flat(long_run(tmp_path, 10_000, engine), tmp_path)


def gone(group: int) -> bool:
    """Whether all processes of a group end within ten seconds: pools of workers see that nobody is left."""
    until = time.monotonic() + 10.0
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def sweep(folder: Path, jobs: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A sweep over seeds in a session of its own; whoever is left of it is ended, and the test fails."""
    temporary = folder / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "torchloc", "train", "-m", f"seed=range({jobs})", "name=t"]
    command += ["env=sleepy", "policy=tabular", "trainer.iterations=1", "logging.progress=false"]
    command += ["logging.tensorboard=false", *arguments]
    options: dict[str, Any] = {"env": {**os.environ, "TMPDIR": str(temporary)}, "text": True}
    output = folder / "output.txt"
    with output.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
        code = process.wait()
    if left := not gone(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
    assert not left, "the sweep left processes behind"
    assert list(temporary.iterdir()) == [], "the sweep left temporary files behind"
    return subprocess.CompletedProcess(command, code, output.read_text(encoding="utf-8"))


def check_sweep(folder: Path, launcher: str, jobs: int) -> None:
    """All jobs are done, and their folders hold no locks and no temporary files."""
    parallel = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    done = sweep(folder, jobs, f"launcher={launcher}", *parallel)
    assert done.returncode == 0, done.stdout[-3000:]
    outcomes = list(folder.glob("runs/**/outcome.json"))
    assert len(outcomes) == jobs
    assert all(json.loads(path.read_text())["status"] == "done" for path in outcomes)
    for path in outcomes:
        run = path.parent
        assert not list(run.glob(".*.tmp")) and not (run / ".owner.json").exists()
        with FileLock(run / LOCK, timeout=0):
            pass


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(("launcher", "jobs"), [("basic", 12), ("joblib", 24)])
def test_a_sweep_leaves_nothing_behind(launcher: str, jobs: int, tmp_path: Path) -> None:
    check_sweep(tmp_path, launcher, jobs)


@pytest.mark.benchmark
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_of_two_hundred_jobs_leaves_nothing_behind(launcher: str, tmp_path: Path) -> None:
    check_sweep(tmp_path, launcher, 200)
