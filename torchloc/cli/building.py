"""From a configuration to objects; what the user got wrong comes out as one bare error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from torchloc.errors import InputError, SolveError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchloc.checkpoint import Checkpoint
    from torchloc.graphs import Scopes
    from torchloc.mdp import FactoredMDP
    from torchloc.trainer import Callback, Trainer


def build_model(cfg: DictConfig) -> tuple[FactoredMDP, Scopes]:
    """The model of a configuration and what its agents see. Imports no torch.

    Raises:
        InputError: The environment or the scopes cannot be built as described.
    """
    mdp = build(cfg.env)
    return mdp, build(cfg.scopes)(mdp)


def build_trainer(
    cfg: DictConfig,
    mdp: FactoredMDP,
    scopes: Scopes,
    callbacks: Sequence[Callback] = (),
    resume: Checkpoint | None = None,
) -> Trainer:
    """The run that a configuration describes, before its first iteration or where it goes on.

    Args:
        cfg: The configuration.
        mdp: Its model.
        scopes: What the agents see.
        callbacks: Told what happens, in this order.
        resume: Where it goes on from; None: it begins.

    Raises:
        InputError: Some part cannot be built, or parts do not go together.
    """
    # Late, because it imports torch.
    from torchloc.trainer import Trainer, first_temperature

    schedule = build(cfg.schedule)
    temperature = first_temperature(schedule)
    if resume is None:
        policy = build(cfg.policy)(mdp, scopes, temperature=temperature, seed=cfg.seed)
    else:
        policy = resume.policy
        policy.check(mdp)
    return Trainer(
        mdp,
        policy,
        schedule=schedule,
        improvement=build(cfg.improvement),
        evaluation=build(cfg.evaluation),
        iterations=cfg.trainer.iterations,
        hold=cfg.trainer.hold,
        dynamics=cfg.get("dynamics", "synchronous"),
        locality=None if cfg.get("locality") is None else build(cfg.locality),
        callbacks=callbacks,
        seed=cfg.seed,
        resume=resume,
    )


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
