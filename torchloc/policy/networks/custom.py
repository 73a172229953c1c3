"""Modules of the user's own as logit networks.

The interface is one function, `build(group)`, from an `AgentGroup` of G agents to an `nn.Module` that
maps (G, B, m) int64 observations, in scope order, to (G, B, A) floating logits, row g being agent g's.

- Its parameters have a leading axis of G, row g read for agent g only, and a forward pass works for
  any number of agents: parameters and observations of some rows give these rows of the logits. Or,
  with `shared=True`, they may have any shape and belong to all agents of the group.
- Buffers are the same for all agents.
- The logits of an observation depend on nothing else: no dropout, no batch statistics, no state.

`build` runs under torch's global generator seeded for the policy, which is put back afterwards, so the
usual initialisers are reproducible.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchloc.errors import InputError
from torchloc.policy.groups import AgentGroup
from torchloc.policy.networks.layered import applied, own_state

Build = Callable[[AgentGroup], nn.Module]


def custom(build: Build, group: AgentGroup, *, shared: bool) -> nn.Module:
    """What `build` makes of a group, checked.

    Raises:
        InputError: It is no module, or breaks the interface; the message says where.
    """
    network = build(group)
    whose = f"build's module for the {len(group)} agents from agent {int(group.agents[0])} on"
    if not isinstance(network, nn.Module):
        raise InputError(f"{whose} is {type(network).__name__}; return a torch.nn.Module")
    for name, value in own_state(network, shared=shared).items():
        if value.ndim == 0 or len(value) != len(group):
            raise InputError(
                f"{whose}: parameter {name} has shape {tuple(value.shape)}; its first axis must be "
                f"the {len(group)} agents, unless all share it (shared=True)"
            )
    corners = torch.tensor([[0] * len(group.sizes), [size - 1 for size in group.sizes]])
    seen = corners.expand(len(group), -1, -1).contiguous()
    with torch.no_grad():
        logits = network(seen)
        _check_logits(logits, (len(group), 2, group.n_actions), whose)
        _check_alike(network(seen), logits, f"{whose} gave two answers to one observation", _STATE)
        _check_alike(network(seen[:, 1:]), logits[:, 1:], f"{whose} mixes observations", _STATE)
        if not shared:
            rows = torch.arange(len(group) - 1, -1, -2)
            _check_alike(
                _some(network, rows, seen, whose), logits[rows], f"{whose} mixes agents", _ROWS
            )
    return network


def _some(network: nn.Module, rows: Tensor, seen: Tensor, whose: str) -> Tensor:
    """The logits of some rows from their parameters and observations alone."""
    own = {name: value[rows] for name, value in own_state(network).items()}
    try:
        return applied(network, own, seen[rows])
    except (RuntimeError, IndexError) as error:
        raise InputError(f"{whose} needs all agents at once ({error}); {_ROWS}") from error


_STATE = "switch dropout and batch statistics off"
_ROWS = (
    "let row g of the parameters and the observations alone decide row g of the logits, or share all "
    "parameters (shared=True)"
)


def _check_logits(logits: Tensor, shape: tuple[int, ...], whose: str) -> None:
    if not isinstance(logits, Tensor) or tuple(logits.shape) != shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"{whose} returned {got} for (G, B, m) observations; (G, B, A) = {shape} is needed"
        )
    if not logits.is_floating_point():
        raise InputError(f"{whose} returned {logits.dtype}; floating logits are needed")
    if not bool(torch.isfinite(logits).all()):
        raise InputError(f"{whose} returned NaN or ∞; its logits must be finite")


def _check_alike(one: Tensor, other: Tensor, fault: str, mend: str) -> None:
    """Refuses what differs by more than the rounding of sums in another order."""
    unit = torch.finfo(other.dtype).eps ** 0.75 * (1.0 + float(other.abs().max()))
    if one.shape != other.shape or float((one - other).abs().max()) > unit:
        raise InputError(f"{fault}; {mend}")
