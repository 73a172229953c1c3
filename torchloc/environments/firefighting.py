"""Firefighting: a row of houses, fewer firefighters than houses, two of them in reach of each house.

n agents stand between n + 1 houses in a row. States: house j has a fire level s_j in 0 … L − 1 and
burns where s_j > 0. Actions: agent k visits house k (a_k = 0) or house k + 1 (a_k = 1). Law, by the
visitors v_j of house j, all houses at once, levels kept within 0 … L − 1:

    v_j = 0   s_j + 1 with `spread` if a neighbour burns, else with `growth` if the house burns,
              else with `ignition`; otherwise s_j
    v_j = 1   s_j − 1 with `douse` if a neighbour burns, else surely; otherwise s_j
    v_j = 2   0

Reward: −Σ_j s'_j, the next levels, as the expectation −Σ_j E[s'_j | s, a]. Influence: with the
published numbers E^s is tridiagonal, 1 on the diagonal and .8 beside it, so ρ(E^s) = 1 + 1.6·cos
π/(n + 2), whatever L ≥ 2; E^a is (n + 1) × n, and every action is shared by two houses. With
`ignition` 0, as published, no fire at all is absorbing: every policy that surely gets there has
average reward 0, and only a discounted run, from the initial law, tells policies apart; with
`ignition` up to `spread` the optimal average is −ignition (n ≥ 2). Source: Oliehoek, Spaan, Whiteson
and Vlassis, AAMAS 2008, with levels seen, not flames.
"""

from __future__ import annotations

import numpy as np

from torchloc.environments.checks import TABLE_BYTES, probability, whole
from torchloc.errors import BudgetError
from torchloc.mdp import FactoredMDP, KernelBatch, RewardBatch
from torchloc.mdp.checks import FloatArray


def firefighting(
    n: int = 3,
    levels: int = 3,
    *,
    spread: float = 0.8,
    growth: float = 0.4,
    douse: float = 0.6,
    ignition: float = 0.0,
) -> FactoredMDP:
    """n firefighters and n + 1 houses in a row; the module says the law and the reward.

    Args:
        n: Number of agents, ≥ 1.
        levels: Fire levels L of a house, ≥ 2.
        spread: P(one level up) beside a fire, without a visitor.
        growth: P(one level up) of a fire by itself, without a visitor.
        douse: P(one level down) beside a fire, with one visitor.
        ignition: P(fire) of a house without a fire, in it or beside it, and without a visitor; > 0
            makes fires come back for ever.

    Returns:
        N = n + 1 with state sizes `levels`, K = n with action sizes 2, uniform initial levels;
        kernel j reads the houses j − 1, j, j + 1 and the agents j − 1, j that there are: one table
        for all inner houses, (L, L, L, 2, 2, L), and one for each end.

    Raises:
        InputError: An argument is outside its range.
        BudgetError: So many levels (over 9) that the table is too large.

    Example:
        >>> mdp = firefighting(2)
        >>> mdp.n_coordinates, mdp.n_agents, mdp.kernels[-1].action_influence().tolist()
        (3, 2, [[1.0, 1.0]])
    """
    n, size = whole("n", n, 1), whole("levels", levels, 2)
    rates = (
        probability("spread", spread),
        probability("growth", growth),
        probability("douse", douse),
        probability("ignition", ignition),
    )
    if 32 * size**4 > TABLE_BYTES:
        raise BudgetError(
            f"levels = {levels}: the table of a house would take {32 * size**4:,} bytes, over the "
            f"limit of {TABLE_BYTES:,}; give at most {int((TABLE_BYTES / 32) ** 0.25)} levels"
        )
    # An end is an inner house whose missing neighbour never burns and whose missing agent is away.
    table = _next_level(size, rates)
    index = np.arange(n + 1)[:, None]
    houses = [
        (index[0], index[:2].T, index[:1], table[0, :, :, 0]),
        (index[n], index[-2:].T, index[-2:-1], table[:, :, 0, :, 1]),
    ]
    if n > 1:
        inner = index[1:-1]
        houses.append((inner[:, 0], inner + np.arange(-1, 2), inner + np.arange(-1, 1), table))
    level = np.arange(size, dtype=np.float64)
    return FactoredMDP(
        np.full(n + 1, size),
        np.full(n, 2),
        [KernelBatch(j, states, actions, law[None]) for j, states, actions, law in houses],
        [RewardBatch(states, actions, -(law @ level)[None]) for _, states, actions, law in houses],
        initial=np.full((n + 1, size), 1.0 / size),
    )


def _next_level(size: int, rates: tuple[float, float, float, float]) -> FloatArray:
    """(L, L, L, 2, 2, L): the law of s'_j given houses j − 1, j, j + 1 and agents j − 1, j."""
    spread, growth, douse, ignition = rates
    left, own, right, before, behind = np.indices((size, size, size, 2, 2))
    beside = (left > 0) | (right > 0)
    # Agent j − 1 is at house j with action 1, agent j with action 0.
    visitors = (before == 1).astype(np.int64) + (behind == 0)
    alone = np.where(beside, spread, np.where(own > 0, growth, ignition))
    step = np.choose(visitors, [alone, np.where(beside, douse, 1.0), np.ones(own.shape)])
    target = np.choose(visitors, [np.minimum(own + 1, size - 1), np.maximum(own - 1, 0), 0 * own])
    stays, moves = np.eye(size)[own], np.eye(size)[target]
    return (1.0 - step)[..., None] * stays + step[..., None] * moves
