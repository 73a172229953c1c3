"""The product policy π(a | s) = Π_k softmax(z_k(s_{O_k}, ·) / τ_k)(a_k)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from torchloc.errors import InputError
from torchloc.graphs import Scopes, as_scopes
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import IntArray, reals
from torchloc.policy import files, networks
from torchloc.policy.groups import AgentGroup, agent_groups

AnyScopes = Scopes | Sequence[ArrayLike]
DEFAULT_ROW_BUDGET = 10_000_000


class SoftmaxPolicy(nn.Module):
    """Per-agent softmax policies over scopes, the agents of equal shape in one batched network.

    Build one with `tabular`, `linear`, `mlp`, `from_logits`, `from_probabilities`, `from_callable` or `load`.

    Attributes:
        scopes: What each agent sees.
        groups: Agents of equal shape; `networks[i]` serves `groups[i]`.
        temperature: (K,) float64 buffer, τ_k > 0.
        group_of, row_of: (K,) the group of each agent and its row there.

    Example:
        >>> import torchloc as tl
        >>> from torchloc.environments import sysadmin
        >>> mdp = sysadmin(n=3)
        >>> policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), temperature=0.5)
        >>> policy.probabilities(0).shape
        torch.Size([2, 2, 2])
    """

    temperature: Tensor

    def __init__(
        self,
        scopes: Scopes,
        state_sizes: IntArray,
        action_sizes: IntArray,
        build: Callable[[AgentGroup], nn.Module],
        spec: dict[str, Any],
        temperature: float | ArrayLike = 1.0,
    ) -> None:
        super().__init__()
        self.scopes = scopes
        self.state_sizes = np.asarray(state_sizes, dtype=np.int64)
        self.action_sizes = np.asarray(action_sizes, dtype=np.int64)
        self.groups = agent_groups(scopes, self.state_sizes, self.action_sizes)
        self.networks = nn.ModuleList(build(group) for group in self.groups)
        self.spec = spec
        self.group_of = np.zeros(len(scopes), dtype=np.int64)
        self.row_of = np.zeros(len(scopes), dtype=np.int64)
        for index, group in enumerate(self.groups):
            self.group_of[group.agents] = index
            self.row_of[group.agents] = np.arange(len(group))
        self.register_buffer("temperature", torch.ones(len(scopes), dtype=torch.float64))
        self.set_temperature(temperature)

    # -- constructors -------------------------------------------------------------------------------

    @classmethod
    def tabular(
        cls,
        mdp: FactoredMDP,
        scopes: AnyScopes,
        *,
        temperature: float | ArrayLike = 1.0,
        seed: int = 0,
        scale: float = 0.0,
        dtype: torch.dtype = torch.float64,
    ) -> SoftmaxPolicy:
        """One free logit an entry, normal with standard deviation `scale` (0: the uniform policy)."""
        generator = torch.Generator().manual_seed(seed)
        return cls(
            as_scopes(mdp, scopes),
            mdp.state_sizes,
            mdp.action_sizes,
            lambda group: networks.tabular(group, generator, dtype, scale),
            {"kind": "tabular"},
            temperature,
        )

    @classmethod
    def mlp(
        cls,
        mdp: FactoredMDP,
        scopes: AnyScopes,
        *,
        hidden: Sequence[int] = (32, 32),
        activation: str = "relu",
        temperature: float | ArrayLike = 1.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> SoftmaxPolicy:
        """One multilayer perceptron an agent on one-hot observations; its own weights each.

        Raises:
            InputError: Unknown activation, a width below 1, scopes that do not fit.
        """
        generator = torch.Generator().manual_seed(seed)
        return cls(
            as_scopes(mdp, scopes),
            mdp.state_sizes,
            mdp.action_sizes,
            lambda group: networks.mlp(group, generator, dtype, hidden, activation),
            {"kind": "mlp", "hidden": list(hidden), "activation": activation},
            temperature,
        )

    @classmethod
    def linear(
        cls,
        mdp: FactoredMDP,
        scopes: AnyScopes,
        *,
        temperature: float | ArrayLike = 1.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> SoftmaxPolicy:
        """Logits linear in the one-hot observation: an MLP without hidden layers."""
        return cls.mlp(mdp, scopes, hidden=(), temperature=temperature, seed=seed, dtype=dtype)

    @classmethod
    def from_logits(
        cls,
        mdp: FactoredMDP,
        scopes: AnyScopes,
        tables: Sequence[ArrayLike | Tensor],
        *,
        temperature: float | ArrayLike = 1.0,
    ) -> SoftmaxPolicy:
        """A tabular policy from K tables of logits (*S[scope_k], A_k); −∞ forbids an action.

        Raises:
            InputError: A table has the wrong shape, holds NaN or +∞, or forbids every action.
        """
        policy = cls.tabular(mdp, scopes, temperature=temperature)
        if len(tables) != mdp.n_agents:
            raise InputError(
                f"tables has {len(tables)} entries, but the model has {mdp.n_agents} agents"
            )
        for group, network in zip(policy.groups, policy.networks, strict=True):
            for row, agent in enumerate(group.agents.tolist()):
                table = _logits(tables[agent], agent, (*group.sizes, group.n_actions))
                network.table.data[row] = torch.from_numpy(table).reshape(group.n_rows, -1)
        return policy

    @classmethod
    def from_probabilities(
        cls,
        mdp: FactoredMDP,
        scopes: AnyScopes,
        tables: Sequence[ArrayLike | Tensor],
        *,
        temperature: float | ArrayLike = 1.0,
    ) -> SoftmaxPolicy:
        """A tabular policy from K tables of probabilities (*S[scope_k], A_k), as z = τ log π.

        Raises:
            InputError: A table has the wrong shape, or a row is no law (1e-9).
        """
        scopes = as_scopes(mdp, scopes)
        tau = _temperatures(temperature, mdp.n_agents)
        logits = []
        for k, table in enumerate(tables):
            law = reals(table, f"probabilities of agent {k}")
            if law.ndim == 0 or (law < 0).any() or (np.abs(law.sum(axis=-1) - 1.0) > 1e-9).any():
                raise InputError(
                    f"probabilities of agent {k}: some row is no probability law; entries must be "
                    f"≥ 0 and the last axis must sum to 1 (tolerance 1e-9)"
                )
            with np.errstate(divide="ignore"):
                logits.append(float(tau[k]) * np.log(law))
        return cls.from_logits(mdp, scopes, logits, temperature=temperature)

    @classmethod
    def from_callable(
        cls,
        mdp: FactoredMDP,
        scopes: AnyScopes,
        f: Callable[[int, IntArray], ArrayLike],
        *,
        temperature: float | ArrayLike = 1.0,
    ) -> SoftmaxPolicy:
        """A tabular policy from any function `f(agent, observations)`: (R, m) ints → (R, A_k) probabilities.

        The function is called once an agent, with all R = Π S[scope] local observations as rows.

        Raises:
            InputError: What it returns is no law a row, or has another shape.
        """
        scopes = as_scopes(mdp, scopes)
        tables = []
        for k, scope in enumerate(scopes):
            sizes = mdp.state_sizes[list(scope)].tolist()
            rows = np.array(list(itertools.product(*map(range, sizes))), dtype=np.int64)
            rows = rows.reshape(-1, len(sizes))
            law = reals(f(k, rows), f"probabilities of agent {k}")
            expected = (len(rows), int(mdp.action_sizes[k]))
            if law.shape != expected:
                raise InputError(
                    f"f returned shape {law.shape} for agent {k}; (observations, actions) = {expected} "
                    f"is needed"
                )
            tables.append(law.reshape(*sizes, -1))
        return cls.from_probabilities(mdp, scopes, tables, temperature=temperature)

    # -- files --------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the policy to a `.safetensors` file: numbers and JSON, no code."""
        files.save(path, self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SoftmaxPolicy:
        """Reads what `save` wrote; loading runs no code from the file.

        Raises:
            InputError: The file is missing, damaged, or no torchloc policy.
        """
        spec, arrays, parameters = files.load(path)
        generator = torch.Generator().manual_seed(0)
        dtype = next(iter(parameters.values())).dtype if parameters else torch.float64

        def build(group: AgentGroup) -> nn.Module:
            if spec["kind"] == "tabular":
                return networks.tabular(group, generator, dtype, 0.0)
            return networks.mlp(group, generator, dtype, spec["hidden"], spec["activation"])

        scopes = Scopes(arrays["scope_indptr"], arrays["scope_indices"])
        policy = cls(
            scopes,
            arrays["state_sizes"],
            arrays["action_sizes"],
            build,
            spec,
            arrays["temperature"],
        )
        try:
            policy.networks.load_state_dict(parameters)
        except RuntimeError as error:
            raise InputError(f"{path}: the parameters do not fit the policy: {error}") from error
        return policy

    # -- temperatures, logits, laws -----------------------------------------------------------------

    @property
    def n_agents(self) -> int:
        """K."""
        return len(self.scopes)

    def set_temperature(self, temperature: float | ArrayLike, *, hold: str = "logits") -> None:
        """Sets τ: one number, or (K,).

        Args:
            temperature: τ > 0.
            hold: `logits` keeps z, so the policy changes; `policy` rescales z by τ_new / τ_old (the
                table, or the network's last affine layer), so that π stays.

        Raises:
            InputError: τ is not finite and positive, or has another length than K; an unknown `hold`.
        """
        tau = _temperatures(temperature, self.n_agents)
        if hold not in ("logits", "policy"):
            raise InputError(f"hold is {hold!r}; choose logits or policy")
        if hold == "policy":
            self._scale(tau / self.temperature)
        self.temperature.copy_(tau)

    def _scale(self, factor: Tensor) -> None:
        """Multiplies every agent's logits by its factor (K,): tables, or the last affine layer."""
        for group, network in zip(self.groups, self.networks, strict=True):
            scale = factor[torch.tensor(group.agents)][:, None, None]
            with torch.no_grad():
                if isinstance(network, networks.Tabular):
                    network.table.mul_(scale.to(network.table.dtype))
                else:
                    last = network[-1]
                    last.weight.mul_(scale.to(last.weight.dtype))
                    last.bias.mul_(scale.to(last.bias.dtype))

    def group_logits(self, index: int) -> Tensor:
        """(G, R, A) logits of group `index` at every scope state, in the network's dtype.

        Raises:
            InputError: More scope states than can be enumerated.
        """
        group = self.groups[index]
        if group.n_rows > DEFAULT_ROW_BUDGET:
            raise InputError(
                f"agent {int(group.agents[0])} sees {group.n_rows} scope states, more than the "
                f"{DEFAULT_ROW_BUDGET} that are enumerated; give it a smaller scope"
            )
        observations = group.observations().expand(len(group), -1, -1)
        return self.networks[index](observations)

    def group_probabilities(self, index: int) -> Tensor:
        """(G, R, A) float64 probabilities of group `index`, without gradient."""
        return torch.softmax(self.group_scaled_logits(index), dim=-1)

    def group_scaled_logits(self, index: int) -> Tensor:
        """(G, R, A) float64 z/τ of group `index`, without gradient."""
        agents = torch.tensor(self.groups[index].agents)
        with torch.no_grad():
            return self.group_logits(index).double() / self.temperature[agents][:, None, None]

    def logits(self, k: int) -> Tensor:
        """(*S[scope_k], A_k) logits z_k of agent k, without gradient (`group_logits` carries it)."""
        group = self.groups[self.group_of[k]]
        with torch.no_grad():
            rows = self.group_logits(int(self.group_of[k]))[int(self.row_of[k])]
        return rows.reshape(*group.sizes, group.n_actions)

    def probabilities(self, k: int) -> Tensor:
        """(*S[scope_k], A_k) float64 law π_k, without gradient."""
        return torch.softmax(self.logits(k).double() / self.temperature[k], dim=-1)

    def act(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """Samples actions for joint states.

        Args:
            observation: (…, N) int64 joint states; agent k reads its scope's entries only.
            generator: Source of randomness.

        Returns:
            (…, K) int64 actions.
        """
        states = torch.as_tensor(observation).reshape(-1, len(self.state_sizes))
        actions = torch.empty(len(states), self.n_agents, dtype=torch.int64)
        for group, network in zip(self.groups, self.networks, strict=True):
            agents = torch.tensor(group.agents)
            seen = states[:, torch.tensor(group.scope)].permute(1, 0, 2)
            with torch.no_grad():
                scaled = network(seen).double() / self.temperature[agents][:, None, None]
            law = torch.softmax(scaled, dim=-1)
            draw = torch.rand(*law.shape[:2], 1, generator=generator, dtype=torch.float64)
            chosen = (law.cumsum(dim=-1) <= draw * law.sum(dim=-1, keepdim=True)).sum(dim=-1)
            actions[:, agents] = chosen.clamp(max=group.n_actions - 1).T
        return actions.reshape(*torch.as_tensor(observation).shape[:-1], self.n_agents)


def _temperatures(value: float | ArrayLike | Tensor, n_agents: int) -> Tensor:
    tau = torch.as_tensor(value, dtype=torch.float64)
    if tau.ndim > 1 or (tau.ndim == 1 and len(tau) != n_agents):
        raise InputError(
            f"temperature has shape {tuple(tau.shape)}; give one number, or one for each of the "
            f"{n_agents} agents"
        )
    if not bool((torch.isfinite(tau) & (tau > 0)).all()):
        raise InputError(f"temperature is {tau.tolist()}; it must be finite and > 0")
    return tau.expand(n_agents).clone()


def _logits(value: ArrayLike | Tensor, agent: int, shape: tuple[int, ...]) -> np.ndarray:
    table = reals(value, f"logits of agent {agent}")
    if table.shape != shape:
        raise InputError(
            f"logits of agent {agent} have shape {table.shape}; (*S[scope], A) = {shape} is needed"
        )
    if np.isnan(table).any() or (table == np.inf).any():
        raise InputError(f"logits of agent {agent} hold NaN or +∞; use finite numbers or −∞")
    if np.isneginf(table).all(axis=-1).any():
        raise InputError(f"logits of agent {agent}: some scope state forbids every action")
    return table
