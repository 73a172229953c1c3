"""What a run needs to go on: the policy, the iteration, the random state and the configuration.

A checkpoint is one `.safetensors` file: tensors plus JSON, so loading it runs no code. It is a
policy file too: `SoftmaxPolicy.load` reads it. It is written to a temporary file, flushed and
renamed; a reader never sees half of one. A digest of all its content is stored in it and compared
when it is read. Format 1 had no digest and no progress.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from torchloc.errors import InputError
from torchloc.policy import SoftmaxPolicy, files

FORMAT = 2
_KEY = "torchloc_checkpoint"
_GENERATOR = "generator"
_PROGRESS = "progress."
_STEM, _SUFFIX = "checkpoint_", ".safetensors"
PATTERN = f"{_STEM}*{_SUFFIX}"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A run between two iterations, detached from the live policy.

    Attributes:
        iteration: Iterations done.
        tensors: Everything that the policy is, and the generator's state.
        metadata: The policy's description, as JSON strings.
    """

    iteration: int
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @classmethod
    def take(
        cls,
        iteration: int,
        policy: SoftmaxPolicy,
        generator: torch.Generator,
        progress: Mapping[str, Tensor] | None = None,
    ) -> Snapshot:
        """Copies the state of a run; `progress` is what the trainer needs besides, by name."""
        tensors = {name: value.clone() for name, value in files.tensors(policy).items()}
        tensors[_GENERATOR] = generator.get_state().clone()
        for name, value in (progress or {}).items():
            tensors[_PROGRESS + name] = value.detach().clone().contiguous()
        return cls(iteration, tensors, files.metadata(policy))


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint read back.

    Attributes:
        iteration: Iterations done.
        policy: The policy after them.
        generator: Random state after them.
        configuration: The run's configuration as YAML text; empty where the run had none.
        progress: What the trainer needs besides, by name; empty in format 1.
    """

    iteration: int
    policy: SoftmaxPolicy
    generator: torch.Generator
    configuration: str
    progress: dict[str, Tensor] = field(default_factory=dict)


def save(snapshot: Snapshot, folder: str | PathLike[str], *, configuration: str = "") -> Path:
    """Writes `folder/checkpoint_<iteration>.safetensors` atomically and returns its path.

    Raises:
        InputError: The folder does not exist.
    """
    target = Path(folder) / f"checkpoint_{snapshot.iteration:08d}.safetensors"
    about = {
        "format": FORMAT,
        "iteration": snapshot.iteration,
        "configuration": configuration,
        "digest": _digest(snapshot.iteration, configuration, snapshot.tensors),
    }
    files.write(target, snapshot.tensors, {**snapshot.metadata, _KEY: json.dumps(about)})
    return target


def load(path: str | PathLike[str]) -> Checkpoint:
    """Reads a checkpoint, or the newest one of a run folder.

    Raises:
        InputError: There is none, or it is damaged, foreign or of a later format; of a folder the message
            names the newest one that is whole.
    """
    target = Path(path)
    if not target.is_dir():
        return _load(target)
    found = saved(target)
    if not found:
        raise InputError(f"{target} holds no {PATTERN}; is it a run folder?")
    try:
        return _load(found[-1])
    except InputError as error:
        older = next((path for path in reversed(found[:-1]) if _is_whole(path)), None)
        if older is None:
            raise
        raise InputError(f"{error}; the one before it is whole: give {older}") from error


def _is_whole(path: Path) -> bool:
    try:
        _load(path)
    except InputError:
        return False
    return True


def _load(target: Path) -> Checkpoint:
    about, tensors = files.read(target, "checkpoint")
    if _KEY not in about:
        raise InputError(f"{target} is no torchloc checkpoint; give a run folder, or a file of it")
    told = files.description(target, about[_KEY], FORMAT, "checkpoint")
    policy = SoftmaxPolicy.load(target)
    try:
        iteration, configuration = told["iteration"], told["configuration"]
        if type(iteration) is not int or iteration < 0 or not isinstance(configuration, str):
            raise TypeError(f"iteration is {iteration!r}, configuration {configuration!r}")
        generator = torch.Generator()
        generator.set_state(tensors[_GENERATOR])
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{target} is damaged or no torchloc checkpoint: {error}") from error
    progress = {
        name.removeprefix(_PROGRESS): value
        for name, value in tensors.items()
        if name.startswith(_PROGRESS)
    }
    digest = told.get("digest")
    if (digest is not None or progress) and digest != _digest(iteration, configuration, tensors):
        raise InputError(f"{target} is damaged: its content does not have the digest that it names")
    return Checkpoint(iteration, policy, generator, configuration, progress)


def _digest(iteration: int, configuration: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of everything that a checkpoint says."""
    found = hashlib.sha256(f"{iteration}\n{configuration}\n".encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if value.numel():
            flat = value.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def saved(folder: str | PathLike[str]) -> list[Path]:
    """The checkpoints of a folder, oldest iteration first; files of other names are left out."""
    numbered = [
        (int(path.name[len(_STEM) : -len(_SUFFIX)]), path)
        for path in Path(folder).glob(PATTERN)
        if path.name[len(_STEM) : -len(_SUFFIX)].isdecimal()
    ]
    return [path for _, path in sorted(numbered)]


def prune(folder: str | PathLike[str], keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints of a folder.

    Raises:
        InputError: `keep` is below 1.
    """
    if keep < 1:
        raise InputError(f"keep is {keep}; at least 1 checkpoint must stay")
    for old in saved(folder)[:-keep]:
        old.unlink()


def tidy(folder: str | PathLike[str]) -> None:
    """Deletes what writers that were killed have left; for the one who owns the folder."""
    for left in Path(folder).glob(f".{PATTERN}.*.tmp"):
        left.unlink(missing_ok=True)
