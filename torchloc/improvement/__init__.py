"""KL-prox block updates, the fit of a network to their targets, and the ledger of what each was worth."""

from torchloc.improvement.fit import FitReport, ascend_prox, fit_logits
from torchloc.improvement.ledger import BlockRecord, block_record
from torchloc.improvement.moves import Charge, Gains, move
from torchloc.improvement.prox import BlockTarget, block_target, log_law, prox_logits
from torchloc.improvement.settings import Improvement
from torchloc.improvement.sweep import (
    chromatic_sweep,
    coloured_sweep,
    cyclic_sweep,
    jacobi_sweep,
)

__all__ = [
    "BlockRecord",
    "BlockTarget",
    "Charge",
    "FitReport",
    "Gains",
    "Improvement",
    "ascend_prox",
    "block_record",
    "block_target",
    "chromatic_sweep",
    "coloured_sweep",
    "cyclic_sweep",
    "fit_logits",
    "jacobi_sweep",
    "log_law",
    "move",
    "prox_logits",
]
