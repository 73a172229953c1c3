"""Logged transitions, and which of their visits are used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from torchloc.errors import InputError
from torchloc.estimation.contexts import ContextBatch, Contexts
from torchloc.estimation.sources import CHUNK, Advance, Tally, check_values, whole
from torchloc.evaluation.simulator import Simulator
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import IntArray, frozen, integers
from torchloc.policy import SoftmaxPolicy


def _grid() -> IntArray:
    sizes = [1]
    while sizes[-1] < 2**61:
        sizes.append(max(sizes[-1] + 1, sizes[-1] * 5 // 4))
    return np.array(sizes)


GRID = _grid()
"""Numbers of visits that a log without `samples` may use: fixed once and for all, so any stopping rule is covered."""


@dataclass(frozen=True, eq=False)
class TransitionLog:
    """Transitions (s, a, s') in the order in which they happened, or of independent runs one after the other.

    Rows need not be consecutive steps, but the choice of a row's state and action, and whether it is kept, must
    not depend on its own s' or on later ones.

    Attributes:
        states: (T, N) integers.
        actions: (T, K) integers.
        following: (T, N) integers.
        state_sizes: (N,) sizes of the coordinates' spaces.
        action_sizes: (K,) sizes of the agents' action spaces.

    Raises:
        InputError: Shapes that do not agree, or a value out of range; the message names the row.

    Example:
        >>> log = TransitionLog([[0], [1]], [[0], [0]], [[1], [1]], [2], [1])
        >>> len(log)
        2
    """

    states: NDArray[np.integer]
    actions: NDArray[np.integer]
    following: NDArray[np.integer]
    state_sizes: IntArray
    action_sizes: IntArray

    def __init__(
        self,
        states: ArrayLike,
        actions: ArrayLike,
        following: ArrayLike,
        state_sizes: ArrayLike,
        action_sizes: ArrayLike,
    ) -> None:
        of_state = integers(state_sizes, "state_sizes", 1)
        of_action = integers(action_sizes, "action_sizes", 1)
        length = len(np.asarray(states)) if np.ndim(states) else 0
        for field, value, sizes, kind in (
            ("states", states, of_state, "coordinate"),
            ("actions", actions, of_action, "agent"),
            ("following", following, of_state, "coordinate"),
        ):
            array = _logged(value, field, sizes, kind)
            if len(array) != length:
                raise InputError(
                    f"{field} has {len(array)} rows, but states has {length}; give one a transition"
                )
            object.__setattr__(self, field, array)
        object.__setattr__(self, "state_sizes", of_state)
        object.__setattr__(self, "action_sizes", of_action)

    def __len__(self) -> int:
        return len(self.states)

    @classmethod
    def rollout(
        cls,
        mdp: FactoredMDP,
        policy: SoftmaxPolicy,
        *,
        steps: int,
        replicas: int = 1,
        generator: torch.Generator,
    ) -> TransitionLog:
        """The transitions of simulated runs of a known model: R replicas, `steps` steps each.

        Raises:
            InputError: The policy does not fit, or a count is not ≥ 1.
        """
        for field, value in (("steps", steps), ("replicas", replicas)):
            whole(field, value)
        simulator = Simulator(mdp, policy)
        states, parts = simulator.start(replicas, generator), []
        for _ in range(steps):
            following, actions = simulator.step(states, generator)
            parts.append((states.T, actions.T, following.T))
            states = following
        joined = [torch.cat(part).numpy() for part in zip(*parts, strict=True)]
        return cls(joined[0], joined[1], joined[2], mdp.state_sizes, mdp.action_sizes)

    def tally(
        self,
        contexts: Contexts,
        samples: int | None,
        generator: np.random.Generator | None,
        advance: Advance,
    ) -> Tally:
        """First visits, counted: `samples` of each context, or the largest number of `GRID` that it reached."""
        if samples is not None:
            whole("samples", samples)
        counts, done, total = [], 0, len(self.state_sizes)
        for batch in contexts.batches:
            found = np.zeros((len(batch), batch.n_contexts, batch.n_values), dtype=np.int64)
            width = max(1, CHUNK // max(len(self), 1))
            for start in range(0, len(batch), width):
                rows = slice(start, start + width)
                found[rows] = self._first_visits(batch, rows, samples)
                done += len(batch.coordinates[rows])
                advance(done, total)
            counts.append(frozen(found))
        return Tally(contexts, tuple(counts), len(GRID) if samples is None else 1)

    def _first_visits(self, batch: ContextBatch, rows: slice, samples: int | None) -> IntArray:
        """(b, C, S) counts of the first visits of some rows of a batch."""
        coordinates = batch.coordinates[rows]
        n_cells = len(coordinates) * batch.n_contexts
        cells = batch.numbers(self.states, self.actions, rows)
        cells += np.arange(len(coordinates)) * batch.n_contexts
        cells = cells.ravel()
        values = self.following[:, coordinates].ravel()
        visits = np.bincount(cells, minlength=n_cells)
        if samples is None:
            reached = np.searchsorted(GRID, visits, side="right")
            used = np.where(visits > 0, GRID[np.maximum(reached - 1, 0)], 0)
        else:
            used = np.where(visits >= samples, samples, 0)
        if (used != visits).any():
            # A stable sort keeps the visits of a cell in the order in which they happened.
            order = np.argsort(cells, kind="stable")
            starts = np.cumsum(visits) - visits
            rank = np.arange(len(order)) - starts[cells[order]]
            kept = order[rank < used[cells[order]]]
            cells, values = cells[kept], values[kept]
        keys = cells * batch.n_values + values
        counts = np.bincount(keys, minlength=n_cells * batch.n_values)
        return counts.reshape(len(coordinates), batch.n_contexts, batch.n_values)


def _logged(value: ArrayLike, field: str, sizes: IntArray, kind: str) -> NDArray[np.integer]:
    """(T, n) integers below their sizes, in the smallest type that holds them."""
    array = np.asarray(value)
    if array.ndim != 2 or array.shape[1] != len(sizes):
        raise InputError(
            f"{field} has shape {array.shape}; it must be (T, {len(sizes)}), a row a transition and a column "
            f"a {kind}"
        )
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(f"{field} is of type {array.dtype}; give whole numbers")
    check_values(array, sizes, field, kind)
    small = np.min_scalar_type(int(sizes.max(initial=1)) - 1)
    return frozen(array.astype(small))
