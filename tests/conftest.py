"""Shapes and types of the rooms that annotate them are checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook(
    ["torchloc.improvement.prox", "torchloc.lipschitz", "torchloc.sensitivity"], "beartype.beartype"
)
