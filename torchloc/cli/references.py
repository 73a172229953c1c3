"""The baselines of a run, from its configuration alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchloc.cli.building import build, build_model, build_trainer
from torchloc.config import environments, schemas
from torchloc.environments.rules import HandRule, hand_rule
from torchloc.errors import InputError
from torchloc.study.baselines import Baselines, baselines

if TYPE_CHECKING:
    from torchloc.engine import Engine
    from torchloc.graphs import Scopes
    from torchloc.mdp import FactoredMDP
    from torchloc.policy import SoftmaxPolicy

SEED = 0
"""Of the myopic run, and of the simulations of models that are not enumerated."""
INTERPOLATIONS = 16
"""At most so many `${…}` are resolved: strings that name each other twice double with every level."""


def references(config: Mapping[str, Any]) -> Baselines:
    """What a run is compared with.

    A run folder may come from anywhere, so nothing is built but what this package configures.

    Args:
        config: The run's resolved configuration, as `.hydra/config.yaml` holds it.

    Returns:
        The baselines, and a sentence for each that could not be had; where the model itself cannot
        be built, nothing but that.
    """
    try:
        _refuse_expansion(config)
        plain = OmegaConf.to_container(OmegaConf.create(dict(config)), resolve=True)
        _refuse_strangers(plain)
        cfg = cast(DictConfig, OmegaConf.create(plain))
        mdp, scopes = build_model(cfg)
        return _found(cfg, mdp, scopes)
    except (InputError, OmegaConfBaseException) as error:
        return Baselines(missing=(f"baselines: {' '.join(str(error).split())}",))


def _found(cfg: DictConfig, mdp: FactoredMDP, scopes: Scopes) -> Baselines:
    # Late, because they import torch.
    import torch

    from torchloc.engine import build_engine

    cfg.evaluation.kappa = 0  # no baseline looks further than its own block
    cfg.seed = SEED
    dynamics = cfg.get("dynamics", "synchronous")
    improvement = build(cfg.improvement, "improvement")
    evaluation = build(cfg.evaluation, "evaluation")

    def engine(policy: SoftmaxPolicy) -> Engine:
        generator = torch.Generator().manual_seed(SEED)
        return build_engine(mdp, policy, improvement, evaluation, generator, dynamics)

    def rule(mdp: FactoredMDP, scopes: Scopes) -> HandRule | None:
        return hand_rule(cfg.env, mdp, scopes)

    return baselines(
        mdp,
        scopes,
        engine=engine,
        evaluation=evaluation,
        rule=rule,
        myopic=lambda: build_trainer(cfg, mdp, scopes),
        dynamics=dynamics,
    )


def _refuse_expansion(config: Any) -> None:
    """Refuses interpolations that call something, or so many that they could fill the memory.

    Raises:
        InputError: There are such.
    """
    found = [text for text in _texts(config) if "${" in text]
    if any(re.search(r"\$\{[^}]*[:$]", text) for text in found):
        raise InputError("the settings of the run hold ${…:…}, and a comparison calls nothing")
    if sum(text.count("${") for text in found) > INTERPOLATIONS:
        raise InputError(f"the settings of the run hold more than {INTERPOLATIONS} of ${{…}}")


def _refuse_strangers(config: Any) -> None:
    """Refuses to call what no schema of this package names, wherever in the configuration.

    Raises:
        InputError: A `_target_` of somebody else.
    """
    groups = [*schemas.SCHEMAS.values(), environments.SCHEMAS]
    ours = {getattr(schema, "_target_", None) for group in groups for schema in group.values()}
    for target in _targets(config):
        if target not in ours:
            raise InputError(
                f"_target_={target} is not of torchloc, and a comparison runs no code that a run "
                f"folder names"
            )


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _texts(child)


def _targets(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _targets(child)
