"""The factored MDP: local spaces, one kernel a coordinate, reward terms, an initial product law."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from os import PathLike

import numpy as np
from numpy.typing import ArrayLike

from torchloc.errors import InputError
from torchloc.mdp import files
from torchloc.mdp.checks import (
    FloatArray,
    IntArray,
    check_parents,
    first,
    frozen,
    integers,
    names,
    normalised,
    reals,
)
from torchloc.mdp.counted import TABLE_ENTRIES
from torchloc.mdp.counts import CountKernel
from torchloc.mdp.gathering import Kernels, Rewards, gather_kernels, gather_rewards
from torchloc.mdp.kernels import KernelBatch, LocalKernel
from torchloc.mdp.rewards import LocalReward, RewardBatch


class FactoredMDP:
    """A factored multi-agent MDP with finite local spaces (paper, Section 2). Immutable.

    Args:
        state_sizes: (N,) sizes S_i ≥ 1 of the coordinates' spaces.
        action_sizes: (K,) sizes A_k ≥ 1 of the agents' action spaces; K may differ from N.
        kernels: One kernel a coordinate: `LocalKernel` and `CountKernel` objects, which drive the
            coordinates in order, or `KernelBatch` and `CountBatch` objects, which name theirs; in a
            mixture the singles take what the batches leave.
        rewards: Reward terms, `LocalReward` singles or `RewardBatch` and `CountRewardBatch` batches;
            the reward is their sum.
        initial: Product law of the first state: N vectors, or an (N, max S) array padded with
            zeros. None where a run needs no law (average reward); simulation then starts uniformly.
        coordinate_names: N distinct names, or None.
        agent_names: K distinct names, or None.

    Attributes:
        kernels: Kernel batches; every coordinate stands in exactly one row of one batch.
        rewards: Reward batches.
        initial: (N, max S) float64 padded with zeros, or None.

    Raises:
        InputError: Anything does not fit; the message names the field, index, value and the mend.

    Example:
        >>> import numpy as np
        >>> copy = LocalKernel(states=(1,), actions=(), table=np.eye(2))
        >>> act = LocalKernel(states=(), actions=(0,), table=np.eye(2))
        >>> mdp = FactoredMDP([2, 2], [2], [copy, act], [LocalReward((0,), (), [0.0, 1.0])])
        >>> mdp.n_coordinates, mdp.n_agents, mdp.n_states
        (2, 1, 4)
    """

    def __init__(
        self,
        state_sizes: ArrayLike,
        action_sizes: ArrayLike,
        kernels: Iterable[LocalKernel | CountKernel | Kernels],
        rewards: Iterable[LocalReward | Rewards],
        *,
        initial: Sequence[ArrayLike] | FloatArray | None = None,
        coordinate_names: Sequence[str] | None = None,
        agent_names: Sequence[str] | None = None,
    ) -> None:
        self.state_sizes: IntArray = _sizes(state_sizes, "state_sizes", "coordinate")
        self.action_sizes: IntArray = _sizes(action_sizes, "action_sizes", "agent")
        if self.n_coordinates == 0:
            raise InputError("state_sizes is empty; a model needs at least one coordinate")
        self.kernels: tuple[Kernels, ...] = gather_kernels(kernels, self.n_coordinates)
        for kernel in self.kernels:
            self._check_scope(kernel, kernel.place)
            driven = self.state_sizes[kernel.coordinates]
            if (driven != kernel.table.shape[-1]).any():
                row = int(np.argmax(driven != kernel.table.shape[-1]))
                raise InputError(
                    f"kernel of coordinate {int(kernel.coordinates[row])}: its laws have "
                    f"{kernel.table.shape[-1]} entries, but the coordinate has {int(driven[row])} "
                    f"states; give one probability a state"
                )
        terms = gather_rewards(rewards)
        for term, place in terms:
            self._check_scope(term, place)
        self.rewards: tuple[Rewards, ...] = tuple(term for term, _ in terms)
        self.initial: FloatArray | None = (
            None if initial is None else _initial(initial, self.state_sizes)
        )
        self.coordinate_names = names(coordinate_names, "coordinate_names", self.n_coordinates)
        self.agent_names = names(agent_names, "agent_names", self.n_agents)
        self._built = True

    def __setattr__(self, name: str, value: object) -> None:
        if "_built" in self.__dict__:
            raise AttributeError(
                f"{name} cannot be set: a FactoredMDP is immutable, build a new one"
            )
        super().__setattr__(name, value)

    def _check_scope(self, batch: Kernels | Rewards, place: Callable[[int], str]) -> None:
        for kind, parents, sizes, shape, skipped in (
            ("coordinate", batch.states, self.state_sizes, batch.state_shape, 0),
            ("agent", batch.actions, self.action_sizes, batch.action_shape, batch.states.shape[1]),
        ):
            check_parents(parents, place, len(sizes), kind)
            wrong = sizes[parents] != np.array(shape, dtype=np.int64)
            if wrong.any():
                row, column = first(wrong)
                raise InputError(
                    f"{place(row)}: axis {skipped + column} of its table has size {shape[column]}, "
                    f"but it belongs to {kind} {int(parents[row, column])}, which has size "
                    f"{int(sizes[parents[row, column]])}; order the axes as the parents"
                )
        if not isinstance(batch, KernelBatch | RewardBatch):
            batch.counters.check(self.state_sizes, self.action_sizes, place)

    @property
    def n_coordinates(self) -> int:
        """N."""
        return len(self.state_sizes)

    @property
    def n_agents(self) -> int:
        """K."""
        return len(self.action_sizes)

    @property
    def n_states(self) -> int:
        """Number of joint states Π S_i, an exact int."""
        return _product(self.state_sizes)

    @property
    def n_joint_actions(self) -> int:
        """Number of joint actions Π A_k, an exact int."""
        return _product(self.action_sizes)

    def coordinate_name(self, i: int) -> str:
        """Name of coordinate i; its number where the model has no names."""
        return self.coordinate_names[i] if self.coordinate_names else str(i)

    def agent_name(self, k: int) -> str:
        """Name of agent k; its number where the model has no names."""
        return self.agent_names[k] if self.agent_names else str(k)

    def state_edges(self) -> tuple[IntArray, IntArray]:
        """(influenced j, cause i) for every state parent i of a kernel j; two (edges,) arrays."""
        return _edges((kernel.coordinates, kernel.state_parents) for kernel in self.kernels)

    def action_edges(self) -> tuple[IntArray, IntArray]:
        """(influenced j, agent k) for every action parent k of a kernel j; two (edges,) arrays."""
        return _edges((kernel.coordinates, kernel.action_parents) for kernel in self.kernels)

    def tabulated(self, entries: int = TABLE_ENTRIES) -> FactoredMDP:
        """The same model with every kernel and reward term as a table; itself where all are.

        Args:
            entries: Entries of one site's table at most.

        Raises:
            BudgetError: A site with counters has more.
        """
        if all(isinstance(b, KernelBatch | RewardBatch) for b in (*self.kernels, *self.rewards)):
            return self
        return FactoredMDP(
            self.state_sizes,
            self.action_sizes,
            [
                table
                for kernel in self.kernels
                for table in (
                    [kernel] if isinstance(kernel, KernelBatch) else kernel.tables(entries)
                )
            ],
            [
                table
                for term in self.rewards
                for table in ([term] if isinstance(term, RewardBatch) else term.tables(entries))
            ],
            initial=self.initial,
            coordinate_names=self.coordinate_names,
            agent_names=self.agent_names,
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the model to a `.npz` file, without pickle. `load` gives it back bit for bit."""
        files.save(path, self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> FactoredMDP:
        """Reads a model written by `save`.

        Raises:
            InputError: The file is missing, not a model, or damaged.
        """
        return cls(**files.load(path))

    def __repr__(self) -> str:
        return (
            f"FactoredMDP({self.n_coordinates} coordinates, {self.n_agents} agents, "
            f"{sum(map(len, self.rewards))} reward terms)"
        )


def _sizes(value: ArrayLike, field: str, kind: str) -> IntArray:
    sizes = integers(value, field, 1)
    if (sizes < 1).any():
        index = int(np.argmax(sizes < 1))
        raise InputError(
            f"{field}: {kind} {index} has size {int(sizes[index])}; a space needs at least one "
            f"element"
        )
    return sizes


def _product(sizes: IntArray) -> int:
    # Powers of the few distinct sizes: a plain product is quadratic in the number of entries.
    values, counts = np.unique(sizes, return_counts=True)
    return math.prod(int(v) ** int(c) for v, c in zip(values, counts, strict=True))


def _initial(value: Sequence[ArrayLike] | FloatArray, sizes: IntArray) -> FloatArray:
    width = int(sizes.max())
    if isinstance(value, np.ndarray) and value.ndim == 0:
        raise InputError(f"initial is {value}; give one law a coordinate")
    if len(value) != len(sizes):
        raise InputError(
            f"initial has {len(value)} laws, but the model has {len(sizes)} coordinates; "
            f"give one each"
        )
    if isinstance(value, np.ndarray) and value.ndim == 2:
        padded = reals(value, "initial")
        if padded.shape[1] != width:
            raise InputError(
                f"initial has shape {padded.shape}; it must be ({len(sizes)}, {width})"
            )
    else:
        padded = np.zeros((len(sizes), width))
        for i, law in enumerate(value):
            row = reals(law, f"initial law of coordinate {i}")
            if row.shape != (sizes[i],):
                raise InputError(
                    f"initial law of coordinate {i} has shape {row.shape}, but the coordinate has "
                    f"{int(sizes[i])} states"
                )
            padded[i, : len(row)] = row
    beyond = (np.arange(width) >= sizes[:, None]) & (padded != 0)
    if beyond.any():
        i, x = first(beyond)
        raise InputError(
            f"initial law of coordinate {i} has {padded[i, x]:.6g} at value {x}, but the "
            f"coordinate has {int(sizes[i])} states; pad with zeros"
        )
    return frozen(normalised(padded, lambda i: f"initial law of coordinate {i}"))


def _edges(parts: Iterable[tuple[IntArray, IntArray]]) -> tuple[IntArray, IntArray]:
    pairs = [
        (np.repeat(coordinates, parents.shape[1]), parents.ravel())
        for coordinates, parents in parts
    ]
    return (
        np.concatenate([target for target, _ in pairs]),
        np.concatenate([source for _, source in pairs]),
    )
