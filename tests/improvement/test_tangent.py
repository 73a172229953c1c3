"""Gram matrices and pullbacks of Gauss-Newton steps against Jacobians taken one entry at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchloc as tl
from torchloc.improvement.fit.problem import Problem, problem
from torchloc.improvement.fit.tangent import basis, chain, tangent, tangent_bytes
from torchloc.policy import AgentGroup

SIZES = [2, 3]
MDP = tl.FactoredMDP(
    SIZES, [3] * 4, [tl.LocalKernel((), (), np.full(size, 1 / size)) for size in SIZES], []
)


class Sine(nn.Module):
    """A user's module."""

    def __init__(self, group: AgentGroup) -> None:
        super().__init__()
        shape = (len(group), len(group.sizes), group.n_actions)
        self.slopes = nn.Parameter(torch.randn(shape, dtype=torch.float64))
        self.unused = nn.Parameter(torch.randn(len(group), dtype=torch.float64))

    def forward(self, observations: Tensor) -> Tensor:
        return torch.sin(observations.double() @ self.slopes)


def _policy(options: dict[str, Any]) -> tl.SoftmaxPolicy:
    if "module" in options:
        return tl.SoftmaxPolicy.from_module(MDP, [(0, 1)] * 4, Sine, shared=options["module"])
    return tl.SoftmaxPolicy.mlp(MDP, [(0, 1)] * 4, seed=3, **options)


def _jacobian(asked: Problem, unit: int) -> Tensor:
    """(O, P) of one unit, from the definition."""
    start = asked.start()
    parts = [value[[unit]] for value in start.values()]

    def outputs(*values: Tensor) -> Tensor:
        logits = asked.logits(dict(zip(start, values, strict=True)), torch.tensor([unit]))
        return (logits @ basis(3)).flatten()

    blocks = torch.autograd.functional.jacobian(outputs, tuple(parts))
    return torch.cat([block.flatten(1) for block in blocks], dim=1)


def test_basis() -> None:
    for n_actions in range(1, 6):
        q = basis(n_actions)
        torch.testing.assert_close(q.T @ q, torch.eye(n_actions - 1).double(), rtol=0, atol=1e-15)
        assert q.sum(dim=0).abs().max() < 1e-15 if n_actions > 1 else q.shape == (1, 0)


CHAINS: list[dict[str, Any]] = [
    *({"hidden": (5, 4), "activation": name} for name in ("relu", "tanh", "gelu")),
    {"hidden": ()},
    {"hidden": (5,), "activation": "tanh", "bound": 0.8},
    {"hidden": (), "bound": 0.8},
]
OTHERS: list[dict[str, Any]] = [
    {"hidden": (5, 4), "activation": "tanh", "sharing": True},
    {"module": False},
    {"module": True},
]


@pytest.mark.parametrize("rows", [[2, 0], [3, 1, 0, 2]])
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("options", CHAINS + OTHERS, ids=str)
def test_tangents_are_first_order(options: dict[str, Any], sampled: bool, rows: list[int]) -> None:
    policy = _policy(options)
    if options.get("module") and len(rows) < 4:
        return
    n_rows, seen = 6, None
    if sampled:
        n_rows = 4
        generator = torch.Generator().manual_seed(0)
        seen = torch.stack(
            [torch.randint(size, (len(rows), 4), generator=generator) for size in SIZES], dim=-1
        )
    asked = problem(policy, 0, torch.tensor(rows), torch.zeros(len(rows), n_rows, 3), seen)
    assert (chain(asked) is not None) == (options in CHAINS)
    assert asked.joint == (len(rows) == 4 and ("sharing" in options or bool(options.get("module"))))
    units = torch.arange(asked.n_units).flip(0)
    start = {name: value[units] for name, value in asked.start().items()}
    rate = tangent(asked, start, units)
    v = torch.randn(rate.gram.shape[:2], generator=torch.Generator().manual_seed(1)).double()
    pulled = torch.cat([part.reshape(len(units), -1) for part in rate.pull(v).values()], dim=1)
    for place, unit in enumerate(units.tolist()):
        jacobian = _jacobian(asked, unit)
        assert jacobian.shape == (asked.unit_outputs, asked.unit_parameters)
        # Sums of at most 300 products of size up to 10.
        gram = jacobian @ jacobian.T
        torch.testing.assert_close(rate.gram[place], gram, rtol=0, atol=1e-12)
        torch.testing.assert_close(pulled[place], v[place] @ jacobian, rtol=0, atol=1e-12)
    assert tangent_bytes(asked) >= 8 * rate.gram[0].numel()
