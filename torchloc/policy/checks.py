"""Validation of what a user hands to a policy: one clear error a rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from torchloc.errors import InputError
from torchloc.graphs import Scopes
from torchloc.mdp.checks import FloatArray, IntArray, first, integers, normalised, reals
from torchloc.policy.groups import AgentGroup


def sizes(value: ArrayLike, field: str) -> IntArray:
    """Sizes of spaces: (n,) whole numbers ≥ 1."""
    result = integers(value, field, 1)
    if (result < 1).any():
        (index,) = first(result < 1)
        raise InputError(f"{field}: entry {index} is {int(result[index])}; it must be at least 1")
    return result


def check_scopes(scopes: Scopes, state_sizes: IntArray, action_sizes: IntArray) -> None:
    """Refuses scopes of another number of agents, or of coordinates that have no size."""
    if len(action_sizes) != len(scopes):
        raise InputError(
            f"action_sizes has {len(action_sizes)} entries, but there are {len(scopes)} scopes; give "
            f"one of each an agent"
        )
    if len(scopes.indices) and int(scopes.indices.max()) >= len(state_sizes):
        raise InputError(
            f"a scope names coordinate {int(scopes.indices.max())}, but state_sizes has "
            f"{len(state_sizes)} entries; coordinates are numbered from 0"
        )


def temperatures(value: float | ArrayLike | Tensor, n_agents: int) -> Tensor:
    """(K,) float64 temperatures from one number or K."""
    tau = as_array(value, "temperature")
    if tau.ndim > 1 or (tau.ndim == 1 and len(tau) != n_agents):
        raise InputError(
            f"temperature has shape {tau.shape}; give one number, or one for each of the "
            f"{n_agents} agents"
        )
    bad = np.atleast_1d(~(np.isfinite(tau) & (tau > 0)))
    if bad.any():
        (agent,) = first(bad)
        whose = f" of agent {agent}" if tau.ndim else ""
        worst = np.atleast_1d(tau)[agent]
        raise InputError(f"temperature{whose} is {worst:.6g}; it must be finite and > 0")
    return torch.from_numpy(tau).expand(n_agents).clone()


def as_array(value: ArrayLike | Tensor, field: str) -> FloatArray:
    """A float64 copy of numbers, or of a tensor of any dtype, with or without gradient."""
    if isinstance(value, Tensor) and not value.is_complex():
        value = value.detach().cpu().double().numpy()
    return reals(value, field)


def unit(value: ArrayLike | Tensor) -> float:
    """The spacing of the numbers next to 1 in the dtype of `value`."""
    if isinstance(value, Tensor):
        return torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    dtype = np.asarray(value).dtype
    return float(np.finfo(dtype).eps) if np.issubdtype(dtype, np.floating) else 0.0


def as_laws(table: FloatArray, field: str, unit: float) -> FloatArray:
    """Laws along the last axis, of A entries that were rounded to spacing `unit`.

    A softmax in that precision sums to 1 within A unit / 2; twice that is allowed.

    Raises:
        InputError: An entry is negative or not finite, or a row does not sum to 1.
    """
    with np.errstate(invalid="ignore"):
        total = table.sum(axis=-1, keepdims=True)
    rounded = np.abs(total - 1.0) <= table.shape[-1] * unit
    table = np.divide(table, total, out=table.copy(), where=rounded)
    return normalised(table[None], lambda _: field)[0]


def check_count(tables: Sequence[ArrayLike | Tensor], what: str, n_agents: int) -> None:
    """Refuses any other number of tables than one an agent."""
    if len(tables) != n_agents:
        raise InputError(
            f"tables of {what} has {len(tables)} entries, but the model has {n_agents} agents; "
            f"give one table an agent"
        )


def as_table(value: ArrayLike | Tensor, field: str, group: AgentGroup) -> FloatArray:
    """(*S_scope, A) float64 copy of an agent's table; `field` names it."""
    table = as_array(value, field)
    shape = (*group.sizes, group.n_actions)
    if table.shape != shape:
        raise InputError(
            f"{field} have shape {table.shape}; (*S[scope], A) = {shape} is needed, the axes in "
            f"the order of the scope"
        )
    return table


def check_logits(tables: FloatArray, place: Callable[[int], str]) -> None:
    """Refuses NaN, +∞ and scope states without an allowed action.

    Args:
        tables: (B, *S_scope, A) logits of agents of equal shape.
        place: Says whose logits row b of the leading axis are.

    Raises:
        InputError: One of these.
    """
    bad = np.isnan(tables) | (tables == np.inf)
    if bad.any():
        index = first(bad)
        raise InputError(
            f"{place(index[0])}: entry {index[1:]} is {tables[index]}; use finite numbers, or −∞ to "
            f"forbid an action"
        )
    shut = np.asarray(np.isneginf(tables).all(axis=-1))
    if shut.any():
        index = first(shut)
        raise InputError(
            f"{place(index[0])}: row {index[1:]} is −∞ throughout, which forbids every action; "
            f"leave at least one finite"
        )


def check_fit(mine: IntArray, theirs: IntArray, kind: str, what: str) -> None:
    """Refuses sizes of a policy that are not those of the model.

    Args:
        mine: Sizes that the policy was made for.
        theirs: Sizes of the model.
        kind: Whose sizes they are.
        what: What a size counts.

    Raises:
        InputError: They differ.
    """
    mend = "use the model that the policy was made for, or a policy for this model"
    if len(mine) != len(theirs):
        raise InputError(
            f"the policy was made for {len(mine)} {kind}s, but the model has {len(theirs)}; {mend}"
        )
    if (mine != theirs).any():
        (index,) = first(mine != theirs)
        raise InputError(
            f"the policy was made for {int(mine[index])} {what} of {kind} {index}, but the model has "
            f"{int(theirs[index])}; {mend}"
        )


def joint_states(
    observation: Tensor, state_sizes: IntArray, read: IntArray
) -> tuple[Tensor, torch.Size]:
    """Observations (…, N) as (B, N) int64, and their leading shape.

    Args:
        observation: Integer joint states.
        state_sizes: (N,) sizes of the coordinates.
        read: The coordinates whose values must be in range; the others may hold anything.

    Raises:
        InputError: Another number of coordinates, no integers, or a value out of range.
    """
    states = torch.as_tensor(observation)
    n = len(state_sizes)
    if states.ndim == 0 or states.shape[-1] != n:
        raise InputError(
            f"observation has shape {tuple(states.shape)}; its last axis must hold the {n} "
            f"coordinates"
        )
    if states.is_floating_point() or states.is_complex() or states.dtype == torch.bool:
        raise InputError(f"observation has dtype {states.dtype}; give integers, as torch.int64")
    lead = states.shape[:-1]
    states = states.reshape(math.prod(lead), n).to(torch.int64)
    checked = torch.zeros(n, dtype=torch.bool)
    checked[torch.tensor(read)] = True
    bad = checked & ((states < 0) | (states >= torch.tensor(state_sizes)))
    if bool(bad.any()):
        row, i = first(bad.numpy())
        raise InputError(
            f"observation: coordinate {i} is {int(states[row, i])} in joint state {row}; its "
            f"values are 0 to {int(state_sizes[i]) - 1}"
        )
    return states, lead
