"""The way back: networks that another trainer fitted, as a policy that can be certified.

Agent k's network maps its observations to logits z_k, and acts by softmax(z_k / τ_k), which is what a
categorical head does at τ = 1. Two forms of the same policy, up to the rounding of the networks' own
dtype, both saved without code:

    tables    every network, read at every scope state: exact sensitivities;
    layers    perceptrons, weight by weight: for scopes too large to enumerate, whose Lipschitz constants
              are then bounded from the layers (`torchloc.lipschitz`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from torchloc.errors import BudgetError, InputError
from torchloc.graphs import Scopes, as_scopes
from torchloc.mdp import FactoredMDP
from torchloc.policy import AgentGroup, SoftmaxPolicy, agent_groups
from torchloc.policy.networks import ACTIVATIONS, BatchedLinear

if TYPE_CHECKING:
    from collections.abc import Iterator

Network = nn.Module | Callable[[Tensor], Tensor]

CHUNK = 65_536
"""Observations that a network reads at once."""
REPLAYED = 64
"""Observations on which copied layers are held against the network."""


def policy_from_modules(
    mdp: FactoredMDP,
    scopes: Scopes | Sequence[ArrayLike],
    modules: Sequence[Network],
    *,
    observation: Literal["one_hot", "scope"] = "one_hot",
    form: Literal["tables", "layers"] = "tables",
    temperature: float | ArrayLike = 1.0,
) -> SoftmaxPolicy:
    """The policy of one network an agent.

    Args:
        mdp: The model.
        scopes: What each agent sees, in the order in which its network reads it.
        modules: K networks or functions, from observations to (R, A_k) floating logits. `one_hot`:
            they read (R, Σ S[scope_k]) zeros and ones, in the dtype of the network's parameters,
            float32 where it has none; `scope`: (R, m) int64 values. These are the observations of
            `parallel_env`. One network may serve many agents: name it for each. Networks are read
            in evaluation mode, without gradient, on their own device, and left as they were.
        observation: `one_hot` or `scope`.
        form: `tables`, or `layers`: the networks are `nn.Sequential`s of `nn.Linear` layers with one
            kind of activation (`nn.ReLU`, `nn.Tanh` or `nn.GELU`) between them, on one-hot
            observations, with the same hidden widths for every agent.
        temperature: τ of softmax(z/τ), one number or (K,); 1 where the trainer has none.

    Returns:
        The policy; `save` writes a file for `torchloc-certify --policy FILE`.

    Raises:
        InputError: Not one network an agent; one returns something else than logits, NaN or +∞, or
            two answers to one observation; `layers` of another kind; scopes or a temperature that
            do not fit.
        BudgetError: `tables` of a scope with more joint states than are enumerated.

    Example:
        >>> import torch
        >>> from torchloc.environments import sysadmin
        >>> from torchloc.graphs import neighbourhood_scopes
        >>> mdp = sysadmin(n=3)
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> policy = policy_from_modules(mdp, neighbourhood_scopes(mdp), [network] * 3)
        >>> law = torch.softmax(network(torch.tensor([0.0, 1.0, 1.0, 0.0])), dim=-1)
        >>> torch.allclose(policy.probabilities(0)[1, 0].float(), law)
        True
    """
    if observation not in ("one_hot", "scope"):
        raise InputError(f"observation is {observation!r}; choose one_hot or scope")
    if len(modules) != mdp.n_agents:
        raise InputError(
            f"modules has {len(modules)} entries, but the model has {mdp.n_agents} agents; give one "
            f"network an agent, the same one again where agents share it"
        )
    scopes = as_scopes(mdp, scopes)
    if form == "layers" and len(modules):
        if observation != "one_hot":
            raise InputError(f"form=layers needs observation=one_hot, not {observation}")
        return _layered(mdp, scopes, modules, temperature)
    if form not in ("tables", "layers"):
        raise InputError(f"form is {form!r}; choose tables or layers")
    tables: dict[int, Tensor] = {}
    for group in agent_groups(scopes, mdp.state_sizes, mdp.action_sizes):
        try:
            values = group.observations()
        except BudgetError as error:
            raise BudgetError(f"{error}, or, for perceptrons, use form=layers") from error
        for k in group.agents.tolist():
            tables[k] = _logits(modules[k], f"modules[{k}]", values, group, observation)
    ordered = [tables[k] for k in range(mdp.n_agents)]
    return SoftmaxPolicy.from_logits(mdp, scopes, ordered, temperature=temperature)


def one_hot(values: Tensor, sizes: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """(R, m) values as (R, Σ sizes) zeros and ones, coordinate after coordinate."""
    parts = [nn.functional.one_hot(values[:, place], size) for place, size in enumerate(sizes)]
    return torch.cat([values[:, :0], *parts], dim=1).to(dtype)


def _logits(
    network: Network, name: str, values: Tensor, group: AgentGroup, observation: str
) -> Tensor:
    """(*S_scope, A) float64 logits of one network."""
    parts = [
        _read(network, name, values[start : start + CHUNK], group, observation)
        for start in range(0, len(values), CHUNK)
    ]
    again = _read(network, name, values[-1:], group, observation)
    size = float(again[torch.isfinite(again)].abs().sum())
    rounding = torch.finfo(again.dtype).eps ** 0.75 * (1.0 + size)
    if not torch.allclose(again, parts[-1][-1:], rtol=0.0, atol=rounding, equal_nan=True):
        raise InputError(
            f"{name} gave two answers to one observation; it must depend on nothing else: no "
            f"sampling, no statistics of a batch"
        )
    return torch.cat(parts).double().reshape(*group.sizes, group.n_actions)


# -- layer by layer --------------------------------------------------------------------------------


def _layered(
    mdp: FactoredMDP, scopes: Scopes, modules: Sequence[Network], temperature: float | ArrayLike
) -> SoftmaxPolicy:
    """The networks' own weights in networks of the package."""
    chains = [_chain(network, f"modules[{k}]") for k, network in enumerate(modules)]
    affine = [chain[::2] for chain in chains]
    hidden = [[layer.out_features for layer in layers[:-1]] for layers in affine]
    kinds = {type(part) for chain in chains for part in chain[1::2]} or {nn.ReLU}
    for k, layers in enumerate(affine):
        own = hidden[k], layers[0].in_features, layers[-1].out_features
        due = hidden[0], int(mdp.state_sizes[list(scopes[k])].sum()), int(mdp.action_sizes[k])
        if own != due:
            raise InputError(
                f"modules[{k}] has hidden widths {own[0]} from {own[1]} inputs to {own[2]} logits; it "
                f"must have {due[0]} (as modules[0]) from {due[1]} to {due[2]}, or use form=tables"
            )
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(f"the modules have activations {names}; form=layers takes one kind")
    dtype = functools.reduce(
        torch.promote_types, (layer.weight.dtype for layers in affine for layer in layers)
    )
    (activation,) = (name for name, kind in ACTIVATIONS.items() if kind in kinds)
    policy = SoftmaxPolicy.mlp(
        mdp, scopes, hidden=hidden[0], activation=activation, temperature=temperature, dtype=dtype
    )
    for index, group in enumerate(policy.groups):
        places = [
            part for part in policy.networks[index].modules() if isinstance(part, BatchedLinear)
        ]
        for row, k in enumerate(group.agents.tolist()):
            for place, layer in zip(places, affine[k], strict=True):
                place.weight.data[row] = layer.weight.detach().T
                place.bias.data[row] = 0.0 if layer.bias is None else layer.bias.detach()
        _replay(policy, index, modules)
    return policy


