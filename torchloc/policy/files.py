"""Policies as `.safetensors` files: tensors plus one JSON string of metadata, so no code.

Tables that another trainer wrote are read from `.npz` files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from torchloc.errors import FileError, InputError
from torchloc.graphs import Scopes
from torchloc.mdp import archives
from torchloc.policy import networks

if TYPE_CHECKING:
    from torchloc.policy.softmax import SoftmaxPolicy

FORMAT = 2
"""Of files that the versions before cannot read: shared or bounded networks, the user's modules."""
_KEY = "torchloc_policy"
_ARRAYS = {
    "scope_indptr": torch.int64,
    "scope_indices": torch.int64,
    "state_sizes": torch.int64,
    "action_sizes": torch.int64,
    "temperature": torch.float64,
}
_PREFIX = "networks."
_MLP = {"kind", "hidden", "activation"}
_DESCRIPTIONS = (
    {"kind"},
    _MLP,
    _MLP | {"embedding"},
    _MLP | {"bound"},
    _MLP | {"embedding", "bound"},
    {"kind", "shared"},
)
"""The fields of a description; those of the first two fit format 1."""


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
    if policy.spec["kind"] == "module":
        # Parameters that a module ties together share memory, which a file cannot say.
        parameters = {name: value.clone() for name, value in parameters.items()}
    return {name: value.contiguous() for name, value in {**arrays, **parameters}.items()}


def metadata(policy: SoftmaxPolicy) -> dict[str, str]:
    """What kind of network the tensors belong to."""
    version = 1 if set(policy.spec) in _DESCRIPTIONS[:2] else FORMAT
    return {_KEY: json.dumps({**policy.spec, "format": version})}


def save(path: str | PathLike[str], policy: SoftmaxPolicy) -> None:
    """Writes a policy file (`write`)."""
    write(path, tensors(policy), metadata(policy))


