"""The wheel: built, installed in another environment, and used from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import torchloc

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # The checkout must not be found by way of the environment of this test.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = run(*command, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another virtual environment with the wheel; it borrows the dependencies of this one."""
    folder = tmp_path_factory.mktemp("venv")
    assert run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder).returncode == 0
    python = folder / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "install"]
    done = run(*pip, "--no-deps", "--no-index", "--quiet", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    # A path file is not read recursively, so the editable install of this environment stays out.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    borrowed = folder / "lib" / version / "site-packages" / "borrowed.pth"
    borrowed.write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_wheel_holds_the_package_and_every_configuration_file(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = [path for path in (ROOT / "conf").rglob("*.yaml")]
    assert {
        f"torchloc/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in files
    } <= names
    sources = [path for path in (ROOT / "torchloc").rglob("*.py")]
    assert {path.relative_to(ROOT).as_posix() for path in sources} <= names
    assert {"torchloc/py.typed", "torchloc/study/report.html.j2"} <= names
    assert {name.split("/")[0] for name in names} == {
        "torchloc",
        f"torchloc-{torchloc.__version__}.dist-info",
    }


def test_the_sdist_holds_what_its_tests_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "LICENSE", "Makefile", "constraints.txt", "conf/config.yaml"}
    assert wanted | {"tests/test_packaging.py", "torchloc/cli/__init__.py"} <= names


def test_the_wheel_runs_from_any_folder(environment: Path, tmp_path: Path) -> None:
    python, train = environment / "bin" / "python", environment / "bin" / "torchloc-train"
    where = run(python, "-c", "import torchloc; print(torchloc.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(environment)
    shown = run(train, "--cfg", "job", "env.n=5", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert OmegaConf.create(shown.stdout).env.n == 5
    refused = run(train, "env.n=0", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_wheel_takes_a_folder_of_the_users_own(environment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "env"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text("defaults: [/schema/env/sysadmin@_here_]\nn: 3\n")
    train = environment / "bin" / "torchloc-train"
    shown = run(train, "--config-dir", "mine", "env=small", "--cfg", "job", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert OmegaConf.create(shown.stdout).env.n == 3


def test_the_wheel_trains(environment: Path, tmp_path: Path) -> None:
    train = environment / "bin" / "torchloc-train"
    done = run(train, "env.n=3", "trainer.iterations=2", "logging.progress=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs" / "default").iterdir())) == 1


def test_every_dependency_is_pinned_and_no_pin_names_a_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(item for extra in extras for item in extra)]
    names = {_name(item) for item in wanted} - {"torchloc"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert names <= {_name(pin) for pin in pins}
    assert all(pin.count("==") == 1 and not set(pin) & set("/@:+ ") for pin in pins)
    assert "torch==2.13.0" in pins


def _name(requirement: str) -> str:
    head = requirement.partition("[")[0]
    for mark in "=<>!~; ":
        head = head.partition(mark)[0]
    return head.lower().replace("_", "-")
