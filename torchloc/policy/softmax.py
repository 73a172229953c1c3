"""The product policy π(a | s) = Π_k softmax(z_k(s_{O_k}, ·) / τ_k)(a_k)."""

from __future__ import annotations

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
from torchloc.mdp.checks import IntArray
from torchloc.policy import checks, files, networks
from torchloc.policy.groups import AgentGroup, agent_groups
from torchloc.policy.laws import drawn, scaled_logits
from torchloc.policy.tables import assign_callable, assign_logits, assign_probabilities
from torchloc.policy.temperatures import check_scaled

AnyScopes = Scopes | Sequence[ArrayLike]


class SoftmaxPolicy(nn.Module):
    """Per-agent softmax policies over scopes, the agents of equal shape in one batched network.

    Build one with `tabular`, `linear`, `mlp`, `from_module`, `from_logits`, `from_probabilities`,
    `from_callable` or `load`.

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
        checks.check_scopes(scopes, self.state_sizes, self.action_sizes)
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
        sharing: bool = False,
        embedding: int = 8,
        bound: float | None = None,
        temperature: float | ArrayLike = 1.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> SoftmaxPolicy:
        """Multilayer perceptrons on one-hot observations.

        Args:
            mdp: The model.
            scopes: What each agent sees.
            hidden: Widths of the hidden layers; none makes the logits linear.
            activation: `relu`, `tanh` or `gelu`.
            sharing: Whether the agents of equal shape share one network, which also reads a learned
                vector of the agent; else every agent has weights of its own.
            embedding: Length of these vectors; 0: agents that see the same act the same.
            bound: L > 0: keeps the Lipschitz constant of the centred logits in every coordinate, and
                between any two scope states, at most L by construction, in units of logits (not
                divided by τ), and their span at most L A/(A − 1). None: no bound.
            temperature: τ, one number or (K,).
            seed: Of the initial weights.
            dtype: Of the weights.

        Raises:
            InputError: Unknown activation, a width below 1, an embedding below 0, a bound or a
                temperature that is not positive, scopes that do not fit.
        """
        description = networks.described(
            "mlp",
            hidden=hidden,
            activation=activation,
            embedding=embedding if sharing else None,
            bound=bound,
        )
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
    def from_module(
        cls,
        mdp: FactoredMDP,
        scopes: AnyScopes,
        build: networks.Build,
        *,
        shared: bool = False,
        temperature: float | ArrayLike = 1.0,
        seed: int = 0,
    ) -> SoftmaxPolicy:
        """Logits of the user's own modules.

        Args:
            mdp: The model.
            scopes: What each agent sees.
            build: `AgentGroup` → `nn.Module` from (G, B, m) int64 observations, in scope order, to
                (G, B, A) floating logits, row g agent g's; called once a group. Its parameters have
                a leading axis of G agents, row g read for agent g alone, and parameters and
                observations of some of the rows give the logits of these rows. Buffers serve all
                agents. Nothing else may move the logits: no dropout, no batch statistics.
            shared: The parameters have any shape and belong to all agents of a group; they can then
                only be fitted together.
            temperature: τ, one number or (K,).
            seed: Of torch's global generator while `build` runs; it is put back afterwards.

        Raises:
            InputError: A module breaks this interface, scopes that do not fit, a temperature that is
                not positive.

        Example:
            >>> import torch, torchloc as tl
            >>> from torchloc.environments import sysadmin
            >>> class Count(torch.nn.Module):  # one logit a machine that is seen to be up
            ...     def __init__(self, n_agents, n_actions):
            ...         super().__init__()
            ...         self.slope = torch.nn.Parameter(torch.randn(n_agents, 1, n_actions))
            ...     def forward(self, observations):
            ...         return observations.sum(-1, keepdim=True) * self.slope
            >>> mdp = sysadmin(n=3)
            >>> policy = tl.SoftmaxPolicy.from_module(
            ...     mdp, tl.neighbourhood_scopes(mdp), lambda group: Count(len(group), group.n_actions)
            ... )
            >>> policy.probabilities(0)[0, 0]
            tensor([0.5000, 0.5000], dtype=torch.float64)
        """
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return cls(
                as_scopes(mdp, scopes),
                mdp.state_sizes,
                mdp.action_sizes,
                lambda group: networks.custom(build, group, shared=shared),
                {"kind": "module", "shared": bool(shared)},
                temperature,
            )

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
        assign_logits(policy, tables)
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
        assign_probabilities(policy, tables)
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
        assign_callable(policy, f)
        return policy

    # -- files -------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the policy to a `.safetensors` file: numbers and JSON, no code."""
        files.save(path, self)

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, build: networks.Build | None = None
    ) -> SoftmaxPolicy:
        """Reads what `save` wrote; loading runs no code from the file.

        Args:
            path: The file.
            build: As in `from_module`, for a policy that was made by it: a file holds the numbers of
                such modules, and the code must come from the caller.

        Raises:
            InputError: The file is missing, damaged, of a later format, or no torchloc policy; its
                modules need `build`, or what `build` makes does not fit them.
        """
        return files.restored(cls, path, build)

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
                table, the network's last affine layer, or what each agent has there where it is
                shared), so that π stays. A bound L of the logits is rescaled with them: L/τ stays.

        Raises:
            InputError: τ is not finite and positive, or has another length than K; an unknown
                `hold`; `policy` for a module of the user's own that does not end in a layer of
                this package; `policy` and a τ that the dtype of the weights cannot hold.
        """
        tau = checks.temperatures(temperature, self.n_agents)
        if hold not in ("logits", "policy"):
            raise InputError(f"hold is {hold!r}; choose logits or policy")
        if hold == "policy":
            check_scaled(float(tau.min()) if len(tau) else 1.0, self.parameters())
            factor = tau / self.temperature
            for group, network in zip(self.groups, self.networks, strict=True):
                networks.scale_logits(network, factor[torch.tensor(group.agents)])
        self.temperature.copy_(tau)

    def own_state(self, index: int) -> dict[str, Tensor]:
        """What each agent of group `index` has for itself: row g of every tensor is agent g's alone.

        Parameters of the network that are not named here belong to the whole group.
        """
        shared = bool(self.spec.get("shared", False))
        return networks.own_state(self.networks[index], shared=shared)

    def shares(self, index: int) -> bool:
        """Whether agents of group `index` share parameters, so that one's update can move another."""
        own = self.own_state(index)
        return any(name not in own for name, _ in self.networks[index].named_parameters())

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
            actions[:, agents] = drawn(torch.softmax(scaled, dim=-1), generator).T
        return actions.reshape(*lead, self.n_agents)
