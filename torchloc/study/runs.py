"""Runs read back from disk: what was asked, what was logged, how it ended.

A run folder is what one job of `torchloc-train` wrote:

    .hydra/config.yaml          the resolved settings          .hydra/hydra.yaml   the choices (schedule: geometric)
    events.out.tfevents.*       the scalar series              outcome.json        how it ended

A run is *whole* when every planned iteration is logged and it did not fail. Only whole runs are compared;
what is wrong with another is its `trouble`. Nothing here trusts a file: a damaged one becomes a trouble.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from torchloc.errors import InputError
from torchloc.mdp.checks import FloatArray

Series = dict[str, tuple[FloatArray, FloatArray]]
"""Tag → (iterations, values), in order."""
EVENTS = "events.out.tfevents."
OUTCOME = "outcome.json"
SETTINGS = ".hydra"
STATUSES = ("done", "failed", "interrupted")
UNFINISHED = "unfinished"
"""The status of a run that told nothing of its end."""
_DEEPEST = 64
"""Levels of a settings file at most; what reads it recurses."""
_LARGEST = 2**24
"""Bytes of a settings or outcome file at most."""
_FRAME = 16
"""Bytes of length and check sums around a record of an event file."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder, read.

    Attributes:
        folder: Where it lies now.
        name: Its path below what all compared runs share; for display only.
        config: Its resolved settings; empty where they could not be read.
        choices: Group → choice (`schedule` → `geometric`); what was chosen as null is "null".
        series: Everything logged.
        status: One of `STATUSES`, or `UNFINISHED`.
        message: What the run said of its end; empty where it said nothing.
        seconds: Wall-clock time as its outcome tells it; None where it does not.
        started: POSIX time of its first event; 0 where there is none.
        trouble: Why it cannot be compared; empty where it can.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    choices: dict[str, str]
    series: Series
    status: str
    message: str
    seconds: float | None
    started: float
    trouble: str

    @property
    def planned(self) -> int | None:
        """How many iterations were asked for."""
        return _planned(self.config)

    @property
    def iterations(self) -> int:
        """The last iteration logged; 0 where none is."""
        return _last(self.series)


def find_runs(folders: Iterable[str | PathLike[str]]) -> list[Path]:
    """All run folders at or below some folders, each once, in natural order.

    Raises:
        InputError: A folder does not exist, is none, or holds no run.
    """
    found: dict[str, Path] = {}
    for given in map(Path, folders):
        if not given.is_dir():
            what = "is a file; give the folder it lies in" if given.exists() else "does not exist"
            raise InputError(f"{given} {what}")
        below = list(_below(given))
        if not below:
            raise InputError(
                f"{given} holds no run: no folder in it has a {SETTINGS} folder, {OUTCOME} or an "
                f"event file; give a folder that torchloc-train wrote to"
            )
        for folder in below:
            found.setdefault(os.path.realpath(folder), folder)
    return list(found.values())


def read_runs(folders: Iterable[str | PathLike[str]]) -> list[Run]:
    """Reads all runs at or below some folders; damaged ones too, each with its trouble.

    Raises:
        InputError: A folder does not exist, is none, or holds no run.
    """
    found = find_runs(folders)
    shared = os.path.commonpath([os.path.abspath(path.absolute().parent) for path in found])
    return [load_run(path, os.path.relpath(path.absolute(), shared)) for path in found]


def load_run(folder: str | PathLike[str], name: str | None = None) -> Run:
    """Reads one run folder; what cannot be read is told in its `trouble`.

    Args:
        folder: The run folder.
        name: For display; by default the folder's own.
    """
    folder = Path(folder)
    config, unset = _mapping(folder / SETTINGS / "config.yaml")
    if not unset and not isinstance(config.get("env"), dict):
        config, unset = {}, f"{SETTINGS}/config.yaml describes no env"
    about, _ = _mapping(folder / SETTINGS / "hydra.yaml")
    status, message, seconds, unsaid = _outcome(folder / OUTCOME)
    series, started, cut = _events(folder)
    # Where a file breaks off, an iteration counts when all of it is there.
    last = min((_last({tag: found}) for tag, found in series.items()), default=0)
    last, planned = last if cut else _last(series), _planned(config)
    trouble = unset
    if not trouble and status == "failed":
        trouble = message or "it failed and left no message"
    if not trouble and (planned is None or last < planned):
        reached = f"{last} of {planned if planned is not None else '?'} iterations are logged"
        if status == "done" and not series and not cut:
            reached = "nothing is logged (logging.tensorboard=false?)"
        trouble = "; ".join(part for part in (reached, cut, unsaid, message) if part)
    return Run(
        folder=folder,
        name=name or folder.absolute().name,
        config=config,
        choices=_choices(about),
        series=series,
        status=status,
        message=message or unsaid or cut,
        seconds=seconds,
        started=started,
        trouble=trouble,
    )


def read_run(folder: str | PathLike[str]) -> Series:
    """All scalar series of a run folder, whole.

    Of a step that was logged twice, as after a resume, the later value stands.

    Raises:
        InputError: The folder does not exist or holds no event file.
    """
    if not list(Path(folder).glob(f"{EVENTS}*")):
        raise InputError(f"{folder} holds no TensorBoard event file; is it a run folder?")
    return _events(Path(folder))[0]


