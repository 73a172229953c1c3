"""A model to train on, fitted to the same counts: a means, never the truth.

    P̂_j(x | c) = (count(c, x) + α) / (n_c + α S_j),      uniform where n_c = 0 and α = 0.

With α = 0 this is the maximum of the likelihood, with α > 0 the mean under a Dirichlet(α, …, α) prior. Nothing that is
computed on it, its certificate included, is proved of the system that was sampled: its influences are too small
wherever the samples happen to be alike. What is proved comes from the estimate, which a `FittedModel`
carries along: train on `training_model`, certify by `certify(fitted.estimate, policy)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from torchloc.errors import InputError
from torchloc.estimation.bounds import SensitivityEstimate
from torchloc.estimation.logs import TransitionLog
from torchloc.mdp import FactoredMDP, KernelBatch, LocalReward
from torchloc.mdp.checks import FloatArray, integers
from torchloc.mdp.gathering import Rewards


@dataclass(frozen=True, eq=False)
class FittedModel:
    """A fitted model beside the estimate of its source. `certify` refuses it, and says what to give instead.

    Attributes:
        training_model: To train and simulate on.
        estimate: To certify with.
        pseudo_count: α.
    """

    training_model: FactoredMDP
    estimate: SensitivityEstimate
    pseudo_count: float


def maximum_likelihood(
    estimate: SensitivityEstimate,
    *,
    rewards: Iterable[LocalReward | Rewards] | None = None,
    pseudo_count: float = 1.0,
    initial: Sequence[ArrayLike] | FloatArray | None = None,
    coordinate_names: Sequence[str] | None = None,
    agent_names: Sequence[str] | None = None,
) -> FittedModel:
    """Fits a model to the counts of an estimate, on the parents that were declared.

    Args:
        estimate: What was sampled.
        rewards: Reward terms, known or by `mean_rewards`; None: those of the estimate, or none.
        pseudo_count: α ≥ 0 added to every count; a small one keeps what was never seen possible.
        initial: Product law of the first state, as of `FactoredMDP`.
        coordinate_names: N distinct names.
        agent_names: K distinct names.

    Raises:
        InputError: α is negative or not finite, or something does not fit.

    Example:
        >>> import numpy as np
        >>> import torchloc as tl
        >>> from torchloc.environments import sysadmin
        >>> from torchloc.estimation import estimate_sensitivities, model_simulator
        >>> truth = sysadmin(3)
        >>> estimate = estimate_sensitivities(
        ...     model_simulator(truth), delta=0.05, samples=500, generator=np.random.default_rng(0))
        >>> fitted = maximum_likelihood(estimate.with_rewards(truth.rewards))
        >>> model = fitted.training_model
        >>> policy = tl.SoftmaxPolicy.tabular(model, [[0], [1], [2]])
        >>> tl.certify(fitted.estimate, policy).weakest
        'ucb'
    """
    alpha = float(pseudo_count)
    if not (math.isfinite(alpha) and alpha >= 0.0):
        raise InputError(f"pseudo_count is {pseudo_count}; it must be finite and ≥ 0")
    kernels = []
    for batch, counts in zip(estimate.contexts.batches, estimate.tally.counts, strict=True):
        total = counts.sum(axis=-1, keepdims=True) + alpha * batch.n_values
        laws = np.where(
            total > 0.0, (counts + alpha) / np.where(total > 0.0, total, 1.0), 1.0 / batch.n_values
        )
        table = laws.reshape(len(batch), *batch.sizes, batch.n_values)
        kernels.append(KernelBatch(batch.coordinates, batch.states, batch.actions, table))
    known = estimate.rewards or () if rewards is None else rewards
    model = FactoredMDP(
        estimate.state_sizes,
        estimate.action_sizes,
        kernels,
        known,
        initial=initial,
        coordinate_names=coordinate_names,
        agent_names=agent_names,
    )
    return FittedModel(model, estimate, alpha)


def mean_rewards(
    log: TransitionLog, scopes: Sequence[tuple[ArrayLike, ArrayLike]], values: ArrayLike
) -> list[LocalReward]:
    """Reward terms as means of what was logged, to train on; the mean of the whole column where nothing was seen.

    Args:
        log: T transitions.
        scopes: For each of M terms the coordinates and the agents that it reads.
        values: (T, M) logged values of the terms.

    Raises:
        InputError: Shapes do not agree, a value is not finite, or a scope names what there is not.

    Example:
        >>> log = TransitionLog([[0], [1], [1]], [[0], [0], [0]], [[1], [1], [0]], [2], [1])
        >>> mean_rewards(log, [((0,), ())], [[1.0], [2.0], [4.0]])[0].table.tolist()
        [1.0, 3.0]
    """
    seen = np.asarray(values, dtype=np.float64)
    if seen.shape != (len(log), len(scopes)):
        raise InputError(
            f"values has shape {seen.shape}; it must be ({len(log)}, {len(scopes)}), a row a transition and a "
            f"column a term"
        )
    if not np.isfinite(seen).all():
        row, column = np.argwhere(~np.isfinite(seen))[0].tolist()
        raise InputError(
            f"values: entry ({row}, {column}) is {seen[row, column]}; it must be finite"
        )
    terms = []
    for column, (states, actions) in enumerate(scopes):
        shape: list[int] = []
        cells = np.zeros(len(log), dtype=np.int64)
        read = []
        for kind, parents, data, sizes in (
            ("coordinate", states, log.states, log.state_sizes),
            ("agent", actions, log.actions, log.action_sizes),
        ):
            indices = integers(parents, f"scopes of term {column}", 1)
            read.append(tuple(indices.tolist()))
            for i in read[-1]:
                if not 0 <= i < len(sizes):
                    raise InputError(
                        f"scopes of term {column} names {kind} {i}, but there are {len(sizes)}, numbered from 0"
                    )
                shape.append(int(sizes[i]))
                cells = cells * int(sizes[i]) + data[:, i]
        n_cells = math.prod(shape)
        visits = np.bincount(cells, minlength=n_cells)
        sums = np.bincount(cells, weights=seen[:, column], minlength=n_cells)
        overall = float(seen[:, column].mean()) if len(log) else 0.0
        table = np.where(visits > 0, sums / np.maximum(visits, 1), overall)
        terms.append(LocalReward(read[0], read[1], table.reshape(shape)))
    return terms
