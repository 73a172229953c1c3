"""Per-agent softmax logit networks over observation scopes, batched across agents.

π_k(a | s_O) = softmax(z_k(s_O, ·) / τ_k), one network z_k and one temperature τ_k an agent; the
joint policy is the product (paper, Section 2 and Definition 4). Agents whose scopes and actions
have the same sizes form one group and one batched module.
"""

from torchloc.policy.groups import AgentGroup, agent_groups
from torchloc.policy.laws import scaled_logits
from torchloc.policy.networks import LogitNetwork, Tabular
from torchloc.policy.softmax import SoftmaxPolicy

__all__ = [
    "AgentGroup",
    "LogitNetwork",
    "SoftmaxPolicy",
    "Tabular",
    "agent_groups",
    "scaled_logits",
]
