"""A sweep as a whole: every job records how it ended, whatever process it ran in, and the command reads that back.

A job that fails takes no other down: its error goes into its own `outcome.json`, not through the launcher, which
would drop all errors but the first. Nothing here depends on where a launcher runs its jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from torchloc.cli.locking import LOCK, owned
from torchloc.cli.outcome import THREADS
from torchloc.errors import FileError, InputError, SolveError

OUTCOME = "outcome.json"
DONE, FAILED, INTERRUPTED = "done", "failed", "interrupted"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
GRACE = 5.0
"""Seconds."""

_sweeps: list[DictConfig] = []
_before: set[Path] = set()
"""Folders that lay above that of the run before there was one."""


class Folders(Callback):
    """Notes the configuration of a sweep where it starts: it alone knows where the jobs will lie."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(os.path.abspath(str(config.hydra.run.dir)))
        _before.clear()
        with contextlib.suppress(OSError):  # the run says so where it makes the folder
            _before.update(path for path in (folder, *folder.parents) if path.exists())

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _sweeps.append(config)


def parallel(launcher: DictConfig) -> bool:
    """Whether a launcher may run several jobs at once."""
    return launcher._target_ != BASIC


def record(folder: Path, run: Callable[[], None], *, swallow: bool) -> None:
    """Runs a job and leaves `outcome.json` in its folder: status, iteration, message, seconds.

    Args:
        folder: Of the run.
        run: The job.
        swallow: Whether an error ends here; a defect shows its traceback first.

    Raises:
        InputError: Another run writes the folder, nothing is left in it; or a file in it is a link.
    """
    linked = next((path for path in sorted(folder.iterdir()) if path.is_symlink()), None)
    if linked is not None:
        raise InputError(
            f"{linked} is a link: a run writes into its own folder and nowhere else; remove it"
        )
    with owned(folder):
        _record(folder, run, swallow)


def _record(folder: Path, run: Callable[[], None], swallow: bool) -> None:
    start = time.perf_counter()
    status, message = DONE, None
    try:
        run()
    except Exception as error:
        expected = isinstance(error, InputError | SolveError | FileError)
        text = " ".join(str(error).split())
        status, message = FAILED, text if expected else f"{type(error).__name__}: {text}"
        if not swallow:
            raise
        if not expected:
            traceback.print_exc()
    except BaseException:
        status = INTERRUPTED
        raise
    finally:
        steps = [
            int(path.stem.rpartition("_")[2]) for path in folder.glob("checkpoint_*.safetensors")
        ]
        outcome = {
            "status": status,
            "iteration": max(steps, default=0),
            "message": message,
            "seconds": time.perf_counter() - start,
        }
        part = folder / f"{OUTCOME}.part"
        try:
            part.write_text(json.dumps(outcome) + "\n", encoding="utf-8")
            part.replace(folder / OUTCOME)
        except OSError as error:
            if status == DONE:
                raise FileError(
                    f"{folder / OUTCOME} cannot be written: {error.strerror}"
                ) from error
            # What ended the run is told; where the disk is full this file would only say it again.


def forget(folder: Path) -> None:
    """Takes back the folder of a run that was refused before it began, and those made for it.

    One that holds more stays, and so does one that lay there before.
    """
    if {path.name for path in folder.iterdir()} - {".hydra", LOCK, OUTCOME}:
        return
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    for name in (LOCK, OUTCOME):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # until one is not empty
        for empty in (folder, *folder.parents):
            if Path(os.path.abspath(empty)) in _before:
                return
            empty.rmdir()


def start(jobs: Sequence[DictConfig]) -> None:
    """Before a sweep: a job has the threads that its configuration names, and no more."""
    _sweeps.clear()
    threads = max((job.threads for job in jobs), default=1)
    for name in THREADS:
        os.environ.setdefault(name, str(threads))


def stop() -> None:
    """Ends the jobs that this process has started and that a signal to it alone has not reached.

    Ctrl-C in a terminal reaches them all by itself: they get `GRACE` seconds to save themselves.
    """
    deadline = time.monotonic() + GRACE
    while (left := _descendants()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGINT)  # a job of submitit passes SIGTERM over


def _descendants() -> list[int]:
    """The jobs' processes below this one; none where the system has no `ps`."""
    command = ["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listing:
            shown = (line.split(maxsplit=3) for line in listing.stdout or ())
            alive = [line for line in shown if not line[2].startswith("Z")]
    except OSError:
        return []
    # The helpers of joblib end with this process, and not before.
    own = [line for line in alive if "resource_tracker" not in line[-1]]
    pairs = [(int(line[0]), int(line[1])) for line in own if int(line[0]) != listing.pid]
    found: list[int] = []
    reached = [os.getpid()]
    while reached := [pid for pid, parent in pairs if parent in reached]:
        found += reached
    return found


def report(name: str, jobs: Sequence[DictConfig]) -> tuple[list[Path], int]:
    """After a sweep: a line for every job that did not end well.

    Args:
        name: The command, for the lines.
        jobs: The configurations of the sweep, as far as they were known in advance.

    Returns:
        The folders of the sweep, and how many jobs failed.
    """
    folders = [folder for config in _sweeps for folder in _folders(config, jobs)]
    known = sorted((job for folder in folders for job in _jobs(folder)), key=lambda job: job[0])
    common = (
        set.intersection(*(set(overrides) for _, overrides, _ in known)) if known[1:] else set()
    )
    failed = [job for job in known if job[2] is not None]
    for number, overrides, reason in failed:
        apart = " ".join(word for word in overrides if word not in common)
        print(f"{name}: job {number} ({apart}): {reason}", file=sys.stderr)
    unborn = max(len(jobs) - len(known), 0) if _sweeps else 0
    if unborn:
        print(f"{name}: {unborn} jobs never began", file=sys.stderr)
    return folders, len(failed) + unborn


def _folders(config: DictConfig, jobs: Sequence[DictConfig]) -> list[Path]:
    """Where a sweep writes: one folder for each name that its jobs have."""
    found = {}
    for name in {job.name: None for job in jobs} or {config.name: None}:
        named = config.copy()
        OmegaConf.set_cache(named, OmegaConf.get_cache(config))  # the time is that of the sweep
        OmegaConf.update(named, "name", name)
        found[Path(str(named.hydra.sweep.dir)).resolve()] = None
    return list(found)


def _jobs(folder: Path) -> Iterator[tuple[int, list[str], str | None]]:
    """Number, overrides and, where it did not end well, the reason of every job that began."""
    for path in folder.glob("*/.hydra/hydra.yaml"):
        hydra: Any = OmegaConf.load(path).hydra
        yield int(hydra.job.num), list(hydra.overrides.task), _reason(path.parent.parent)


def _reason(folder: Path) -> str | None:
    try:
        outcome = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"ended without a word: killed, or still at work; see {folder}"
    return None if outcome["status"] == DONE else outcome["message"] or outcome["status"]
