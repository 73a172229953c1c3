"""How much a logit moves when one coordinate of its scope moves.

With z̃ the logits centred to zero mean over the actions (a constant per state changes no policy),

    L_{k←i}    = max over pairs of scope states that differ in i alone of ‖z̃_k(s) − z̃_k(s')‖_∞,
    span_{k←i} = max over the same pairs of max_a − min_a of z_k(s) − z_k(s').

(Paper, Definitions 5 and 9; the span is the sharper quantity: span ≤ 2 L.) No pairs need to be
formed: L is the largest max_{s_i} − min_{s_i} of one centred logit, span the largest of one
difference of logits. An action that is −∞ on both sides of a pair is dropped; −∞ on one side only
makes the entry ∞.

Three kinds of number stand here, never under one name: *exact* ones by enumeration of all scope
states (`enumeration`); *bounds*, certified upper ones for scopes too large for that (`bound`); and
*observed* ones from the batches that pass a forward hook, lower estimates to watch (`monitor`). A
certificate uses the first two, `certified_spreads`.
"""

from torchloc.lipschitz.bound import (
    BRANCHES,
    STEPS,
    certified_sources,
    certified_spreads,
    logit_bounds,
    norm_product_bounds,
)
from torchloc.lipschitz.enumeration import (
    centred,
    group_spreads,
    logit_lipschitz,
    logit_span,
    logit_spreads,
    scope_matrix,
)
from torchloc.lipschitz.monitor import LipschitzMonitor, observed_spreads

__all__ = [
    "BRANCHES",
    "STEPS",
    "LipschitzMonitor",
    "centred",
    "certified_sources",
    "certified_spreads",
    "group_spreads",
    "logit_bounds",
    "logit_lipschitz",
    "logit_span",
    "logit_spreads",
    "norm_product_bounds",
    "observed_spreads",
    "scope_matrix",
]
