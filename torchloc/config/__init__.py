"""Typed configuration: schemas with their `_target_`, ranges, composition outside an application.

Only this room and `cli` know Hydra. Nothing here imports torch or a model: a schema names what it
builds by its dotted path.
"""

from torchloc.config.compose import (
    CONFIG_NAME,
    EXTRAS,
    compose,
    compose_jobs,
    explain,
    groups,
    home,
    restored,
)
from torchloc.config.ranges import Choices, Range, check, setting
from torchloc.config.schemas import register

__all__ = [
    "CONFIG_NAME",
    "EXTRAS",
    "Choices",
    "Range",
    "check",
    "compose",
    "compose_jobs",
    "explain",
    "groups",
    "home",
    "register",
    "restored",
    "setting",
]
