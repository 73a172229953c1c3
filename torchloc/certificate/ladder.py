"""The influence matrices of a policy and the oscillation of its reward, rounded up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch

from torchloc.certificate.rounding import (
    UNIT,
    largest_logit,
    law_error,
    most_actions,
    moving,
    outward,
    stored,
)
from torchloc.closed_loop import PolicyTables, entropy_terms, local_classes
from torchloc.coupling import coupled_steps
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import FloatArray, IntArray
from torchloc.policy import SoftmaxPolicy
from torchloc.sensitivity import (
    action_sensitivity,
    coupled_influence,
    policy_sensitivity,
    state_sensitivity,
)
from torchloc.spectral import SpectralBound, spectral_radius


class Environment:
    """E^s and E^a of a model, rounded up: computed once, used for every policy on it."""

    def __init__(self, mdp: FactoredMDP) -> None:
        terms = max(kernel.table.shape[-1] for kernel in mdp.kernels)
        self.mdp = mdp
        self.state = outward(state_sensitivity(mdp), 4 * terms)
        self.action = outward(action_sensitivity(mdp), 4 * terms)

    @cached_property
    def floor(self) -> SpectralBound:
        """lower ≤ ρ(E^s) ≤ upper: no temperature brings the rungs `exact` … `scope` below it."""
        return spectral_radius(self.state)


class Ladder:
    """The influence matrices of one policy, rounded up, each computed once.

    Args:
        environment: E^s and E^a.
        policy: A policy on the model's scopes; read here and now.
        averaged: Treat every action as private: `coupled` is then C^π, sound only for asynchronous
            dynamics.
    """

    def __init__(
        self, environment: Environment, policy: SoftmaxPolicy, *, averaged: bool = False
    ) -> None:
        self.mdp = environment.mdp
        self.state = environment.state
        self.action = environment.action
        self.policy = policy
        self.averaged = averaged
        self.tables = PolicyTables.read(policy)

    @cached_property
    def _absolute(self) -> float:
        """Absolute error of an entry of the coupled matrix, as a bound for all of them.

        A computed coupling of two laws is off by at most 11 θ in the 1-norm: 2 θ on the diagonal, 3 θ
        and 6 θ from the two factors of the rest.
        """
        terms = max(kernel.table[0].size for kernel in self.mdp.kernels)
        agents = max(kernel.actions.shape[1] for kernel in self.mdp.kernels)
        return 4.0 * terms * UNIT + 12.0 * agents * self.law_error

    @cached_property
    def law_error(self) -> float:
        """θ ≥ ‖p̂ − p‖₁ for every law as computed."""
        return law_error(most_actions(self.policy))

    @cached_property
    def _size(self) -> float:
        return largest_logit(self.policy)

    @cached_property
    def moving(self) -> sp.csr_array:
        """(K, N) ones where a law can change with the coordinate: the structural pattern of Π."""
        return moving(self.policy)

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
        matrix = policy_sensitivity(self.policy, rung)
        if rung == "exact":
            matrix = sp.csr_array(matrix + 2.0 * self.law_error * self.moving)
        elif rung != "scope":
            # Differences of logits, centred or not, lose digits of the logits' own size.
            lost = (most_actions(self.policy) + 4.0) * self._size * UNIT
            matrix = sp.csr_array(outward(matrix, 16) + lost * self.moving)
        matrix.data = np.minimum(matrix.data, 1.0)
        return matrix

    def matrix(self, rung: str) -> sp.csr_array:
        """(N, N) CSR H of a rung, rounded up."""
        if rung == "coupled":
            matrix = coupled_influence(self.mdp, self.tables, all_private=self.averaged)
            return sp.csr_array(matrix + self._absolute * self._pattern)
        product = self.action @ self.policy_rung(rung)
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
    """
    parts = [_reward_spreads(ladder)] + ([_entropy_spreads(ladder)] if entropy else [])
    b = np.zeros(ladder.mdp.n_coordinates)
    terms = np.zeros(len(b), dtype=np.int64)
    for coordinates, spread in itertools.chain(*parts):
        np.add.at(b, coordinates, spread)
        np.add.at(terms, coordinates, 1)
    return b * (1.0 + 2.0 * (terms + 2) * UNIT)


def _reward_spreads(ladder: Ladder) -> Iterator[tuple[IntArray, FloatArray]]:
    """(B,) coordinates and (B,) bounds of the change of one reward term with each of them."""
    for batch in ladder.mdp.rewards:
        largest = float(np.abs(batch.table).max(initial=0.0))
        summed = math.prod(batch.action_shape) + batch.actions.shape[1] + 4
        for local in local_classes(batch, ladder.tables):
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


def _entropy_spreads(ladder: Ladder) -> Iterator[tuple[IntArray, FloatArray]]:
    """(G,) coordinates and (G,) bounds of the change of one agent's τ Ent π with each of them."""
    groups = zip(ladder.tables.groups, entropy_terms(ladder.tables), strict=True)
    for group, (scope, values) in groups:
        tau = ladder.tables.temperature[torch.tensor(group.agents)].numpy()
        slack = 4.0 * tau * (math.log(group.n_actions) + 40.0) * ladder.law_error
        for column in range(scope.shape[1]):
            depends = stored(ladder.moving, group.agents, scope[:, column])
            yield scope[:, column], np.where(depends, _spread(values, column) + slack, 0.0)


def _spread(values: torch.Tensor, column: int) -> FloatArray:
    """(B or 1, *S) → (B or 1,): largest change along one axis."""
    spread = values.amax(dim=1 + column) - values.amin(dim=1 + column)
    return spread.reshape(len(values), -1).amax(dim=1).numpy()
