"""Hub and spokes: locality that depends on the policy alone (paper, Appendix E.2).

States: s_0 (hub) … s_{n−1} (spokes) ∈ {0, 1}. Actions: a_k ∈ {0, 1}, the hub's alone is read. Law:
P(s'_0 = 1) = `law`; s'_j = a_0, with probability `noise` replaced by a fair coin. Reward: Σ_{j≥1}
s_j. Influence: E^s = 0, so ρ(E^s) = 0; E^a[j, 0] = 1 − noise for j ≥ 1.
"""

from __future__ import annotations

import numpy as np

from torchloc.environments.checks import probability, sites
from torchloc.mdp import FactoredMDP, KernelBatch, RewardBatch


def hub_spoke(n: int = 4, *, law: float = 0.5, noise: float = 0.0) -> FactoredMDP:
    """The hub's action writes every spoke.

    States: n binary coordinates, 0 the hub. Actions: n binary agents; only the hub's is read. Law:
    s'₀ = 1 with probability `law`; s'_j = a₀ for j ≥ 1, mixed with the uniform law by the weight
    `noise`. Reward: Σ_{j ≥ 1} s_j, the number of spokes that are up. Influence: E^s = 0, so ρ(E^s)
    = 0; E^a[j, 0] = 1 − noise. With one-coordinate Lipschitz constants ℓ_i of the hub's centred
    logits, ρ of the `paper` rung is Σ_{j ≥ 1} min{1, ℓ_j/(2τ)} (noise 0): certified for τ > (n −
    1)·max ℓ/2. Source: paper, Appendix E.2.

    Args:
        n: Number of coordinates and agents, ≥ 3.
        law: P(s'₀ = 1), in [0, 1].
        noise: Weight of the uniform law in every spoke's kernel, in [0, 1].

    Returns:
        N = K = n, all sizes 2.

    Raises:
        InputError: An argument is outside its range.

    Example:
        >>> hub_spoke(5, noise=0.25).kernels[1].action_influence()
        array([[0.75]])
    """
    n, p, mix = sites(n, 3), probability("law", law), probability("noise", noise)
    spokes = np.arange(1, n)
    spoke = (1.0 - mix) * np.eye(2) + 0.5 * mix
    return FactoredMDP(
        np.full(n, 2),
        np.full(n, 2),
        [
            KernelBatch([0], [], [], [[1.0 - p, p]]),
            KernelBatch(spokes, [], np.zeros((n - 1, 1), dtype=np.int64), spoke[None]),
        ],
        [RewardBatch(spokes[:, None], [], [[0.0, 1.0]])],
    )
