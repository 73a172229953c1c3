"""Tables on the joint space: which axes, how large, and the model's own reward and initial law."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchloc.errors import BudgetError
from torchloc.mdp import FactoredMDP

STATE_BUDGET = 2**22
"""Joint states that are enumerated at most."""
_AXES = 50


def on_axes(values: Tensor, axes: list[int], n_axes: int) -> Tensor:
    """A table with leading axes `axes` on all `n_axes` axes, size 1 where not read; its further axes follow."""
    order = sorted(range(len(axes)), key=axes.__getitem__)
    shape = [1] * n_axes
    for position in order:
        shape[axes[position]] = values.shape[position]
    rest = range(len(axes), values.ndim)
    return values.permute([*order, *rest]).reshape([*shape, *values.shape[len(axes) :]])


def joint_reward(mdp: FactoredMDP) -> Tensor:
    """(*S or 1, *A or 1) float64 r(s, a), broadcastable to all joint states and actions."""
    n, n_axes = mdp.n_coordinates, mdp.n_coordinates + mdp.n_agents
    total = torch.zeros((1,) * n_axes, dtype=torch.float64)
    for batch in mdp.rewards:
        for row in range(len(batch)):
            table = torch.tensor(batch.table[row if len(batch.table) > 1 else 0])
            axes = [*batch.states[row].tolist(), *(n + batch.actions[row]).tolist()]
            total = total + on_axes(table, axes, n_axes)
    return total


def initial_law(mdp: FactoredMDP) -> Tensor:
    """(*S) float64 product law of the first state; uniform where the model names none."""
    n = mdp.n_coordinates
    law = torch.ones((1,) * n, dtype=torch.float64)
    for i, size in enumerate(mdp.state_sizes.tolist()):
        single = np.full(size, 1.0 / size) if mdp.initial is None else mdp.initial[i, :size]
        law = law * on_axes(torch.tensor(single), [i], n)
    return law


def check_budget(mdp: FactoredMDP) -> None:
    """Refuses models whose joint states cannot be enumerated.

    Raises:
        BudgetError: With the size, the bytes and the way out.
    """
    if mdp.n_states > STATE_BUDGET or mdp.n_coordinates > _AXES:
        size = mdp.n_states
        shown = str(size) if size < 10**12 else f"about 10^{len(str(size)) - 1}"
        bytes_ = str(8 * size) if size < 10**12 else f"about 10^{len(str(8 * size)) - 1}"
        raise BudgetError(
            f"the joint engine enumerates all joint states, and this model has {shown} "
            f"({bytes_} bytes a vector) over {mdp.n_coordinates} coordinates; the budget is "
            f"{STATE_BUDGET} states and {_AXES} coordinates: use a smaller model, or an engine that "
            f"works on balls of the dependency graph"
        )
