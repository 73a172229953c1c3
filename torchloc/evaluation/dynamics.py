"""One step of the chain as a mixture of moves, for synchronous and asynchronous dynamics.

    T = Σ_m w_m T_m

T_m moves the coordinates of move m by their kernels and leaves the others as they are; all agents
draw their actions whatever moves. Synchronous dynamics are one move of all coordinates,
asynchronous ones (paper, B.6) have a move of every coordinate alone, w = ν:

    (T f)(s) = Σ_j ν_j E_{x ~ P_j^π(·|s)} f(s with s_j := x)

where P_j^π is the kernel averaged over the actions: as no two coordinates move together, marginals
are all that counts. With open actions the average is over the other agents only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from numpy.typing import ArrayLike
from torch import Tensor

from torchloc.evaluation.operator import JointOperator, Plan
from torchloc.mdp import FactoredMDP
from torchloc.mdp.dynamics import Dynamics, move_rates


class StepOperator(Protocol):
    """T^π, or the expectation given open actions."""

    def __call__(self, values: Tensor) -> Tensor:
        """(*S, *batch) → (*S, *A_open, *batch): E[f(s') | s, a_open]."""
        ...

    def adjoint(self, weights: Tensor) -> Tensor:
        """(*S, *batch) → (*S, *batch): where a law on states is after one step; no open actions."""
        ...


class Move(NamedTuple):
    """Coordinates that move together, and the probability that a step moves them."""

    weight: float
    coordinates: tuple[int, ...]


def moves(
    mdp: FactoredMDP, dynamics: Dynamics, site_law: ArrayLike | None = None
) -> tuple[Move, ...]:
    """The moves of one step, those of weight 0 left out; the weights sum to 1.

    Args:
        mdp: The model.
        dynamics: `synchronous` or `asynchronous`.
        site_law: (N,) ν, asynchronous only; uniform if None.

    Raises:
        InputError: As `move_rates`.
    """
    rates = move_rates(mdp.n_coordinates, dynamics, site_law).tolist()
    if dynamics == "synchronous":
        return (Move(1.0, tuple(range(mdp.n_coordinates))),)
    return tuple(Move(rate, (j,)) for j, rate in enumerate(rates) if rate > 0)


class StepPlan:
    """How one step is computed for given scopes and open actions: structure only, no numbers.

    Args:
        mdp: The model.
        scopes: K tuples of coordinates.
        moves: The moves of one step.
        open_actions: Actions that stay axes of the result.

    Raises:
        BudgetError: The largest tensor would exceed the memory budget.
    """

    def __init__(
        self,
        mdp: FactoredMDP,
        scopes: Sequence[tuple[int, ...]],
        moves: Sequence[Move],
        open_actions: frozenset[int] = frozenset(),
    ) -> None:
        self._weights = [move.weight for move in moves]
        self._plans = [Plan(mdp, scopes, open_actions, move.coordinates) for move in moves]

    def operator(
        self, mdp: FactoredMDP, law: Callable[[int], Tensor], *, support: bool = False
    ) -> StepOperator:
        """The plan with numbers; the arguments are those of `JointOperator`."""
        parts = [JointOperator(plan, mdp, law, support=support) for plan in self._plans]
        return parts[0] if len(parts) == 1 else Mixture(self._weights, parts)


class Mixture:
    """Σ_m w_m T_m.

    Args:
        weights: w, nonnegative, summing to 1.
        parts: T_m, with the same open actions; at least one.
    """

    def __init__(self, weights: Sequence[float], parts: Sequence[JointOperator]) -> None:
        self._weights = weights
        self._parts = parts

    def __call__(self, values: Tensor) -> Tensor:
        """E[f(s') | s, a_open], as `JointOperator`."""
        return self._sum(part(values) for part in self._parts)

    def adjoint(self, weights: Tensor) -> Tensor:
        """Where a law is after one step, as `JointOperator.adjoint`."""
        return self._sum(part.adjoint(weights) for part in self._parts)

    def _sum(self, terms: Iterator[Tensor]) -> Tensor:
        first, *weights = self._weights
        total = first * next(terms)
        for weight, term in zip(weights, terms, strict=True):
            total.add_(term, alpha=weight)
        return total