def _chain(network: Network, name: str) -> list[Any]:
    """Affine layers with activations between them; what does nothing when evaluated is left out."""
    parts = [part for part in _flat(network) if not isinstance(part, nn.Identity | nn.Dropout)]
    for place, part in enumerate(parts):
        wanted = tuple(ACTIVATIONS.values()) if place % 2 else (nn.Linear,)
        rough = isinstance(part, nn.GELU) and part.approximate != "none"
        if type(part) not in wanted or rough:
            parts = []
            break
    if len(parts) % 2 == 0:
        raise InputError(
            f"{name} is no torch.nn.Sequential of Linear layers with ReLU, Tanh or exact GELU between "
            f"them; use form=tables"
        )
    return parts


def _flat(network: Network) -> list[Any]:
    """The parts of nested `Sequential`s, in order."""
    if not isinstance(network, nn.Sequential):
        return [network]
    return [part for inner in network for part in _flat(inner)]


def _replay(policy: SoftmaxPolicy, index: int, modules: Sequence[Network]) -> None:
    """Holds the copies of one group against the networks themselves, on random observations."""
    group = policy.groups[index]
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(size, (REPLAYED,), generator=generator) for size in group.sizes]
    values = (
        torch.stack(columns, dim=1) if columns else torch.zeros((REPLAYED, 0), dtype=torch.int64)
    )
    with torch.no_grad():
        copies = policy.networks[index](values.expand(len(group), -1, -1))
    for row, k in enumerate(group.agents.tolist()):
        own = _read(modules[k], f"modules[{k}]", values, group, "one_hot")
        unit = torch.finfo(own.dtype).eps ** 0.75 * (1.0 + float(own.abs().max()))
        # Not `any(… > unit)`: NaN is told here, too.
        if not bool(((copies[row] - own).abs() <= unit).all()):
            raise InputError(
                f"modules[{k}] does not compute what its layers say: its logits differ from theirs, or "
                f"are NaN or ∞; use form=tables"
            )


# -- reading a network -----------------------------------------------------------------------------


def _read(
    network: Network, name: str, values: Tensor, group: AgentGroup, observation: str
) -> Tensor:
    """(R, A) logits at (R, m) values, in the network's dtype."""
    if not callable(network):
        raise InputError(f"{name} is {type(network).__name__}; give a torch module or a function")
    device, dtype = _home(network)
    seen = one_hot(values, group.sizes, dtype) if observation == "one_hot" else values
    with torch.no_grad(), _evaluating(network):
        return _checked(network(seen.to(device)), name, (len(values), group.n_actions))


def _checked(logits: object, name: str, shape: tuple[int, int]) -> Tensor:
    if not isinstance(logits, Tensor) or tuple(logits.shape) != shape:
        got = (
            f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        )
        raise InputError(
            f"{name} returned {got} for {shape[0]} observations; (R, A) = {shape} logits are needed"
        )
    if not logits.is_floating_point():
        raise InputError(f"{name} returned {logits.dtype}; floating logits are needed")
    return logits.detach().cpu()


def _home(network: Network) -> tuple[torch.device, torch.dtype]:
    """Where a network lives, and the dtype it reads."""
    if isinstance(network, nn.Module):
        for value in network.parameters():
            if value.is_floating_point():
                return value.device, value.dtype
    return torch.device("cpu"), torch.float32


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    """Evaluation mode, every submodule put back afterwards."""
    parts = list(network.modules()) if isinstance(network, nn.Module) else []
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