def write(path: str | PathLike[str], named: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes to a temporary file beside `path`, flushes and renames: never half a file to read.

    Raises:
        InputError: The folder of `path` does not exist, or `path` is a folder.
        FileError: It cannot be written, as on a full disk; what stood at `path` is as it was.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: there is no folder {target.parent}; create it")
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder; give the name of a file")
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        save_file(dict(named), scratch, metadata=dict(about))
        with scratch.open("rb") as stream:
            os.fsync(stream.fileno())
        scratch.replace(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(f"{target} cannot be written: {reason}") from error
    finally:
        scratch.unlink(missing_ok=True)


def read(path: str | PathLike[str], what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, tensors) of a safetensors file; `what` names what it should be in errors.

    Raises:
        InputError: The file is missing, cannot be read, or is no whole safetensors file.
    """
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder; give the {what} file in it")
    if not Path(path).exists():
        raise InputError(f"there is no {what} file {path}")
    if not Path(path).is_file():
        raise InputError(f"{path} is no regular file; give the {what} file itself")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            # A copy: what safetensors gives is a view of the file, which another run may replace.
            return file.metadata() or {}, {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or no torchloc {what}: {error}") from error


def description(path: str | PathLike[str], text: str, latest: int, what: str) -> dict[str, Any]:
    """The JSON object `text` of a file's metadata, without its format number, which is checked.

    Raises:
        InputError: It is no JSON object, or its format is not 1 … `latest`.
    """
    try:
        result = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        raise InputError(f"{path} is damaged or no torchloc {what}: {error}") from error
    version = result.pop("format", None) if isinstance(result, dict) else None
    if type(version) is not int or version < 1:
        raise InputError(
            f"{path} is damaged or no torchloc {what}: its description holds no format number"
        )
    if version > latest:
        raise InputError(
            f"{path} has {what} format {version}, this version reads up to {latest}; upgrade "
            f"torchloc"
        )
    return result


def load(
    path: str | PathLike[str],
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """(description, arrays, network parameters) of a file that `save` or a checkpoint wrote.

    Raises:
        InputError: The file is missing, damaged, of a later format, or no torchloc policy.
    """
    about, named = read(path, "policy")
    if _KEY not in about:
        raise InputError(f"{path} is no torchloc policy; write one with SoftmaxPolicy.save")
    spec = description(path, about[_KEY], FORMAT, "policy")
    module = spec.get("kind") == "module"
    if set(spec) not in _DESCRIPTIONS or module != isinstance(spec.get("shared"), bool):
        raise InputError(
            f"{path} is damaged or no torchloc policy: its description holds {sorted(spec)}, "
            f"which is no kind of network"
        )
    missing = [name for name in _ARRAYS if name not in named]
    if missing:
        raise InputError(f"{path} is damaged: it lacks the arrays {', '.join(missing)}")
    for name, dtype in _ARRAYS.items():
        if named[name].dtype != dtype:
            raise InputError(f"{path} is damaged: {name} is {named[name].dtype}, not {dtype}")
    parameters = {
        name.removeprefix(_PREFIX): value
        for name, value in named.items()
        if name.startswith(_PREFIX)
    }
    return spec, {name: named[name] for name in _ARRAYS}, parameters


def restored(
    cls: type[SoftmaxPolicy], path: str | PathLike[str], build: networks.Build | None
) -> SoftmaxPolicy:
    """The policy that a file holds.

    Args:
        cls: What to make.
        path: The file.
        build: Makes the modules where they are the user's own.

    Raises:
        InputError: The file is missing, damaged, of a later format, or no torchloc policy; its
            modules need `build`, or what `build` makes does not fit them.
    """
    spec, arrays, parameters = load(path)
    if (spec["kind"] == "module") != (build is not None):
        raise InputError(
            f"{path} holds a policy of kind {spec['kind']!r}; give build, the function that from_module "
            f"was given, where the kind is 'module' and nowhere else"
        )
    try:
        if build is None:
            dtype = networks.common_dtype(parameters)
            spec = networks.described(**spec)
            # Laid out without memory, then given the parameters.
            make = partial(networks.built, spec, dtype=dtype, generator=None)
        else:
            make = partial(networks.custom, build, shared=spec["shared"])
        with torch.random.fork_rng(devices=()):
            policy = cls(
                Scopes(arrays["scope_indptr"].numpy(), arrays["scope_indices"].numpy()),
                arrays["state_sizes"].numpy(),
                arrays["action_sizes"].numpy(),
                make,
                spec,
                arrays["temperature"].numpy(),
            )
        networks.fill(policy.networks, policy.groups, parameters)
    # RuntimeError: sizes so large that torch cannot count the entries of the tensors.
    except (InputError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        fault = "is damaged or no torchloc policy" if build is None else "does not fit build"
        raise InputError(f"{path} {fault}: {reason}") from error
    return policy


def load_tables(
    path: str | PathLike[str], n_agents: int
) -> tuple[list[np.ndarray], str, list[np.ndarray], np.ndarray]:
    """(scopes, `probabilities` or `logits`, tables, temperature) of a `.npz` file of tables.

    Raises:
        InputError: The file is missing or damaged, holds both kinds of tables or none, lacks an
            agent's array, or has more agents than the model.
    """
    arrays = archives.read(path, ".npz file of tables", "file")
    if not n_agents:
        return [], "logits", [], arrays.get("temperature", np.ones(()))
    kinds = [kind for kind in ("probabilities", "logits") if f"{kind}_0" in arrays]
    if len(kinds) != 1:
        raise InputError(
            f"{path} holds {' and '.join(f'{kind}_0' for kind in kinds) or 'no table'}; give "
            f"scope_k with either probabilities_k or logits_k for every agent k from 0"
        )
    for k in range(n_agents):
        for name in (f"scope_{k}", f"{kinds[0]}_{k}"):
            if name not in arrays:
                raise InputError(
                    f"{path} has no array {name}; the model has {n_agents} agents, and each needs "
                    f"scope_k and {kinds[0]}_k"
                )
    if f"scope_{n_agents}" in arrays:
        raise InputError(
            f"{path} has an array scope_{n_agents}, but the model has {n_agents} agents, numbered "
            f"from 0; leave the others out"
        )
    scopes = [arrays[f"scope_{k}"] for k in range(n_agents)]
    tables = [arrays[f"{kinds[0]}_{k}"] for k in range(n_agents)]
    return scopes, kinds[0], tables, arrays.get("temperature", np.ones(()))
