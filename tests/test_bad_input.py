"""What a new user gets wrong: one exact line, exit code 2, no traceback, nothing written.

The table is `bad_input.txt`; what it says of a command holds for the console script, which is run for a few.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import desk
import pytest

from torchloc import cli, config

HERE = Path(__file__).parent
COMMANDS = ("train", "certify", "compare")


def table() -> list[tuple[str, str, bool]]:
    """(what is typed, what is told, whether it is refused at once) of every row."""
    quick, others = (HERE / "bad_input.txt").read_text(encoding="utf-8").split("\n\n")
    rows = []
    for part in (quick, others):
        lines = [line for line in part.splitlines() if line and line[0] != "#"]
        assert all(line[0] != " " for line in lines[::2])
        assert all(line[:4] == "    " and line[4] != " " for line in lines[1::2])
        told = (line.strip() for line in lines[1::2])
        rows += [(typed, one, part is quick) for typed, one in zip(lines[::2], told, strict=True)]
    return rows


ROWS = table()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of a clumsy user, never changed by a command that is refused."""
    folder = tmp_path_factory.mktemp("desk")
    desk.lay(folder)
    before = desk.listing(folder)
    yield folder
    assert desk.listing(folder) == before


def expected(told: str, folder: Path) -> str:
    """A line of the table with what depends on the machine."""
    places = {"HERE": str(folder), "CLI": str(Path(cli.__file__).parent)}
    places["ENVS"] = ", ".join(config.groups()["env"]) if "ENVS" in told else ""
    for name, place in places.items():
        told = told.replace(name, place)
    return told


def test_the_table_is_long_and_names_a_command_once_with_one_argument_list() -> None:
    typed = [row[0] for row in ROWS]
    assert len(set(typed)) == len(typed) >= 200
    for command in COMMANDS:
        assert sum(command in shlex.split(line) for line in typed) >= 12
    assert sum("did you mean" in told for _, told, _ in ROWS) >= 30


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        pytest.param(typed, told, marks=() if quick else pytest.mark.slow, id=typed)
        for typed, told, quick in ROWS
    ],
)
def test_bad_input_gets_its_line(
    typed: str, told: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    # Hydra's own flag stays as this process has it.
    monkeypatch.setenv("HYDRA_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "1"))
    before = desk.listing(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = desk.command(typed)
    (name,) = (word for word in shlex.split(typed) if word in COMMANDS)
    line = f"torchloc-{name}: {expected(told, folder)}"
    if line.endswith("…"):
        assert shown.err.startswith(line[:-1]) and shown.err.count("\n") == 1
    else:
        assert shown.err == line + "\n"
    assert (shown.code, shown.out) == (cli.BAD_INPUT, "")
    assert desk.listing(folder) == before


@pytest.mark.parametrize(
    ("typed", "told"),
    [("tarin", "did you mean train?"), ("certifyy", "did you mean certify?"), ("", "COMMAND is")],
)
def test_a_command_that_is_none(typed: str, told: str) -> None:
    shown = desk.run(typed.split(), {})
    assert shown.code == cli.BAD_INPUT and told in shown.out and shown.err == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    [
        "train env=sysadmn",
        "train resume=broken",
        "train env.table=ippc env.graph_file=entities.graphml",
        "HYDRA_FULL_ERROR=0 train hydra.run.dir=notes.txt env.n=3",
        "certify --model half-model.npz",
        "certify env.n=3 --policy pipe",
        "compare empty",
        "OMP_NUM_THREADS=abc train env.n=3",
    ],
)
def test_the_console_command_says_the_same(typed: str, folder: Path) -> None:
    told = next(row[1] for row in ROWS if row[0] == typed)
    words = shlex.split(typed)
    given = {
        name: value
        for name, _, value in (word.partition("=") for word in words)
        if value and name.replace("_", "").isupper()
    }
    arguments = [word for word in words if word.partition("=")[0] not in given]
    before = desk.listing(folder)
    shown = console(arguments, folder, **given)
    line = f"torchloc-{arguments[0]}: {expected(told, folder)}\n"
    assert (shown.returncode, shown.stdout, shown.stderr) == (cli.BAD_INPUT, "", line)
    assert desk.listing(folder) == before


def console(
    arguments: list[str], cwd: Path, *, unset: tuple[str, ...] = (), **given: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torchloc", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in unset} | given
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.slow
def test_without_a_home_and_on_a_terminal_without_greek_a_command_still_works(
    tmp_path: Path,
) -> None:
    shown = console(
        ["certify", "env.n=3", "--no-reasons"],
        tmp_path,
        unset=("HOME", "PYTHONUTF8"),
        PYTHONIOENCODING="ascii",
        COLUMNS="wide",
    )
    assert (shown.returncode, shown.stderr) == (cli.DONE, "")
    assert "certified by coupled" in shown.stdout and not list(tmp_path.iterdir())
