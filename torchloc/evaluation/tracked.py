"""A policy's numbers on a plan of balls, and the advantages that come out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchloc.errors import InputError
from torchloc.evaluation.passes import product_pass
from torchloc.evaluation.problem import Problem, Selection
from torchloc.evaluation.sampled import sampled_pass
from torchloc.evaluation.weighting import Weighting, as_product_law, as_states
from torchloc.mdp.checks import IntArray
from torchloc.policy import AgentGroup, SoftmaxPolicy


@dataclass(frozen=True, eq=False)
class LocalLogits:
    """ḡ_k of some agents, stored in one tensor for all agents of equal shape.

    Attributes:
        groups: The policy's groups of agents.
        values: (G, *S_scope, A) a group, zero mean over a.
        known: (K,) bool, whether an agent was asked for; other rows hold no meaning.
    """

    groups: tuple[AgentGroup, ...]
    values: tuple[Tensor, ...]
    known: np.ndarray

    def __getitem__(self, k: int) -> Tensor:
        """(*S[scope_k], A_k) view."""
        if not 0 <= k < len(self.known) or not self.known[k]:
            raise IndexError(f"agent {k} is not among those whose advantages were computed")
        for group, values in zip(self.groups, self.values, strict=True):
            at = int(np.searchsorted(group.agents, k))
            if at < len(group) and group.agents[at] == k:
                return values[at]
        raise IndexError(k)

    def __len__(self) -> int:
        return len(self.known)

    def __iter__(self) -> Iterator[Tensor]:
        """One agent after another.

        Raises:
            InputError: Some were not asked for.
        """
        if not self.known.all():
            raise InputError(
                f"agent {int(np.argmin(self.known))} is not among those whose advantages were "
                f"computed; index the others by their number"
            )
        return (self[k] for k in range(len(self)))


class Tracked:
    """Truncated advantages of a policy that moves a few agents at a time.

    After `moved` only what reads one of these agents is computed again: their laws, the closed-loop
    kernels and sources of what they act on, and the functions of balls through these.

    Args:
        problem: Plan, tables and numbers.
        state_sizes: (N,) sizes of the coordinates.
        select: Prepares agents; see `LocalEvaluation.select`.
    """

    def __init__(
        self, problem: Problem, state_sizes: IntArray, select: Callable[[], Selection]
    ) -> None:
        self.problem = problem
        self._sizes = state_sizes
        self._select = select

    def moved(self, policy: SoftmaxPolicy, agents: np.ndarray) -> None:
        """Takes over what some agents have become.

        Args:
            policy: The policy as it is now.
            agents: (K,) bool; all others are as they were.
        """
        laws = []
        for index, group in enumerate(policy.groups):
            rows = torch.from_numpy(np.flatnonzero(agents[group.agents]))
            laws.append(
                group.unflatten(policy.group_probabilities(index)[rows]) if len(rows) else None
            )
        moved = self.problem.numbers.move(agents, laws)
        if self.problem.memory is not None:
            self.problem.memory.forget(self.problem, moved)

    def logits(
        self,
        selection: Selection | None = None,
        *,
        weighting: Weighting = "uniform",
        states: Tensor | None = None,
    ) -> LocalLogits:
        """ḡ_k of the selected agents; arguments as in `LocalEvaluation.logits`."""
        problem, model = self.problem, self.problem.model
        chosen = selection or self._select()
        law = as_product_law(weighting, self._sizes, dtype=model.dtype, device=model.device)
        parts = (chosen.balls, chosen.kernels, chosen.rewards)
        sampled = None
        if states is not None:
            sampled = sampled_pass(problem, as_states(states, self._sizes, model.device), *parts)
        unseen = sampled is None or any(bool((n == 0).any()) for _, n in sampled)
        found = product_pass(problem, law, *parts) if unseen else None
        groups = problem.numbers.layout.groups
        values = []
        for i, group in enumerate(groups):
            averages = None
            if found is not None:
                seen = law.joint(group.scope, group.sizes, found[i]).unsqueeze(-2)
                averages = (found[i] / seen).reshape(group.n_rows, group.n_actions, len(group))
                averages = averages - averages.mean(dim=1, keepdim=True)
            if sampled is not None:
                sums, counts = sampled[i]
                means = sums / counts.clamp(min=1.0)
                means = means - means.mean(dim=1, keepdim=True)
                averages = means if averages is None else torch.where(counts > 0, means, averages)
            if averages is not None:
                values.append(group.unflatten(averages.permute(2, 0, 1).contiguous().cpu()))
        return LocalLogits(groups, tuple(values), chosen.agents)
