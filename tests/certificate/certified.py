"""Random models and policies, certified, beside what the definitions say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import reference as ref
from twins import draw

import torchloc as tl
from torchloc.certificate import Certificate
from torchloc.spectral import SpectralBound

Array = np.ndarray
# The oracle solves dense systems; with 5 % mixing their condition is below 1e4, times 1e-16.
SOLVE = 1e-10
# The oracle's products and sums carry some ten roundings of their own.
ORACLE = 1e-14
# What the package adds for the rounding of laws: 12 · 3 agents · 4 max |z/τ| · 2⁻⁵³, up to 150.
ROUNDING = 1e-11
# The same for several steps on up to a dozen pairs of states of 3 values.
PAIRS = 1e-9
# Brackets and tails (in the largest entry) are closed to this relative gap, tails below CLEAR.
GAP = 1e-6
CLEAR = 0.9
# Eigenvalues of a nearly defective block are off by the root of the rounding.
EIGENVALUE = 1e-7
STRUCTURES = ("general", "general", "periodic", "nilpotent")
SETTINGS = [
    {},
    {"objective": "entropy"},
    {"discount": 0.9},
    {"dynamics": "asynchronous"},
    {"objective": "entropy", "discount": 0.95, "dynamics": "asynchronous"},
]
MORE_SETTINGS = [*SETTINGS, {"steps": 3}, {"steps": 2, "discount": 0.9, "objective": "entropy"}]


@dataclass(frozen=True, eq=False)
class Case:
    """A random model and policy, certified, beside what the definitions say of them."""

    model: ref.Model
    policy: ref.Policy
    mdp: tl.FactoredMDP
    twin: tl.SoftmaxPolicy
    certificate: Certificate
    options: dict[str, Any]
    kappa: int
    sites: Array | None

    @property
    def discount(self) -> float:
        return self.options.get("discount", 1.0)

    @property
    def entropy(self) -> float | Array:
        return self.policy.temperature if self.options.get("objective") == "entropy" else 0.0

    def influence(self, rung: str) -> Array:
        """The rung's H by definition (C^π for the asynchronous coupled one)."""
        if self.sites is not None and rung == "coupled":
            return ref.marginal_influence(self.model, self.policy)
        return ref.influence(self.model, self.policy, rung)

    def propagator(self, rung: str) -> Array:
        """Mᵀ / γ by definition."""
        matrix = self.influence(rung)
        return matrix if self.sites is None else ref.asynchronous_influence(matrix, self.sites)

    @property
    def reward_bound(self) -> Array:
        """(N,) Σ_m δ(r_m^π) (+ Σ_k τ_k δ(Ent π_k)) by definition."""
        return ref.local_reward_bound(self.model, self.policy, self.entropy)

    @property
    def reach(self) -> Array:
        """(N, K) γ ν_j E^a[j, k]."""
        moves = np.ones(self.model.n_coordinates) if self.sites is None else self.sites
        return self.discount * moves[:, None] * ref.action_sensitivity(self.model)

    def values(self, kappas: tuple[int, ...]) -> tuple[Array, Array, list[Array]]:
        """The joint kernel, h, and ĥ_κ for every κ asked for."""
        if self.sites is None:
            kernel = ref.transition(self.model)
        else:
            kernel = ref.asynchronous_transition(self.model, self.sites)
        matrix = ref.policy_transition(kernel, ref.product_policy(self.model, self.policy))
        reward = ref.policy_reward(self.model, self.policy, self.entropy)
        if self.discount < 1.0:
            exact = ref.discounted_value(matrix, reward, self.discount)
        else:
            exact = ref.poisson(matrix, reward)
            reward = reward - ref.stationary(matrix) @ reward
        short = [ref.truncated_value(matrix, reward, k, self.discount) for k in kappas]
        return kernel, exact, short

    def spans(self, kernel: Array, exact: Array, short: Array) -> Array:
        """(K,) largest span over a_k of ĝ_k − g_k, from the values that they are made of."""
        gap = ref.advantage(self.model, kernel, short - exact, 0.0, self.discount)
        gap = gap - ref.reward(self.model)
        agents = range(self.model.n_agents)
        blocks = [ref.block_values(self.model, self.policy, gap, k) for k in agents]
        return np.array([ref.span(block).max() for block in blocks])


def case(seed: int, options: dict[str, Any], kappa: int = 2, **model: Any) -> Case:
    """A random case; `options` go to `certify`, `model` to `reference.random_model`."""
    model = {"unichain": True, "max_joint": 100, "structure": STRUCTURES[seed % 4], **model}
    drawn = draw(seed, policy={"minus_infinity": 0.15 * (seed % 2)}, **model)
    sites = None
    if options.get("dynamics") == "asynchronous":
        sites = np.random.default_rng(seed).dirichlet(np.ones(drawn[0].n_coordinates))
    certificate = tl.certify(drawn[2], drawn[3], kappa, site_law=sites, **options)
    return Case(*drawn, certificate, options, kappa, sites)


def encloses(bound: SpectralBound, value: float) -> bool:
    """Whether a bracket holds a computed eigenvalue, and is as narrow as promised."""
    slack = EIGENVALUE * max(value, 1.0)
    narrow = bound.upper - bound.lower <= GAP * bound.upper
    return narrow and bound.lower - slack <= value <= bound.upper + slack
