"""The influence matrices of a policy and the oscillation of its reward, rounded up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from scipy.special import entr

from torchloc.certificate.given import NO_KERNELS, NO_REWARDS, Sensitivities
from torchloc.certificate.rounding import (
    UNIT,
    largest_logit,
    law_error,
    most_actions,
    moving,
    outward,
    stored,
)
from torchloc.closed_loop import LocalClass, PolicyTables, entropy_terms, local_classes
from torchloc.coupling import coupled_steps
from torchloc.errors import InputError
from torchloc.lipschitz import certified_spreads, scope_matrix
from torchloc.mdp import CountRewardBatch, FactoredMDP, RewardBatch
from torchloc.mdp.checks import FloatArray, IntArray
from torchloc.policy import AgentGroup, SoftmaxPolicy
from torchloc.policy.groups import ROW_BUDGET
from torchloc.sensitivity import (
    COUNT_ENTRIES,
    action_sensitivity,
    coupled_influence,
    coupled_rows,
    policy_sensitivity,
    spread_sensitivity,
    state_sensitivity,
    total_variations,
)
from torchloc.spectral import SpectralBound, spectral_radius


class Environment:
    """E^s and E^a of a model, rounded up, or as given: computed once, used for every policy on it.

    Attributes:
        model: What they are of; given sensitivities stand for a model that is not known.
        state: (N, N) CSR E^s.
        action: (N, K) CSR E^a.
        rewards: Reward terms; None where they are not known.
        reward_bound: (N,) given bounds of δ(r^π) in their place, or None.
    """

    def __init__(self, model: FactoredMDP | Sensitivities) -> None:
        self.model = model
        self.rewards = model.rewards
        self.reward_bound: FloatArray | None = None
        if isinstance(model, Sensitivities):
            self.state, self.action = model.state.copy(), model.action.copy()
            self.state.eliminate_zeros()
            self.action.eliminate_zeros()
            self.reward_bound = model.reward_bound
        else:
            terms = max(kernel.table.shape[-1] for kernel in model.kernels)
            self.state = outward(state_sensitivity(model), 4 * terms)
            self.action = outward(action_sensitivity(model), 4 * terms)

    @property
    def mdp(self) -> FactoredMDP:
        """The model.

        Raises:
            InputError: There are sensitivities alone.
        """
        if isinstance(self.model, Sensitivities):
            raise InputError(NO_KERNELS)
        return self.model

    @cached_property
    def floor(self) -> SpectralBound:
        """lower ≤ ρ(E^s) ≤ upper: no temperature brings the rungs `exact` … `scope` below it."""
        return spectral_radius(self.state)


class Spreads:
    """What a ladder reads of the logits whatever τ is, each computed once.

    Args:
        policy: Its logits are to stay while this is used; its temperatures may change.
        budget: Scope states of one agent that are enumerated at most.
    """

    def __init__(self, policy: SoftmaxPolicy, *, budget: int = ROW_BUDGET) -> None:
        self.policy = policy
        self.budget = budget

    @cached_property
    def span(self) -> sp.csr_array:
        """(K, N) CSR: exact, or certified bounds of networks whose scopes are too large."""
        return certified_spreads(self.policy, span=True, budget=self.budget)[0]

    @cached_property
    def lipschitz(self) -> sp.csr_array:
        """(K, N) CSR of L, likewise."""
        return certified_spreads(self.policy, span=False, budget=self.budget)[0]

    @cached_property
    def moving(self) -> sp.csr_array:
        """(K, N) ones where a law can change with the coordinate: the structural pattern of Π."""
        return moving(self.policy, self.budget)


class Ladder:
    """The influence matrices of one policy, rounded up, each computed once.

    An agent whose scope is too large to enumerate has certified bounds of its network (`span`) for its
    row of Π on `exact`. Its action's rows of `coupled` are those of `exact`: with every shared action
    coupled maximally and independently, a row of H bounds what that same coupling gives.

    Args:
        environment: E^s and E^a.
        policy: A policy on the model's scopes; read here and now.
        averaged: Treat every action as private: `coupled` is then C^π, sound only for asynchronous
            dynamics.
        spreads: Of the same logits, if they were read already.

    Attributes:
        bounded: (K,) bool: agents whose scope is not enumerated.
    """

    def __init__(
        self,
        environment: Environment,
        policy: SoftmaxPolicy,
        *,
        averaged: bool = False,
        spreads: Spreads | None = None,
    ) -> None:
        self.environment = environment
        self.state = environment.state
        self.action = environment.action
        self.policy = policy
        self.averaged = averaged
        self.spreads = Spreads(policy) if spreads is None else spreads
        self.tables = PolicyTables.read(policy, budget=self.spreads.budget)
        self.bounded = ~np.array(self.tables.read_groups, dtype=np.bool_)[self.tables.group_of]

    @property
    def mdp(self) -> FactoredMDP:
        """The model.

        Raises:
            InputError: There are sensitivities alone.
        """
        return self.environment.mdp

    @cached_property
    def _absolute(self) -> float:
        """Absolute error of an entry of the coupled matrix, as a bound for all of them.

        A computed coupling of two laws is off by at most 11 θ in the 1-norm: 2 θ on the diagonal, 3 θ
        and 6 θ from the two factors of the rest.
        """
        terms = max(kernel.table[0].size for kernel in self.mdp.kernels)
        agents = max(kernel.action_parents.shape[1] for kernel in self.mdp.kernels)
        return 4.0 * terms * UNIT + 12.0 * agents * self.law_error

    @cached_property
    def law_error(self) -> float:
        """θ ≥ ‖p̂ − p‖₁ for every law as computed."""
        return law_error(most_actions(self.policy))

    @cached_property
    def _size(self) -> float:
        return largest_logit(self.policy, self.spreads.budget)

    @property
    def moving(self) -> sp.csr_array:
        """(K, N) ones where a law can change with the coordinate."""
        return self.spreads.moving

    @cached_property
    def _pattern(self) -> sp.csr_array:
        """(N, N) ones where one step can carry influence at all."""
        pattern = sp.csr_array(self.state + self.action @ self.moving)
        pattern.data = np.ones_like(pattern.data)
        return pattern

    def several_steps(self, steps: int | None) -> list[sp.csr_array]:
        """K^(1), …, K^(m), rounded up; None: m by budget.

        Each of the m steps replaces the joint law of at most `cone` pairs by a computed one, each
        off by at most S² entries' rounding in TV, and D ≤ 1.
        """
        coupled = coupled_steps(self.mdp, self.tables, steps)
        widest = int(self.mdp.state_sizes.max()) ** 2
        result, pattern = [], self._pattern
        for matrix, cone in zip(coupled.matrices, coupled.cones, strict=True):
            error = self._absolute * widest * (cone + 1)
            result.append(sp.csr_array(matrix + error * pattern))
            pattern = sp.csr_array(self._pattern @ pattern)
            pattern.data = np.ones_like(pattern.data)
        return result

    def policy_rung(self, rung: str) -> sp.csr_array:
        """(K, N) CSR Π of a rung, rounded up."""
        if rung == "exact":
            entries = [
                total_variations(law)
                if law.numel()
                else torch.zeros(group.scope.shape, dtype=torch.float64)
                for law, group in zip(self.tables.laws, self.tables.groups, strict=True)
            ]
            matrix = scope_matrix(self.policy, entries)
            matrix = sp.csr_array(matrix + 2.0 * self.law_error * self.moving)
            if self.bounded.any():
                keep = sp.diags_array((~self.bounded).astype(np.float64))
                take = sp.diags_array(self.bounded.astype(np.float64))
                matrix = sp.csr_array(keep @ matrix + take @ self.policy_rung("span"))
                matrix.eliminate_zeros()
            matrix.data = np.minimum(matrix.data, 1.0)
            return matrix
        if rung in ("span", "tanh", "paper"):
            spreads = self.spreads.span if rung == "span" else self.spreads.lipschitz
            matrix = spread_sensitivity(spreads, rung, self.policy.temperature)
        else:
            matrix = policy_sensitivity(self.policy, rung)
        if rung != "scope":
            # Differences of logits, centred or not, lose digits of the logits' own size.
            lost = (most_actions(self.policy) + 4.0) * self._size * UNIT
            matrix = sp.csr_array(outward(matrix, 16) + lost * self.moving)
        matrix.data = np.minimum(matrix.data, 1.0)
        return matrix

    @cached_property
    def exact_policy(self) -> sp.csr_array:
        """(K, N) CSR Π of `exact`, rounded up."""
        return self.policy_rung("exact")

    def matrix(self, rung: str) -> sp.csr_array:
        """(N, N) CSR H of a rung, rounded up."""
        if rung == "coupled":
            matrix = coupled_influence(self.mdp, self.tables, all_private=self.averaged)
            left = (~coupled_rows(self.mdp, all_private=self.averaged)).astype(np.float64)
            # Rows that a bounded agent acts on, whether E^a sees it or not, were left empty.
            for batch in self.mdp.kernels:
                acted = self.bounded[batch.action_parents].any(axis=1)
                left[batch.coordinates] = np.maximum(left[batch.coordinates], acted)
            if not left.any():
                return sp.csr_array(matrix + self._absolute * self._pattern)
            keep = sp.diags_array(1.0 - left)
            found = keep @ (matrix + self._absolute * self._pattern)
            return sp.csr_array(found + sp.diags_array(left) @ self.matrix("exact"))
        policy = self.exact_policy if rung == "exact" else self.policy_rung(rung)
        product = self.action @ policy
        longest = int(np.diff(self.action.indptr).max(initial=0))
        return outward(sp.csr_array(self.state + product), 2 * (longest + 2))


def reward_oscillation(ladder: Ladder, *, entropy: bool = False) -> FloatArray:
    """b = Σ_m δ(r_m^π) (+ Σ_k τ_k δ(Ent π_k)), componentwise an upper bound of δ(r^π).

    A computed r_m^π of q actions is off by at most max |r_m|·(q θ + rounding of the sum), an entropy
    by (log A + log 1/θ)·θ; the slack is more than twice that, where the term depends on the
    coordinate at all.

    Args:
        ladder: The policy on its model.
        entropy: Include the entropies.

    Returns:
        (N,) float64, rounded up.

    Raises:
        InputError: Neither the reward nor bounds of it are known.
    """
    parts = [_reward_spreads(ladder)] + ([_entropy_spreads(ladder)] if entropy else [])
    given = ladder.environment.reward_bound
    b = np.zeros(ladder.state.shape[0]) if given is None else given.copy()
    terms = np.full(len(b), 0 if given is None else 1, dtype=np.int64)
    for coordinates, spread in itertools.chain(*parts):
        np.add.at(b, coordinates, spread)
        np.add.at(terms, coordinates, 1)
    return b * (1.0 + 2.0 * (terms + 2) * UNIT)


def _reward_spreads(ladder: Ladder) -> Iterator[tuple[IntArray, FloatArray]]:
    """(B,) coordinates and (B,) bounds of the change of one reward term with each of them."""
    if ladder.environment.rewards is None and ladder.environment.reward_bound is None:
        raise InputError(NO_REWARDS)
    for batch in ladder.environment.rewards or ():
        if isinstance(batch, CountRewardBatch):
            if batch.table_entries > COUNT_ENTRIES:
                yield from _counted_spreads(ladder, batch)
                continue
            parts = batch.tables(COUNT_ENTRIES)
        else:
            parts = [batch]
        for part in parts:
            yield from _table_spreads(ladder, part)


def _counted_spreads(
    ladder: Ladder, batch: CountRewardBatch
) -> Iterator[tuple[IntArray, FloatArray]]:
    """δ_i(r_m^π) ≤ δ_i(r_m) + Σ_k δ_{a_k}(r_m) Π[k, i], for terms that count too much to be written out."""
    for coordinates, spread in zip(batch.state_parents.T, batch.state_spreads().T, strict=True):
        yield coordinates, np.broadcast_to(spread, coordinates.shape) * (1.0 + 4.0 * UNIT)
    policy = ladder.exact_policy
    for agents, spread in zip(batch.action_parents.T, batch.action_spreads().T, strict=True):
        seen = sp.csr_array(policy[agents])
        reach = np.repeat(np.broadcast_to(spread, agents.shape), np.diff(seen.indptr))
        yield seen.indices.astype(np.int64), seen.data * reach * (1.0 + 4.0 * UNIT)


def _table_spreads(ladder: Ladder, batch: RewardBatch) -> Iterator[tuple[IntArray, FloatArray]]:
    """The same from the closed loop of each term."""
    largest = float(np.abs(batch.table).max(initial=0.0))
    summed = math.prod(batch.action_shape) + batch.actions.shape[1] + 4
    for local in local_classes(batch, ladder.tables):
        if not ladder.tables.holds(local.agents[0]):
            yield from _unread_spreads(ladder, local)
            continue
        error = largest * (len(local.n_actions) * ladder.law_error + summed * UNIT)
        values = local.averaged(ladder.tables)
        for column in range(local.union.shape[1]):
            coordinates = local.union[:, column]
            depends = np.zeros(len(local), dtype=np.bool_)
            if column < local.n_states:
                depends |= _spread(local.table, column) > 0.0
            for agents, scope in zip(local.agents.T, local.scopes, strict=True):
                if column in scope:
                    depends |= stored(ladder.moving, agents, coordinates)
            yield coordinates, np.where(depends, _spread(values, column) + 4.0 * error, 0.0)


def _unread_spreads(ladder: Ladder, local: LocalClass) -> Iterator[tuple[IntArray, FloatArray]]:
    """The same where an agent's laws were not read: δ_i(r_m^π) ≤ δ_i(r_m) + Σ_k δ_{a_k}(r_m) Π[k, i]."""
    for column in range(local.n_states):
        yield local.union[:, column], _spread(local.table, column)
    for place, scope in enumerate(local.scopes):
        reach = _spread(local.table, local.n_states + place)
        for column in scope:
            coordinates = local.union[:, column]
            entries = _entries(ladder.exact_policy, local.agents[:, place], coordinates)
            yield coordinates, reach * entries


