"""Localized policy improvement on factored multi-agent MDPs, with certified locality.

The public names load on first use (PEP 562), so `import torchloc` imports neither torch nor scipy
and the command line starts fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchloc.certificate import certify
    from torchloc.engine import Evaluation
    from torchloc.errors import BudgetError, FileError, InputError, SolveError
    from torchloc.evaluation.joint import JointEvaluation
    from torchloc.evaluation.local import LocalEvaluation, local_logits
    from torchloc.evaluation.rollout import simulate
    from torchloc.graphs import neighbourhood_scopes, parent_scopes
    from torchloc.improvement import Improvement
    from torchloc.lipschitz import LipschitzMonitor
    from torchloc.locality import Locality
    from torchloc.mdp import (
        CountBatch,
        CountKernel,
        CountRewardBatch,
        FactoredMDP,
        KernelBatch,
        LocalKernel,
        LocalReward,
        RewardBatch,
    )
    from torchloc.policy import SoftmaxPolicy
    from torchloc.sensitivity import (
        action_sensitivity,
        influence,
        policy_sensitivity,
        state_sensitivity,
    )
    from torchloc.spectral import spectral_radius
    from torchloc.trainer import Callback, Trainer, TrainState

__version__ = "0.1.0"

_MODULES = {
    "BudgetError": "torchloc.errors",
    "Callback": "torchloc.trainer",
    "CountBatch": "torchloc.mdp",
    "CountKernel": "torchloc.mdp",
    "CountRewardBatch": "torchloc.mdp",
    "Evaluation": "torchloc.engine",
    "FactoredMDP": "torchloc.mdp",
    "FileError": "torchloc.errors",
    "Improvement": "torchloc.improvement",
    "InputError": "torchloc.errors",
    "JointEvaluation": "torchloc.evaluation.joint",
    "KernelBatch": "torchloc.mdp",
    "LipschitzMonitor": "torchloc.lipschitz",
    "LocalEvaluation": "torchloc.evaluation.local",
    "LocalKernel": "torchloc.mdp",
    "LocalReward": "torchloc.mdp",
    "Locality": "torchloc.locality",
    "RewardBatch": "torchloc.mdp",
    "SoftmaxPolicy": "torchloc.policy",
    "SolveError": "torchloc.errors",
    "TrainState": "torchloc.trainer",
    "Trainer": "torchloc.trainer",
    "action_sensitivity": "torchloc.sensitivity",
    "certify": "torchloc.certificate",
    "influence": "torchloc.sensitivity",
    "local_logits": "torchloc.evaluation.local",
    "neighbourhood_scopes": "torchloc.graphs",
    "parent_scopes": "torchloc.graphs",
    "policy_sensitivity": "torchloc.sensitivity",
    "simulate": "torchloc.evaluation.rollout",
    "spectral_radius": "torchloc.spectral",
    "state_sensitivity": "torchloc.sensitivity",
}

__all__ = [
    "BudgetError",
    "Callback",
    "CountBatch",
    "CountKernel",
    "CountRewardBatch",
    "Evaluation",
    "FactoredMDP",
    "FileError",
    "Improvement",
    "InputError",
    "JointEvaluation",
    "KernelBatch",
    "LipschitzMonitor",
    "LocalEvaluation",
    "LocalKernel",
    "LocalReward",
    "Locality",
    "RewardBatch",
    "SoftmaxPolicy",
    "SolveError",
    "TrainState",
    "Trainer",
    "action_sensitivity",
    "certify",
    "influence",
    "local_logits",
    "neighbourhood_scopes",
    "parent_scopes",
    "policy_sensitivity",
    "simulate",
    "spectral_radius",
    "state_sensitivity",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'torchloc' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
