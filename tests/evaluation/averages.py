"""Scope-averaged truncated advantages ḡ_k from their definition, by enumeration.

    ĝ_k(s, a_k) = E[r(s, A) + γ V̂_κ(S') | s, a_k],   V̂_κ = Σ_{t ≤ κ} γ^t (T^π)^t r^π,
    ḡ_k(s_O, a_k) = E_{s ~ law(. | s_O)} ĝ_k(s, a_k), centred over a_k.

Constants such as r̄ cancel in the centring, so no chain has to be solved and every model will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import reference as ref

Array = np.ndarray
Setting = tuple[int, Any, float]
"""κ, objective, γ."""


def centred(g: Array) -> Array:
    return g - g.mean(-1, keepdims=True)


class Definition:
    """ĝ_k and ḡ_k of one policy, every table of the joint space at hand."""

    def __init__(self, model: ref.Model, policy: ref.Policy) -> None:
        self.model, self.policy = model, policy
        self.kernel = ref.transition(model)
        joint = ref.product_policy(model, policy)
        self.matrix = ref.policy_transition(self.kernel, joint)
        self._blocks: dict[Setting, list[Array]] = {}

    def value(self, setting: Setting) -> Array:
        """V̂_κ: (|S|,)."""
        kappa, objective, discount = setting
        weight = self.policy.temperature * (objective == "entropy")
        r = ref.policy_reward(self.model, self.policy, weight)
        return ref.truncated_value(self.matrix, r, kappa, discount)

    def blocks(self, setting: Setting) -> list[Array]:
        """ĝ_k of all agents: (|S|, A_k) each."""
        if setting not in self._blocks:
            value, model = self.value(setting), self.model
            advantages = ref.advantage(model, self.kernel, value, discount=setting[2])
            self._blocks[setting] = [
                ref.block_values(model, self.policy, advantages, k) for k in range(model.n_agents)
            ]
        return self._blocks[setting]

    def averages(self, setting: Setting, law: Array | None = None) -> list[Array]:
        """ḡ_k of all agents: (*S[scope_k], A_k) each; uniform where the law of s_O is 0."""
        law = ref.uniform_law(self.model) if law is None else law
        return [
            centred(ref.scope_average(self.model, scope, g, law))
            for scope, g in zip(self.policy.scopes, self.blocks(setting), strict=True)
        ]

    def sampled(
        self, setting: Setting, states: Array, fallback: Array | None = None
    ) -> list[Array]:
        """ḡ_k over given states (R, N), by the law `fallback` where none shows s_O."""
        law = np.zeros(len(self.model.states))
        np.add.at(law, np.ravel_multi_index(tuple(states.T), self.model.state_sizes), 1.0)
        averages = self.averages(setting, law)
        if fallback is None:
            return averages
        for k, other in enumerate(self.averages(setting, fallback)):
            scope = list(self.policy.scopes[k])
            seen = np.zeros([self.model.state_sizes[i] for i in scope], bool)
            seen[tuple(states[:, i] for i in scope)] = True
            averages[k] = np.where(seen[..., None], averages[k], other)
        return averages


def random_laws(rng: np.random.Generator, sizes: Sequence[int]) -> list[Array]:
    """A positive law a coordinate, far from uniform."""
    laws = [0.05 / size + 0.95 * rng.dirichlet(np.full(size, 0.5)) for size in sizes]
    return [law / law.sum() for law in laws]
