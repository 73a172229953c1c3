"""Simulators: of the whole system, of single coordinates, and a known model as one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from torchloc.errors import InputError
from torchloc.estimation.contexts import ContextBatch, Contexts
from torchloc.estimation.sources import CHUNK, Advance, Tally, check_values, whole
from torchloc.mdp import FactoredMDP, KernelBatch
from torchloc.mdp.checks import IntArray, frozen, integers

Step = Callable[[IntArray, IntArray, np.random.Generator], ArrayLike]
"""(B, N) states, (B, K) actions → (B, N) next states, the rows drawn independently."""
Draw = Callable[[IntArray, IntArray, IntArray, np.random.Generator], ArrayLike]
"""(B,) coordinates, (B, p) and (B, q) values of their declared parents → (B,) next values, drawn independently."""

_MISSED = 1e-9
"""Probability that a random design leaves some context short; it is then bounded with what it has."""


@dataclass(frozen=True, eq=False)
class StepSimulator:
    """One step of the whole system from any state under any action.

    States and actions are drawn uniformly, so that one step serves all coordinates: some max_j C_j · n steps,
    whatever N is.

    Attributes:
        step: (B, N) states, (B, K) actions, a generator → (B, N) next states, drawn independently.
        state_sizes: (N,) sizes of the coordinates' spaces.
        action_sizes: (K,) sizes of the agents' action spaces.
    """

    step: Step
    state_sizes: IntArray
    action_sizes: IntArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "state_sizes", integers(self.state_sizes, "state_sizes", 1))
        object.__setattr__(self, "action_sizes", integers(self.action_sizes, "action_sizes", 1))

    def tally(
        self,
        contexts: Contexts,
        samples: int | None,
        generator: np.random.Generator | None,
        advance: Advance,
    ) -> Tally:
        """At least `samples` draws a context, at states and actions chosen without looking at what was drawn."""
        n, rng = _drawing(samples, generator)
        counts = [
            np.zeros(len(batch) * batch.n_contexts * batch.n_values, dtype=np.int64)
            for batch in contexts.batches
        ]
        total = design_size(contexts, n)
        length = max(1, CHUNK // (len(self.state_sizes) + len(self.action_sizes)))
        for start in range(0, total, length):
            rows = min(length, total - start)
            states = rng.integers(0, self.state_sizes, size=(rows, len(self.state_sizes)))
            actions = rng.integers(0, self.action_sizes, size=(rows, len(self.action_sizes)))
            following = _drawn(
                self.step(states, actions, rng), states.shape, "the simulator's step"
            )
            check_values(following, self.state_sizes, "the simulator's step", "coordinate")
            for batch, found in zip(contexts.batches, counts, strict=True):
                cells = batch.numbers(states, actions, slice(None))
                cells += np.arange(len(batch)) * batch.n_contexts
                np.add.at(found, cells * batch.n_values + following[:, batch.coordinates], 1)
            advance(start + rows, total)
        shaped = [
            frozen(found.reshape(len(batch), batch.n_contexts, batch.n_values))
            for batch, found in zip(contexts.batches, counts, strict=True)
        ]
        return Tally(contexts, tuple(shaped), 1)


def design_size(contexts: Contexts, samples: int) -> int:
    """Uniform steps after which every context has `samples` draws but with probability 1e-9.

    A context has Bin(Q, 1/C) draws; by Chernoff P(Bin ≤ μ − √(2 μ ℓ)) ≤ e^{−ℓ}, μ = Q/C.
    """
    largest = max(batch.n_contexts for batch in contexts.batches)
    log = math.log(contexts.n_contexts / _MISSED)
    root = (math.sqrt(2.0 * log) + math.sqrt(2.0 * log + 4.0 * samples)) / 2.0
    return samples if largest == 1 else math.ceil(largest * root**2)


@dataclass(frozen=True, eq=False)
class LocalSimulator:
    """Next values of single coordinates, in contexts of the estimate's choosing.

    Attributes:
        draw: (B,) coordinates, (B, p) values of their state parents, (B, q) of their action parents, a generator →
            (B,) next values, drawn independently. The parents are the declared ones in the declared order; the
            coordinates of one call have spaces of equal sizes.
        state_sizes: (N,) sizes of the coordinates' spaces.
        action_sizes: (K,) sizes of the agents' action spaces.
    """

    draw: Draw
    state_sizes: IntArray
    action_sizes: IntArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "state_sizes", integers(self.state_sizes, "state_sizes", 1))
        object.__setattr__(self, "action_sizes", integers(self.action_sizes, "action_sizes", 1))

    def tally(
        self,
        contexts: Contexts,
        samples: int | None,
        generator: np.random.Generator | None,
        advance: Advance,
    ) -> Tally:
        """Exactly `samples` draws a context."""
        n, rng = _drawing(samples, generator)
        total, done, counts = contexts.n_contexts * n, 0, []
        for batch in contexts.batches:
            n_cells = len(batch) * batch.n_contexts
            found = np.zeros((n_cells, batch.n_values), dtype=np.int64)
            for start in range(0, n_cells * n, CHUNK):
                cells = np.arange(start, min(start + CHUNK, n_cells * n)) // n
                rows = cells // batch.n_contexts
                states, actions = batch.values(cells % batch.n_contexts)
                values = _drawn(
                    self.draw(batch.coordinates[rows], states, actions, rng), cells.shape, "draw"
                )
                bad = (values < 0) | (values >= batch.n_values)
                if bad.any():
                    at = int(np.argmax(bad))
                    raise InputError(
                        f"draw returned {int(values[at])} for coordinate {int(batch.coordinates[rows[at]])}, "
                        f"which has {batch.n_values} values, numbered from 0"
                    )
                low, high = int(cells[0]), int(cells[-1]) + 1
                keys = (cells - low) * batch.n_values + values
                more = np.bincount(keys, minlength=(high - low) * batch.n_values)
                found[low:high] += more.reshape(high - low, batch.n_values)
                done += len(cells)
                advance(done, total)
            counts.append(frozen(found.reshape(len(batch), batch.n_contexts, batch.n_values)))
        return Tally(contexts, tuple(counts), 1)


def model_simulator(mdp: FactoredMDP) -> StepSimulator:
    """A known model as a simulator: to try an estimate where the truth is at hand.

    Raises:
        BudgetError: A kernel has too many parents to be written out as a table.

    Example:
        >>> import numpy as np
        >>> from torchloc.environments import sysadmin
        >>> source = model_simulator(sysadmin(n=3))
        >>> zeros = np.zeros((5, 3), dtype=np.int64)
        >>> source.step(zeros, zeros, np.random.default_rng(0)).shape
        (5, 3)
    """
    batches = [batch for batch in mdp.tabulated().kernels if isinstance(batch, KernelBatch)]
    thresholds = []
    for batch in batches:
        sums = np.cumsum(batch.table, axis=-1)
        cuts = sums[..., :-1] / sums[..., -1:]
        thresholds.append(cuts.reshape(math.prod(cuts.shape[:-1]), cuts.shape[-1]))

    def step(states: IntArray, actions: IntArray, generator: np.random.Generator) -> IntArray:
        following = np.empty(states.shape, dtype=np.int64)
        for batch, cuts in zip(batches, thresholds, strict=True):
            shape = (*batch.state_shape, *batch.action_shape)
            site = ContextBatch(
                batch.coordinates, batch.states, batch.actions, shape, batch.table.shape[-1]
            )
            cells = site.numbers(states, actions, slice(None))
            if len(batch.table) > 1:
                cells += np.arange(len(batch)) * site.n_contexts
            uniform = generator.random(cells.shape)
            drawn = np.zeros(cells.shape, dtype=np.int64)
            for column in cuts.T:
                drawn += uniform >= column[cells]
            following[:, batch.coordinates] = drawn
        return following

    return StepSimulator(step, mdp.state_sizes, mdp.action_sizes)


def _drawing(
    samples: int | None, generator: np.random.Generator | None
) -> tuple[int, np.random.Generator]:
    if samples is None:
        raise InputError("samples is missing: say how many draws a simulator gives each context")
    if generator is None:
        raise InputError("generator is missing: a simulator draws; give a numpy.random.Generator")
    return whole("samples", samples), generator


def _drawn(value: ArrayLike, shape: tuple[int, ...], what: str) -> IntArray:
    array = np.asarray(value)
    if array.shape != shape:
        raise InputError(
            f"{what} returned shape {array.shape}; it must be {shape}, one row a query"
        )
    if array.dtype.kind not in "iu":
        raise InputError(f"{what} returned {array.dtype} values; it must return whole numbers")
    return array.astype(np.int64)
