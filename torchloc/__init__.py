"""Localized policy improvement on factored multi-agent MDPs, with certified locality.

The public names load on first use (PEP 562), so `import torchloc` imports neither torch nor scipy
and the command line starts fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchloc.errors import BudgetError, InputError, SolveError
    from torchloc.graphs import neighbourhood_scopes
    from torchloc.mdp import FactoredMDP, KernelBatch, LocalKernel, LocalReward, RewardBatch

__version__ = "0.1.0"

_MODULES = {
    "BudgetError": "torchloc.errors",
    "FactoredMDP": "torchloc.mdp",
    "InputError": "torchloc.errors",
    "KernelBatch": "torchloc.mdp",
    "LocalKernel": "torchloc.mdp",
    "LocalReward": "torchloc.mdp",
    "RewardBatch": "torchloc.mdp",
    "SolveError": "torchloc.errors",
    "neighbourhood_scopes": "torchloc.graphs",
}

__all__ = [
    "BudgetError",
    "FactoredMDP",
    "InputError",
    "KernelBatch",
    "LocalKernel",
    "LocalReward",
    "RewardBatch",
    "SolveError",
    "neighbourhood_scopes",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'torchloc' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
