"""Runs found under any nesting and read whole; damaged and unfinished ones with their reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study.synthetic import config, done, rewards, write_run

from torchloc.errors import InputError
from torchloc.study import find_runs, load_run, read_run, read_runs
from torchloc.study.runs import clock

REWARDS = rewards([0.1, 0.2, 0.3])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: a sweep of two jobs, one run, a job that failed before its first iteration."""
    home = tmp_path_factory.mktemp("runs")
    for job in (2, 10):
        write_run(home / "sweep" / "day" / f"{job}_x", config(seed=job), REWARDS, outcome=done())
    (home / "sweep" / "day" / "multirun.yaml").write_text("hydra: {}\n")
    write_run(home / "single", config(), REWARDS, outcome=done())
    failed = {"status": "failed", "iteration": 0, "message": "env.n\nis 1", "seconds": 0.1}
    write_run(home / "sweep" / "day" / "3_x", config(seed=3), None, outcome=failed)
    return home


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """The single run, to be damaged."""
    return Path(shutil.copytree(home / "single", tmp_path / "moved"))


def test_runs_are_found_under_any_nesting_and_once(home: Path, tmp_path: Path) -> None:
    day = home / "sweep" / "day"
    jobs = [day / "2_x", day / "3_x", day / "10_x"]
    assert find_runs([home]) == [home / "single", *jobs]
    assert find_runs([day]) == jobs
    assert find_runs([jobs[0]]) == jobs[:1]
    assert find_runs([jobs[0], home, day, home / "sweep" / ".." / "single"])[0] == jobs[0]
    assert len(find_runs([jobs[0], home, day, home / "sweep" / ".." / "single"])) == 4
    # Links are followed, circles are not.
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "elsewhere").symlink_to(home)
    assert len(find_runs([tmp_path])) == 4


