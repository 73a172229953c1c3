"""From counted draws to upper confidence bounds of E^s and E^a: formula (1) of `torchloc.estimation`."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from torchloc.certificate import Sensitivities
from torchloc.certificate.given import EXACT, UCB
from torchloc.errors import InputError
from torchloc.estimation import files
from torchloc.estimation.contexts import ContextBatch, Contexts, Parents, contexts
from torchloc.estimation.sources import Advance, Source, Tally
from torchloc.mdp.checks import FloatArray, IntArray

UNIT = 2.0**-53
_CELLS = 1_000_000


@dataclass(frozen=True, eq=False, kw_only=True)
class SensitivityEstimate(Sensitivities):
    """Sensitivities bounded from samples, with the counts that they come from.

    `torchloc.certify` takes it in place of a model; `maximum_likelihood` makes a model to train on of it.

    Attributes:
        tally: The counts in every context.
    """

    tally: Tally

    @property
    def contexts(self) -> Contexts:
        """Whose parents were counted."""
        return self.tally.contexts

    @property
    def samples(self) -> int:
        """Draws that were used, all coordinates together."""
        return sum(int(counts.sum()) for counts in self.tally.counts)

    @property
    def visited(self) -> int:
        """Contexts with a draw that was used."""
        return sum(int(counts.any(axis=-1).sum()) for counts in self.tally.counts)

    @property
    def unvisited(self) -> int:
        """Contexts without one; every entry that needs such a context is 1."""
        return self.contexts.n_contexts - self.visited

    def save(self, path: str | PathLike[str]) -> None:
        """Writes everything to a `.npz` file, without pickle; reward terms with counters as tables."""
        files.save(path, self, self.tally)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SensitivityEstimate:
        """Reads what `save` wrote.

        Raises:
            InputError: The file is missing, no estimate, of a later format, or damaged.
        """
        return files.load(cls, path)

    def __repr__(self) -> str:
        return (
            f"SensitivityEstimate({self.n_coordinates} coordinates, {self.n_agents} agents, {self.samples} "
            f"samples in {self.visited} of {self.contexts.n_contexts} contexts, delta {self.delta:g})"
        )


def estimate_sensitivities(
    source: Source,
    *,
    delta: float,
    samples: int | None = None,
    state_parents: Parents | None = None,
    action_parents: Parents | None = None,
    generator: np.random.Generator | None = None,
    progress: bool | None = None,
    description: str = "",
) -> SensitivityEstimate:
    """Upper confidence bounds of E^s and E^a that hold all at once with probability at least 1 − delta.

    Args:
        source: A `TransitionLog`, a `StepSimulator` or a `LocalSimulator`.
        delta: δ in (0, 1).
        samples: Draws of each context by a simulator (`samples_for` plans them). Of a log, how many first visits of
            each context are used, contexts with fewer counting as not visited; None: as many as a fixed grid
            of sizes allows, at the price of a union over these sizes.
        state_parents: For each coordinate, the coordinates that its next value may depend on; entries outside are 0,
            tagged `assumed`. None: all, and every joint state is a context.
        action_parents: Likewise the agents.
        generator: Source of randomness of a simulator.
        progress: Whether a bar is drawn on standard error; None: where that is a terminal.
        description: Where the samples come from, in words; kept with the result.

    Returns:
        E^s and E^a from above, each entry tagged.

    Raises:
        InputError: Something is missing or out of range, or parents that there are not.
        BudgetError: More contexts than are counted.

    Example:
        >>> import numpy as np
        >>> from torchloc.environments import line_msg
        >>> from torchloc.estimation import model_simulator
        >>> parents = [[1], [2], []]
        >>> estimate = estimate_sensitivities(
        ...     model_simulator(line_msg(3)), delta=0.05, samples=4000, state_parents=parents,
        ...     action_parents=[[], [1], [2]], generator=np.random.default_rng(0))
        >>> estimate.weakest, estimate.unvisited, estimate.state.toarray().round(1).tolist()
        ('assumed', 0, [[0.0, 1.0, 0.0], [0.0, 0.0, 0.2], [0.0, 0.0, 0.0]])
    """
    if not 0.0 < delta < 1.0:
        raise InputError(f"delta is {delta}; it must lie in (0, 1)")
    layout = contexts(source.state_sizes, source.action_sizes, state_parents, action_parents)
    with _bar(progress) as advance:
        tally = source.tally(layout, samples, generator, advance)
    return bounded(tally, delta, description)


def bounded(tally: Tally, delta: float, description: str = "") -> SensitivityEstimate:
    """The estimate of counted draws."""
    layout = tally.contexts
    log_inverse = log_confidence(layout.n_entries, delta, tally.sizes_tried)
    of_state, of_action = _Entries(), _Entries()
    for batch, counts in zip(layout.batches, tally.counts, strict=True):
        found = _entries(batch, counts, log_inverse)
        tags = np.array([UCB if flag else EXACT for flag in batch.informative], dtype=np.int8)
        p = batch.states.shape[1]
        of_state.add(batch.coordinates, batch.states, found[:, :p], tags[:p])
        of_action.add(batch.coordinates, batch.actions, found[:, p:], tags[p:])
    n, n_agents = len(layout.state_sizes), len(layout.action_sizes)
    state, state_tags = of_state.matrix((n, n))
    action, action_tags = of_action.matrix((n, n_agents))
    return SensitivityEstimate(
        state_sizes=layout.state_sizes,
        action_sizes=layout.action_sizes,
        state=state,
        action=action,
        state_tags=state_tags,
        action_tags=action_tags,
        absent="assumed" if layout.declared else "exact",
        delta=delta if layout.n_entries else 0.0,
        description=description,
        tally=tally,
    )


def log_confidence(entries: int, delta: float, sizes_tried: int = 1) -> float:
    """ln(1/δ') with δ' = δ / (M L²): M entries, L sizes that each of two contexts may have."""
    return math.log(max(entries, 1) / delta) + 2.0 * math.log(sizes_tried)


def radius(first_count: ArrayLike, second_count: ArrayLike, log_inverse: float) -> FloatArray:
    """√((1/n₁ + 1/n₂) ln(1/δ') / 2), rounded up; ∞ where a count is 0."""
    with np.errstate(divide="ignore"):
        spread = 1.0 / np.asarray(first_count, np.float64) + 1.0 / np.asarray(
            second_count, np.float64
        )
    return np.sqrt(spread * (log_inverse / 2.0)) * (1.0 + 8.0 * UNIT)


def _entries(batch: ContextBatch, counts: IntArray, log_inverse: float) -> FloatArray:
    """(B, p + q) bounds (1), rounded up."""
    result = np.zeros((len(batch), len(batch.sizes)))
    width = max(1, _CELLS // (batch.n_contexts * batch.n_values))
    # A computed TV of two computed laws is off by at most a rounding of each of its 4 S operations.
    rounding = 4.0 * (batch.n_values + 2) * UNIT
    for start in range(0, len(batch), width):
        rows = slice(start, start + width)
        part = counts[rows]
        total = part.sum(axis=-1)
        laws = part / np.maximum(total, 1)[..., None]
        shaped = laws.reshape(len(part), *batch.sizes, batch.n_values)
        sizes = total.reshape(len(part), *batch.sizes)
        for column, informative in enumerate(batch.informative):
            if not informative:
                continue
            law, size = (np.moveaxis(array, 1 + column, 0) for array in (shaped, sizes))
            for x, y in itertools.combinations(range(len(law)), 2):
                distance = 0.5 * np.abs(law[x] - law[y]).sum(axis=-1)
                distance += radius(size[x], size[y], log_inverse) + rounding
                worst = distance.reshape(len(part), -1).max(axis=1)
                np.maximum(result[rows, column], worst, out=result[rows, column])
    return np.minimum(result, 1.0)


class _Entries:
    """Entries of a matrix gathered batch by batch, each with its tag."""

    def __init__(self) -> None:
        none = np.zeros(0, dtype=np.int64)
        self.rows, self.columns = [none], [none]
        self.values, self.tags = [np.zeros(0)], [np.zeros(0, dtype=np.int8)]

    def add(self, sites: IntArray, causes: IntArray, values: FloatArray, tags: np.ndarray) -> None:
        self.rows.append(np.repeat(sites, causes.shape[1]))
        self.columns.append(causes.ravel())
        self.values.append(values.ravel())
        self.tags.append(np.tile(tags, len(sites)))

    def matrix(self, shape: tuple[int, int]) -> tuple[sp.csr_array, np.ndarray]:
        """CSR in canonical order, zeros kept, and the tags in the order of its data."""
        rows, columns = np.concatenate(self.rows), np.concatenate(self.columns)
        order = np.lexsort((columns, rows))
        starts = np.zeros(shape[0] + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=shape[0]), out=starts[1:])
        values, tags = np.concatenate(self.values), np.concatenate(self.tags)
        return sp.csr_array((values[order], columns[order], starts), shape=shape), tags[order]


@contextmanager
def _bar(progress: bool | None) -> Iterator[Advance]:
    """A progress bar on standard error, or none."""
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda done, total: None
        return
    # Late: an estimate without a bar starts without rich.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("counting"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task("counting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
