"""Steps of the whole factored system, many replicas at once, without enumerating anything joint.

One step of R independent replicas draws A_k ~ π_k(· | s_{O_k}) for every agent, then
S'_j ~ P_j(· | s, A) for every coordinate (paper, Section 2). States and actions are (N, R) and (K, R)
small integers, replicas last: what a site reads is then R adjacent numbers, and one index a site
serves them all.

A value is drawn by inversion: v is the number of thresholds

    t_v = (p_0 + … + p_v) / (p_0 + … + p_{S−1}),   0 ≤ v < S − 1,

that u ~ U[0, 1) has reached, found by bisection (one comparison for a binary variable). Prefix sums
are added in order, so t_v = t_{v−1} exactly where p_v = 0, and t_v = 1 exactly where only zeros
follow; with u ≤ 1 − 2⁻⁵³ in float64 a value of probability 0 is never drawn, and other
probabilities are right to the rounding of their sums and to the grid 2⁻⁵³ of u.

Axis letters: B sites of a batch, R replicas.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from torchloc.closed_loop import PolicyTables, entropy_terms
from torchloc.errors import BudgetError, InputError
from torchloc.evaluation.joint import Objective
from torchloc.evaluation.lookup import Lookup, index_of, small
from torchloc.mdp import FactoredMDP, KernelBatch, RewardBatch
from torchloc.mdp.checks import IntArray
from torchloc.mdp.gathering import Kernels, Rewards
from torchloc.policy import SoftmaxPolicy

# -- tables ----------------------------------------------------------------------------------------

STEP_BYTES = 2**34
"""Random numbers of one step of all replicas at most."""
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _thresholds(laws: Tensor) -> Tensor:
    """(…, S) laws → (…, S − 1) thresholds; prefix sums one by one, which a parallel scan is not."""
    inner = torch.empty(*laws.shape[:-1], laws.shape[-1] - 1, dtype=laws.dtype, device=laws.device)
    total = laws[..., 0].clone()
    for value in range(laws.shape[-1] - 1):
        inner[..., value] = total
        total += laws[..., value + 1]
    return inner.div_(total[..., None])


@dataclass(frozen=True, eq=False)
class _Law:
    """B variables of S values that are drawn together.

    Attributes:
        lookup: Rows of their laws.
        thresholds: (rows · (S − 1),) float64.
        n_values: S.
        target: (B,) where they stand among the states or actions; None: all in order.
    """

    lookup: Lookup
    thresholds: Tensor
    n_values: int
    target: Tensor | None

    def draw(self, states: Tensor, actions: Tensor, generator: torch.Generator | None) -> Tensor:
        """(B, R) values in the smallest type that holds them."""
        shape, kind = (self.lookup.n_sites, states.shape[1]), small(self.n_values)
        left = self.n_values - 1
        if left == 0:
            return torch.zeros(shape, dtype=kind, device=states.device)
        uniform = torch.rand(shape, dtype=torch.float64, device=states.device, generator=generator)
        at = self.lookup.rows(states, actions)
        if left == 1:
            return (uniform >= self._read(at)).to(kind)
        first = at = at * left
        while left:
            half = (left + 1) // 2
            at = torch.add(at, uniform >= self._read(at + (half - 1)), alpha=half)
            left -= half
        return (at - first).to(kind)

    def _read(self, at: Tensor) -> Tensor:
        return self.thresholds.index_select(0, at.reshape(-1)).reshape(at.shape)


def _gathered(laws: Iterable[_Law], drawn: Iterable[Tensor], out: Tensor) -> Tensor:
    """All variables in order, from what was drawn batch by batch; `out` is written, or replaced."""
    for law, values in zip(laws, drawn, strict=True):
        values = values.to(out.dtype)
        if law.target is None:
            out = values
        else:
            out.index_copy_(0, law.target, values)
    return out


# -- simulation ------------------------------------------------------------------------------------


class Simulator:
    """Steps of a model under a policy's laws, all index arrays prepared once.

    The policy is read once; changing it later changes nothing here. All tensors live on `device`;
    a generator must, too.

    Args:
        mdp: The model.
        policy: A policy for it, or a snapshot of one.
        device: `cpu` or `cuda[:i]`. Laws, uniforms and rewards are float64 on either.

    Attributes:
        mdp: The model.
        device: Where everything lives.
        dtype: Integer type of states.

    Raises:
        InputError: The policy belongs to another model, or the device is not at hand.
        BudgetError: A scope with more states than are enumerated.

    Example:
        >>> import torchloc as tl
        >>> from torchloc.environments import sysadmin
        >>> mdp = sysadmin(n=5)
        >>> policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
        >>> simulator = Simulator(mdp, policy)
        >>> generator = torch.Generator().manual_seed(0)
        >>> states = simulator.start(3, generator)
        >>> following, actions = simulator.step(states, generator)
        >>> following.shape, actions.shape, simulator.reward(states, actions).shape
        (torch.Size([5, 3]), torch.Size([5, 3]), torch.Size([3]))
    """

    def __init__(
        self,
        mdp: FactoredMDP,
        policy: SoftmaxPolicy | PolicyTables,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        self.mdp = mdp
        self.device = _usable(device)
        self.dtype = small(int(mdp.state_sizes.max()))
        self._tables = _snapshot(mdp, policy)
        self._agents = [
            _Law(
                self._lookup(group.scope, np.zeros((len(group), 0), np.int64), tuple(laws.shape)),
                _thresholds(laws.to(self.device)).reshape(-1),
                group.n_actions,
                index_of(group.agents, mdp.n_agents, self.device),
            )
            for group, laws in zip(self._tables.groups, self._tables.laws, strict=True)
        ]
        self._kernels = [
            _Law(
                self._batch_lookup(batch),
                _thresholds(torch.tensor(batch.table, device=self.device)).reshape(-1),
                batch.table.shape[-1],
                index_of(batch.coordinates, mdp.n_coordinates, self.device),
            )
            for batch in mdp.kernels
        ]
        self._rewards = [
            (
                self._batch_lookup(batch),
                torch.tensor(batch.table, device=self.device).reshape(-1),
            )
            for batch in mdp.rewards
        ]

    def _lookup(self, states: IntArray, actions: IntArray, table: Sequence[int]) -> Lookup:
        return Lookup.of(self.mdp, states, actions, table, self.device)

    def _batch_lookup(self, batch: Kernels | Rewards) -> Lookup:
        counters = None if isinstance(batch, KernelBatch | RewardBatch) else batch.counters
        shape = batch.table.shape
        return Lookup.of(self.mdp, batch.states, batch.actions, shape, self.device, counters)

    def renewed(self, policy: SoftmaxPolicy | PolicyTables) -> Simulator:
        """The same simulator for another policy on the same scopes, sharing all but its laws.

        Raises:
            InputError: The policy belongs to another model or has other scopes.
        """
        tables = _snapshot(self.mdp, policy)
        old = self._tables.groups
        if len(old) != len(tables.groups) or not all(
            np.array_equal(mine.agents, other.agents) and np.array_equal(mine.scope, other.scope)
            for mine, other in zip(old, tables.groups, strict=True)
        ):
            raise InputError(
                "the policy has other scopes than the simulator's; make a new Simulator"
            )
        twin = copy.copy(self)
        twin.__dict__.pop("_entropies", None)
        twin._tables = tables
        twin._agents = [
            replace(law, thresholds=_thresholds(laws.to(self.device)).reshape(-1))
            for law, laws in zip(self._agents, tables.laws, strict=True)
        ]
        return twin

    def start(self, replicas: int, generator: torch.Generator | None) -> Tensor:
        """(N, R) first states from the model's initial law; uniform where it names none.

        Raises:
            BudgetError: The uniform numbers of one step do not fit `STEP_BYTES`.
        """
        needed = 8 * self.mdp.n_coordinates * replicas
        if needed > STEP_BYTES:
            raise BudgetError(
                f"one step of {replicas} replicas of {self.mdp.n_coordinates} coordinates takes {needed:,} "
                f"bytes of random numbers, over the budget of {STEP_BYTES:,}; use fewer replicas"
            )
        sizes, initial = self.mdp.state_sizes, self.mdp.initial
        if initial is None:
            initial = (np.arange(sizes.max()) < sizes[:, None]) / sizes[:, None]
        inner = _thresholds(torch.tensor(initial, device=self.device))
        shape = (len(sizes), replicas)
        uniform = torch.rand(shape, dtype=torch.float64, device=self.device, generator=generator)
        states = torch.zeros(shape, dtype=self.dtype, device=self.device)
        for value in range(inner.shape[1]):
            states += uniform >= inner[:, value, None]
        return states

    def checked(self, given: Tensor, replicas: int) -> Tensor:
        """(N, R) given states, checked, in the simulator's own type; (N,) is repeated.

        Raises:
            InputError: No integer tensor, another shape, or a value that a coordinate does not have.
        """
        n, sizes = self.mdp.n_coordinates, self.mdp.state_sizes
        if not isinstance(given, Tensor) or given.dtype not in _INTEGERS:
            kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise InputError(f"start is of type {kind}; give a tensor of integers")
        if given.shape not in ((n,), (n, replicas)):
            raise InputError(
                f"start has shape {tuple(given.shape)}; it must be ({n}, {replicas}), one column a "
                f"replica, or ({n},) for all of them"
            )
        states = given.to(self.device, torch.int64).reshape(n, -1)
        broken = (states < 0) | (states >= torch.tensor(sizes[:, None], device=self.device))
        if broken.any():
            i, r = torch.nonzero(broken)[0].tolist()
            raise InputError(
                f"start: coordinate {i} has value {int(states[i, r])} in replica {r}, but it has "
                f"{int(sizes[i])} states, numbered from 0"
            )
        return states.to(self.dtype).expand(n, replicas).contiguous()

    def step(self, states: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draws the actions and the next states.

        Args:
            states: (N, R) integers on the device, each below its coordinate's size (unchecked).
            generator: Source of randomness, on the device.

        Returns:
            (N, R) next states and (K, R) the actions that led there, in small integer types.
        """
        replicas = states.shape[1]
        kind = small(int(self.mdp.action_sizes.max(initial=1)))
        actions = torch.empty(self.mdp.n_agents, replicas, dtype=kind, device=self.device)
        following = torch.empty(states.shape, dtype=self.dtype, device=self.device)
        drawn = (law.draw(states, actions, generator) for law in self._agents)
        actions = _gathered(self._agents, drawn, actions)
        drawn = (law.draw(states, actions, generator) for law in self._kernels)
        return _gathered(self._kernels, drawn, following), actions

    def reward(self, states: Tensor, actions: Tensor) -> Tensor:
        """(R,) float64 r(s, a) of the whole system, from (N, R) states and (K, R) actions."""
        return self._total(self._rewards, states, actions)

    def entropy(self, states: Tensor) -> Tensor:
        """(R,) float64 Σ_k τ_k Ent π_k(· | s_{O_k}), in nats times the unit of τ."""
        return self._total(self._entropies, states, states[:0])

    def _total(
        self, terms: Iterable[tuple[Lookup, Tensor]], states: Tensor, actions: Tensor
    ) -> Tensor:
        total = torch.zeros(states.shape[1], dtype=torch.float64, device=self.device)
        for lookup, table in terms:
            rows = lookup.rows(states, actions)
            total += table.index_select(0, rows.reshape(-1)).reshape(rows.shape).sum(dim=0)
        return total

    @cached_property
    def _entropies(self) -> list[tuple[Lookup, Tensor]]:
        terms = entropy_terms(self._tables)
        return [
            (law.lookup, values.reshape(-1).to(self.device))
            for law, (_, values) in zip(self._agents, terms, strict=True)
        ]

    def bound(self, objective: Objective) -> float:
        """max |r(s, a)| is at most this, term by term; with the entropies for that objective."""
        low = high = 0.0
        terms = [*self._rewards, *(self._entropies if objective == "entropy" else ())]
        for lookup, table in terms:
            rows = table if lookup.base is None else table.reshape(lookup.n_sites, -1)
            copies = lookup.n_sites if lookup.base is None else 1
            low += copies * float(rows.amin(dim=-1).sum())
            high += copies * float(rows.amax(dim=-1).sum())
        return max(abs(low), abs(high))


