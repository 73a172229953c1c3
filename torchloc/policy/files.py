"""Policies as `.safetensors` files: tensors plus one JSON string of metadata."""

from __future__ import annotations

import json
import os
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from torchloc.errors import InputError

if TYPE_CHECKING:
    from torchloc.policy.softmax import SoftmaxPolicy

FORMAT = 1
_KEY = "torchloc_policy"
_ARRAYS = ("scope_indptr", "scope_indices", "state_sizes", "action_sizes", "temperature")
_PREFIX = "networks."


def tensors(policy: SoftmaxPolicy) -> dict[str, Tensor]:
    """Everything that a policy is, as named tensors."""
    arrays = {
        "scope_indptr": torch.tensor(policy.scopes.indptr),
        "scope_indices": torch.tensor(policy.scopes.indices),
        "state_sizes": torch.tensor(policy.state_sizes),
        "action_sizes": torch.tensor(policy.action_sizes),
        "temperature": policy.temperature,
    }
    parameters = {_PREFIX + name: value for name, value in policy.networks.state_dict().items()}
    return {name: value.contiguous() for name, value in {**arrays, **parameters}.items()}


def metadata(policy: SoftmaxPolicy) -> dict[str, str]:
    """What kind of network the tensors belong to."""
    return {_KEY: json.dumps({"format": FORMAT, **policy.spec})}


def save(path: str | PathLike[str], policy: SoftmaxPolicy) -> None:
    """Writes to a temporary file beside `path`, then renames: a reader never sees half a file."""
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors(policy), scratch, metadata=metadata(policy))
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def load(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """(specification, arrays, network parameters) of a file that `save` or a checkpoint wrote.

    Raises:
        InputError: The file is missing, damaged, of a later format, or no torchloc policy.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no policy file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise InputError(f"{path} is no torchloc policy; write one with SoftmaxPolicy.save")
            spec = json.loads(text)
            if spec["format"] > FORMAT:
                raise InputError(
                    f"{path} has policy format {spec['format']}, this version reads up to {FORMAT}; "
                    f"upgrade torchloc"
                )
            arrays = {name: np.asarray(file.get_tensor(name).numpy()) for name in _ARRAYS}
            parameters = {
                name.removeprefix(_PREFIX): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - a safetensors handle is no dict
                if name.startswith(_PREFIX)
            }
            return spec, arrays, parameters
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged or no torchloc policy: {error}") from error
