"""The joint transition operator, applied through its factors.

(T f)(s) = Σ_a π(a|s) Σ_{s'} Π_j P_j(s'_j | s, a) f(s') is computed by eliminating the next
coordinates block by block. The tensor starts with one axis for each s'_j. A block of coordinates J
turns the axes s'_J into those axes of s and a that its kernels read and that are not there yet, by
one batched matrix product:

    out[batch, new, rest] = M[batch, new, gone] @ x[batch, gone, rest]

with `gone` = s'_J and the actions that no later kernel reads, `batch` = what the block reads and
what is there already. A policy factor π_k enters with the first kernel that reads a_k. *Open*
actions get no policy factor and stay axes of the result. Where only some coordinates move, the
others have their axis s_i from the start and keep it. Spaces of one element get no axis. Nothing of
size S × A × S is ever formed: on a ring of binary coordinates the largest tensor has 2^{n+1}
entries, and with blocks of b coordinates one application costs about (n / b) 2^{n+1+b}
multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchloc.einsum import einsum
from torchloc.errors import BudgetError
from torchloc.mdp import FactoredMDP

MATRIX_ENTRIES = 8192
"""Entries of one block's matrix M up to which kernels are fused into the block."""
GONE_ENTRIES = 32
"""Entries of the eliminated axes of one block at most, unless one kernel alone has more."""
PEAK_BYTES = 2**31
"""Bytes of the largest tensor of one application at most."""


class Variable(NamedTuple):
    """An axis: ("s", i) a coordinate, ("t", j) its next value, ("a", k) an action."""

    kind: str
    number: int


@dataclass(frozen=True)
class Factor:
    """A kernel or an agent's law, with its axes: variables of more than one value."""

    axes: tuple[Variable, ...]
    source: tuple[str, int, int]


@dataclass(frozen=True)
class Step:
    """One block: which factors make its matrix, and how axes change."""

    factors: tuple[Factor, ...]
    before: tuple[Variable, ...]
    batch: tuple[Variable, ...]
    new: tuple[Variable, ...]
    gone: tuple[Variable, ...]

    @property
    def rest(self) -> tuple[Variable, ...]:
        """Axes that the block leaves alone."""
        touched = {*self.batch, *self.gone}
        return tuple(v for v in self.before if v not in touched)

    @property
    def after(self) -> tuple[Variable, ...]:
        """Axes after the block."""
        return (*self.batch, *self.new, *self.rest)


class Plan:
    """The order of elimination for a model, scopes and open actions: structure only, no numbers.

    Args:
        mdp: The model.
        scopes: K tuples of coordinates.
        open_actions: Actions that stay axes of the result.
        moving: Coordinates that move, at least one; the others stay. None: all move.

    Raises:
        BudgetError: The largest tensor would exceed the memory budget.
    """

    def __init__(
        self,
        mdp: FactoredMDP,
        scopes: Sequence[tuple[int, ...]],
        open_actions: frozenset[int] = frozenset(),
        moving: Sequence[int] | None = None,
    ) -> None:
        self.state_sizes: list[int] = mdp.state_sizes.tolist()
        self.action_sizes: list[int] = mdp.action_sizes.tolist()
        self.open_actions = tuple(sorted(open_actions))
        self._scopes = scopes
        everything = range(len(self.state_sizes))
        moved = frozenset(everything if moving is None else moving)
        self.start = self.varying(Variable("t" if j in moved else "s", j) for j in everything)
        kernels = [
            (
                int(j),
                Factor(
                    self.varying(
                        (
                            *(Variable("s", i) for i in states),
                            *(Variable("a", k) for k in actions),
                            Variable("t", int(j)),
                        )
                    ),
                    ("kernel", b, row),
                ),
            )
            for b, batch in enumerate(mdp.kernels)
            for row, (j, states, actions) in enumerate(
                zip(
                    batch.coordinates.tolist(),
                    batch.states.tolist(),
                    batch.actions.tolist(),
                    strict=True,
                )
            )
            if j in moved
        ]
        self.steps = self._eliminate([factor for _, factor in sorted(kernels)])

    def varying(self, variables: Iterable[Variable]) -> tuple[Variable, ...]:
        """Those of more than one value."""
        return tuple(v for v in variables if self._size(v) > 1)

    def size(self, variables: Sequence[Variable]) -> int:
        """Number of entries of a tensor with these axes."""
        return math.prod(self._size(v) for v in variables)

    def _size(self, variable: Variable) -> int:
        sizes = self.action_sizes if variable.kind == "a" else self.state_sizes
        return sizes[variable.number]

    @property
    def peak(self) -> int:
        """Entries of the largest tensor between the blocks, the first one included."""
        return max(self.size(axes) for step in self.steps for axes in (step.before, step.after))

    def _eliminate(self, kernels: list[Factor]) -> tuple[Step, ...]:
        axes = self.start
        left, known, steps = list(kernels), set[int](), []
        while left:
            block: list[Factor] = []
            best: Step | None = None
            while left:
                trial = min(
                    (self._step(axes, [*block, kernel], left, known) for kernel in left),
                    key=lambda step: self.size(step.after),
                )
                matrix = self.size((*trial.batch, *trial.new, *trial.gone))
                if best is not None and (
                    matrix > MATRIX_ENTRIES or self.size(trial.gone) > GONE_ENTRIES
                ):
                    break
                best = trial
                block = [f for f in trial.factors if f.source[0] == "kernel"]
                left = [kernel for kernel in left if kernel not in block]
            if best is None:  # pragma: no cover - `left` was not empty
                break
            if 8 * self.size(best.after) > PEAK_BYTES:
                raise BudgetError(
                    f"the joint operator needs a tensor of {self.size(best.after)} entries "
                    f"({8 * self.size(best.after)} bytes), over the budget of {PEAK_BYTES} bytes; "
                    f"use a smaller model or the local engine"
                )
            known.update(f.source[1] for f in best.factors if f.source[0] == "law")
            steps.append(best)
            axes = best.after
        return tuple(steps)

    def _step(
        self,
        axes: tuple[Variable, ...],
        block: list[Factor],
        left: list[Factor],
        known: set[int],
    ) -> Step:
        """The step that eliminates the kernels of `block` from a tensor with these axes."""
        later = {v for f in left if f not in block for v in f.axes if v.kind == "a"}
        actions = {v for f in block for v in f.axes if v.kind == "a"}
        laws = [
            Factor(
                self.varying((*(Variable("s", i) for i in self._scopes[k]), Variable("a", k))),
                ("law", k, 0),
            )
            for k in sorted(v.number for v in actions)
            if k not in known and k not in self.open_actions
        ]
        factors = (*block, *laws)
        touched = {v for f in factors for v in f.axes}
        done = {v for v in actions if v not in later and v.number not in self.open_actions}
        present = set(axes)
        gone = tuple(v for v in axes if v in touched and (v.kind == "t" or v in done))
        batch = tuple(v for v in axes if v in touched and v not in gone)
        new = tuple(sorted(v for v in touched if v not in present and v not in done))
        return Step(factors, axes, batch, new, gone)


