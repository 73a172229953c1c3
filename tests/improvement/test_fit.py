"""Fits reach what the network can represent, touch nobody else, and say what they cannot do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import torchloc as tl
from torchloc.environments import sysadmin
from torchloc.improvement import fit as room
from torchloc.improvement import fit_logits

MDP = sysadmin(n=5)
SCOPES = tl.neighbourhood_scopes(MDP)


def _targets(seed: int, agents: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(agents, 4, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_networks_interpolate(activation: str) -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES, hidden=(16, 16), activation=activation, seed=3)
    rows = torch.tensor([0, 2, 4])
    before = policy.group_logits(0).detach().clone()
    targets = _targets(0, 3)
    report = fit_logits(policy, 0, rows, targets, tolerance=1e-10)
    after = policy.group_logits(0).detach()
    centred = [x - x.mean(-1, keepdim=True) for x in (after[rows], targets)]
    assert (centred[0] - centred[1]).abs().max() <= 1e-10 * (1 + targets.abs().max())
    assert report.residual <= 1e-10 * (1 + float(targets.abs().max()))
    assert torch.equal(after[[1, 3]], before[[1, 3]])


def test_tables_are_assigned_exactly_with_forbidden_actions() -> None:
    policy = tl.SoftmaxPolicy.tabular(MDP, SCOPES)
    targets = _targets(1, 1)
    targets[0, 2, 1] = -torch.inf
    fit_logits(policy, 0, torch.tensor([3]), targets)
    assert torch.equal(policy.group_logits(0)[3].detach(), targets[0])
    assert not policy.group_logits(0)[[0, 1, 2, 4]].any()


def test_linear_networks_reach_least_squares() -> None:
    policy = tl.SoftmaxPolicy.linear(MDP, SCOPES, seed=1)
    targets = _targets(2, 5)
    targets = targets - targets.mean(-1, keepdim=True)
    fit_logits(policy, 0, torch.arange(5), targets, steps=60, tolerance=1e-12)
    states = policy.groups[0].observations()
    design = torch.cat([torch.nn.functional.one_hot(states, 2).flatten(1), torch.ones(4, 1)], 1)
    best = torch.linalg.pinv(design.double()) @ targets
    logits = policy.group_logits(0).detach()
    logits = logits - logits.mean(-1, keepdim=True)
    # The damping is not driven to zero on a target out of reach: 1e-6 of its size remains.
    np.testing.assert_allclose(logits, design.double() @ best, atol=1e-5)


def test_networks_refuse_forbidden_actions() -> None:
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES)
    targets = _targets(0, 1)
    targets[0, 0, 0] = -torch.inf
    with pytest.raises(tl.InputError, match="use policy=tabular"):
        fit_logits(policy, 0, torch.tensor([0]), targets)


def test_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "JACOBIAN_BUDGET", 100)
    policy = tl.SoftmaxPolicy.mlp(MDP, SCOPES)
    with pytest.raises(tl.BudgetError, match=r"bytes \(1 agents, 8 outputs"):
        fit_logits(policy, 0, torch.tensor([0]), _targets(0, 1))
