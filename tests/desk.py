"""A folder with the files of a clumsy user, and commands run in it."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import torchloc as tl
from torchloc import __main__, checkpoint
from torchloc.environments import sysadmin

CONFIGURATION = """\
seed: 0
env: {_target_: torchloc.environments.sysadmin, n: 3}
scopes: {_target_: torchloc.graphs.neighbourhood_scopes, _partial_: true}
policy: {_target_: torchloc.policy.SoftmaxPolicy.tabular, _partial_: true}
schedule: {_target_: torchloc.schedules.constant, _partial_: true}
improvement: {_target_: torchloc.improvement.Improvement}
evaluation: {_target_: torchloc.engine.Evaluation}
trainer: {iterations: 2}
"""
TEXTS = {
    "notes.txt": "hello\n",
    "half.txt": "0 1\n2\n",
    "blank.txt": "# nothing yet\n",
    "loop.txt": "0 1\n1 1\n",
    "semicolons.csv": "0;1\n1;2\n",
    "hub.txt": "".join(f"0 {i}\n{i} 0\n" for i in range(1, 30)),
    "cut.graphml": "<graphml>",
    "words.graphml": "hello",
    "entities.graphml": '<!DOCTYPE g [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><graphml>&b;</graphml>',
    "mine/env/object.yaml": "_target_: !!python/object/apply:os.system ['touch pwned']\n",
    "mine/env/tab.yaml": "a:\n\t- 1\n",
    "mine/env/bare.yaml": "n: 3\n",
    "mine/env/list.yaml": "- 1\n- 2\n",
    "mine/env/empty.yaml": "",
    "mine/env/twice.yaml": "_target_: torchloc.environments.sysadmin\nn: 3\nn: 4\n",
    "mine/env/number.yaml": "_target_: 3\n",
    "mine/env/typo.yaml": "_target_: torchloc.environments.sysadmn\n",
    "mine/env/nowhere.yaml": "_target_: nowhere.model\n",
    "mine/env/dict.yaml": "_target_: builtins.dict\nn: 3\n",
    "mine/env/module.yaml": "_target_: torchloc.environments\n",
    "mine/env/round.yaml": "defaults: [round]\nn: 3\n",
    "mine/env/absent.yaml": "defaults: [nothing]\nn: 3\n",
    "mine/env/wrong.yaml": "defaults: [/schema/env/sysadmin@_here_]\nnn: 5\n",
    "mine/experiment/typo.yaml": "# @package _global_\nschedul:\n  start: 1\n",
    "mine/experiment/choice.yaml": "# @package _global_\ndefaults:\n  - override /env: sysadmn\n",
    "mine/experiment/group.yaml": "# @package _global_\ndefaults:\n  - override /envs: sis\n",
    "mine/schedule/whole.yaml": "_target_: torchloc.schedules.linear\nstart: 1\n",
    "mine/schedule/model.yaml": "_target_: torchloc.environments.sysadmin\nn: 3\n",
    "mine/scopes/model.yaml": "_target_: torchloc.environments.sysadmin\nn: 3\n",
    "latin/env/name.yaml": "",
}


def lay(folder: Path) -> None:
    """Writes the files."""
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "latin/env/name.yaml").write_bytes("name: café\n".encode("latin-1"))
    (folder / "utf16.txt").write_text("0 1\n", encoding="utf-16")
    for name in ("empty", "broken", "taken/comparison.csv", "linked"):
        (folder / name).mkdir(parents=True)
    (folder / "linked/figures").symlink_to(folder / "empty")
    mdp = sysadmin(3)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    mdp.save(folder / "model.npz")
    policy.save(folder / "policy.safetensors")
    for name in ("model.npz", "policy.safetensors"):
        content = (folder / name).read_bytes()
        (folder / f"half-{name}").write_bytes(content[: len(content) // 2])
    np.save(folder / "array.npy", np.eye(2))
    np.savez(folder / "scope.npz", scope_0=[0])
    np.savez(folder / "object.npz", scope_0=np.array([object()], dtype=object))
    laws = {f"probabilities_{k}": np.full((2, 2, 2), 0.5) for k in range(3)}
    np.savez(folder / "blind.npz", scope_0=[2, 0], scope_1=[0, 1], scope_2=[1, 9], **laws)
    (folder / "run").mkdir()
    snapshot = checkpoint.Snapshot.take(2, policy, torch.Generator())
    path = checkpoint.save(snapshot, folder / "run", configuration=CONFIGURATION)
    (folder / "broken" / path.name).write_bytes(path.read_bytes()[:300])
    (folder / "linked.run").mkdir()
    (folder / "linked.run" / path.name).write_bytes(path.read_bytes())
    (folder / "linked.run/outcome.json.part").symlink_to(folder / "notes.txt")
    os.mkfifo(folder / "pipe")


def listing(folder: Path) -> list[tuple[str, int, int]]:
    """Everything below a folder; of files with size and time of change."""
    found = []
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        size, changed = (0, 0) if path.is_dir() else (about.st_size, about.st_mtime_ns)
        found.append((str(path.relative_to(folder)), size, changed))
    return found


@dataclass(frozen=True)
class Told:
    """How a command ended."""

    code: object
    out: str
    err: str


def command(line: str) -> Told:
    """Runs `[VARIABLE=value …] COMMAND argument …` in this process, as `python -m torchloc` would."""
    words = shlex.split(line)
    given = {}
    while words and _assigns(words[0]):
        name, _, value = words.pop(0).partition("=")
        given[name] = value
    return run(words, given)


def _assigns(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.replace("_", "").isupper()


def run(words: list[str], environment: Mapping[str, str]) -> Told:
    """Runs `python -m torchloc WORDS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", ["torchloc", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            __main__.main()
        except SystemExit as stopped:
            code = stopped.code
    return Told(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Works in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