def _entries(matrix: sp.csr_array, rows: IntArray, columns: IntArray) -> FloatArray:
    """(B,) entries of a sparse matrix."""
    return np.asarray(matrix[rows, columns]).reshape(len(rows))


def _entropy_spreads(ladder: Ladder) -> Iterator[tuple[IntArray, FloatArray]]:
    """(G,) coordinates and (G,) bounds of the change of one agent's τ Ent π with each of them."""
    tables = ladder.tables
    read = [group for group, law in zip(tables.groups, tables.laws, strict=True) if law.numel()]
    for group, law in zip(tables.groups, tables.laws, strict=True):
        if not law.numel():
            yield from _unread_entropies(ladder, group)
    for group, (scope, values) in zip(read, entropy_terms(ladder.tables), strict=True):
        tau = ladder.tables.temperature[torch.tensor(group.agents)].numpy()
        slack = 4.0 * tau * (math.log(group.n_actions) + 40.0) * ladder.law_error
        for column in range(scope.shape[1]):
            depends = stored(ladder.moving, group.agents, scope[:, column])
            yield scope[:, column], np.where(depends, _spread(values, column) + slack, 0.0)


def _unread_entropies(ladder: Ladder, group: AgentGroup) -> Iterator[tuple[IntArray, FloatArray]]:
    """|Ent p − Ent q| ≤ t log(A − 1) − t log t − (1 − t) log(1 − t) at TV ≤ t ≤ 1 − 1/A; log A beyond.

    (Audenaert 2007, for laws.)
    """
    tau = ladder.tables.temperature[torch.tensor(group.agents)].numpy()
    n = group.n_actions
    for column in range(group.scope.shape[1]):
        coordinates = group.scope[:, column]
        t = np.minimum(_entries(ladder.exact_policy, group.agents, coordinates), 1.0 - 1.0 / n)
        change = t * math.log(max(n - 1, 1)) + entr(t) + entr(1.0 - t)
        yield coordinates, tau * change * (1.0 + 16.0 * UNIT)


def _spread(values: torch.Tensor, column: int) -> FloatArray:
    """(B or 1, *S) → (B or 1,): largest change along one axis."""
    spread = values.amax(dim=1 + column) - values.amin(dim=1 + column)
    return spread.reshape(len(values), -1).amax(dim=1).numpy()
