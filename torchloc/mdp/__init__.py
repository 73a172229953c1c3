"""Factored multi-agent MDPs: frozen, validated, NumPy only.

A model has N state coordinates and K agents (N and K may differ), finite local spaces, and
factorises as

    P(s' | s, a) = Π_j P_j(s'_j | s_{states(j)}, a_{actions(j)}),      r(s, a) = Σ_m r_m(s_{.},
    a_{.}).

(Paper, Section 2.) Consumers never read a table directly when a method of the batch answers the
question, so that kernels without a table can take its place.
"""

from torchloc.mdp.count_rewards import CountRewardBatch
from torchloc.mdp.counts import CountBatch, CountKernel
from torchloc.mdp.kernels import KernelBatch, LocalKernel
from torchloc.mdp.model import FactoredMDP
from torchloc.mdp.rewards import LocalReward, RewardBatch

__all__ = [
    "CountBatch",
    "CountKernel",
    "CountRewardBatch",
    "FactoredMDP",
    "KernelBatch",
    "LocalKernel",
    "LocalReward",
    "RewardBatch",
]
