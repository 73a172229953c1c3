"""How a run evaluates and improves its policy: exactly by enumeration, or ball by ball."""

from __future__ import annotations

import torch

from torchloc.engine.exact import JointEngine
from torchloc.engine.local import LocalEngine
from torchloc.engine.settings import Evaluation
from torchloc.engine.values import SimulatedValues, Values
from torchloc.errors import InputError
from torchloc.evaluation.space import STATE_BUDGET
from torchloc.improvement import Improvement
from torchloc.mdp import FactoredMDP
from torchloc.mdp.dynamics import Dynamics
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
    dynamics: Dynamics = "synchronous",
) -> Engine:
    """The engine that the settings ask for; `auto` enumerates where the joint states fit.

    Asynchronous dynamics, one coordinate a step, are for the joint engine: one step contracts by about
    1 − (1 − ρ)/N only, so that what balls of a few steps see is empty at scale.

    Raises:
        InputError: The settings do not go together, or do not fit the model.
        BudgetError: The model, or one of its balls, is too large.
    """
    name = evaluation.engine
    if name == "auto":
        name = "joint" if mdp.n_states <= STATE_BUDGET else "local"
    if name == "joint":
        return JointEngine(mdp, policy, improvement, evaluation, dynamics)
    if dynamics == "asynchronous":
        raise InputError(
            f"dynamics is 'asynchronous', which only the joint engine trains, and evaluation.engine is "
            f"{evaluation.engine!r} with {mdp.n_coordinates} coordinates; use evaluation=joint on a model of at "
            f"most {STATE_BUDGET} joint states, or dynamics=synchronous"
        )
    return LocalEngine(mdp, policy, improvement, evaluation, generator)