def test_what_holds_no_run_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, message in (
        ("empty", "empty holds no run: no folder in it has"),
        ("file", "file is a file; give the folder"),
        ("nowhere", "nowhere does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            find_runs([tmp_path / name])


def test_a_run_is_read_with_its_settings_choices_outcome_and_clock(home: Path) -> None:
    runs = read_runs([home])
    assert [run.name for run in runs] == [
        "single", *(os.path.join("sweep", "day", job) for job in ("2_x", "3_x", "10_x"))
    ]  # fmt: skip
    first = runs[0]
    assert (first.status, first.trouble, first.seconds, first.planned) == ("done", "", 1.5, 3)
    assert first.iterations == 3 and first.started > 0 and first.config == config()
    assert first.choices["schedule"] == "geometric" and first.choices["locality"] == "null"
    assert "hydra/launcher" not in first.choices
    timed = clock(first.series)
    assert timed is not None
    np.testing.assert_array_equal(timed, [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    failed = runs[2]
    assert (failed.status, failed.trouble, failed.iterations) == ("failed", "env.n is 1", 0)


def test_the_name_of_one_run_is_that_of_its_folder(home: Path) -> None:
    assert [run.name for run in read_runs([home / "single"])] == ["single"]


def test_a_moved_run_and_one_without_an_outcome_are_whole(copy: Path) -> None:
    assert load_run(copy).trouble == ""
    (copy / "outcome.json").unlink()
    run = load_run(copy)
    assert run.status == "unfinished" and run.trouble == "" and "no outcome.json" in run.message


@pytest.mark.parametrize(
    ("file", "content", "trouble"),
    [
        (".hydra/config.yaml", b"env: [1", "config.yaml is damaged"),
        (".hydra/config.yaml", b"\xff\xfe\x00", "config.yaml is damaged"),
        (".hydra/config.yaml", b"a: &a [1]\nb: *a", "it holds aliases"),
        (".hydra/config.yaml", b"!!python/object/apply:os.getcwd []", "config.yaml is damaged"),
        (".hydra/config.yaml", b"a: " + b"[" * 10**5, "it is nested more than 64 deep"),
        (".hydra/config.yaml", b"- 1", "it holds no mapping"),
        (".hydra/config.yaml", b"env: 3", "describes no env"),
        (".hydra/config.yaml", b"env: {n: 3}", "3 of ? iterations"),
        (".hydra/config.yaml", None, "its settings are unknown"),
        (".hydra/hydra.yaml", b"{", ""),
        (".hydra/hydra.yaml", b"hydra: 1", ""),
        (".hydra/hydra.yaml", None, ""),
        ("outcome.json", b"{", ""),
        ("outcome.json", b'{"status": "great"}', ""),
        ("outcome.json", b"[" * 10**5, ""),
        ("outcome.json", b"[]", ""),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_damaged_file_is_told_and_stops_nothing(
    copy: Path, file: str, content: bytes | None, trouble: str
) -> None:
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(content)
    run = load_run(copy)
    assert trouble in run.trouble and bool(trouble) == bool(run.trouble)
    if file == "outcome.json":
        assert run.status == "unfinished" and "outcome.json is damaged" in run.message


@pytest.mark.parametrize(("damage", "reached"), [("cut", 1), ("flipped", 1), ("no records", 0)])
def test_a_damaged_event_file_gives_what_stands_before_it(
    copy: Path, damage: str, reached: int
) -> None:
    (events,) = copy.glob("events.*")
    content = bytearray(events.read_bytes())
    middle = len(content) // 2
    if damage == "cut":
        content = content[:middle]
    elif damage == "flipped":
        content[middle] ^= 0xFF
    else:
        content = bytearray(b"this is no event file, and no length fits it")
    events.write_bytes(content)
    run = load_run(copy)
    assert f"{reached} of 3 iterations are logged" in run.trouble
    assert f"{events.name} is damaged or cut off after" in run.trouble


def test_a_file_cut_within_its_last_iteration_is_not_whole(copy: Path) -> None:
    (events,) = copy.glob("events.*")
    whole = events.read_bytes()
    events.write_bytes(whole[:-20])
    run = load_run(copy)
    assert run.iterations == 3 and run.trouble.startswith("2 of 3 iterations are logged; ")
    # What follows the last scalar may be lost.
    events.write_bytes(whole + b"half a heat map")
    assert load_run(copy).trouble == ""


def test_a_run_that_logged_nothing_says_so(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "quiet", config(), None, outcome=done()))
    assert run.trouble.startswith("nothing is logged (logging.tensorboard=false?)")


def test_of_a_step_logged_twice_the_later_value_stands(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", config(iterations=4), {"reward/average": [1, 2, 9]})
    (first,) = folder.glob("events.*")
    # The name begins with the second in which a file was made.
    first.rename(folder / "events.out.tfevents.1000000000.host.1.0")
    write_run(folder, None, {"reward/average": [3, 4]}, first=3)
    steps, values = read_run(folder)["reward/average"]
    assert steps.tolist() == [1, 2, 3, 4] and values.tolist() == [1, 2, 3, 4]


def test_seconds_need_every_iteration() -> None:
    steps = np.arange(1.0, 3.0)
    assert clock({"reward/average": (steps, steps)}) is None
    assert clock({"seconds/a": (steps, steps), "seconds/b": (steps[:1], steps[:1])}) is None


def test_an_interrupted_run_tells_how_far_it_came(copy: Path) -> None:
    outcome: dict[str, Any] = {"status": "interrupted", "message": None, "seconds": float("nan")}
    (copy / "outcome.json").write_text(json.dumps(outcome))
    changed = config(iterations=8)
    write_run(copy, changed, None)
    run = load_run(copy)
    assert run.status == "interrupted" and run.trouble == "3 of 8 iterations are logged"
    assert run.seconds is None


def test_reading_runs_imports_no_torch(home: Path) -> None:
    code = (
        "import sys\nfrom torchloc import study\n"
        "heavy = {'torch', 'tensorboard', 'matplotlib', 'jinja2', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        f"study.read_runs([{str(home)!r}])\nprint('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["[]", "False"]
