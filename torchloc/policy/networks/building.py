"""From a description to the network of a group, and from a file's numbers to its parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from torchloc.errors import InputError
from torchloc.mdp.checks import first
from torchloc.policy.checks import check_logits
from torchloc.policy.groups import AgentGroup
from torchloc.policy.networks.layered import LayeredNetwork, own_state
from torchloc.policy.networks.layers import (
    ACTIVATIONS,
    BatchedLinear,
    Bounded,
    EmbeddedLinear,
    OneHot,
    SharedLinear,
    Tabular,
)

WIDEST = 2**20
"""Units of a hidden layer at most: two such layers already have 2^40 weights an agent."""


def described(
    kind: str,
    *,
    hidden: Sequence[int] = (),
    activation: str = "relu",
    embedding: int | None = None,
    bound: float | None = None,
) -> dict[str, Any]:
    """The description of a kind of network that `built` reads and files keep; plain JSON values.

    Args:
        kind: `tabular` or `mlp`.
        hidden: Widths of the hidden layers of an MLP; none makes it linear.
        activation: A key of `ACTIVATIONS`.
        embedding: Length of the vectors by which the agents of a group that share one MLP are told
            apart; None gives every agent weights of its own.
        bound: L > 0 within which the logits are kept (`Bounded`); None lets them go.

    Raises:
        InputError: An unknown kind or activation, a width that is no whole number ≥ 1, a length
            that is no whole number ≥ 0, or a bound that is not finite and positive.
    """
    if kind == "tabular":
        return {"kind": kind}
    if kind != "mlp":
        raise InputError(f"the kind of network is {kind!r}; choose tabular or mlp")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise InputError(f"activation is {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    if not isinstance(hidden, Iterable):
        raise InputError(f"hidden is {hidden!r}; give a list of widths, one a layer")
    for layer, width in enumerate(hidden):
        if not _whole(width) or not 1 <= width <= WIDEST:
            raise InputError(
                f"hidden: layer {layer} has width {width!r}; give whole numbers from 1 to {WIDEST}, "
                f"or an empty list for a linear network"
            )
    description = {
        "kind": kind,
        "hidden": [int(width) for width in hidden],
        "activation": activation,
    }
    if embedding is not None:
        if not _whole(embedding) or not 0 <= embedding <= WIDEST:
            raise InputError(f"embedding is {embedding!r}; give a whole number from 0 to {WIDEST}")
        description["embedding"] = int(embedding)
    if bound is not None:
        real = isinstance(bound, Real) and not isinstance(bound, bool)
        if not real or not math.isfinite(bound) or not bound > 0:
            raise InputError(f"bound is {bound!r}; give a finite number > 0, or none")
        description["bound"] = float(bound)
    return description


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def built(
    description: dict[str, Any],
    group: AgentGroup,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    scale: float = 0.0,
) -> nn.Module:
    """The network of a group, freshly drawn.

    Args:
        description: From `described`.
        group: Its agents.
        dtype: Of the parameters.
        generator: Source of the initial parameters; None gives parameters without numbers (on the
            meta device), to be replaced.
        scale: Standard deviation of tabular logits; 0 gives the uniform policy.

    Raises:
        BudgetError: A table with more rows than are enumerated.
    """
    if description["kind"] == "tabular":
        return tabular(group, generator, dtype, scale)
    options = {name: value for name, value in description.items() if name != "kind"}
    return mlp(group, generator, dtype, **options)


def tabular(
    group: AgentGroup, generator: torch.Generator | None, dtype: torch.dtype, scale: float
) -> Tabular:
    """Normal logits of standard deviation `scale`; 0 gives the uniform policy."""
    group.check_enumerable()
    shape = (len(group), group.n_rows, group.n_actions)
    if generator is None:
        return Tabular(group.sizes, torch.empty(shape, dtype=dtype, device="meta"))
    return Tabular(group.sizes, scale * torch.randn(shape, generator=generator, dtype=dtype))


def mlp(
    group: AgentGroup,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    hidden: Sequence[int],
    activation: str,
    embedding: int | None = None,
    bound: float | None = None,
) -> LayeredNetwork:
    """One-hot inputs, hidden layers of the given widths, linear logits; no hidden layer: linear.

    With `embedding` the group shares one network, whose first layer also reads the agent's vector.
    """
    widths = [sum(group.sizes), *hidden, group.n_actions]
    layers: list[nn.Module] = [OneHot(group.sizes, dtype)]
    for i, (n_inputs, n_outputs) in enumerate(itertools.pairwise(widths)):
        if i:
            layers.append(ACTIVATIONS[activation]())
        shape = (len(group), n_inputs, n_outputs)
        scaled = bound is None and i == len(hidden)
        if embedding is None:
            layers.append(BatchedLinear(*shape, generator, dtype))
        elif i:
            layers.append(SharedLinear(*shape, generator, dtype, scaled=scaled))
        else:
            layers.append(EmbeddedLinear(*shape, embedding, generator, dtype, scaled=scaled))
    if bound is not None:
        layers.append(Bounded(len(group), group.n_actions, bound, dtype))
    return LayeredNetwork(*layers)


def scale_logits(network: nn.Module, factor: Tensor) -> None:
    """Multiplies all logits of agent g by factor[g], (G,), in place.

    That is its table, or the last affine layer, or where agents share that or `Bounded` follows,
    what each has of its own there: its scale or its limit.

    Raises:
        InputError: A module of the user's own, which does not say how.
    """
    last = [network, *network.children()][-1]  # a table has no children
    if isinstance(last, BatchedLinear):
        own: list[Tensor] = [last.weight, last.bias]
    elif isinstance(last, Tabular):
        own = [last.table]
    elif isinstance(last, Bounded):
        own = [last.limit]
    elif isinstance(last, SharedLinear | EmbeddedLinear) and last.scale is not None:
        own = [last.scale]
    else:
        raise InputError(
            f"the logits of a module of type {type(network).__name__} cannot be rescaled, which "
            f"hold=policy needs; use hold=logits, or let it end in a layer of torchloc"
        )
    with torch.no_grad():
        for value in own:
            value.mul_(factor[:, None, None].to(value.dtype))


def common_dtype(parameters: Mapping[str, Tensor]) -> torch.dtype:
    """The floating dtype that all parameters share; float64 where there are none.

    Raises:
        InputError: They differ, or hold no floating numbers.
    """
    dtypes = {value.dtype for value in parameters.values()} or {torch.float64}
    dtype = next(iter(dtypes))
    if len(dtypes) > 1 or not dtype.is_floating_point:
        raise InputError(
            f"the network parameters have dtypes {sorted(map(str, dtypes))}; one floating dtype is "
            f"needed"
        )
    return dtype


def fill(
    modules: nn.ModuleList, groups: Sequence[AgentGroup], parameters: Mapping[str, Tensor]
) -> None:
    """Gives networks their parameters from a file.

    Networks that were built without numbers keep the tensors given; others copy them.

    Args:
        modules: One network a group.
        groups: Their agents.
        parameters: By name, as in the state of `modules`.

    Raises:
        InputError: A parameter is missing, not needed or of another shape or dtype, or holds
            numbers that no policy has.
    """
    needed = modules.state_dict()
    for name in sorted({*needed, *parameters}):
        have = tuple(parameters[name].shape) if name in parameters else "missing"
        want = tuple(needed[name].shape) if name in needed else "absent"
        if have != want:
            raise InputError(
                f"network parameter {name} is {have}, but kind, scopes and sizes need {want}"
            )
        if parameters[name].dtype != needed[name].dtype:
            raise InputError(
                f"network parameter {name} is {parameters[name].dtype}, but {needed[name].dtype} "
                f"is needed"
            )
    modules.load_state_dict(dict(parameters), assign=any(x.is_meta for x in needed.values()))
    for group, network in zip(groups, modules, strict=True):
        _check_numbers(group, network)


def _check_numbers(group: AgentGroup, network: nn.Module) -> None:
    agents = group.agents.tolist()
    if isinstance(network, Tabular):
        tables = group.unflatten(network.table.detach().double()).numpy()
        check_logits(tables, lambda b: f"logits of agent {agents[b]}")
        return
    own, parameters = own_state(network, shared=True), dict(network.named_parameters())
    for name, value in network.state_dict().items():
        positive = name in own and name not in parameters  # a scale, or a limit of the logits
        if not positive and name not in parameters:
            continue
        broken = ~torch.isfinite(value) | (value <= 0 if positive else False)
        if bool(broken.any()):
            place = first(broken.numpy())
            whose = f" of agent {agents[place[0]]}" if name in own else ""
            what = "a number that is not finite and > 0" if positive else "NaN or ∞"
            raise InputError(f"parameter {name}{whose} holds {what}")
