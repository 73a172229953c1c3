"""Estimates as `.npz` files: plain arrays, a format number, never pickle."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from torchloc.certificate import TAGS, Sensitivities
from torchloc.errors import InputError
from torchloc.estimation.contexts import ContextBatch, Contexts
from torchloc.estimation.sources import Tally
from torchloc.mdp import RewardBatch, archives
from torchloc.mdp.checks import integers

if TYPE_CHECKING:
    from torchloc.estimation.bounds import SensitivityEstimate

FORMAT = 1
_PLAIN = ("state_sizes", "action_sizes", "state_tags", "action_tags")
_CSR = ("data", "indices", "indptr")
_BATCH = ("coordinates", "states", "actions")
_REWARD = ("states", "actions", "table")


def save(path: str | PathLike[str], estimate: Sensitivities, tally: Tally) -> None:
    """Writes to a temporary file beside `path`, then renames: a reader never sees half a file."""
    rewards = None
    if estimate.rewards is not None:
        rewards = [
            table
            for term in estimate.rewards
            for table in ([term] if isinstance(term, RewardBatch) else term.tables())
        ]
    batches = tally.contexts.batches
    arrays: dict[str, Any] = {
        "torchloc_estimate": np.int64(FORMAT),
        "absent": np.int64(TAGS.index(estimate.absent)),
        "delta": np.float64(estimate.delta),
        "description": np.array(estimate.description, dtype=np.str_),
        "declared": np.bool_(tally.contexts.declared),
        "sizes_tried": np.int64(tally.sizes_tried),
        "batches": np.int64(len(batches)),
        "rewards": np.int64(-1 if rewards is None else len(rewards)),
        **{field: getattr(estimate, field) for field in _PLAIN},
    }
    for name in ("state", "action"):
        matrix = getattr(estimate, name)
        arrays.update({f"{name}_{field}": getattr(matrix, field) for field in _CSR})
    for b, (batch, counts) in enumerate(zip(batches, tally.counts, strict=True)):
        arrays.update({f"batch_{b}_{field}": getattr(batch, field) for field in _BATCH})
        arrays[f"batch_{b}_sizes"] = np.array(batch.sizes, dtype=np.int64)
        arrays[f"batch_{b}_counts"] = counts
    for b, term in enumerate(rewards or ()):
        arrays.update({f"reward_{b}_{field}": getattr(term, field) for field in _REWARD})
    if estimate.reward_bound is not None:
        arrays["reward_bound"] = estimate.reward_bound
    archives.write(path, arrays)


def load(cls: type[SensitivityEstimate], path: str | PathLike[str]) -> SensitivityEstimate:
    """Reads a file that `save` wrote.

    Raises:
        InputError: The file is missing, no estimate, of a later format, or damaged.
    """
    arrays = archives.read(path, "torchloc estimate", "file")
    try:
        if "torchloc_estimate" not in arrays:
            raise InputError(
                f"{path} is no torchloc estimate; write one with SensitivityEstimate.save"
            )
        version = int(arrays["torchloc_estimate"])
        if version != FORMAT:
            raise InputError(
                f"{path} has estimate format {version}, this version reads format {FORMAT}; upgrade torchloc"
            )
        tally = _tally(arrays)
        n, n_agents = len(arrays["state_sizes"]), len(arrays["action_sizes"])
        matrices = {
            name: sp.csr_array(
                tuple(arrays[f"{name}_{field}"] for field in _CSR), shape=(n, columns)
            )
            for name, columns in (("state", n), ("action", n_agents))
        }
        for matrix in matrices.values():
            # Indices out of range would be read beyond the arrays.
            matrix.check_format(full_check=True)
        count = int(arrays["rewards"])
        return cls(
            **{field: arrays[field] for field in _PLAIN},
            **matrices,
            absent=TAGS[int(arrays["absent"])],
            delta=float(arrays["delta"]),
            description=str(arrays["description"]),
            rewards=None
            if count < 0
            else tuple(
                RewardBatch(*(arrays[f"reward_{b}_{field}"] for field in _REWARD))
                for b in range(count)
            ),
            reward_bound=arrays.get("reward_bound"),
            tally=tally,
        )
    except KeyError as error:
        raise InputError(f"{path} is damaged: the array {error} is missing") from error
    except (IndexError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged: {error}") from error


def _tally(arrays: dict[str, Any]) -> Tally:
    batches, counts = [], []
    for b in range(int(arrays["batches"])):
        found = arrays[f"batch_{b}_counts"]
        sizes = tuple(arrays[f"batch_{b}_sizes"].tolist())
        parents = [
            integers(
                arrays[f"batch_{b}_{field}"], f"batch_{b}_{field}", 1 + (field != "coordinates")
            )
            for field in _BATCH
        ]
        batch = ContextBatch(parents[0], parents[1], parents[2], sizes, found.shape[-1])
        if found.shape != (len(batch), batch.n_contexts, batch.n_values) or (found < 0).any():
            raise InputError(
                f"the counts of batch {b} have shape {found.shape}, which does not fit its parents"
            )
        batches.append(batch)
        counts.append(integers(found, f"batch_{b}_counts", 3))
    layout = Contexts(
        integers(arrays["state_sizes"], "state_sizes", 1),
        integers(arrays["action_sizes"], "action_sizes", 1),
        tuple(batches),
        bool(arrays["declared"]),
    )
    return Tally(layout, tuple(counts), int(arrays["sizes_tried"]))
