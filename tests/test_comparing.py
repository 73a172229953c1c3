"""`torchloc-compare`: what it refuses, what it writes, and its page in a browser."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from study.synthetic import config, done, rewards, write_run

from torchloc.cli import comparing
from torchloc.errors import InputError

HOSTILE = "<script>document.title='stolen'</script>\"><img onerror=alert(1)>"
FOLDER = "<script>x<img onerror=alert(1)>"
NAMES = ["comparison.csv", "comparison.html", "comparison.json", "figures"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two schedules, two seeds; a job that failed and one still running. Names and settings are hostile."""
    home = tmp_path_factory.mktemp("runs")
    for schedule, end in (("linear", 0.3), ("cosine", 0.4)):
        for seed in range(2):
            settings = config(schedule=schedule, seed=seed, changes={"policy.kind": HOSTILE})
            series = rewards([0.1, 0.2, end + seed / 20], agents=4, optimum=0.5)
            write_run(home / f"{schedule}{seed}{FOLDER}", settings, series, outcome=done())
    told = {"status": "failed", "iteration": 0, "message": HOSTILE, "seconds": 0.0}
    write_run(home / "bad", config(seed=5), None, outcome=told)
    write_run(home / "going", config(seed=6), rewards([0.1]))
    return home


@pytest.fixture(scope="module")
def out(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a comparison was written."""
    folder = tmp_path_factory.mktemp("out") / "deep" / "comparison"
    assert comparing.run([str(runs), "--out", str(folder), "--no-baselines", "--title", HOSTILE])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_page_the_tables_and_the_pictures_are_written(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == NAMES
    assert [path.name for path in out.parent.iterdir()] == ["comparison"]
    assert sorted(path.name for path in (out / "figures").iterdir()) == [
        f"01_{kind}.png" for kind in ("locality_optimality", "reward", "rho", "schedule")
    ]
    rows = list(csv.DictReader(io.StringIO((out / "comparison.csv").read_text())))
    assert len(rows) == 6 and [row["status"] for row in rows].count("done") == 4
    assert {row["left_out_because"] for row in rows[4:]} == {
        HOSTILE,
        "1 of 3 iterations are logged; it left no outcome.json: broken off, or still running",
    }
    found = json.loads((out / "comparison.json").read_text())
    first, second = found["problems"][0]["groups"]
    assert (first["label"], second["label"]) == ("cosine", "linear")
    assert first["final"]["value"] == pytest.approx(0.425) and first["final"]["count"] == 2
    assert found["title"] == HOSTILE and "<script>" not in (out / "comparison.html").read_text()


def test_what_is_compared_again_is_replaced_and_what_is_not_ours_stays(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "comparison"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "09_reward.png").write_bytes(b"old")
    for name in ("mine.txt", "figures/Mine.png", "comparison.html"):
        (out / name).write_text("mine")
    (one,) = [path for path in runs.iterdir() if path.name.startswith("linear0")]
    arguments = [str(one), "--out", str(out), "--metric", "rho/coupled"]
    assert comparing.run(arguments)
    assert (out / "mine.txt").read_text() == (out / "figures/Mine.png").read_text() == "mine"
    assert not (out / "figures" / "09_reward.png").exists()
    assert "rho/coupled" in (out / "comparison.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["comparison"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == str(out / "comparison.html")


def test_the_terminal_shows_groups_and_what_is_left_out(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchloc.study.report.draw", lambda *_: [])
    assert comparing.run([str(runs), "--out", str(tmp_path / "out"), "--no-baselines"])
    shown = capsys.readouterr().out
    cosine = next(line for line in shown.splitlines() if line.startswith(" cosine"))
    assert cosine.split()[1:5] == ["2", "0.425", "[0.4,", "0.45]"]
    assert "joint optimum" in shown and f"left out: bad (failed): {HOSTILE}" in shown


def test_nothing_whole_is_a_page_and_no_success(runs: Path, tmp_path: Path) -> None:
    assert not comparing.run([str(runs / "bad"), "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == NAMES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["empty"], "empty holds no run"),
        (["RUNS", "--out", "file"], "--out 'file': .*file is a file; give the name of a folder"),
        (["RUNS", "--out", "file/in"], "file is a file"),
        (["RUNS", "--out", ""], "it is empty"),
        (["RUNS", "--out", "taken"], "comparison.csv in it is a folder"),
        (["RUNS", "--out", "full"], "figures in it is a file"),
        (["RUNS", "--metric", "reward/per_agnt"], "did you mean reward/per_agent"),
        (["RUNS", "--metric", "zzz"], "no run logged it; the runs logged gap/…, reward/…, rho/…"),
        (["RUNS", "--within", "0"], r"--within is '0'; it must be a number in \(0, 100\)"),
        (["RUNS", "--within", "much"], "--within is 'much'"),
        (["RUNS", "--metrics", "x"], "there is no argument --metrics.*did you mean --metric"),
        ([], "required: RUNS"),
    ],
    ids=" ".join,
)
def test_bad_input_is_refused_and_nothing_is_written(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken" / "comparison.csv").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "figures").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        comparing.run([str(runs) if word == "RUNS" else word for word in arguments])
    assert sorted(tmp_path.rglob("*")) == before


def test_what_goes_wrong_late_leaves_the_old_comparison(
    runs: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Path(shutil.copytree(out, tmp_path / "kept"))
    before = contents(kept)
    for name, error in (
        ("torchloc.study.report.page", KeyboardInterrupt),
        ("pathlib.Path.write_bytes", KeyboardInterrupt),
        ("pathlib.Path.write_bytes", OSError(28, "No space left on device")),
    ):

        def fail(*_: object, error: object = error, **__: object) -> None:
            raise error  # type: ignore[misc]

        with monkeypatch.context() as patch:
            patch.setattr("torchloc.study.report.draw", lambda *_: [])
            patch.setattr(name, fail)
            with pytest.raises((KeyboardInterrupt, InputError)) as stopped:
                comparing.run([str(runs), "--out", str(kept), "--no-baselines"])
        if isinstance(error, OSError):
            assert str(stopped.value).endswith("kept cannot be written: No space left on device")
        assert contents(kept) == before
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]


# In a browser


def browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


def opened(page: Path, scratch: Path) -> tuple[str, np.ndarray, str]:
    """A page in a headless browser: its DOM, a screenshot (H, W, 4), and what was complained of."""
    command = browser()
    assert command is not None
    common = [command, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    common += [f"--user-data-dir={scratch / 'profile'}", "--enable-logging=stderr"]
    shot = scratch / "page.png"
    flags = [f"--screenshot={shot}", "--window-size=1300,3000"]
    taken = subprocess.run(
        [*common, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    dumped = subprocess.run(
        [*common, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return dumped.stdout, imread(shot), taken.stderr + dumped.stderr


def check_page(out: Path, scratch: Path) -> str:
    """The page parsed, loaded nothing, complained of nothing and shows something; its DOM."""
    dom, picture, complaints = opened(out / "comparison.html", scratch)
    assert dom.rstrip().endswith("</html>") and "Definitions" in dom
    # What a page says goes to the console, refusals by its policy too.
    assert "CONSOLE" not in complaints, complaints
    sources = re.findall(r'\bsrc="([^"]{0,22})', dom)
    assert sources and set(sources) == {"data:image/png;base64,"}
    # A blank picture has one colour; headings, tables and curves have many, and ink all the way down.
    ink = (np.ptp(picture[..., :3], axis=-1) > 0.2) | (picture[..., :3].max(axis=-1) < 0.5)
    assert all(part.mean() > 0.002 for part in np.array_split(ink[:2600], 4))
    colours = {tuple(colour) for colour in (picture[::3, ::3, :3] * 8).astype(int).reshape(-1, 3)}
    assert len(colours) > 30
    return dom


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="no chromium or chrome is installed")
def test_hostile_text_stays_text_in_a_browser(out: Path, tmp_path: Path) -> None:
    dom = check_page(out, tmp_path)
    assert "<script" not in dom and not re.search(r"<[^>]*\sonerror", dom)
    # Had the script run, the title would be another.
    assert re.search(r"<title>&lt;script&gt;document.title", dom)
    assert dom.count("&lt;script&gt;x&lt;img onerror=alert(1)&gt;") >= 4


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="no chromium or chrome is installed")
def test_real_runs_are_trained_compared_and_opened(tmp_path: Path) -> None:
    """Two schedules by two seeds, and a job whose model cannot be built."""

    def console(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torchloc", "train", "-m", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    common = ["policy=mlp", "trainer.iterations=3", "logging.progress=false", "env.table=ippc"]
    trained = console(*common, "env.n=3", "schedule=geometric,constant", "seed=0,1")
    assert trained.returncode == 0, trained.stderr
    assert console(*common, "env.n=4", "env.topology=grid", "env.rows=3", "seed=0").returncode != 0

    out = tmp_path / "comparison"
    assert comparing.run([str(tmp_path / "runs"), "--out", str(out)])
    found = json.loads((out / "comparison.json").read_text())
    (problem,) = found["problems"]
    assert {group["label"]: group["final"]["count"] for group in problem["groups"]} == {
        "geometric": 2,
        "constant": 2,
    }
    assert [one["iterations"] for one in found["left_out"]] == [0]
    names = {one["name"]: one["value"] for one in problem["references"]}
    assert len(names) == len(problem["references"])
    assert names["uniform"] < min(group["final"]["value"] for group in problem["groups"])
    assert names["joint optimum"] >= max(group["final"]["value"] for group in problem["groups"])
    dom = check_page(out, tmp_path)
    assert "geometric" in dom and "joint optimum" in dom and "Runs left out" in dom
