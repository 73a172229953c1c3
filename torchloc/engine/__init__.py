"""How a run evaluates and improves its policy: exactly by enumeration, or ball by ball."""

from __future__ import annotations

import torch

from torchloc.engine.exact import JointEngine
from torchloc.engine.local import LocalEngine
from torchloc.engine.settings import Evaluation
from torchloc.engine.values import SimulatedValues, Values
from torchloc.evaluation.space import STATE_BUDGET
from torchloc.improvement import Improvement
from torchloc.mdp import FactoredMDP
from torchloc.policy import SoftmaxPolicy

__all__ = [
    "Engine",
    "Evaluation",
    "JointEngine",
    "LocalEngine",
    "SimulatedValues",
    "Values",
    "build_engine",
]

Engine = JointEngine | LocalEngine


def build_engine(
    mdp: FactoredMDP,
    policy: SoftmaxPolicy,
    improvement: Improvement,
    evaluation: Evaluation,
    generator: torch.Generator,
) -> Engine:
    """The engine that the settings ask for; `auto` enumerates where the joint states fit.

    Raises:
        InputError: The settings do not go together, or do not fit the model.
        BudgetError: The model, or one of its balls, is too large.
    """
    name = evaluation.engine
    if name == "auto":
        name = "joint" if mdp.n_states <= STATE_BUDGET else "local"
    if name == "joint":
        return JointEngine(mdp, policy, improvement, evaluation)
    return LocalEngine(mdp, policy, improvement, evaluation, generator)
