"""Making a network's logits what the prox step asks for.

Tables are assigned. Other networks are fitted by Levenberg-Marquardt in function space: with
residual e (R·A) and Jacobian J of the logits in the parameters θ, the damped minimum-norm step

    θ ← θ + Jᵀ (J Jᵀ + λ I)^{-1} e

needs only R·A × R·A systems, and converges quadratically where the network can represent the
target, as a network with more parameters than scope states times actions generically can. All
agents of a group are fitted at once, each with its own λ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from torchloc.errors import BudgetError, InputError
from torchloc.policy import SoftmaxPolicy, Tabular

JACOBIAN_BUDGET = 2**28
_GROW, _SHRINK = 8.0, 0.2


@dataclass(frozen=True)
class FitReport:
    """How well a fit went.

    Attributes:
        steps: Accepted and rejected steps taken.
        residual: Largest |z − target| over agents, scope states and actions, both centred over
            actions.
    """

    steps: int
    residual: float


def fit_logits(
    policy: SoftmaxPolicy,
    index: int,
    rows: Tensor,
    targets: Tensor,
    *,
    steps: int = 60,
    tolerance: float = 1e-10,
) -> FitReport:
    """Fits some agents of a group to target logits, in place.

    Args:
        policy: The policy.
        index: Which group.
        rows: (B,) rows of the group.
        targets: (B, R, A) logits; networks are fitted to them up to a constant per scope state.
        steps: Most steps.
        tolerance: Stop when every residual is below it, relative to 1 + max |target|.

    Raises:
        InputError: A network is asked for −∞.
        BudgetError: The Jacobian would not fit.
    """
    network = policy.networks[index]
    if isinstance(network, Tabular):
        with torch.no_grad():
            network.table[rows] = targets.to(network.table.dtype)
        return FitReport(0, 0.0)
    if not bool(torch.isfinite(targets).all()):
        raise InputError(
            "a network cannot represent a forbidden action (a logit of −∞); use policy=tabular"
        )
    group = policy.groups[index]
    observations = group.observations().expand(len(rows), -1, -1)
    return _levenberg_marquardt(network, rows, observations, targets, steps, tolerance)


def _levenberg_marquardt(
    network: nn.Module,
    rows: Tensor,
    observations: Tensor,
    targets: Tensor,
    steps: int,
    tolerance: float,
) -> FitReport:
    named = {name: value[rows].detach().clone() for name, value in network.named_parameters()}
    n_agents, n_outputs = len(rows), math.prod(targets.shape[1:])
    size = 8 * n_agents * n_outputs * sum(math.prod(v.shape[1:]) for v in named.values())
    if size > JACOBIAN_BUDGET:
        raise BudgetError(
            f"the Jacobian of the fit takes {size} bytes ({n_agents} agents, {n_outputs} outputs each), "
            f"over the budget of {JACOBIAN_BUDGET}; use policy=tabular, smaller scopes or a smaller network"
        )
    targets = targets - targets.mean(dim=-1, keepdim=True)
    goal = tolerance * (1.0 + targets.abs().amax(dim=(1, 2)))

    def residual(parameters: dict[str, Tensor]) -> Tensor:
        output = functional_call(network, parameters, (observations,)).to(targets.dtype)
        return targets - (output - output.mean(dim=-1, keepdim=True))

    damping = torch.full((n_agents,), 1e-3, dtype=torch.float64)
    error, jacobian = _linearised(residual, named, n_outputs)
    taken = 0
    while taken < steps and bool((error.abs().amax(dim=1) > goal).any()):
        gram = jacobian @ jacobian.mT
        scale = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-300)
        eye = torch.eye(n_outputs, dtype=torch.float64)
        system = gram + (damping * scale)[:, None, None] * eye
        step = (jacobian.mT @ torch.linalg.solve(system, error.unsqueeze(-1))).squeeze(-1)
        trial = _moved(named, step)
        with torch.no_grad():
            trial_error = residual(trial).reshape(n_agents, -1).double()
        better = trial_error.square().sum(dim=1) < error.square().sum(dim=1)
        for name, value in named.items():
            keep = better.reshape(-1, *(1,) * (value.ndim - 1))
            named[name] = torch.where(keep, trial[name], value)
        damping = torch.where(better, damping * _SHRINK, damping * _GROW).clamp(1e-12, 1e6)
        taken += 1
        if not bool(better.any()) and bool((damping >= 1e6).all()):
            break
        error, jacobian = _linearised(residual, named, n_outputs)
    with torch.no_grad():
        for name, value in network.named_parameters():
            value[rows] = named[name]
    return FitReport(taken, float(error.abs().max()))


def _linearised(residual, named: dict[str, Tensor], n_outputs: int) -> tuple[Tensor, Tensor]:
    """(B, O) float64 residual and (B, O, P) Jacobian of the outputs, block by block at once."""
    leaves = {name: value.requires_grad_(True) for name, value in named.items()}
    error = residual(leaves)
    flat = error.reshape(len(error), n_outputs)
    selectors = torch.eye(n_outputs, dtype=flat.dtype)[:, None, :].expand(-1, len(flat), -1)
    gradients = torch.autograd.grad(
        flat, list(leaves.values()), grad_outputs=selectors, is_grads_batched=True
    )
    blocks = [-g.transpose(0, 1).reshape(len(flat), n_outputs, -1) for g in gradients]
    for value in named.values():
        value.requires_grad_(False)
    return flat.detach().double(), torch.cat(blocks, dim=2).double()


def _moved(named: dict[str, Tensor], step: Tensor) -> dict[str, Tensor]:
    sizes = [math.prod(value.shape[1:]) for value in named.values()]
    parts = torch.split(step, sizes, dim=1)
    return {
        name: value + part.reshape(value.shape).to(value.dtype)
        for (name, value), part in zip(named.items(), parts, strict=True)
    }
