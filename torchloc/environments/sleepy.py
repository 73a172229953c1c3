"""The sleepy agent: full action coupling that a lazy policy undoes (paper, Section 3).

States: s_0, s_1 ∈ {0, 1}. Actions: a_0, a_1 ∈ {0, 1}, a_1 idle. Law: P(s'_0 = 1) = `law`, s'_1 =
a_0. Reward: s_1. Influence: E^s = 0, so ρ(E^s) = 0; E^a[1, 0] = 1 alone, and a policy that moves by
α in TV when s_0 flips has H[1, 0] = α.
"""

from __future__ import annotations

import numpy as np

from torchloc.environments.checks import probability
from torchloc.mdp import FactoredMDP, LocalKernel, LocalReward


def sleepy(*, law: float = 0.5) -> FactoredMDP:
    """Two agents; agent 0 writes coordinate 1.

    States: two binary coordinates. Actions: two binary agents, agent 1 is idle (no kernel reads
    it). Law: s'₀ = 1 with probability `law`, whatever happened; s'₁ = a₀. Reward: s₁. Influence:
    E^s = 0, so ρ(E^s) = 0, and E^a[1, 0] = 1 is the only other entry; a policy of agent 0 that
    moves by α in TV when s₀ flips, and does not see s₁, has H[1, 0] = α and ρ(H) = 0. Source:
    paper, Section 3.

    Args:
        law: P(s'₀ = 1), in [0, 1].

    Returns:
        N = K = 2, all sizes 2.

    Raises:
        InputError: `law` is no probability.

    Example:
        >>> sleepy().kernels[1].action_influence()
        array([[1.]])
    """
    p = probability("law", law)
    return FactoredMDP(
        [2, 2],
        [2, 2],
        [LocalKernel((), (), [1.0 - p, p]), LocalKernel((), (0,), np.eye(2))],
        [LocalReward((1,), (), [0.0, 1.0])],
    )
