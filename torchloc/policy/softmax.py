"""The product policy π(a | s) = Π_k softmax(z_k(s_{O_k}, ·) / τ_k)(a_k)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from torchloc.errors import InputError
from torchloc.graphs import Scopes, as_scopes
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import FloatArray, IntArray
from torchloc.policy import checks, files, networks
from torchloc.policy.groups import AgentGroup, agent_groups

AnyScopes = Scopes | Sequence[ArrayLike]


class SoftmaxPolicy(nn.Module):
    """Per-agent softmax policies over scopes, the agents of equal shape in one batched network.

    Build one with `tabular`, `linear`, `mlp`, `from_logits`, `from_probabilities`, `from_callable`
    or `load`.

    Attributes:
        scopes: What each agent sees.
        groups: Agents of equal shape; `networks[i]` serves `groups[i]`.
        temperature: (K,) float64 buffer, τ_k > 0.
        group_of, row_of: (K,) the group of each agent and its row there.

    Raises:
        InputError: Sizes that are no positive whole numbers, one action size an agent missing, a
            scope that names a coordinate without a size, or a temperature that is not positive.

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
        self.state_sizes = checks.sizes(state_sizes, "state_sizes")
        self.action_sizes = checks.sizes(action_sizes, "action_sizes")
        if len(self.action_sizes) != len(scopes):
            raise InputError(
                f"action_sizes has {len(self.action_sizes)} entries, but there are {len(scopes)} "
                f"scopes; give one of each an agent"
            )
        if len(scopes.indices) and int(scopes.indices.max()) >= len(self.state_sizes):
            raise InputError(
                f"a scope names coordinate {int(scopes.indices.max())}, but state_sizes has "
                f"{len(self.state_sizes)} entries; coordinates are numbered from 0"
            )
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

    # -- constructors ------------------------------------------------------------------------------

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
        """One free logit an entry, normal with standard deviation `scale` (0: the uniform policy).

        Raises:
            InputError: Scopes that do not fit, a temperature that is not positive.
            BudgetError: A scope with more joint states than are enumerated.
        """
        description = networks.described("tabular")
        generator = torch.Generator().manual_seed(seed)
        return cls(
            as_scopes(mdp, scopes),
            mdp.state_sizes,
            mdp.action_sizes,
            lambda group: networks.built(description, group, dtype, generator, scale),
            description,
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
            InputError: Unknown activation, a width below 1, scopes that do not fit, a temperature
                that is not positive.
        """
        description = networks.described("mlp", hidden=hidden, activation=activation)
        generator = torch.Generator().manual_seed(seed)
        return cls(
            as_scopes(mdp, scopes),
            mdp.state_sizes,
            mdp.action_sizes,
            lambda group: networks.built(description, group, dtype, generator),
            description,
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
            InputError: Not one table an agent, or a table has the wrong shape, holds NaN or +∞, or
                forbids every action in some scope state.
            BudgetError: A scope with more joint states than are enumerated.
        """
        policy = cls.tabular(mdp, scopes, temperature=temperature)
        checks.check_count(tables, "logits", policy.n_agents)
        for agent in range(policy.n_agents):
            field = f"logits of agent {agent}"
            table = checks.as_table(tables[agent], field, policy.groups[policy.group_of[agent]])
            checks.check_logits(table[None], lambda _, field=field: field)
            policy._assign(agent, table)
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

        Rows are divided by their sums, which must be 1 within 1e-9, or within the rounding of a
        dtype coarser than float64.

        Raises:
            InputError: Not one table an agent, or a table has the wrong shape, or a row is no law.
            BudgetError: A scope with more joint states than are enumerated.
        """
        policy = cls.tabular(mdp, scopes, temperature=temperature)
        checks.check_count(tables, "probabilities", policy.n_agents)
        for agent in range(policy.n_agents):
            field, group = f"probabilities of agent {agent}", policy.groups[policy.group_of[agent]]
            laws = checks.as_table(tables[agent], field, group)
            policy._assign_laws(agent, checks.as_laws(laws, field, checks.unit(tables[agent])))
        return policy

    @classmethod
    def from_callable(
        cls,
        mdp: FactoredMDP,
        scopes: AnyScopes,
        f: Callable[[int, IntArray], ArrayLike | Tensor],
        *,
        temperature: float | ArrayLike = 1.0,
    ) -> SoftmaxPolicy:
        """A tabular policy from a function `f(agent, observations)`: (R, m) ints → (R, A_k) laws.

        The function is called once an agent, in ascending order, with all R = Π S[scope] local
        observations as rows, the last coordinate running fastest. What it returns is treated as in
        `from_probabilities`.

        Raises:
            InputError: What it returns has another shape, or a row is no law.
            BudgetError: A scope with more joint states than are enumerated.
        """
        policy = cls.tabular(mdp, scopes, temperature=temperature)

        for agent in range(policy.n_agents):
            field, group = f"probabilities of agent {agent}", policy.groups[policy.group_of[agent]]
            result = f(agent, group.observations().numpy())
            laws = checks.as_array(result, f"f's result for agent {agent}")
            expected = (group.n_rows, group.n_actions)
            if laws.shape != expected:
                raise InputError(
                    f"f returned shape {laws.shape} for agent {agent}; it must return one row an "
                    f"observation, one column an action: {expected}"
                )
            policy._assign_laws(agent, checks.as_laws(laws, field, checks.unit(result)))
        return policy

    def _assign_laws(self, agent: int, laws: FloatArray) -> None:
        """Sets the laws of one agent of a tabular policy."""
        with np.errstate(divide="ignore"):
            self._assign(agent, float(self.temperature[agent]) * np.log(laws))

    def _assign(self, agent: int, table: FloatArray) -> None:
        """Sets the logits of one agent of a tabular policy."""
        network = cast(networks.Tabular, self.networks[self.group_of[agent]])
        row = network.table.data[int(self.row_of[agent])]
        row.copy_(torch.from_numpy(table).reshape(row.shape))

    # -- files -------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the policy to a `.safetensors` file: numbers and JSON, no code."""
        files.save(path, self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SoftmaxPolicy:
        """Reads what `save` wrote; loading runs no code from the file.

        Raises:
            InputError: The file is missing, damaged, of a later format, or no torchloc policy.
        """
        description, arrays, parameters = files.load(path)
        try:
            return cls._restored(description, arrays, parameters)
        # RuntimeError: sizes so large that torch cannot count the entries of the tensors.
        except (InputError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{path} is damaged or no torchloc policy: {reason}") from error

    @classmethod
    def _restored(
        cls, spec: dict[str, Any], arrays: dict[str, Tensor], parameters: dict[str, Tensor]
    ) -> SoftmaxPolicy:
        """A policy from its parts; networks are laid out without memory, then given parameters."""
        dtype = networks.common_dtype(parameters)
        description = networks.described(**spec)
        policy = cls(
            Scopes(arrays["scope_indptr"].numpy(), arrays["scope_indices"].numpy()),
            arrays["state_sizes"].numpy(),
            arrays["action_sizes"].numpy(),
            lambda group: networks.built(description, group, dtype, None),
            description,
            arrays["temperature"].numpy(),
        )
        networks.fill(policy.networks, policy.groups, parameters)
        return policy

    def check(self, mdp: FactoredMDP) -> None:
        """Refuses a policy that was made for another model.

        Raises:
            InputError: The number of agents or coordinates, scopes, or sizes differ.
        """
        self.scopes.check(mdp)
        checks.check_fit(self.state_sizes, mdp.state_sizes, "coordinate", "values")
        checks.check_fit(self.action_sizes, mdp.action_sizes, "agent", "actions")

    @classmethod
    def from_tables(cls, mdp: FactoredMDP, path: str | PathLike[str]) -> SoftmaxPolicy:
        """A tabular policy from a `.npz` file of tables, such as another trainer can write.

        For each agent k the file holds `scope_k` (m,) coordinates and `probabilities_k` or
        `logits_k` (*S[scope_k], A_k); optionally `temperature`, one number or (K,).

        Raises:
            InputError: The file is missing or damaged, an array is missing, or a table does not fit.
        """
        scopes, kind, tables, temperature = files.load_tables(path, mdp.n_agents)
        make = cls.from_probabilities if kind == "probabilities" else cls.from_logits
        try:
            return make(mdp, scopes, tables, temperature=temperature)
        except InputError as error:
            raise type(error)(f"{path}: {error}") from error

    # -- temperatures, logits, laws ----------------------------------------------------------------

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
            InputError: τ is not finite and positive, or has another length than K; an unknown
                `hold`.
        """
        tau = checks.temperatures(temperature, self.n_agents)
        if hold not in ("logits", "policy"):
            raise InputError(f"hold is {hold!r}; choose logits or policy")
        if hold == "policy":
            factor = tau / self.temperature
            for group, network in zip(self.groups, self.networks, strict=True):
                networks.scale_logits(network, factor[torch.tensor(group.agents)])
        self.temperature.copy_(tau)

    def group_logits(self, index: int) -> Tensor:
        """(G, R, A) logits of group `index` at every scope state, in the network's dtype.

        Raises:
            BudgetError: More scope states than are enumerated.
        """
        group = self.groups[index]
        observations = group.observations().expand(len(group), -1, -1)
        return self.networks[index](observations)

    def group_probabilities(self, index: int) -> Tensor:
        """(G, R, A) float64 probabilities of group `index`, without gradient."""
        return torch.softmax(self.group_scaled_logits(index), dim=-1)

    def group_scaled_logits(self, index: int) -> Tensor:
        """(G, R, A) float64 (z − max_a z)/τ of group `index`, without gradient.

        Shifted before it is divided, so that what matters of it is right to its own last places at any τ.
        """
        with torch.no_grad():
            return scaled_logits(
                self.group_logits(index),
                self.temperature[torch.tensor(self.groups[index].agents)][:, None, None],
            )

    def logits(self, k: int) -> Tensor:
        """(*S[scope_k], A_k) logits z_k of agent k, no gradient (`group_logits` carries it)."""
        group = self.groups[self.group_of[k]]
        with torch.no_grad():
            rows = self.group_logits(int(self.group_of[k]))[int(self.row_of[k])]
        return rows.reshape(*group.sizes, group.n_actions)

    def probabilities(self, k: int) -> Tensor:
        """(*S[scope_k], A_k) float64 law π_k, without gradient."""
        return torch.softmax(scaled_logits(self.logits(k), self.temperature[k]), dim=-1)

    def act(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """Samples actions for joint states.

        Args:
            observation: (…, N) integer joint states; agent k reads its scope's entries only.
            generator: Source of randomness.

        Returns:
            (…, K) int64 actions; an action of probability 0 is never drawn.

        Raises:
            InputError: Another number of coordinates, no integers, or a value that a coordinate
                which some agent sees does not have.
        """
        states, lead = checks.joint_states(observation, self.state_sizes, self.scopes.indices)
        actions = torch.empty(len(states), self.n_agents, dtype=torch.int64)
        for group, network in zip(self.groups, self.networks, strict=True):
            agents = torch.tensor(group.agents)
            seen = states[:, torch.tensor(group.scope)].permute(1, 0, 2)
            with torch.no_grad():
                scaled = scaled_logits(network(seen), self.temperature[agents][:, None, None])
            mass = torch.softmax(scaled, dim=-1).cumsum(dim=-1)
            draw = torch.rand(*mass.shape[:2], 1, generator=generator, dtype=torch.float64)
            # A draw is at most 1 - 2^-53, so its product with the total stays below the total, and
            # the first action whose mass exceeds it has a probability above 0.
            actions[:, agents] = (mass <= draw * mass[..., -1:]).sum(dim=-1).T
        return actions.reshape(*lead, self.n_agents)


def scaled_logits(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """(z − max_a z)/τ in float64: the maximum is taken out first, so that no quotient overflows."""
    logits = logits.double()
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature
