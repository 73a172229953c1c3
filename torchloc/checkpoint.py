"""What a run needs to go on: the policy, the iteration, the random state and the configuration.

A checkpoint is one `.safetensors` file: tensors plus JSON, so loading it runs no code. It is a policy file too:
`SoftmaxPolicy.load` reads it. It is written to a temporary file, flushed and renamed; a reader never sees half of one.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from torchloc.errors import InputError
from torchloc.policy import SoftmaxPolicy, files

FORMAT = 1
_KEY = "torchloc_checkpoint"
_GENERATOR = "generator"
PATTERN = "checkpoint_*.safetensors"


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
        cls, iteration: int, policy: SoftmaxPolicy, generator: torch.Generator
    ) -> Snapshot:
        """Copies the state of a run."""
        tensors = {name: value.clone() for name, value in files.tensors(policy).items()}
        tensors[_GENERATOR] = generator.get_state().clone()
        return cls(iteration, tensors, files.metadata(policy))


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint read back.

    Attributes:
        iteration: Iterations done.
        policy: The policy after them.
        generator: Random state after them.
        configuration: The run's configuration as YAML text; empty where the run had none.
    """

    iteration: int
    policy: SoftmaxPolicy
    generator: torch.Generator
    configuration: str


def save(snapshot: Snapshot, folder: str | PathLike[str], *, configuration: str = "") -> Path:
    """Writes `folder/checkpoint_<iteration>.safetensors` atomically and returns its path."""
    target = Path(folder) / f"checkpoint_{snapshot.iteration:08d}.safetensors"
    about = {"format": FORMAT, "iteration": snapshot.iteration, "configuration": configuration}
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        save_file(
            snapshot.tensors, scratch, metadata={**snapshot.metadata, _KEY: json.dumps(about)}
        )
        with scratch.open("rb") as stream:
            os.fsync(stream.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return target


def load(path: str | PathLike[str]) -> Checkpoint:
    """Reads a checkpoint, or the newest one of a run folder.

    Raises:
        InputError: There is none, or it is damaged, foreign or of a later format.
    """
    target = Path(path)
    if target.is_dir():
        found = sorted(target.glob(PATTERN))
        if not found:
            raise InputError(f"{target} holds no {PATTERN}; is it a run folder?")
        target = found[-1]
    policy = SoftmaxPolicy.load(target)
    try:
        with safe_open(target, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise InputError(f"{target} is a policy, not a checkpoint; give a run folder")
            about = json.loads(text)
            if about["format"] > FORMAT:
                raise InputError(
                    f"{target} has checkpoint format {about['format']}, this version reads up to "
                    f"{FORMAT}; upgrade torchloc"
                )
            generator = torch.Generator()
            generator.set_state(file.get_tensor(_GENERATOR))
            return Checkpoint(
                int(about["iteration"]), policy, generator, str(about["configuration"])
            )
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{target} is damaged or no torchloc checkpoint: {error}") from error


def prune(folder: str | PathLike[str], keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints of a folder."""
    for old in sorted(Path(folder).glob(PATTERN))[:-keep]:
        old.unlink()
