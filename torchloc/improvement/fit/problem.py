"""What a fit may move, and what the network says when it is moved.

A *unit* is what is fitted by itself: an agent, where parameters belong to agents; the whole group,
where its agents share some. Parameters of U units are tensors with a leading axis of U, so that the
optimisers know nothing of agents.

Axis letters: U units, B agents (U = B, or U = 1), M rows of an agent (scope states, or samples), M'
rows of a unit (M, or B M), A actions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from torchloc.errors import InputError
from torchloc.policy import LogitNetwork, SoftmaxPolicy, Tabular
from torchloc.policy.networks import Bounded, LayeredNetwork, applied

Parameters = dict[str, Tensor]
"""By name; a leading axis of units."""
CHUNK = 2**26
"""Bytes of a step's intermediate values that are held at once, where agents are fitted in chunks."""
_MARGIN = 1.0 - 2.0**-10
"""Part of their range that bounded logits are asked for: its end takes infinite weights."""


@dataclass(frozen=True, eq=False)
class Problem:
    """B agents of a group, what they see and what their logits should be.

    Attributes:
        network: Of the group.
        rows: (B,) rows of the group.
        own: Names of the tensors that have one row an agent.
        moving: Names of the parameters that are fitted.
        joint: Whether some of them are the group's, so that there is one unit.
        observations: (B, M, m) int64; stride 0 where all agents see the same rows.
        targets: (B, M, A) float64 logits.
        temperature: (B,) τ.
    """

    network: LogitNetwork
    rows: Tensor
    own: frozenset[str]
    moving: tuple[str, ...]
    joint: bool
    observations: Tensor
    targets: Tensor
    temperature: Tensor

    @property
    def n_units(self) -> int:
        """U."""
        return 1 if self.joint else len(self.rows)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self._state()[self.moving[0]].dtype

    @property
    def unit_parameters(self) -> int:
        """How many numbers of a unit move."""
        state = self._state()
        return sum(
            math.prod(state[name].shape[1:]) * (len(self.rows) if self.joint else 1)
            if name in self.own
            else state[name].numel()
            for name in self.moving
        )

    @property
    def unit_outputs(self) -> int:
        """M' (A − 1), the logits of a unit up to a constant a row."""
        n_agents, n_rows, n_actions = self.targets.shape
        return n_rows * (n_actions - 1) * (n_agents if self.joint else 1)

    def _state(self) -> dict[str, Tensor]:
        return {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}

    # -- parts -------------------------------------------------------------------------------------

    def part_size(self, unit_bytes: int) -> int:
        """How many agents to fit at once, where a unit takes so many bytes."""
        return max(1, len(self.rows) if self.joint else CHUNK // max(1, unit_bytes))

    def parts(self, size: int) -> Iterator[Problem]:
        """The problem, `size` agents at a time."""
        if size >= len(self.rows):
            yield self
            return
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            yield replace(
                self,
                rows=self.rows[part],
                observations=self.observations[part],
                targets=self.targets[part],
                temperature=self.temperature[part],
            )

    # -- parameters and logits ---------------------------------------------------------------------

    def start(self) -> Parameters:
        """Copies of the moving parameters as they are: every fit starts from them."""
        state, result = self._state(), {}
        for name in self.moving:
            value = state[name].detach()
            value = value[self.rows] if name in self.own else value.clone()
            result[name] = value[None] if self.joint else value
        return result

    def write(self, parameters: Parameters) -> None:
        """Puts fitted parameters in place; what other agents have stays bit for bit."""
        state = self._state()
        for name, value in parameters.items():
            value = value[0] if self.joint else value
            if name in self.own:
                state[name].detach().index_copy_(0, self.rows, value)
            else:
                state[name].detach().copy_(value)

    def logits(
        self, parameters: Parameters, units: Tensor | None = None, columns: Tensor | None = None
    ) -> Tensor:
        """(u, M', A) logits of some units under trial parameters, past the network's hooks.

        Args:
            parameters: Of these units.
            units: (u,) which; None: all.
            columns: Which of the M rows of each agent; None: all.
        """
        units = None if self.joint else units
        rows = self.rows if units is None else self.rows[units]
        seen = self.seen(units)
        seen = seen if columns is None else seen[:, columns]
        state = {
            name: value.detach()[rows]
            for name, value in self._state().items()
            if name in self.own and name not in self.moving
        }
        for name, value in parameters.items():
            state[name] = value[0] if self.joint else value
        return self.by_unit(applied(self.network, state, seen))

    def seen(self, units: Tensor | None) -> Tensor:
        """(u, M, m) observations of some agents that are units, expanded where all see the same."""
        if units is None:
            return self.observations
        if len(self.observations) > 1 and self.observations.stride(0) == 0:
            return self.observations[:1].expand(len(units), -1, -1)
        return self.observations[units]

    # -- agents and units --------------------------------------------------------------------------

    def by_unit(self, values: Tensor) -> Tensor:
        """(B, M, …) as (U, M', …)."""
        return values.flatten(0, 1)[None] if self.joint else values

    def by_agent(self, values: Tensor) -> Tensor:
        """(U, M', …) as (B, M, …)."""
        return values[0].unflatten(0, self.targets.shape[:2]) if self.joint else values

    def each(self, values: Tensor) -> Tensor:
        """(U,) as (B,)."""
        return values.expand(len(self.rows)).clone() if self.joint else values

    def at(self, values: Tensor, units: Tensor, columns: Tensor | None) -> Tensor:
        """(U, M', …) at some units and columns, in the order of `logits`."""
        values = values[units]
        if columns is None:
            return values
        if self.joint:
            n_agents, n_rows = self.targets.shape[:2]
            columns = (n_rows * torch.arange(n_agents)[:, None] + columns).flatten()
        return values[:, columns]

    def aims(self) -> Tensor:
        """(B, M, A) targets that the network can come near: clipped to what bounded logits reach.

        They are put at equal distances of the largest and the smallest from 0 first.
        """
        last = list(self.network.children())[-1:]
        if not isinstance(self.network, LayeredNetwork) or not isinstance(last[0], Bounded):
            return self.targets
        reach = last[0].limit[self.rows].double() * _MARGIN
        high, low = self.targets.amax(dim=-1, keepdim=True), self.targets.amin(dim=-1, keepdim=True)
        centred = self.targets - 0.5 * (high + low)
        return torch.maximum(torch.minimum(centred, reach), -reach)


def problem(
    policy: SoftmaxPolicy, index: int, rows: Tensor, targets: Tensor, observations: Tensor | None
) -> Problem:
    """The problem of a call, checked.

    Raises:
        InputError: Rows that are no distinct rows of the group, targets or observations of another
            shape, or only parameters that other agents share.
        BudgetError: No observations are given and the scope states are too many to enumerate.
    """
    group, network = policy.groups[index], policy.networks[index]
    distinct = rows.ndim == 1 and rows.dtype == torch.int64 and len(rows.unique()) == len(rows)
    if not distinct or not len(rows) or not 0 <= int(rows.min()) <= int(rows.max()) < len(group):
        raise InputError(
            f"rows must be a vector of distinct rows of group {index}, int64 from 0 to "
            f"{len(group) - 1}, at least one; it is {rows}"
        )
    if observations is None:
        observations = group.observations().expand(len(rows), -1, -1)
    if observations.ndim != 3 or observations.shape[::2] != (len(rows), len(group.sizes)):
        raise InputError(
            f"observations has shape {tuple(observations.shape)}; (B, M, m) is needed, B = "
            f"{len(rows)} rows and m = {len(group.sizes)} coordinates that an agent sees"
        )
    shape = (*observations.shape[:2], group.n_actions)
    if targets.shape != shape or not shape[1]:
        raise InputError(
            f"targets and gains must have shape (B, M, A) = {shape} with M ≥ 1: rows, observations "
            f"(all scope states unless they are given), actions; it is {tuple(targets.shape)}"
        )
    own = policy.own_state(index)
    free = [name for name, value in network.named_parameters() if value.requires_grad]
    joint = any(name not in own for name in free) and len(rows) == len(group)
    moving = tuple(name for name in free if joint or name in own)
    if not moving:
        raise InputError(
            f"the {len(group)} agents of group {index} have no parameters of their own that could be "
            f"fitted for {len(rows)} of them; fit all at once, or give each an embedding"
        )
    temperature = policy.temperature[torch.tensor(group.agents)[rows]]
    return Problem(
        network, rows, frozenset(own), moving, joint, observations, targets.double(), temperature
    )


def assigned(part: Problem, *, everywhere: bool) -> tuple[Tensor, Tensor]:
    """Puts the targets in the table; (B,) steps and (B, M, A) logits for the report.

    Args:
        part: Of a `Tabular` network.
        everywhere: Whether the targets are for all scope states; else for the observations.
    """
    network = cast(Tabular, part.network)
    table = network.table.detach()
    values = part.targets.to(table.dtype)
    if everywhere:
        table[part.rows] = values
    else:
        table[part.rows[:, None], network.row(part.observations)] = values
    return torch.zeros(len(part.rows), dtype=torch.int64), part.logits(part.start())


def check_settings(steps: int | None, rate: float, batch: int | None, **tolerances: float) -> None:
    """Refuses settings out of range.

    Raises:
        InputError: Fewer steps than 1, a pace that is not positive, a batch below 1, or a tolerance
            that is negative or NaN.
    """
    if steps is not None and steps < 1:
        raise InputError(f"steps is {steps}; it must be ≥ 1")
    if not 0.0 < rate < math.inf:
        raise InputError(f"rate is {rate}; it must be finite and > 0")
    if batch is not None and batch < 1:
        raise InputError(f"batch is {batch}; it must be ≥ 1, or None for all rows")
    for name, value in tolerances.items():
        if not value >= 0.0:
            raise InputError(f"{name} is {value}; it must be ≥ 0")