def clock(series: Series) -> tuple[FloatArray, FloatArray] | None:
    """Iterations and the wall-clock seconds from the start of the first to the end of each.

    The sum of all `seconds/…`; None where an iteration lacks them, or they are no numbers.
    """
    parts = [series[tag] for tag in series if tag.startswith("seconds/")]
    if not parts or any(not np.array_equal(steps, parts[0][0]) for steps, _ in parts):
        return None
    laps = np.array([values for _, values in parts])
    return (parts[0][0], np.cumsum(laps.sum(axis=0))) if np.isfinite(laps).all() else None


def _below(root: Path) -> Iterator[Path]:
    """Run folders at or below a folder; links are followed once, hidden folders never."""
    unreadable: list[Path] = []

    def note(error: OSError) -> None:
        unreadable.append(Path(os.fsdecode(error.filename)))

    seen = {os.path.realpath(root)}
    for here, folders, files in os.walk(root, followlinks=True, onerror=note):
        if SETTINGS in folders or any(f == OUTCOME or f.startswith(EVENTS) for f in files):
            yield Path(here)
        inside = []
        for name in sorted(folders, key=_natural):
            real = os.path.realpath(os.path.join(here, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                inside.append(name)
        folders[:] = inside
    # They may be runs: they are listed, and reading them gives the reason.
    yield from unreadable


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Orders 2_x before 10_x."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _mapping(path: Path) -> tuple[dict[str, Any], str]:
    """A YAML file that holds a mapping, or why it cannot be read."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = _text(path)
        depth = 0
        for event in yaml.parse(text, loader):
            # A few lines of aliases expand to more settings than a memory holds; Hydra writes none.
            if isinstance(event, yaml.AliasEvent):
                raise yaml.YAMLError("it holds aliases")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise yaml.YAMLError(f"it is nested more than {_DEEPEST} deep")
        found = yaml.load(text, loader)
    except FileNotFoundError:
        return {}, f"it has no {SETTINGS}/{path.name}, so its settings are unknown"
    except OSError as error:
        return {}, f"{SETTINGS}/{path.name} cannot be read: {error.strerror}"
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return {}, f"{SETTINGS}/{path.name} is damaged: {' '.join(str(error).split())[:200]}"
    if not isinstance(found, dict) or any(not isinstance(key, str) for key in found):
        return {}, f"{SETTINGS}/{path.name} is damaged: it holds no mapping"
    return found, ""


def _text(path: Path) -> str:
    """The text of a small regular file; a pipe would never end, and a device neither."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST:,} bytes")
    return path.read_text(encoding="utf-8")


def _choices(about: dict[str, Any]) -> dict[str, str]:
    """Group → choice of `.hydra/hydra.yaml`; without Hydra's own groups."""
    node: Any = about
    for key in ("hydra", "runtime", "choices"):
        node = node.get(key) if isinstance(node, dict) else None
    found = node if isinstance(node, dict) else {}
    return {
        str(group): "null" if choice is None else str(choice)
        for group, choice in found.items()
        if not str(group).startswith("hydra/")
    }


def _outcome(path: Path) -> tuple[str, str, float | None, str]:
    """Status, message, seconds, and what is amiss with the file."""
    try:
        found = json.loads(_text(path))
        status, message, seconds = found["status"], found.get("message"), found.get("seconds")
        if status not in STATUSES:
            raise ValueError(f"status is {status!r}")
    except FileNotFoundError:
        return UNFINISHED, "", None, f"it left no {OUTCOME}: broken off, or still running"
    except OSError as error:
        return UNFINISHED, "", None, f"{OUTCOME} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return UNFINISHED, "", None, f"{OUTCOME} is damaged: {error}"[:200]
    timed = isinstance(seconds, int | float) and math.isfinite(seconds)
    text = " ".join(message.split()) if isinstance(message, str) else ""
    return status, text, float(seconds) if timed else None, ""


def _events(folder: Path) -> tuple[Series, float, str]:
    """Series, POSIX time of the first event, and what is amiss with the files."""
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    points: dict[str, dict[int, float]] = {}
    started, amiss = 0.0, ""
    for path in sorted(folder.glob(f"{EVENTS}*")):
        done = 0
        if not path.is_file():
            amiss = f"{path.name} is no regular file"
            continue
        try:
            # The reader stops in silence at a record that is cut or fails its check sum.
            for record in RawEventFileLoader(str(path)).Load():
                event = Event.FromString(record)
                done += len(record) + _FRAME
                started = min(started or event.wall_time, event.wall_time)
                for value in event.summary.value:
                    if value.HasField("simple_value"):
                        points.setdefault(value.tag, {})[event.step] = value.simple_value
            size = path.stat().st_size
        except OSError as error:
            amiss = f"{path.name} cannot be read: {error.strerror}"
        except DecodeError:
            amiss = f"{path.name} is damaged after {done} bytes"
        else:
            if done < size:
                amiss = f"{path.name} is damaged or cut off after {done} of {size} bytes"
    series = {}
    for tag, found in points.items():
        steps = sorted(found)
        values = np.array([found[step] for step in steps], dtype=np.float64)
        series[tag] = (np.array(steps, dtype=np.float64), values)
    return series, started, amiss


def _last(series: Series) -> int:
    return int(max((steps[-1] for steps, _ in series.values()), default=0))


def _planned(config: dict[str, Any]) -> int | None:
    trainer = config.get("trainer")
    found = trainer.get("iterations") if isinstance(trainer, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None
