"""Filling a tabular policy with tables of logits or probabilities, one an agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from torchloc.errors import InputError
from torchloc.mdp.checks import FloatArray, IntArray
from torchloc.policy import checks, networks
from torchloc.policy.groups import AgentGroup

if TYPE_CHECKING:
    from torchloc.policy.softmax import SoftmaxPolicy


def assign_logits(policy: SoftmaxPolicy, tables: Sequence[ArrayLike | Tensor]) -> None:
    """Sets the logits of every agent: K tables (*S[scope_k], A_k).

    Raises:
        InputError: Not one table an agent, or a table has the wrong shape, holds NaN or +∞, or
            forbids every action in some scope state.
    """
    checks.check_count(tables, "logits", policy.n_agents)
    for agent in range(policy.n_agents):
        field = f"logits of agent {agent}"
        table = checks.as_table(tables[agent], field, _group(policy, agent))
        checks.check_logits(table[None], lambda _, field=field: field)
        _assign(policy, agent, table)


def assign_probabilities(policy: SoftmaxPolicy, tables: Sequence[ArrayLike | Tensor]) -> None:
    """Sets the law of every agent: K tables (*S[scope_k], A_k).

    Raises:
        InputError: Not one table an agent, or a table has the wrong shape, or a row is no law.
    """
    checks.check_count(tables, "probabilities", policy.n_agents)
    for agent in range(policy.n_agents):
        field = f"probabilities of agent {agent}"
        laws = checks.as_table(tables[agent], field, _group(policy, agent))
        _assign_laws(policy, agent, laws, tables[agent])


def assign_callable(
    policy: SoftmaxPolicy, f: Callable[[int, IntArray], ArrayLike | Tensor]
) -> None:
    """Sets the law of every agent to what `f(agent, observations)` returns, (R, A_k).

    Raises:
        InputError: What it returns has another shape, or a row is no law.
    """
    for agent in range(policy.n_agents):
        group = _group(policy, agent)
        result = f(agent, group.observations().numpy())
        laws = checks.as_array(result, f"f's result for agent {agent}")
        expected = (group.n_rows, group.n_actions)
        if laws.shape != expected:
            raise InputError(
                f"f returned shape {laws.shape} for agent {agent}; it must return one row an "
                f"observation, one column an action: {expected}"
            )
        _assign_laws(policy, agent, laws, result)


def _group(policy: SoftmaxPolicy, agent: int) -> AgentGroup:
    return policy.groups[policy.group_of[agent]]


def _assign_laws(
    policy: SoftmaxPolicy, agent: int, laws: FloatArray, given: ArrayLike | Tensor
) -> None:
    """Sets z = τ log π; `given` says to what precision the laws were rounded."""
    laws = checks.as_laws(laws, f"probabilities of agent {agent}", checks.unit(given))
    with np.errstate(divide="ignore"):
        _assign(policy, agent, float(policy.temperature[agent]) * np.log(laws))


def _assign(policy: SoftmaxPolicy, agent: int, table: FloatArray) -> None:
    network = cast(networks.Tabular, policy.networks[policy.group_of[agent]])
    row = network.table.data[int(policy.row_of[agent])]
    row.copy_(torch.from_numpy(table).reshape(row.shape))
