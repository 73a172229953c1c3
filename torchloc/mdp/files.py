"""Models as `.npz` files: plain arrays, a format number, never pickle."""

from __future__ import annotations

import io
import os
import struct
import tokenize
import zipfile
import zlib
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
    arrays = _arrays(path)
    try:
        if "torchloc_model" not in arrays:
            raise InputError(f"{path} is no torchloc model; write one with FactoredMDP.save")
        version = int(arrays["torchloc_model"])
        if version != FORMAT:
            raise InputError(
                f"{path} has model format {version}, this version reads format {FORMAT}; "
                f"write the model again with this version, or upgrade torchloc"
            )
        n_kernels, n_rewards = (int(count) for count in arrays["counts"])
        arguments: dict[str, Any] = {
            "state_sizes": arrays["state_sizes"],
            "action_sizes": arrays["action_sizes"],
            "kernels": [
                KernelBatch(*(arrays[f"kernel_{b}_{field}"] for field in _KERNEL))
                for b in range(n_kernels)
            ],
            "rewards": [
                RewardBatch(*(arrays[f"reward_{b}_{field}"] for field in _REWARD))
                for b in range(n_rewards)
            ],
        }
    except KeyError as error:
        raise InputError(f"{path} is damaged: the array {error} is missing") from error
    except (OverflowError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged: {error}") from error
    if "initial" in arrays:
        arguments["initial"] = arrays["initial"]
    for field in ("coordinate_names", "agent_names"):
        if field in arrays:
            arguments[field] = np.atleast_1d(arrays[field]).tolist()
    return arguments


def _arrays(path: str | PathLike[str]) -> dict[str, Any]:
    """All arrays of the archive, each read to its end and held against its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix(".npy"): np.lib.format.read_array(
                    io.BytesIO(archive.read(name)), allow_pickle=False
                )
                for name in archive.namelist()
            }
    except FileNotFoundError:
        raise InputError(f"there is no model file {path}") from None
    # What zipfile, zlib and NumPy's header reader raise on bytes that nobody wrote.
    except (
        ArithmeticError, EOFError, LookupError, MemoryError, NotImplementedError, OSError,
        RuntimeError, SyntaxError, TypeError, ValueError, struct.error, tokenize.TokenError,
        zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise InputError(f"{path} is damaged or no torchloc model: {error}") from error
