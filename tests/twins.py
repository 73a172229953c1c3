"""Random models and policies twice: as plain data for `reference`, and as the package's own objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import reference as ref

import torchloc as tl
from torchloc.policy import SoftmaxPolicy


def twin_model(model: ref.Model, **options: Any) -> tl.FactoredMDP:
    """The package's model of a reference model."""
    kernels = [tl.LocalKernel(*kernel) for kernel in model.kernels]
    rewards = [tl.LocalReward(*term) for term in model.rewards]
    return tl.FactoredMDP(model.state_sizes, model.action_sizes, kernels, rewards, **options)


def twin_policy(mdp: tl.FactoredMDP, policy: ref.Policy) -> SoftmaxPolicy:
    """The package's tabular policy of a reference policy."""
    return SoftmaxPolicy.from_logits(
        mdp, policy.scopes, policy.logits, temperature=policy.temperature
    )


def draw(
    seed: int, *, policy: dict[str, Any] | None = None, **model: Any
) -> tuple[ref.Model, ref.Policy, tl.FactoredMDP, SoftmaxPolicy]:
    """A random model and policy, and their twins."""
    rng = np.random.default_rng(seed)
    plain = ref.random_model(rng, **model)
    plain_policy = ref.random_policy(rng, plain, **(policy or {}))
    mdp = twin_model(plain)
    return plain, plain_policy, mdp, twin_policy(mdp, plain_policy)
