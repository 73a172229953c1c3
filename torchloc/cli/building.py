"""From a configuration to objects; what the user got wrong comes out as one bare error."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from torchloc.config.ranges import closest
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
    mdp = build_env(cfg)
    return mdp, build_scopes(cfg, mdp)


def build_env(cfg: DictConfig) -> FactoredMDP:
    """The model of a configuration.

    Raises:
        InputError: It cannot be built as described, or what is built is no model.
    """
    # Late: the shell completes words without it.
    from torchloc.mdp import FactoredMDP

    return _made("env", cfg.env, build(cfg.env, "env"), FactoredMDP)


def build_scopes(cfg: DictConfig, mdp: FactoredMDP) -> Scopes:
    """What the agents of a model see.

    Raises:
        InputError: They cannot be built as described, or do not fit the model.
    """
    from torchloc.graphs import Scopes, as_scopes

    made = _callable("scopes", cfg.scopes, build(cfg.scopes, "scopes"))(mdp)
    if not isinstance(made, list | tuple):  # one list of coordinates an agent
        _made("scopes", cfg.scopes, made, Scopes)
    return as_scopes(mdp, made)


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
    from torchloc.engine import Evaluation
    from torchloc.improvement import Improvement
    from torchloc.locality import Locality
    from torchloc.policy import SoftmaxPolicy
    from torchloc.schedules import Adaptive
    from torchloc.trainer import Trainer, first_temperature

    schedule = build(cfg.schedule, "schedule")
    if not isinstance(schedule, Adaptive):
        _callable("schedule", cfg.schedule, schedule)
    temperature = first_temperature(schedule)
    if resume is None:
        make = _callable("policy", cfg.policy, build(cfg.policy, "policy"))
        policy = make(mdp, scopes, temperature=temperature, seed=cfg.seed)
        _made("policy", cfg.policy, policy, SoftmaxPolicy)
    else:
        policy = resume.policy
        policy.check(mdp)
    improvement = build(cfg.improvement, "improvement")
    evaluation = build(cfg.evaluation, "evaluation")
    locality = None
    if cfg.get("locality") is not None:
        locality = build(cfg.locality, "locality")
        _made("locality", cfg.locality, locality, Locality)
    _check_device(_made("evaluation", cfg.evaluation, evaluation, Evaluation).device)
    return Trainer(
        mdp,
        policy,
        schedule=schedule,
        improvement=_made("improvement", cfg.improvement, improvement, Improvement),
        evaluation=evaluation,
        iterations=cfg.trainer.iterations,
        hold=cfg.trainer.hold,
        dynamics=cfg.get("dynamics", "synchronous"),
        locality=locality,
        callbacks=callbacks,
        seed=cfg.seed,
        resume=resume,
    )


def build(node: Any, group: str) -> Any:
    """What a configuration node describes; errors of the user's input come out bare.

    Args:
        node: The node.
        group: What it is called in errors.

    Raises:
        InputError: It names no target, the target does not exist, or it refused its arguments.
    """
    if not isinstance(node, DictConfig) or node.get("_target_") is None:
        what = "a list" if isinstance(node, ListConfig) else "without a _target_"
        raise InputError(
            f"{group} is {what}, so there is nothing to build; its file must name a _target_, or begin with "
            f"defaults: [/schema/{group}/CHOICE@_here_]"
        )
    target = node._target_
    try:
        return instantiate(node)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError | SolveError):
            raise cause from None
        if str(error).startswith("Error locating target"):
            raise InputError(f"_target_={target}: {_absent(str(target))}") from None
        if str(error).startswith("Expected a callable target"):
            raise InputError(f"_target_={target} is nothing that can be called") from None
        if _is_misfit(cause):
            partial = "missing" in str(cause) and not node.get("_partial_", False)
            hint = "; or is _partial_: true missing?" if partial else ""
            raise InputError(f"_target_={target}: {cause}{hint}") from None
        raise


def _absent(target: str) -> str:
    """Why there is nothing under a dotted name, with the closest one."""
    module, _, name = target.rpartition(".")
    with contextlib.suppress(ImportError, ValueError):
        known = [word for word in vars(importlib.import_module(module)) if word[0] != "_"]
        return f"{module} has no {name}{closest(name, known)}"
    return f"there is no module {module or target}; is it installed, and spelt right?"


def _callable(group: str, node: DictConfig, made: Any) -> Any:
    if not callable(made):
        raise InputError(
            f"{group}: _target_={node._target_} gives a {type(made).__name__}, which cannot be called; is "
            f"_partial_: true missing?"
        )
    return made


def _made(group: str, node: DictConfig, made: Any, kind: type) -> Any:
    if not isinstance(made, kind):
        raise InputError(
            f"{group}: _target_={node._target_} gives a {type(made).__name__}; it must give a "
            f"{kind.__name__}"
        )
    return made


def _check_device(device: str) -> None:
    """Refuses a device that this machine does not have."""
    import torch

    kind, _, number = device.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise InputError(
            f"evaluation.device is {device}, but torch finds {torch.cuda.device_count()} such devices "
            f"here; use evaluation.device=cpu"
        )


def _is_misfit(error: BaseException | None) -> bool:
    """Whether a call failed on its arguments' names, before any line of the target ran."""
    trace = error.__traceback__ if isinstance(error, TypeError) else None
    return trace is not None and trace.tb_next is None