class JointOperator:
    """A plan with numbers: T (or T with open actions) and its adjoint.

    Args:
        plan: The plan.
        mdp: The model, for its kernels.
        law: k ↦ (*S_scope, A_k) float64 law of agent k.
        support: Use 1{P > 0} and 1{π > 0} instead of the numbers, for reachability.
    """

    def __init__(
        self,
        plan: Plan,
        mdp: FactoredMDP,
        law: Callable[[int], Tensor],
        *,
        support: bool = False,
    ) -> None:
        self.plan = plan
        n = len(plan.state_sizes)
        self._states = tuple(Variable("s", i) for i in range(n))
        self._open = tuple(Variable("a", k) for k in plan.open_actions)
        self._matrices = [self._matrix(step, mdp, law, support) for step in plan.steps]

    def _matrix(
        self, step: Step, mdp: FactoredMDP, law: Callable[[int], Tensor], support: bool
    ) -> Tensor:
        operands: list[tuple[Tensor, Sequence[Variable]]] = []
        for factor in step.factors:
            kind, index, row = factor.source
            if kind == "kernel":
                table = mdp.kernels[index].table
                tensor = torch.tensor(table[row if len(table) > 1 else 0])
            else:
                tensor = law(index)
            if support:
                tensor = (tensor > 0).to(torch.float64)
            operands.append((tensor.reshape(self._shape(factor.axes)), factor.axes))
        matrix = einsum(operands, (*step.batch, *step.new, *step.gone))
        size = self.plan.size
        return matrix.reshape(size(step.batch), size(step.new), size(step.gone))

    def _shape(self, variables: Sequence[Variable]) -> list[int]:
        return [self.plan.size((v,)) for v in variables]

    def __call__(self, values: Tensor) -> Tensor:
        """T f.

        Args:
            values: (*S, *batch) float64.

        Returns:
            (*S, *A_open, *batch).
        """
        n = len(self.plan.state_sizes)
        extra = values.shape[n:]
        width = math.prod(extra)
        axes = self.plan.start
        tensor = values
        for step, matrix in zip(self.plan.steps, self._matrices, strict=True):
            order = (*step.batch, *step.gone, *step.rest)
            tensor = tensor.reshape(*self._shape(axes), width)
            tensor = tensor.permute(*(axes.index(v) for v in order), len(axes))
            tensor = tensor.reshape(matrix.shape[0], matrix.shape[2], -1)
            tensor = torch.bmm(matrix, tensor)
            axes = step.after
        tensor = tensor.reshape(*self._shape(axes), width)
        wanted = (*self._states, *self._open)
        present = [v for v in wanted if v in axes]
        tensor = tensor.permute(*(axes.index(v) for v in present), len(axes))
        tensor = tensor.reshape(*(self.plan.size((v,)) if v in axes else 1 for v in wanted), width)
        return tensor.expand(*self._shape(wanted), width).reshape(*self._shape(wanted), *extra)

    def adjoint(self, weights: Tensor) -> Tensor:
        """Tᵀ d: where a law d on states is after one step.

        Args:
            weights: (*S, *batch) float64.

        Returns:
            (*S, *batch).

        Raises:
            ValueError: The plan has open actions.
        """
        if self._open:
            raise ValueError("a plan with open actions has no adjoint on states")
        n = len(self.plan.state_sizes)
        extra = weights.shape[n:]
        width = math.prod(extra)
        axes = self.plan.steps[-1].after
        unread = [i for i, v in enumerate(self._states) if v not in axes]
        tensor = weights.reshape(*weights.shape[:n], width)
        if unread:
            tensor = tensor.sum(dim=unread)
        kept = [v for v in self._states if v in axes]
        tensor = tensor.permute(*(kept.index(v) for v in axes), len(kept))
        for step, matrix in zip(reversed(self.plan.steps), reversed(self._matrices), strict=True):
            tensor = tensor.reshape(matrix.shape[0], matrix.shape[1], -1)
            tensor = torch.bmm(matrix.transpose(1, 2), tensor)
            order = (*step.batch, *step.gone, *step.rest)
            tensor = tensor.reshape(*self._shape(order), width)
            tensor = tensor.permute(*(order.index(v) for v in step.before), len(order))
        return tensor.reshape(*self.plan.state_sizes, *extra)
