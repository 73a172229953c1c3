"""The influence matrices of a policy and the oscillation of its reward, rounded up."""

from __future__ import annotations

import itertools
import math
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch

from torchloc.certificate.rounding import UNIT, outward
from torchloc.closed_loop import PolicyTables, entropy_terms, reward_terms
from torchloc.coupling import coupled_steps
from torchloc.lipschitz import logit_span
from torchloc.mdp import FactoredMDP
from torchloc.mdp.checks import FloatArray
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
        """Absolute error of a TV of computed probabilities, as a bound for all of them."""
        terms = max(kernel.table[0].size for kernel in self.mdp.kernels)
        terms += max((int(group.n_actions) for group in self.policy.groups), default=0)
        size = 0.0
        for index in range(len(self.policy.groups)):
            scaled = self.policy.group_scaled_logits(index)
            finite = torch.where(torch.isfinite(scaled), scaled.abs(), 0.0)
            size = max(size, float(finite.max()) if finite.numel() else 0.0)
        return 4.0 * (terms + size) * UNIT

    @cached_property
    def _moving(self) -> sp.csr_array:
        """(K, N) ones where some logit changes with the coordinate: the structural pattern of Π."""
        span = logit_span(self.policy)
        span.data = np.ones_like(span.data)
        return span

    @cached_property
    def _pattern(self) -> sp.csr_array:
        """(N, N) ones where one step can carry influence at all."""
        pattern = sp.csr_array(self.state + self.action @ self._moving)
        pattern.data = np.ones_like(pattern.data)
        return pattern

    def several_steps(self, steps: int) -> list[sp.csr_array]:
        """K^(1), …, K^(steps), rounded up.

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
            matrix = sp.csr_array(matrix + self._absolute * self._moving)
        elif rung != "scope":
            matrix = outward(matrix, 16)
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


def reward_oscillation(
    mdp: FactoredMDP, tables: PolicyTables, *, entropy: bool = False
) -> FloatArray:
    """b = Σ_m δ(r_m^π) (+ Σ_k τ_k δ(Ent π_k)), componentwise an upper bound of δ(r^π).

    Args:
        mdp: The model.
        tables: The policy's laws.
        entropy: Include the entropies.

    Returns:
        (N,) float64, rounded up.
    """
    b = np.zeros(mdp.n_coordinates)
    terms = [reward_terms(mdp, tables)] + ([entropy_terms(tables)] if entropy else [])
    for union, values in itertools.chain(*terms):
        slack = 4.0 * (math.prod(values.shape[1:]) + 64) * UNIT * float(values.abs().max())
        for column in range(union.shape[1]):
            if values.shape[1 + column] == 1:
                continue
            spread = values.amax(dim=1 + column) - values.amin(dim=1 + column)
            worst = spread.reshape(len(values), -1).amax(dim=1).numpy()
            worst = np.where(worst > 0, worst + slack, 0.0)
            np.add.at(b, union[:, column], np.broadcast_to(worst, len(union)))
    return b * (1.0 + 64 * UNIT)
