"""The templates of a model of one's own: in Python, and as YAML and GraphML, through the real commands."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import torchloc as tl
from torchloc import cli

TEMPLATES = Path(__file__).parent / "templates"
# Two short iterations of small tables.
SHORT = (
    "policy=tabular",
    "trainer.iterations=2",
    "logging.progress=false",
    "logging.tensorboard=false",
    "hydra.run.dir=run",
)
Command = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: the graph, the Python file, and YAML files below env."""
    (tmp_path / "env").mkdir()
    shutil.copy(TEMPLATES / "own_model.yaml", tmp_path / "env")
    for name in ("own_graph.graphml", "own_model.py"):
        shutil.copy(TEMPLATES / name, tmp_path)
    (tmp_path / "env" / "own_python.yaml").write_text("_target_: own_model.own_model\nn: 4\n")
    monkeypatch.chdir(tmp_path)
    # What `python -m torchloc` finds by itself.
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    return tmp_path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    def run(name: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [f"torchloc-{name}", *arguments])
        with pytest.raises(SystemExit) as stopped:
            getattr(cli, name)()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code

    return run


def certified(command: Command, folder: Path, *arguments: str) -> dict:
    code = command("certify", *arguments, "--json", str(folder / "report.json"))
    report = json.loads((folder / "report.json").read_text())
    assert code == (0 if report["certified"] else cli.NOT_CERTIFIED)
    return report


@pytest.mark.parametrize(
    ("choice", "n"), [("own_model", 5), pytest.param("own_python", 4, marks=pytest.mark.slow)]
)
def test_a_template_trains_and_certifies(
    folder: Path, command: Command, choice: str, n: int, capsys: pytest.CaptureFixture
) -> None:
    here = ("--config-dir", str(folder), f"env={choice}")
    assert command("train", *here, *SHORT) == 0, capsys.readouterr().err
    report = certified(command, folder, *here, "--policy", "run")
    assert report["model"] == {"coordinates": n, "agents": n}


def test_the_graph_template_is_what_it_says(folder: Path) -> None:
    from hydra.utils import instantiate

    from torchloc import config

    mdp = instantiate(config.compose(["env=own_model"], config_dir=folder).env)
    assert mdp.coordinate_names == ("Ann", "Ben", "Cleo", "Dan", "Eve")
    assert mdp.action_sizes.tolist() == [2, 2, 2, 1, 2]
    payoffs = {
        int(i): term.table[row] for term in mdp.rewards for row, i in enumerate(term.states[:, 0])
    }
    assert payoffs[2].tolist() == [[0.0, -0.4], [2.0, 1.6]]
    assert payoffs[3].tolist() == [[0.0], [1.0]]
    # Dan, the sceptic, hears Cleo (strength 2) and Eve: both together convince him half of the time.
    influence = tl.state_sensitivity(mdp)[3].toarray().ravel().tolist()
    assert influence == pytest.approx([0.0, 0.0, 0.5, 0.5, 0.5], abs=1e-15)


def test_the_python_template_is_short_and_saves_a_model(folder: Path, command: Command) -> None:
    text = (folder / "own_model.py").read_text()
    assert len(text.splitlines()) <= 30
    exec(compile(text, "own_model.py", "exec"), {"__name__": "__main__"})
    mdp = tl.FactoredMDP.load(folder / "own_model.npz")
    # Told with .9: s = 0, one neighbour of two knows: 1 − .1 · .7.
    assert mdp.kernels[0].table[0, 0, 1, 0, 1, 1] == pytest.approx(1 - 0.1 * 0.7, abs=1e-15)
    assert certified(command, folder, "--model", "own_model.npz")["rungs"]


def test_a_mistake_in_a_template_is_told(
    folder: Path, command: Command, capsys: pytest.CaptureFixture
) -> None:
    path = folder / "env" / "own_model.yaml"
    for right, wrong, words in (
        ("[0.7, 0.3]", "[0.7, 0.2]", "laws.person: row (0, 0, 1) of the table sums to 0.9"),
        ("own_graph", "no_graph", "there is no file no_graph.graphml"),
        ("graph_file:", "graph_fil:", "graph_fil is no setting"),
        ("graph_file: own_graph.graphml", "", "env.graph_file is required"),
        (
            "  sceptic: [[0], [1]]",
            "",
            "rewards is for ['person'], but laws is for ['person', 'sceptic']",
        ),
        ("person: [[0, -0.2]", "person: [[0, many]", "rewards.person must be a rectangular array"),
    ):
        path.write_text((TEMPLATES / "own_model.yaml").read_text().replace(right, wrong))
        assert command("certify", "--config-dir", str(folder), "env=own_model") == cli.BAD_INPUT
        assert words in capsys.readouterr().err
