"""The two linear systems of a chain: LU where T is formed, restarted GMRES where it is only applied."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from torchloc.evaluation.operator import JointOperator


class PoissonSolver:
    """Solves (I − γT + 1νᵀ) h = r and its transpose; the rank-one term only at γ = 1, ν uniform."""

    def __init__(
        self, step: JointOperator, shape: tuple[int, ...], discount: float, dense: Tensor | None
    ) -> None:
        self._step = step
        self._shape = shape
        self._discount = discount
        self._rank_one = discount == 1.0
        self._factors: tuple[Tensor, Tensor] | None = None
        if dense is not None:
            n = len(dense)
            system = torch.eye(n, dtype=torch.float64) - discount * dense
            if self._rank_one:
                system = system + 1.0 / n
            factors, pivots = torch.linalg.lu_factor(system)
            self._factors = (factors, pivots)

    def apply(self, values: Tensor) -> Tensor:
        """(I − γT + 1νᵀ) h."""
        result = values - self._discount * self._step(values)
        return result + values.mean() if self._rank_one else result

    def apply_adjoint(self, law: Tensor) -> Tensor:
        """(I − γTᵀ + ν1ᵀ) d."""
        result = law - self._discount * self._step.adjoint(law)
        return result + law.mean() if self._rank_one else result

    def solve(self, right: Tensor) -> Tensor:
        """An approximate h with (I − γT + 1νᵀ) h = right; call again on the residual to refine."""
        return self._solve(right, self.apply, adjoint=False)

    def solve_adjoint(self, right: Tensor) -> Tensor:
        """An approximate d with (I − γTᵀ + ν1ᵀ) d = right; call again on the residual to refine."""
        return self._solve(right, self.apply_adjoint, adjoint=True)

    def _solve(self, right: Tensor, apply: Callable[[Tensor], Tensor], *, adjoint: bool) -> Tensor:
        if self._factors is not None:
            column = right.reshape(-1, 1)
            return torch.linalg.lu_solve(*self._factors, column, adjoint=adjoint).reshape(
                self._shape
            )
        n = right.numel()

        def matvec(vector: np.ndarray) -> np.ndarray:
            return apply(torch.from_numpy(vector).reshape(self._shape)).reshape(-1).numpy()

        operator = LinearOperator((n, n), matvec=matvec, dtype=np.float64)
        solution, _ = gmres(
            operator, right.reshape(-1).numpy(), rtol=1e-7, atol=0.0, restart=40, maxiter=5
        )
        return torch.from_numpy(solution).reshape(self._shape)
