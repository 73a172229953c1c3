"""RDDL problems with finite fluents as factored MDPs (extra `rddl`: pyRDDLGym, rddlrepository)."""

from torchloc.interop.rddl.grounding import GroundedProblem, ground_rddl, load_rddl

__all__ = ["GroundedProblem", "ground_rddl", "load_rddl"]
