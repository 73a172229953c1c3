"""Numbers of a policy that float64 cannot hold, found at their source.

A run goes from logits z by (z − max z)/τ to laws, and from differences of logits over τ to bounds. That
breaks where

- a logit is NaN or +∞, or all of a row are −∞: there is no law;
- finite logits differ by so much that their difference over τ overflows: L/τ is infinite.

It does not break where (max z − z_a)/τ > 745 and the probability of a, below 2⁻¹⁰⁷⁴, becomes 0. Logits
remember what laws forget: the prox step, KL and L are taken on them, laws and certificates are right to
their rounding, and a higher τ, or an advantage, brings the action back. What is lost is that the chain no
longer visits what only this action reaches: it may fall apart into closed classes, and then the solve
says so (`evaluation.solver`, `JointEvaluation.n_closed_classes`). `Rarest` tells how far a policy is from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from torchloc.errors import SolveError
from torchloc.policy import SoftmaxPolicy

_RARE = 2.0**-26
"""Probability below which an action that is allowed is worth a word where a solve has failed."""
_ROOM = 4.0
"""L ≤ 2 max (max z − z), and half as much again is formed of it."""


def check_numbers(policy: SoftmaxPolicy) -> None:
    """Stops where a policy's numbers mean nothing; −∞ forbids an action and is none of them.

    Raises:
        SolveError: With the agent and the value.
    """
    for index, group in enumerate(policy.groups):
        with torch.no_grad():
            logits = policy.group_logits(index)
        bad = torch.isnan(logits) | torch.isposinf(logits)
        if bool(bad.any()):
            row = _first(bad)
            value = float(logits[row][bad[row]][0])
            raise SolveError(
                f"the logits of agent {int(group.agents[row])} have become {value}: its gains, or its prox step "
                f"(τ/η), are beyond the range of its weights; raise prox, or the lowest temperature"
            )
        shut = torch.isneginf(logits).all(dim=-1)
        if bool(shut.any()):
            raise SolveError(
                f"the logits of agent {int(group.agents[_first(shut)])} have become −∞ for every action: its "
                f"gains, or its prox step (τ/η), are beyond the range of its weights; raise prox, or the lowest "
                f"temperature"
            )
        gaps = policy.group_scaled_logits(index) * _ROOM
        wide = torch.isinf(gaps) & torch.isfinite(logits)
        if bool(wide.any()):
            row = _first(wide)
            agent = int(group.agents[row])
            finite = logits[row].double()[torch.isfinite(logits[row])]
            raise SolveError(
                f"the logits of agent {agent} reach from {float(finite.min()):.3g} to {float(finite.max()):.3g}, "
                f"and at τ = {float(policy.temperature[agent]):.3g} their difference over τ is beyond the range "
                f"of float64; raise prox, or the lowest temperature"
            )


@dataclass(frozen=True)
class Rarest:
    """The least probable of the actions that a policy's logits allow.

    Attributes:
        agent: Whose it is.
        exponent: (max z − z_a)/τ: its odds against the best action of its row are e to minus that.
        temperature: τ of the agent.
        lost: Rows (agent and observation) in which such an action has probability 0 in float64.
        rows: Rows in all.
    """

    agent: int
    exponent: float
    temperature: float
    lost: int
    rows: int

    @classmethod
    def of(cls, policy: SoftmaxPolicy) -> Rarest:
        """Reads a policy whose numbers `check_numbers` accepts."""
        agent, exponent, lost, rows = 0, 0.0, 0, 0
        for index, group in enumerate(policy.groups):
            scaled = policy.group_scaled_logits(index)
            allowed = torch.isfinite(scaled)
            gone = allowed & (torch.softmax(scaled, dim=-1) == 0.0)
            lost += int(gone.any(dim=-1).sum())
            rows += scaled.shape[0] * scaled.shape[1]
            gaps = torch.where(allowed, -scaled, 0.0).flatten(1).amax(dim=1)
            row = int(gaps.argmax())
            if float(gaps[row]) > exponent:
                agent, exponent = int(group.agents[row]), float(gaps[row])
        return cls(agent, exponent, float(policy.temperature[agent]), lost, rows)

    def told(self) -> str:
        """A sentence for a message about a solve that failed; empty where no action is rare."""
        if not self.exponent > -math.log(_RARE):
            return ""
        odds = f"about 10^-{self.exponent / math.log(10.0):.0f}"
        if not self.lost:
            return (
                f"the rarest action is agent {self.agent}'s, {odds} at τ = {self.temperature:.3g}"
            )
        return (
            f"agent {self.agent} has become deterministic: at τ = {self.temperature:.3g} an action that its "
            f"logits allow has probability {odds}, 0 in float64, and so have {self.lost} of {self.rows} rows "
            f"of all agents"
        )


def underflow(policy: SoftmaxPolicy) -> dict[str, float]:
    """`policy/underflow`: share of rows with an allowed action of probability 0; nothing where there is none."""
    rarest = Rarest.of(policy)
    return {"policy/underflow": rarest.lost / rarest.rows} if rarest.lost else {}


def _first(bad: torch.Tensor) -> int:
    """The first row of a group that holds what is bad."""
    return int(bad.flatten(1).any(dim=1).nonzero()[0])
