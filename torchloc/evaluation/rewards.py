"""Closed-loop rewards spread over the joint states: local terms summed, and one agent's action held."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from torchloc.closed_loop import PolicyTables, local_classes
from torchloc.evaluation.space import on_axes
from torchloc.mdp import FactoredMDP, RewardBatch
from torchloc.mdp.checks import IntArray


def summed(terms: Iterable[tuple[IntArray, Tensor]], shape: tuple[int, ...]) -> Tensor:
    """(*S) float64 sum of local terms.

    Args:
        terms: (B, u) coordinates and (B or 1, *S_u) values, as `reward_terms` yields them.
        shape: S.
    """
    n = len(shape)
    total = torch.zeros(shape, dtype=torch.float64)
    for union, values in terms:
        for row in range(len(union)):
            total += on_axes(values[row if len(values) > 1 else 0], union[row].tolist(), n)
    return total


def reward_given(mdp: FactoredMDP, tables: PolicyTables, k: int, reward: Tensor) -> Tensor:
    """(*S, A_k) E[r | s, a_k], the other agents drawing from their laws.

    Args:
        mdp: The model.
        tables: The laws of all agents.
        k: Agent.
        reward: (*S) r^π, plus whatever does not depend on a_k.
    """
    n = reward.ndim
    total = reward.unsqueeze(-1).expand(*reward.shape, int(mdp.action_sizes[k])).clone()
    for batch in mdp.rewards:
        for row in np.flatnonzero((batch.actions == k).any(axis=1)):
            table = batch.table[row if len(batch.table) > 1 else 0][None]
            single = RewardBatch(batch.states[row][None], batch.actions[row][None], table)
            position = int(np.argmax(batch.actions[row] == k))
            for local in local_classes(single, tables):
                union = local.union[0].tolist()
                given = on_axes(local.averaged(tables, [position])[0], union, n)
                mean = on_axes(local.averaged(tables)[0], union, n)
                total += given - mean.unsqueeze(-1)
    return total
