"""`torchloc-train resume=RUN`: a run goes on from its newest checkpoint, in its own folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from torchloc import config
from torchloc.config.ranges import closest
from torchloc.config.schemas import Run, field_names
from torchloc.errors import InputError

if TYPE_CHECKING:
    from torchloc.checkpoint import Checkpoint

KEY = "resume"
MAY_CHANGE = ("trainer.iterations", "threads", "logging.", "checkpoint.")
"""Settings that a run may go on with differently; all others would make it another run."""


def asked(overrides: Sequence[str]) -> str | None:
    """The run that a command line resumes; None where it resumes nothing.

    Raises:
        InputError: It names two, or none after the `=`, or something that is almost `resume`.
    """
    for text in overrides:
        word = text.partition("=")[0]
        if word != KEY and word not in field_names(Run) and closest(word, [KEY]):
            raise InputError(f"{word} is no setting; did you mean {KEY}=RUN?")
    given = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == KEY]
    if len(given) > 1 or given == [""]:
        raise InputError(f"{KEY}={' '.join(given)}: give one run folder, or one checkpoint file")
    return given[0] if given else None


def settled(run: str, overrides: Sequence[str]) -> tuple[Path, Checkpoint, DictConfig]:
    """The folder, the checkpoint and the settings that a run goes on with.

    Args:
        run: A run folder, or one of its checkpoints.
        overrides: The command line.

    Raises:
        InputError: There is no whole checkpoint, it names code that is not of this package, a setting
            that would make it another run is given, or the run is finished.
    """
    # Late, because it imports torch.
    from torchloc import checkpoint

    path = Path(run)
    if not path.exists():
        raise InputError(f"{KEY}={run}: there is no such run folder")
    saved = checkpoint.load(path)
    changes = [text for text in overrides if text.partition("=")[0] != KEY]
    for text in changes:
        if not text.startswith(MAY_CHANGE):
            word = text.partition("=")[0]
            hint = closest(word, [name for name in MAY_CHANGE if name[-1] != "."])
            raise InputError(
                f"{word or text} cannot change in a run that goes on: it would be another run. "
                f"Only {', '.join(name.rstrip('.') for name in MAY_CHANGE)} may{hint}"
            )
    if not saved.configuration:
        raise InputError(f"{KEY}={run}: its checkpoint holds no configuration; only a policy")
    try:
        cfg = config.restored(saved.configuration, changes)
    except InputError as error:
        raise InputError(f"{KEY}={run}: {error}") from error
    if saved.iteration >= cfg.trainer.iterations:
        raise InputError(
            f"{KEY}={run}: the run is finished, after {saved.iteration} iterations; to extend it add "
            f"trainer.iterations={saved.iteration + cfg.trainer.iterations}"
        )
    return path if path.is_dir() else path.parent, saved, cfg
