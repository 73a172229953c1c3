"""Batched logit networks: G agents of one shape in one module.

A network maps (G, B, m) int64 observations to (G, B, A) logits. `Tabular` holds one free logit an
entry. A `LayeredNetwork` is a chain of layers on one-hot inputs, with weights of its own for every
agent (`BatchedLinear`) or one set of them and a learned vector an agent (`EmbeddedLinear`,
`SharedLinear`), its logits free or kept within a Lipschitz constant (`Bounded`). Modules of the
user's own follow the interface in `custom`.
"""

from torchloc.policy.networks.building import (
    WIDEST,
    built,
    common_dtype,
    described,
    fill,
    mlp,
    scale_logits,
    tabular,
)
from torchloc.policy.networks.custom import Build, custom
from torchloc.policy.networks.layered import (
    LayeredNetwork,
    LogitNetwork,
    Unrolled,
    applied,
    own_state,
    unrolled,
)
from torchloc.policy.networks.layers import (
    ACTIVATIONS,
    BatchedLinear,
    Bounded,
    EmbeddedLinear,
    OneHot,
    SharedLinear,
    Tabular,
)

__all__ = [
    "ACTIVATIONS",
    "WIDEST",
    "BatchedLinear",
    "Bounded",
    "Build",
    "EmbeddedLinear",
    "LayeredNetwork",
    "LogitNetwork",
    "OneHot",
    "SharedLinear",
    "Tabular",
    "Unrolled",
    "applied",
    "built",
    "common_dtype",
    "custom",
    "described",
    "fill",
    "mlp",
    "own_state",
    "scale_logits",
    "tabular",
    "unrolled",
]
