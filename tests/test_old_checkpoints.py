"""Checkpoints that earlier versions wrote: they load, or say what to do.

`stored/` holds what `torchloc-train env=sysadmin env.n=3 policy=tabular trainer.iterations=3` wrote: the last
version of format 1 (no digest, no progress), and the first of format 2, after iterations 2 and 3.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import torchloc as tl
from torchloc import checkpoint, cli
from torchloc.environments import sysadmin

STORED = Path(__file__).parent / "stored"
FORMAT_1 = STORED / "format_1.safetensors"
SECOND, THIRD = (STORED / f"format_2_iteration_{i}.safetensors" for i in (2, 3))
MDP = sysadmin(3)


def run_folder(folder: Path, stored: Path, iteration: int) -> Path:
    """A run folder with a stored file as its checkpoint."""
    folder.mkdir()
    shutil.copy(stored, folder / f"checkpoint_{iteration:08d}.safetensors")
    return folder


def resumed(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, code: int = 0) -> None:
    """`torchloc-train resume=FOLDER` in this process."""
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr("sys.argv", ["torchloc-train", f"resume={folder}", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.train()
    assert stopped.value.code == code


@pytest.mark.parametrize(("stored", "iteration"), [(FORMAT_1, 3), (SECOND, 2), (THIRD, 3)])
def test_old_checkpoints_load_with_their_policy(stored: Path, iteration: int) -> None:
    loaded = checkpoint.load(stored)
    assert loaded.iteration == iteration
    assert loaded.configuration.startswith(("env:", "name:", "_")) or "env:" in loaded.configuration
    assert bool(loaded.progress) == (stored is not FORMAT_1)
    policy = tl.SoftmaxPolicy.load(stored)
    for name, value in loaded.policy.state_dict().items():
        assert torch.equal(value, policy.state_dict()[name]), name
    certificate = tl.certify(MDP, policy)
    # What three sweeps from the uniform policy reach: machines that look after themselves.
    assert certificate["coupled"].rho.upper < 0.5


def test_format_1_says_that_no_run_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder(tmp_path / "run", FORMAT_1, 3)
    resumed(folder, monkeypatch, "trainer.iterations=4", "logging.progress=false", code=2)
    told = capsys.readouterr().err
    assert "the checkpoint of iteration 3 lacks 'weights', so that no run can go on from it" in told
    assert "it was written by an earlier version" in told and "Its policy is whole" in told
    assert told.count("\n") == 1


def test_format_2_goes_on_to_what_the_version_that_wrote_it_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laws equal to the rounding of three blocks of solves; its own later checkpoint is the witness."""
    folder = run_folder(tmp_path / "run", SECOND, 2)
    resumed(folder, monkeypatch, "logging.progress=false", "logging.tensorboard=false")
    ours, theirs = checkpoint.load(folder), checkpoint.load(THIRD)
    assert ours.iteration == theirs.iteration == 3
    assert torch.equal(ours.policy.temperature, theirs.policy.temperature)
    for k in range(MDP.n_agents):
        torch.testing.assert_close(
            ours.policy.probabilities(k), theirs.policy.probabilities(k), rtol=0.0, atol=1e-9
        )


def test_a_format_of_the_future_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    policy = tl.SoftmaxPolicy.tabular(MDP, tl.neighbourhood_scopes(MDP))
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    snapshot = checkpoint.Snapshot.take(1, policy, torch.Generator())
    path = checkpoint.save(snapshot, tmp_path)
    monkeypatch.undo()
    with pytest.raises(tl.InputError, match=f"format {checkpoint.FORMAT + 1}"):
        checkpoint.load(path)
