"""Localized policy improvement on factored multi-agent MDPs, with certified locality.

The public names load on first use (PEP 562), so `import torchloc` imports neither torch nor scipy
and the command line starts fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchloc.certificate import Sensitivities, certify
    from torchloc.engine import Evaluation
    from torchloc.errors import BudgetError, FileError, InputError, SolveError
    from torchloc.estimation import (
        FittedModel,
        LocalSimulator,
        SensitivityEstimate,
        StepSimulator,
        TransitionLog,
        estimate_sensitivities,
        maximum_likelihood,
        mean_rewards,
        samples_for,
    )
    from torchloc.evaluation.joint import JointEvaluation
    from torchloc.evaluation.local import LocalEvaluation, local_logits
    from torchloc.evaluation.rollout import simulate
    from torchloc.graphs import neighbourhood_scopes, parent_scopes
    from torchloc.improvement import Improvement
    from torchloc.interop.pettingzoo import parallel_env
    from torchloc.interop.rddl import ground_rddl, load_rddl
    from torchloc.interop.torch_policy import policy_from_modules
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
    "FittedModel": "torchloc.estimation",
    "Improvement": "torchloc.improvement",
    "InputError": "torchloc.errors",
    "JointEvaluation": "torchloc.evaluation.joint",
    "KernelBatch": "torchloc.mdp",
    "LipschitzMonitor": "torchloc.lipschitz",
    "LocalEvaluation": "torchloc.evaluation.local",
    "LocalKernel": "torchloc.mdp",
    "LocalReward": "torchloc.mdp",
    "LocalSimulator": "torchloc.estimation",
    "Locality": "torchloc.locality",
    "RewardBatch": "torchloc.mdp",
    "Sensitivities": "torchloc.certificate",
    "SensitivityEstimate": "torchloc.estimation",
    "SoftmaxPolicy": "torchloc.policy",
    "SolveError": "torchloc.errors",
    "StepSimulator": "torchloc.estimation",
    "TrainState": "torchloc.trainer",
    "Trainer": "torchloc.trainer",
    "TransitionLog": "torchloc.estimation",
    "action_sensitivity": "torchloc.sensitivity",
    "certify": "torchloc.certificate",
    "estimate_sensitivities": "torchloc.estimation",
    "ground_rddl": "torchloc.interop.rddl",
    "influence": "torchloc.sensitivity",
    "load_rddl": "torchloc.interop.rddl",
    "local_logits": "torchloc.evaluation.local",
    "maximum_likelihood": "torchloc.estimation",
    "mean_rewards": "torchloc.estimation",
    "neighbourhood_scopes": "torchloc.graphs",
    "parallel_env": "torchloc.interop.pettingzoo",
    "parent_scopes": "torchloc.graphs",
    "policy_from_modules": "torchloc.interop.torch_policy",
    "policy_sensitivity": "torchloc.sensitivity",
    "samples_for": "torchloc.estimation",
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
    "FittedModel",
    "Improvement",
    "InputError",
    "JointEvaluation",
    "KernelBatch",
    "LipschitzMonitor",
    "LocalEvaluation",
    "LocalKernel",
    "LocalReward",
    "LocalSimulator",
    "Locality",
    "RewardBatch",
    "Sensitivities",
    "SensitivityEstimate",
    "SoftmaxPolicy",
    "SolveError",
    "StepSimulator",
    "TrainState",
    "Trainer",
    "TransitionLog",
    "action_sensitivity",
    "certify",
    "estimate_sensitivities",
    "ground_rddl",
    "influence",
    "load_rddl",
    "local_logits",
    "maximum_likelihood",
    "mean_rewards",
    "neighbourhood_scopes",
    "parallel_env",
    "parent_scopes",
    "policy_from_modules",
    "policy_sensitivity",
    "samples_for",
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
