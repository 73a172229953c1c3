"""From a configuration to objects; what the user got wrong comes out as one bare error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from torchloc.errors import InputError, SolveError

if TYPE_CHECKING:
    from torchloc.graphs import Scopes
    from torchloc.mdp import FactoredMDP


def build_model(cfg: DictConfig) -> tuple[FactoredMDP, Scopes]:
    """The model of a configuration and what its agents see. Imports no torch.

    Raises:
        InputError: The environment or the scopes cannot be built as described.
    """
    mdp = build(cfg.env)
    return mdp, build(cfg.scopes)(mdp)


def build(node: Any) -> Any:
    """What a configuration node describes; errors of the user's input come out bare.

    Raises:
        InputError: The target does not exist, or it refused its arguments.
    """
    try:
        return instantiate(node)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError | SolveError):
            raise error.__cause__ from None
        if str(error).startswith("Error locating target") or _is_misfit(error.__cause__):
            raise InputError(f"_target_={node._target_}: {error.__cause__}") from None
        raise


def _is_misfit(error: BaseException | None) -> bool:
    """Whether a call failed on its arguments' names, before any line of the target ran."""
    trace = error.__traceback__ if isinstance(error, TypeError) else None
    return trace is not None and trace.tb_next is None
