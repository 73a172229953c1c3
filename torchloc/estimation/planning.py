"""How many samples an estimate needs: formula (1) of `torchloc.estimation` solved for n."""

from __future__ import annotations

import math
from dataclasses import dataclass

from numpy.typing import ArrayLike

from torchloc.errors import InputError
from torchloc.estimation.bounds import log_confidence, radius
from torchloc.estimation.contexts import Parents, contexts
from torchloc.estimation.simulators import design_size


@dataclass(frozen=True)
class SamplePlan:
    """What an estimate takes.

    Attributes:
        samples: n, draws of each context; give it to `estimate_sensitivities`.
        width: The confidence width that n gives, at most the one asked for: how far an entry is above the distance
            of two empirical laws. In the mean that distance is itself above the true one of the pair, by at most
            √((S_j − 1)/(2n)).
        entries: M, entries that are estimated; δ is shared among them.
        contexts: Contexts of all coordinates together.
        draws: n times that: draws of a `LocalSimulator`.
        steps: Steps of a `StepSimulator`, each of the whole system.
    """

    samples: int
    width: float
    entries: int
    contexts: int
    draws: int
    steps: int


def samples_for(
    width: float,
    delta: float,
    *,
    state_sizes: ArrayLike,
    action_sizes: ArrayLike,
    state_parents: Parents | None = None,
    action_parents: Parents | None = None,
) -> SamplePlan:
    """The fewest draws a context with √(ln(M/δ)/n) ≤ width, for M entries and δ in all.

    Args:
        width: Confidence width of an entry, in (0, 1].
        delta: δ in (0, 1).
        state_sizes: (N,) sizes of the coordinates' spaces.
        action_sizes: (K,) sizes of the agents' action spaces.
        state_parents: As of `estimate_sensitivities`.
        action_parents: As of `estimate_sensitivities`.

    Raises:
        InputError: Something is out of range.
        BudgetError: More contexts than are counted.

    Example:
        >>> ring = [[7, 0], *([i - 1, i] for i in range(1, 8))]
        >>> own = [[i] for i in range(8)]
        >>> plan = samples_for(
        ...     0.05, 0.05, state_sizes=[2] * 8, action_sizes=[2] * 8, state_parents=ring, action_parents=own)
        >>> plan.samples, plan.entries, plan.contexts, plan.draws
        (2470, 24, 64, 158080)
    """
    if not 0.0 < width <= 1.0:
        raise InputError(f"width is {width}; it must lie in (0, 1], a total variation is at most 1")
    if not 0.0 < delta < 1.0:
        raise InputError(f"delta is {delta}; it must lie in (0, 1)")
    layout = contexts(state_sizes, action_sizes, state_parents, action_parents)
    log_inverse = log_confidence(layout.n_entries, delta)
    n = max(1, math.floor(log_inverse / width**2))
    while radius(n, n, log_inverse) > width:
        n += 1
    return SamplePlan(
        samples=n,
        width=float(radius(n, n, log_inverse)),
        entries=layout.n_entries,
        contexts=layout.n_contexts,
        draws=layout.n_contexts * n,
        steps=design_size(layout, n),
    )
