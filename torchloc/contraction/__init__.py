"""Sums of products of small tensors on balls of the dependency graph, many sites at once."""

from torchloc.contraction.network import Network
from torchloc.contraction.pullback import Dynamics, LocalFunctions, Pullback, pull_back

__all__ = ["Dynamics", "LocalFunctions", "Network", "Pullback", "pull_back"]
