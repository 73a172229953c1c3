"""Files from elsewhere run no code and move no file: what the source may not call, and hostile folders tried."""

from __future__ import annotations

import ast
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import desk
import numpy as np
import pytest
import torch
from study.synthetic import config as settings
from study.synthetic import done, rewards, write_run

import torchloc as tl
from torchloc import checkpoint, cli
from torchloc.cli import comparing
from torchloc.cli.outcome import printable
from torchloc.cli.references import references
from torchloc.config.schemas import NAME
from torchloc.errors import InputError
from torchloc.study.runs import load_run

PACKAGE = Path(tl.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "pty",
    "ctypes",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
SHELLS = {"system", "popen", "spawnl", "spawnv", "execv", "execl"}
LOADERS = {"load", "load_all", "full_load", "unsafe_load", "FullLoader", "UnsafeLoader", "Loader"}
MALICE = "[/red]\x1b[2J\x1b]0;x\x07<script>$\\frac{$"


def called(tree: ast.AST) -> Iterator[tuple[str, str, ast.Call]]:
    """(what it belongs to, name, call) of every call: `np`, `load` of np.load(…)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield ast.unparse(node.func.value), node.func.attr, node
            elif isinstance(node.func, ast.Name):
                yield "", node.func.id, node


@functools.cache
def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]


def test_no_source_calls_what_could_run_the_content_of_a_file() -> None:
    assert len(trees()) > 100
    for path, tree in trees():
        _check(tree, str(path.relative_to(PACKAGE)))


def _check(tree: ast.Module, path: str) -> None:
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {str(node.module).split(".")[0]} if not node.level else set()
    assert not imported & MODULES, path
    for owner, name, call in called(tree):
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        where = f"{path}, line {call.lineno}: {ast.unparse(call)[:80]}"
        assert owner or name not in BUILTINS, where
        assert not (owner == "os" and name in SHELLS) and given.get("shell") != "True", where
        if owner == "torch" and name == "load":
            assert given.get("weights_only") == "True", where
        if name in ("read_array", "load") and owner.split(".")[0] in ("np", "numpy", "npy"):
            assert given.get("allow_pickle") == "False", where
        if owner == "yaml" and name in ("load", "load_all", "parse", "scan"):
            # An explicit loader, which must be the safe one.
            assert "SafeLoader" in ast.unparse(call) or _is_safe(call, tree), where
        assert not (owner == "yaml" and name in LOADERS - {"load", "load_all"}), where


def _is_safe(call: ast.Call, tree: ast.AST) -> bool:
    """Whether the second argument is a name that was bound to a safe loader."""
    if len(call.args) != 2 or not isinstance(call.args[1], ast.Name):
        return False
    bound = [
        ast.unparse(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == call.args[1].id
    ]
    return bool(bound) and all("SafeLoader" in value for value in bound)


def test_processes_are_started_from_lists_of_words() -> None:
    """`ps` alone, and no shell."""
    starts = [
        (path.name, name)
        for path, tree in trees()
        for owner, name, _ in called(tree)
        if owner == "subprocess"
    ]
    assert starts == [("sweeping.py", "Popen")]


# Names in models ----------------------------------------------------------------------------------


def named(names: list[str]) -> tl.FactoredMDP:
    mdp = tl.environments.sysadmin(3)
    return tl.FactoredMDP(
        mdp.state_sizes, mdp.action_sizes, mdp.kernels, mdp.rewards, coordinate_names=names
    )


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", "a\x00", "\u202egnp", "\ud800"])
def test_names_that_steer_a_terminal_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="holds a character that cannot be printed"):
        named(["x", name, "y"])


@pytest.mark.parametrize("maps", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_names_that_look_like_paths_or_markup_stay_names(
    maps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["../../up", "[/red] [bold]", "<b>$\\frac{$"]
    (tmp_path / "in").mkdir()
    named(names).save(tmp_path / "in" / "model.npz")
    monkeypatch.chdir(tmp_path / "in")
    shown = desk.command("certify --model model.npz --json out.json" + " --heat-maps maps" * maps)
    assert shown.err == "" and shown.code in (cli.DONE, cli.UNCERTIFIED)
    assert all(name in shown.out for name in names)
    told = json.loads((tmp_path / "in" / "out.json").read_text())
    assert set(told["diagnosis"]["component"]) == set(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    left = sorted(path.name for path in (tmp_path / "in").iterdir())
    assert left == ["maps"] * maps + ["model.npz", "out.json"]
    assert all(path.suffix == ".png" for path in (tmp_path / "in").glob("maps/*"))


def test_one_name_twice_among_many_is_found_at_once() -> None:
    n = 10**5
    names = [str(i) for i in range(n)]
    names[-1] = "0"
    kernel = tl.KernelBatch(np.arange(n), [], [], [[1.0, 0.0]])
    with pytest.raises(InputError, match="'0' stands twice"):
        tl.FactoredMDP(np.full(n, 2), [], [kernel], [], coordinate_names=names)


def test_messages_do_not_steer_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = desk.run(["compare", "\x1b[2Jnowhere"], {})
    assert shown.err == "torchloc-compare: \\x1b[2Jnowhere does not exist\n"
    assert printable(MALICE).isprintable()


# Hostile checkpoints and run folders --------------------------------------------------------------


def hostile(folder: Path, configuration: str) -> Path:
    """A checkpoint whose configuration was written by somebody else."""
    mdp = tl.environments.sysadmin(3)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    folder.mkdir(parents=True, exist_ok=True)
    snapshot = checkpoint.Snapshot.take(2, policy, torch.Generator())
    return checkpoint.save(snapshot, folder, configuration=configuration)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("name: ../../up\n", "is not allowed: it must be the name of a folder below runs"),
        ("name: ${oc.env:HOME}\n", "holds ${…}"),
        ("hydra: {run: {dir: /up}}\n", "hydra"),
        ("checkpoint: {_target_: os.system}\n", "_target_"),
        ("locality: {_target_: os.system, command: touch pwned}\n", "is not of torchloc"),
        ("trainer: {iterations: 9, callbacks: [{_target_: os.system}]}\n", "callbacks"),
    ],
)
def test_a_checkpoint_cannot_say_where_to_write_or_what_to_call(
    more: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = desk.CONFIGURATION.replace("iterations: 2", "iterations: 9")
    if more.startswith("trainer"):
        text = text.replace("trainer: {iterations: 9}\n", "")
    hostile(tmp_path / "run", text + more)
    before = desk.listing(tmp_path)
    shown = desk.command("train resume=run")
    assert (shown.code, shown.out) == (cli.BAD_INPUT, "")
    assert told in shown.err and shown.err.count("\n") == 1
    assert desk.listing(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        ".lock",
        ".owner.json",
        "outcome.json",
        "outcome.json.part",
        "checkpoint_00000003.safetensors",
        "events.out.tfevents.1.x.1.0",
    ],
)
def test_a_link_in_a_run_folder_is_not_written_through(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    text = desk.CONFIGURATION.replace("iterations: 2", "iterations: 4")
    path = hostile(tmp_path / "run", text)
    (path.parent / name).symlink_to(precious)
    shown = desk.run(["train", f"resume={path}"], {})
    assert shown.code == cli.BAD_INPUT and f"run/{name} is a link" in shown.err
    assert precious.read_text() == "mine" and (path.parent / name).is_symlink()
    assert len(list(path.parent.iterdir())) == 2


def test_pipes_and_devices_in_a_run_folder_are_not_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", settings(), rewards([0.1, 0.2]), outcome=done())
    (folder / "outcome.json").unlink()
    os.mkfifo(folder / "outcome.json")
    os.mkfifo(folder / "events.out.tfevents.9.x")
    run = load_run(folder)
    assert "no regular file" in run.trouble and run.iterations == 2
    (folder / ".hydra/config.yaml").unlink()
    (folder / ".hydra/config.yaml").symlink_to("/dev/zero")
    assert load_run(folder).trouble == ".hydra/config.yaml is damaged: it is no regular file"
    os.mkfifo(tmp_path / "checkpoint_00000001.safetensors")
    with pytest.raises(InputError, match="no regular file"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"env._target_": "os.system"},
        {"policy.extra": {"_target_": "os.system"}},
        {"env.graph_file": "${oc.env:HOME}"},
        {"env.graph_file": "/dev/zero"},
        {"env.n": 10**20},
        {f"s{i}": f"${{s{i - 1}}}${{s{i - 1}}}" for i in range(40)},
    ],
    ids=["target", "nested target", "environment", "device", "size", "doubling"],
)
def test_a_comparison_builds_nothing_that_a_run_folder_made_up(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("it was called"))
    changes = {"env.table": "ippc", **changes}
    found = references(settings(changes=changes))
    assert not found.found and len(found.missing) == 1
    assert found.missing[0].startswith("baselines: ")


def test_a_comparison_of_hostile_runs_stays_in_its_folder_and_its_page_is_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every field that a run folder fills: settings, choices, tags, message, seeds, its own name."""
    monkeypatch.setattr("torchloc.study.report.draw", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        made = settings(seed=seed, changes={"policy.kind": f"{MALICE}{seed}", "name": "../../up"})
        chosen = {"schedule": MALICE, "env": MALICE, MALICE: MALICE}
        series = {**rewards([0.1, 0.2, 0.3]), MALICE: [1.0, 2.0, 3.0]}
        write_run(tmp_path / f"runs/<b>{seed}\x1b[2J", made, series, outcome=done(), chosen=chosen)
    told = {"status": "failed", "iteration": 0, "message": MALICE, "seconds": 1.0}
    write_run(tmp_path / "runs/bad", settings(seed=5), None, outcome=told)
    assert comparing.run(["runs", "--out", "out", "--no-baselines", "--title", MALICE])
    page = (tmp_path / "out/comparison.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<b>0" not in page and "&lt;script&gt;" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]
    shown = capsys.readouterr().out
    assert "left out" in shown and "\x1b" not in shown and "\x07" not in shown


BELOW = ["default", "a/b", "a b", "é", "a..b", "-x", "seed=1,lr=[2]", "x" * 120]
ABOVE = [
    "..",
    "../up",
    "/up",
    "a/../../up",
    "",
    ".",
    "a//b",
    "a/",
    "a\\..\\b",
    "a\n",
    "~",
    "x" * 121,
]


def test_a_name_stays_below_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(name in NAME for name in BELOW) and not any(name in NAME for name in ABOVE)
    monkeypatch.chdir(tmp_path)
    shown = desk.run(["train", "env.n=3", "name='a/../../up'"], {"HYDRA_FULL_ERROR": "1"})
    assert shown.code == cli.BAD_INPUT and "below runs" in shown.err
    assert not list(tmp_path.iterdir())
