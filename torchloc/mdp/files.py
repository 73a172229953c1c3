"""Models as `.npz` files: plain arrays, a format number, never pickle."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from torchloc.errors import InputError
from torchloc.mdp import archives
from torchloc.mdp.count_rewards import CountRewardBatch
from torchloc.mdp.counts import CountBatch
from torchloc.mdp.kernels import KernelBatch
from torchloc.mdp.rewards import RewardBatch

if TYPE_CHECKING:
    from torchloc.mdp.model import FactoredMDP

FORMAT = 2
"""Format 2 knows counted parents; a model without them is written as format 1."""
_KERNEL = ("coordinates", "states", "actions", "table")
_REWARD = ("states", "actions", "table")
_COUNTED = (
    "states", "actions", "state_weights", "action_weights", "state_sizes", "action_sizes",
)  # fmt: skip


def save(path: str | PathLike[str], mdp: FactoredMDP) -> None:
    """Writes to a temporary file beside `path`, then renames: a reader never sees half a file.

    Raises:
        InputError: The folder does not exist.
    """
    arrays: dict[str, Any] = {
        "torchloc_model": np.int64(FORMAT if _counts(mdp) else 1),
        "state_sizes": mdp.state_sizes,
        "action_sizes": mdp.action_sizes,
        "counts": np.array([len(mdp.kernels), len(mdp.rewards)]),
    }
    for b, kernel in enumerate(mdp.kernels):
        arrays.update({f"kernel_{b}_{field}": getattr(kernel, field) for field in _KERNEL})
        if isinstance(kernel, CountBatch):
            arrays.update(_counted(f"kernel_{b}", kernel))
            if kernel.modes is not None:
                arrays[f"kernel_{b}_modes"] = kernel.modes.table
                arrays[f"kernel_{b}_rates"] = kernel.modes.rates
    for b, term in enumerate(mdp.rewards):
        arrays.update({f"reward_{b}_{field}": getattr(term, field) for field in _REWARD})
        if isinstance(term, CountRewardBatch):
            arrays.update(_counted(f"reward_{b}", term))
    if mdp.initial is not None:
        arrays["initial"] = mdp.initial
    for field in ("coordinate_names", "agent_names"):
        if getattr(mdp, field) is not None:
            arrays[field] = np.array(getattr(mdp, field), dtype=np.str_)
    archives.write(path, arrays)


def load(path: str | PathLike[str]) -> dict[str, Any]:
    """The constructor's arguments, read from a file that `save` wrote.

    Raises:
        InputError: The file is missing, not a model, of a later format, or damaged.
    """
    arrays = archives.read(path, "torchloc model", "model file")
    try:
        if "torchloc_model" not in arrays:
            raise InputError(f"{path} is no torchloc model; write one with FactoredMDP.save")
        version = int(arrays["torchloc_model"])
        if version not in range(1, FORMAT + 1):
            raise InputError(
                f"{path} has model format {version}, this version reads formats 1 to {FORMAT}; "
                f"write the model again with this version, or upgrade torchloc"
            )
        n_kernels, n_rewards = (int(count) for count in arrays["counts"])
        arguments: dict[str, Any] = {
            "state_sizes": arrays["state_sizes"],
            "action_sizes": arrays["action_sizes"],
            "kernels": [_kernel(arrays, f"kernel_{b}") for b in range(n_kernels)],
            "rewards": [_reward(arrays, f"reward_{b}") for b in range(n_rewards)],
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


def _counts(mdp: FactoredMDP) -> bool:
    return any(isinstance(b, CountBatch | CountRewardBatch) for b in (*mdp.kernels, *mdp.rewards))


def _counted(name: str, batch: CountBatch | CountRewardBatch) -> dict[str, Any]:
    counters = batch.counters
    return {f"{name}_counted_{field}": np.asarray(getattr(counters, field)) for field in _COUNTED}


def _weights(arrays: dict[str, Any], name: str) -> dict[str, Any]:
    return {field: arrays[f"{name}_counted_{field}"] for field in _COUNTED[2:]}


def _kernel(arrays: dict[str, Any], name: str) -> KernelBatch | CountBatch:
    coordinates, states, actions, table = (arrays[f"{name}_{field}"] for field in _KERNEL)
    if f"{name}_counted_states" not in arrays:
        return KernelBatch(coordinates, states, actions, table)
    counted_states, counted_actions = (arrays[f"{name}_counted_{x}"] for x in _COUNTED[:2])
    modes = None
    if f"{name}_modes" in arrays:
        modes = (arrays[f"{name}_modes"], arrays[f"{name}_rates"])
    weights = _weights(arrays, name)
    return CountBatch(
        coordinates, states, actions, counted_states, counted_actions, table, modes=modes, **weights
    )


def _reward(arrays: dict[str, Any], name: str) -> RewardBatch | CountRewardBatch:
    states, actions, table = (arrays[f"{name}_{field}"] for field in _REWARD)
    if f"{name}_counted_states" not in arrays:
        return RewardBatch(states, actions, table)
    counted_states, counted_actions = (arrays[f"{name}_counted_{x}"] for x in _COUNTED[:2])
    weights = _weights(arrays, name)
    return CountRewardBatch(states, actions, counted_states, counted_actions, table, **weights)
