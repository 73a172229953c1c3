"""Leader and follower: state coupling that no policy undoes (paper, Appendix E.1).

States: s_0, s_1 ∈ {0, 1}. Actions: a_0, a_1 ∈ {0, 1}, idle. Law: P(s'_0 = 1) = `law`, or s'_0 = s_1
where `mutual`; s'_1 = s_0. Reward: s_1. Influence: E^s[1, 0] = 1, so ρ(E^s) = 0, and 1 where
`mutual`; E^a = 0.
"""

from __future__ import annotations

import numpy as np

from torchloc.environments.checks import flag, probability
from torchloc.mdp import FactoredMDP, LocalKernel, LocalReward


def leader_follower(*, law: float = 0.5, mutual: bool = False) -> FactoredMDP:
    """Coordinate 1 copies coordinate 0.

    States: two binary coordinates. Actions: two binary agents, both idle. Law: s'₁ = s₀; s'₀ = 1
    with probability `law`, or s'₀ = s₁ with `mutual`. Reward: s₁. Influence: E^s[1, 0] = 1 and E^a
    = 0, so H = E^s for every policy. Then ρ(E^s) = 0, as the matrix is strictly triangular (the
    paper prints ρ ≥ 1); the mutual variant has E^s[0, 1] = 1 too, and ρ = 1: it is a deterministic
    swap with several closed classes, to be certified and not solved. Source: paper, Appendix E.1.

    Args:
        law: P(s'₀ = 1), in [0, 1]; the mutual variant does not use it.
        mutual: Whether the leader copies the follower.

    Returns:
        N = K = 2, all sizes 2.

    Raises:
        InputError: `law` is no probability, or `mutual` no truth value.

    Example:
        >>> leader_follower(mutual=True).kernels[0].states.tolist()
        [[1], [0]]
    """
    p = probability("law", law)
    copy = np.eye(2)
    if flag("mutual", mutual):
        leader = LocalKernel((1,), (), copy)
    else:
        leader = LocalKernel((), (), [1.0 - p, p])
    return FactoredMDP(
        [2, 2],
        [2, 2],
        [leader, LocalKernel((0,), (), copy)],
        [LocalReward((1,), (), [0.0, 1.0])],
    )
