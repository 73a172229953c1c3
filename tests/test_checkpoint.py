"""A checkpoint continues a run bit for bit, is a policy file too, and is written whole or not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import torchloc as tl
from torchloc import checkpoint
from torchloc.checkpoint import Snapshot
from torchloc.environments import sysadmin
from torchloc.policy import files

MDP = sysadmin(n=4)
SCOPES = tl.neighbourhood_scopes(MDP)
STATES = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]])
KINDS: dict[str, Callable[[], tl.SoftmaxPolicy]] = {
    "tabular": lambda: tl.SoftmaxPolicy.tabular(MDP, SCOPES, temperature=0.3, scale=1.0),
    "linear": lambda: tl.SoftmaxPolicy.linear(MDP, SCOPES, temperature=[0.1, 0.2, 0.3, 0.4]),
    "mlp": lambda: tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(6, 5), dtype=torch.float32),
}


def _policy() -> tl.SoftmaxPolicy:
    return KINDS["tabular"]()


def _snapshot(iteration: int = 3, policy: tl.SoftmaxPolicy | None = None) -> Snapshot:
    return Snapshot.take(iteration, policy or _policy(), torch.Generator().manual_seed(11))


def _state(policy: tl.SoftmaxPolicy) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in policy.state_dict().items()}


# Round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_where_it_stopped(kind: str, tmp_path: Path) -> None:
    policy, generator = KINDS[kind](), torch.Generator().manual_seed(5)
    torch.rand(1237, generator=generator)
    torch.randn(3, generator=generator)
    text = "env:\n  name: sysadmin\n  τ: 'κ \"quoted\"'\n"
    path = checkpoint.save(Snapshot.take(17, policy, generator), tmp_path, configuration=text)
    assert path == tmp_path / "checkpoint_00000017.safetensors"
    loaded = checkpoint.load(path)
    assert loaded.iteration == 17 and loaded.configuration == text
    assert _state(loaded.policy) == _state(policy)
    assert list(loaded.policy.scopes) == list(policy.scopes)
    for draw in (torch.rand, torch.randn, torch.randperm):
        assert torch.equal(draw(101, generator=loaded.generator), draw(101, generator=generator))
    actions = [
        p.act(STATES, g) for p, g in ((loaded.policy, loaded.generator), (policy, generator))
    ]
    assert torch.equal(*actions)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_agents_that_see_nothing_and_short_floats_are_kept(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """Arrays without entries, and numbers that NumPy does not know, have a digest too."""
    policy = tl.SoftmaxPolicy.tabular(MDP, [[]] * 4, scale=1.0, dtype=dtype)
    loaded = checkpoint.load(checkpoint.save(_snapshot(policy=policy), tmp_path))
    for name, value in policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], value), name


def test_a_snapshot_is_detached_from_the_run(tmp_path: Path) -> None:
    policy, generator = _policy(), torch.Generator().manual_seed(0)
    snapshot = Snapshot.take(1, policy, generator)
    before, expected = _state(policy), torch.rand(9, generator=torch.Generator().manual_seed(0))
    policy.set_temperature(9.0)
    for parameter in policy.parameters():
        parameter.data.zero_()
    torch.rand(5, generator=generator)
    loaded = checkpoint.load(checkpoint.save(snapshot, tmp_path))
    assert _state(loaded.policy) == before
    assert torch.equal(torch.rand(9, generator=loaded.generator), expected)
    assert loaded.configuration == ""


def test_a_checkpoint_is_a_policy_file(tmp_path: Path) -> None:
    policy = KINDS["mlp"]()
    path = checkpoint.save(_snapshot(policy=policy), tmp_path)
    assert _state(tl.SoftmaxPolicy.load(path)) == _state(policy)
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) == {"torchloc_policy", "torchloc_checkpoint"}


def test_a_loaded_checkpoint_can_be_saved_again(tmp_path: Path) -> None:
    first = checkpoint.load(checkpoint.save(_snapshot(), tmp_path, configuration="a: 1"))
    again = Snapshot.take(first.iteration + 1, first.policy, first.generator)
    second = checkpoint.load(checkpoint.save(again, tmp_path, configuration=first.configuration))
    assert second.iteration == 4 and second.configuration == "a: 1"
    assert _state(second.policy) == _state(first.policy)
    assert torch.equal(second.generator.get_state(), first.generator.get_state())


# Folders --------------------------------------------------------------------------------------


def _fill(folder: Path, *iterations: int) -> None:
    for iteration in iterations:
        checkpoint.save(_snapshot(iteration), folder)


def test_a_folder_gives_its_newest(tmp_path: Path) -> None:
    _fill(tmp_path, 2, 30, 4)
    assert checkpoint.load(tmp_path).iteration == 30
    assert checkpoint.load(str(tmp_path)).iteration == 30


def test_newest_is_by_iteration_whatever_the_file_names_and_times(tmp_path: Path) -> None:
    """Nine digits follow eight, and files of other names are no checkpoints of the run."""
    _fill(tmp_path, 99_999_999, 100_000_000)
    for name in ("checkpoint_best.safetensors", "checkpoint_.safetensors", "policy.safetensors"):
        _policy().save(tmp_path / name)
    os.utime(tmp_path / "checkpoint_99999999.safetensors", (2e9, 2e9))
    assert [path.name for path in checkpoint.saved(tmp_path)] == [
        "checkpoint_99999999.safetensors",
        "checkpoint_100000000.safetensors",
    ]
    assert checkpoint.load(tmp_path).iteration == 100_000_000


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    _fill(tmp_path, 5, 1, 10, 3)
    (tmp_path / "config.yaml").write_text("a: 1")
    _policy().save(tmp_path / "checkpoint_best.safetensors")
    others = {"config.yaml", "checkpoint_best.safetensors"}
    checkpoint.prune(tmp_path, 9)
    assert len(checkpoint.saved(tmp_path)) == 4
    checkpoint.prune(tmp_path, 2)
    names = {"checkpoint_00000005.safetensors", "checkpoint_00000010.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names | others
    checkpoint.prune(tmp_path, 1)
    assert checkpoint.load(tmp_path).iteration == 10
    for keep in (0, -1):
        with pytest.raises(tl.InputError, match=rf"keep is {keep}; at least 1"):
            checkpoint.prune(tmp_path, keep)
    assert len(checkpoint.saved(tmp_path)) == 1


# Writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["while writing", "while flushing", "while renaming"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.save(_snapshot(), tmp_path, configuration="old")
    before = path.read_bytes()

    def fail(*arguments: Any, **_: Any) -> None:
        if moment == "while writing":
            Path(arguments[1]).write_bytes(b"half a file")
        raise OSError(28, "no space left on device")

    if moment == "while writing":
        monkeypatch.setattr(files, "save_file", fail)
    elif moment == "while flushing":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(tl.FileError, match="cannot be written: no space left"):
        checkpoint.save(_snapshot(), tmp_path, configuration="new")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_what_a_killed_writer_left_is_tidied(tmp_path: Path) -> None:
    path = checkpoint.save(_snapshot(), tmp_path)
    left = tmp_path / f".{path.name}.4711.tmp"
    left.write_bytes(b"half a file")
    mine = tmp_path / ".notes.tmp"
    mine.write_bytes(b"not of a checkpoint")
    checkpoint.tidy(tmp_path)
    assert sorted(tmp_path.iterdir()) == [mine, path]


def test_an_interrupt_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
        target.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(_snapshot(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_half_written_files_are_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the write and the rename only a name exists that no reader looks for."""
    seen: list[list[str]] = []
    replace = Path.replace

    def spy(self: Path, target: Path) -> Path:
        seen.append([path.name for path in checkpoint.saved(tmp_path)])
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    checkpoint.save(_snapshot(1), tmp_path)
    checkpoint.save(_snapshot(2), tmp_path)
    assert seen == [[], ["checkpoint_00000001.safetensors"]]