def _usable(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device is {device!r}; choose cpu, cuda or cuda:i") from error
    if place.type not in ("cpu", "cuda"):
        raise InputError(f"device is {str(place)!r}, which is not supported; choose cpu or cuda")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device is {str(place)!r}, but {torch.cuda.device_count()} CUDA devices are at hand; "
            f"choose cpu"
        )
    return place


def _snapshot(mdp: FactoredMDP, policy: SoftmaxPolicy | PolicyTables) -> PolicyTables:
    """The policy's laws, after a check that they fit the model."""
    if isinstance(policy, SoftmaxPolicy):
        policy.check(mdp)
        return PolicyTables.read(policy)
    if len(policy.group_of) != mdp.n_agents:
        raise InputError(
            f"the policy has {len(policy.group_of)} agents, but the model has {mdp.n_agents}; make "
            f"one for this model"
        )
    for group in policy.groups:
        if group.scope.size and int(group.scope.max()) >= mdp.n_coordinates:
            row = int(np.argmax((group.scope >= mdp.n_coordinates).any(axis=1)))
            raise InputError(
                f"agent {int(group.agents[row])} sees coordinate {int(group.scope[row].max())}, but "
                f"the model has {mdp.n_coordinates}; make a policy for this model"
            )
        expected = np.array([*group.sizes, group.n_actions])
        found = np.column_stack([mdp.state_sizes[group.scope], mdp.action_sizes[group.agents]])
        if (found != expected).any():
            row = int(np.argmax((found != expected).any(axis=1)))
            raise InputError(
                f"the law of agent {int(group.agents[row])} has sizes {tuple(expected.tolist())} "
                f"(scope, then actions), but in the model they are {tuple(found[row].tolist())}; "
                f"make a policy for this model"
            )
    return policy
