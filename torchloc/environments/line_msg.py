"""Message passing on a line: certified by a spectral test only.

States: s_j ∈ {0, 1}, 1 where the message is. Actions: a_j ∈ {0, 1}, 1 = transmit. Law: s'_{n−1} =
a_{n−1} at the source; in between s'_i = 0 if a_i = 0, else 1 if s_{i+1} = 1, else Bernoulli(relay);
s'_0 = s_1 at the sink. Reward: 1{s_0 = 1} − cost·Σ a, and in the variant `all` .1·Σ_{i>0} s_i more.
Influence: E^s is strictly triangular, so ρ(E^s) = 0. Source: test problem of this package.
"""

from __future__ import annotations

import numpy as np

from torchloc.environments.checks import choice, probability, real, sites
from torchloc.mdp import FactoredMDP, KernelBatch, RewardBatch

REWARDS = ("all", "sink")


def line_msg(
    n: int = 8, *, relay: float = 0.8, cost: float = 0.1, reward: str = "all"
) -> FactoredMDP:
    """A bit travels from the source n − 1 to the sink 0, one relay a step.

    States: n binary coordinates. Actions: n binary agents, 1 = transmit; no kernel reads agent 0's,
    which just costs. Law: s'_{n−1} = a_{n−1}; for 0 < i < n − 1, s'_i = 0 if a_i = 0, and if a_i =
    1 then 1 where s_{i+1} = 1, else Bernoulli(relay); s'_0 = s_1. Reward: `all` 1{s_0 = 1} +
    .1·Σ_{i>0} s_i − cost·Σ a; `sink` 1{s_0 = 1} − cost·Σ a, where the truncation κ decides who
    learns to transmit. Influence: E^s[0, 1] = 1 and E^s[i, i + 1] = 1 − relay in between, strictly
    triangular: ρ(E^s) = 0, and so is ρ(H) as long as no agent sees itself or what lies behind it
    (for example scope {i + 1}); row sums of the action-supremum matrix are ≥ 1. Source: test
    problem of this package.

    Args:
        n: Number of coordinates and agents, ≥ 2.
        relay: Probability that a transmitting agent without a message upstream still sends 1.
        cost: Price c of one transmission.
        reward: `all` or `sink`.

    Returns:
        N = K = n, all sizes 2; parents of the middle kernels: state (i + 1,), action (i,).

    Raises:
        InputError: An argument is outside its range.

    Example:
        >>> [batch.coordinates.tolist() for batch in line_msg(4).kernels]
        [[0], [1, 2], [3]]
    """
    n, p, c = sites(n, 2), probability("relay", relay), real("cost", cost)
    choice("reward", reward, REWARDS)
    middle = np.arange(1, n - 1)
    passing = np.zeros((1, 2, 2, 2))
    passing[0, :, 0] = [1.0, 0.0]
    passing[0, 0, 1] = [1.0 - p, p]
    passing[0, 1, 1] = [0.0, 1.0]
    kernels = [
        KernelBatch([0], [[1]], [], np.eye(2)[None]),
        KernelBatch([n - 1], [], [[n - 1]], np.eye(2)[None]),
    ]
    if len(middle):
        kernels.insert(1, KernelBatch(middle, middle[:, None] + 1, middle[:, None], passing))
    everyone = np.arange(n)[:, None]
    terms = [
        RewardBatch([[0]], [], [[0.0, 1.0]]),
        RewardBatch([], everyone, [[0.0, -c]]),
    ]
    if reward == "all":
        terms.append(RewardBatch(everyone[1:], [], [[0.0, 0.1]]))
    return FactoredMDP(np.full(n, 2), np.full(n, 2), kernels, terms)