def test_the_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(tl.InputError, match="there is no folder"):
        checkpoint.save(_snapshot(), tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


# Damage ---------------------------------------------------------------------------------------


def _refused(path: Path, *parts: str) -> None:
    with pytest.raises(tl.InputError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert all(part in message for part in (str(path), *parts)), message
    assert "\n" not in message


def test_missing_and_foreign(tmp_path: Path) -> None:
    _refused(tmp_path, "holds no checkpoint_*.safetensors", "run folder")
    path = tmp_path / "checkpoint_00000001.safetensors"
    _refused(path, "there is no checkpoint file")
    _policy().save(path)
    _refused(path, "no torchloc checkpoint", "run folder")
    save_file({"weight": torch.zeros(3)}, path)
    _refused(path, "no torchloc checkpoint")
    for content in (b"", b"hello", bytes(200)):
        path.write_bytes(content)
        _refused(path, "damaged or no torchloc checkpoint")


def test_truncated_at_any_byte(tmp_path: Path) -> None:
    path = checkpoint.save(_snapshot(), tmp_path)
    raw = path.read_bytes()
    for length in range(0, len(raw), 61):
        path.write_bytes(raw[:length])
        _refused(path, "damaged or no torchloc checkpoint")


def _about(**changes: Any) -> Callable[[Path], None]:
    """A fault: another description (entries that are None are left out)."""

    def write(path: Path) -> None:
        about = {"format": 1, "iteration": 3, "configuration": "", **changes}
        text = json.dumps({k: v for k, v in about.items() if v is not None})
        snapshot = _snapshot()
        save_file(
            snapshot.tensors, path, metadata={**snapshot.metadata, "torchloc_checkpoint": text}
        )

    return write


def _tensors(**changes: Tensor | None) -> Callable[[Path], None]:
    """A fault: other tensors (those that are None are left out)."""

    def write(path: Path) -> None:
        checkpoint.save(_snapshot(), path.parent).rename(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = {k: v for k, v in {**load_file(path), **changes}.items() if v is not None}
        save_file(tensors, path, metadata=metadata)

    return write


FAULTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "later format": (_about(format=3), ["checkpoint format 3", "up to 2", "upgrade torchloc"]),
    "no format": (_about(format=None), ["no format number"]),
    "no iteration": (_about(iteration=None), ["damaged", "'iteration'"]),
    "text iteration": (_about(iteration="3"), ["iteration is '3'"]),
    "negative iteration": (_about(iteration=-1), ["iteration is -1"]),
    "no configuration": (_about(configuration=None), ["damaged", "'configuration'"]),
    "numeric configuration": (_about(configuration=7), ["configuration 7"]),
    "no generator": (_tensors(generator=None), ["damaged", "'generator'"]),
    "short generator": (_tensors(generator=torch.zeros(5, dtype=torch.uint8)), ["damaged"]),
    "real generator": (_tensors(generator=torch.zeros(5056)), ["damaged"]),
    "broken generator": (
        _tensors(generator=torch.full((5056,), 255, dtype=torch.uint8)),
        ["damaged"],
    ),
    "no temperature": (_tensors(temperature=None), ["lacks the arrays temperature"]),
    "temperature": (_tensors(temperature=torch.zeros(4).double()), ["temperature of agent 0 is 0"]),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_name_the_file_and_what_is_wrong(case: str, tmp_path: Path) -> None:
    write, parts = FAULTS[case]
    path = tmp_path / "c.safetensors"
    write(path)
    _refused(path, *parts)


def test_flipped_bits_give_a_checkpoint_or_one_clear_error(tmp_path: Path) -> None:
    path = checkpoint.save(_snapshot(), tmp_path, configuration="a: 1")
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    header = int.from_bytes(raw[:8], "little") + 8
    refused = 0
    for place in rng.integers(0, header, 100):
        broken = bytearray(raw)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            checkpoint.load(path)
        except tl.InputError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 50
