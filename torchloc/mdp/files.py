"""Models as `.npz` files: plain arrays, a format number, never pickle."""

from __future__ import annotations

import os
import zipfile
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchloc.errors import InputError
from torchloc.mdp.kernels import KernelBatch
from torchloc.mdp.rewards import RewardBatch

if TYPE_CHECKING:
    from torchloc.mdp.model import FactoredMDP

FORMAT = 1
_KERNEL = ("coordinates", "states", "actions", "table")
_REWARD = ("states", "actions", "table")


def save(path: str | PathLike[str], mdp: FactoredMDP) -> None:
    """Writes to a temporary file beside `path`, then renames: a reader never sees half a file."""
    arrays: dict[str, Any] = {
        "torchloc_model": np.int64(FORMAT),
        "state_sizes": mdp.state_sizes,
        "action_sizes": mdp.action_sizes,
        "counts": np.array([len(mdp.kernels), len(mdp.rewards)]),
    }
    for b, kernel in enumerate(mdp.kernels):
        arrays.update({f"kernel_{b}_{field}": getattr(kernel, field) for field in _KERNEL})
    for b, term in enumerate(mdp.rewards):
        arrays.update({f"reward_{b}_{field}": getattr(term, field) for field in _REWARD})
    if mdp.initial is not None:
        arrays["initial"] = mdp.initial
    for field in ("coordinate_names", "agent_names"):
        if getattr(mdp, field) is not None:
            arrays[field] = np.array(getattr(mdp, field), dtype=np.str_)
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def load(path: str | PathLike[str]) -> dict[str, Any]:
    """The constructor's arguments, read from a file that `save` wrote.

    Raises:
        InputError: The file is missing, not a model, of a later format, or damaged.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile) or "torchloc_model" not in file:
                raise InputError(f"{path} is no torchloc model; write one with FactoredMDP.save")
            if int(file["torchloc_model"]) > FORMAT:
                raise InputError(
                    f"{path} has model format {int(file['torchloc_model'])}, this version reads up to "
                    f"{FORMAT}; upgrade torchloc"
                )
            n_kernels, n_rewards = (int(count) for count in file["counts"])
            arguments: dict[str, Any] = {
                "state_sizes": file["state_sizes"],
                "action_sizes": file["action_sizes"],
                "kernels": [
                    KernelBatch(*(file[f"kernel_{b}_{field}"] for field in _KERNEL))
                    for b in range(n_kernels)
                ],
                "rewards": [
                    RewardBatch(*(file[f"reward_{b}_{field}"] for field in _REWARD))
                    for b in range(n_rewards)
                ],
            }
            if "initial" in file:
                arguments["initial"] = file["initial"]
            for field in ("coordinate_names", "agent_names"):
                if field in file:
                    arguments[field] = file[field].tolist()
            return arguments
    except FileNotFoundError:
        raise InputError(f"there is no model file {path}") from None
    except (KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged or no torchloc model: {error}") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged or no torchloc model: {error}") from error
