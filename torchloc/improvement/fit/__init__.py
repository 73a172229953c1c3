"""Making a network's logits what the prox step asks for.

Tables are assigned. Other networks are fitted, from the weights they have, either to the closed-form
target (`fit_logits`: least squares on the logits, centred over actions) or to what it maximises
(`ascend_prox`). For the objective F(μ) = ⟨μ, g⟩ + τ' Ent μ − η KL(μ ‖ π) with maximiser μ*,

    F(μ*) − F(μ) = (η + τ') KL(μ ‖ μ*)          τ' = τ for the entropy objective, 0 for reward,

so both know when they are done. Where the network can represent the target they agree; where it cannot,
the first is near in logits, which the ledger's fit error counts, the second in value. In logits,
∇ KL(μ ‖ μ*) = F (z − z*)/τ², F the covariance of the drawn action, so that the first follows the natural
gradient of the second, and is not held up where F is small.

Agents are fitted all at once and stop each by itself. `levenberg` (function space) takes few steps and
is for rows times actions up to some thousand; `adam` is for more, and for batches of sampled
observations where the scope states are too many. Where agents share parameters, a fit of the whole
group moves all of them; a fit of some agents moves only what is theirs (their embeddings), so that no
other agent's policy changes.
"""

from torchloc.improvement.fit.ascent import ASCENT_STEPS, ascend_prox
from torchloc.improvement.fit.regression import FitMethod, fit_logits
from torchloc.improvement.fit.report import FitReport

__all__ = ["ASCENT_STEPS", "FitMethod", "FitReport", "ascend_prox", "fit_logits"]
