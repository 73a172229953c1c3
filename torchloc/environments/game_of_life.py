"""Conway's Game of Life with noise, and agents that may set their cell alive.

States: height × width cells, 1 = alive; cell (y, x) is coordinate y·width + x, its neighbours the
up to eight cells around it (a torus closes both sides; beyond a grid all is dead). Actions: one
binary agent a cell, 1 = set. Law, with k living neighbours and all cells at once:

    s'_j = 1 with probability 1 − p  if a_j = 1, or k = 3, or k = 2 and s_j = 1;  else with p

Reward: Σ_j s_j − cost·Σ_j a_j. Influence: E^s[j, i] = |1 − 2p_j| for every neighbour i and j
itself, so with one p for all ρ(E^s) = 9·|1 − 2p| on a torus and (1 + 2·cos π/(height + 1))·(1 +
2·cos π/(width + 1))·|1 − 2p| on a grid. Source: GameOfLife of the International Probabilistic
Planning Competition 2011, without its cap on settings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchloc.environments.checks import COUNTED, MODEL_BYTES, flag, probability, real, whole
from torchloc.environments.topologies import Digraph
from torchloc.errors import BudgetError, InputError
from torchloc.mdp import CountBatch, FactoredMDP, KernelBatch, RewardBatch
from torchloc.mdp.checks import FloatArray, IntArray


def game_of_life(
    height: int = 3,
    width: int = 3,
    *,
    torus: bool = False,
    p: float = 0.1,
    noise: Sequence[float] | FloatArray | None = None,
    cost: float = 1.0,
) -> FactoredMDP:
    """Keep cells alive at a price; the module says the law and the reward.

    Args:
        height: Rows of cells, ≥ 2, on a torus ≥ 3.
        width: Columns of cells, ≥ 2, on a torus ≥ 3.
        torus: Whether the sides are joined.
        p: Probability that a cell does the opposite of what the rule says.
        noise: The same for every cell, height·width numbers row by row; it takes the place of `p`.
        cost: Price of one setting.

    Returns:
        N = K = height·width, all sizes 2; kernel j reads its d neighbours in ascending order, then
        itself, and agent j: (2,)*(d + 1) + (2, 2), one table shared by all cells of equal d ≤ 5, or
        with `noise` one a cell. Inner cells count their eight neighbours, up to four.

    Raises:
        InputError: An argument is outside its range.
        BudgetError: With `noise`, so many cells that their tables are too large.

    Example:
        >>> batch = game_of_life(30, 40, torus=True, p=0.45).kernels[0]
        >>> len(batch), len(batch.table), round(float(batch.state_influence().sum()), 12)
        (1200, 1, 0.9)
    """
    shape = whole("height", height, 2), whole("width", width, 2)
    flips, c = _flips(probability("p", p), noise, *shape), real("cost", cost)
    graph = _cells(*shape, flag("torus", torus))
    kernels = []
    for cells, neighbours in graph.groups():
        if neighbours.shape[1] > COUNTED:
            kernels.append(_counted(cells, neighbours, flips if len(flips) == 1 else flips[cells]))
            continue
        living = np.indices((2,) * neighbours.shape[1]).sum(axis=0)
        lives = np.stack([living == 3, (living == 2) | (living == 3)], axis=-1)
        ruled = np.stack([lives, np.ones_like(lives)], axis=-1)
        wrong = flips if len(flips) == 1 else flips[cells]
        wrong = wrong.reshape(-1, *(1,) * ruled.ndim)
        alive = np.where(ruled, 1.0 - wrong, wrong)
        kernels.append(
            KernelBatch(
                cells,
                np.concatenate([neighbours, cells[:, None]], axis=1),
                cells[:, None],
                np.stack([1.0 - alive, alive], axis=-1),
            )
        )
    sites = np.arange(graph.n)[:, None]
    return FactoredMDP(
        np.full(graph.n, 2),
        np.full(graph.n, 2),
        kernels,
        [RewardBatch(sites, sites, np.array([[[0.0, -c], [1.0, 1.0 - c]]]))],
    )


def _counted(cells: IntArray, neighbours: IntArray, flips: FloatArray) -> CountBatch:
    """By the number of living neighbours, up to four: beyond, a cell dies."""
    lives = np.zeros((2, 2, 5), dtype=np.bool_)
    lives[:, 0, 3] = lives[1, 0, 2] = lives[:, 1] = True
    wrong = flips[:, None, None, None]
    alive = np.where(lives, 1.0 - wrong, wrong)
    blind = np.zeros((len(cells), 0), dtype=np.int64)
    own, table = cells[:, None], np.stack([1.0 - alive, alive], axis=-1)
    return CountBatch(cells, own, own, neighbours, blind, table)


def _cells(height: int, width: int, torus: bool) -> Digraph:
    """Every cell and the up to eight around it, both directions."""
    if torus and min(height, width) < 3:
        raise InputError(
            f"a torus of {height} × {width} cells joins a cell to itself or twice to another; give "
            f"it at least 3 rows and 3 columns, or torus = false"
        )
    cell = np.arange(height * width, dtype=np.int64).reshape(height, width)
    if torus:
        below = np.roll(cell, -1, axis=0)
        ends = [(cell, np.roll(cell, -1, axis=1)), (cell, below)]
        ends += [(cell, np.roll(below, side, axis=1)) for side in (-1, 1)]
    else:
        ends = [(cell[:, :-1], cell[:, 1:]), (cell[:-1], cell[1:])]
        ends += [(cell[:-1, :-1], cell[1:, 1:]), (cell[:-1, 1:], cell[1:, :-1])]
    one, other = (np.concatenate([pair[side].ravel() for pair in ends]) for side in (0, 1))
    return Digraph(cell.size, np.concatenate([one, other]), np.concatenate([other, one]))


def _flips(
    p: float, noise: Sequence[float] | FloatArray | None, height: int, width: int
) -> FloatArray:
    """(1,) where all cells share p, else (height·width,)."""
    if noise is None:
        return np.array([p])
    count = height * width
    given = np.array(noise, dtype=object).shape
    if given != (count,):
        raise InputError(
            f"noise must hold one probability a cell, {count} numbers for {height} × {width} cells "
            f"row by row; it holds {given[0] if len(given) == 1 else f'an array of shape {given}'}"
        )
    if 8 * 2**11 * count > MODEL_BYTES:
        raise BudgetError(
            f"noise: the tables of {count} cells would take up to {8 * 2**11 * count:,} bytes, "
            f"over the limit of {MODEL_BYTES:,}; give one p for all cells, or fewer cells"
        )
    return np.array([probability(f"noise[{j}]", x) for j, x in enumerate(noise)])
