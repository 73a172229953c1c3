"""How groups are drawn: a line each, a band its pointwise interval, one legend a picture.

Colours are distinguishable to the colour-blind, and every group has a marker of its own, set at iterations of its
own, so that lines on top of each other are all seen. An infinite value is a triangle at the edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from torchloc.mdp.checks import FloatArray
from torchloc.study.groups import Group
from torchloc.study.statistics import Estimate
from torchloc.study.summary import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_LABEL = 60
WIDTH = 9.6
"""Inches across."""
GREY = "#666666"
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31",
)  # fmt: skip
_MARKERS = "os^DvPX*"
_SMALL = 9


@dataclass(frozen=True)
class Look:
    """How a group is drawn."""

    colour: str
    marker: str
    place: int


Looks = dict[tuple[str, ...], Look]
"""Key of a group → its look."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and what is said of it.

    Attributes:
        kind: A word for file names, unique within a problem.
        title, caption: Text.
        figure: The picture.
    """

    kind: str
    title: str
    caption: str
    figure: Figure


def looks(methods: Iterable[tuple[str, ...]]) -> Looks:
    """A look for every method; they repeat after as many as there are colours."""
    return {
        key: Look(COLOURS[i % len(COLOURS)], _MARKERS[i % len(_MARKERS)], i)
        for i, key in enumerate(methods)
    }


def plain(text: str, length: int = LONGEST_LABEL) -> str:
    r"""Text as a picture can show it: one line, no mathematics, not too long.

    >>> print(plain("a$b$" + "c" * 9, 8))
    a\$b\$ccc…
    """
    line = "".join(letter if letter.isprintable() else "?" for letter in text)
    line = line if len(line) <= length else f"{line[: length - 1]}…"
    line = line.replace("$", r"\$")
    # A legend leaves out labels that begin so.
    return f" {line}" if line.startswith("_") else line


def panels(
    count: int, height: float, *, rows: int = 1, sharey: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in rows; the legend goes below them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(rows, -(-count // rows), sharey=sharey, squeeze=False)
    for axes in list(grid.flat)[count:]:
        axes.set_visible(False)
    return figure, list(grid.flat)[:count]


def tidy(axes: Axes, *, across: str = "iteration", up: str = "", title: str = "") -> None:
    """A light grid, no frame, and what the axes are."""
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=_SMALL)
    axes.set_xlabel(across, fontsize=_SMALL)
    if up:
        axes.set_ylabel(up, fontsize=_SMALL)
    axes.set_title(title, fontsize=_SMALL + 1)
    if axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=5, integer=across == "iteration")


def lines(
    axes: Axes,
    groups: Sequence[Group],
    styles: Looks,
    read: Callable[[Group], Curve | None],
    *,
    ceiling: float = math.inf,
) -> None:
    """A line and a band a group.

    Args:
        axes: Where.
        groups: What.
        styles: How.
        read: The curve of a group; None where it has none.
        ceiling: Where an infinite value is shown, and bands end.
    """
    for group in groups:
        found, look = read(group), styles[group.key]
        if found is None or not len(found.x):
            continue
        every = max(len(found.x) // 5, 1)
        axes.plot(
            found.x,
            np.where(np.isfinite(found.centre), found.centre, np.nan),
            color=look.colour,
            marker=look.marker,
            markersize=4,
            markevery=(look.place % every, every),
            linewidth=1.4,
        )
        if found.low is not None and found.high is not None:
            low, high = (np.minimum(end, ceiling) for end in (found.low, found.high))
            axes.fill_between(found.x, low, high, color=look.colour, alpha=0.16, linewidth=0)
        infinite = found.x[np.isinf(found.centre)]
        if len(infinite) and math.isfinite(ceiling):
            edge = np.full(len(infinite), ceiling)
            axes.plot(infinite, edge, "^", markersize=5, color=look.colour, clip_on=False)


def legend(figure: Figure, groups: Sequence[Group], styles: Looks) -> None:
    """One legend below the panels; none for a group that has nothing beside it."""
    from matplotlib.lines import Line2D

    if len(groups) < 2:
        return
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, markersize=5)
        for look in (styles[group.key] for group in groups)
    ]
    labels = [plain(group.label) for group in groups]
    columns = max(1, min(len(labels), 130 // (max(map(len, labels)) + 8)))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=_SMALL
    )


def whiskers(found: Estimate) -> Any:
    """Distances to the ends of an interval, as error bars take them; None where there is none."""
    if found.low is None or found.high is None or not math.isfinite(found.high):
        return None
    # The mean lies between the ends up to rounding.
    ends = (found.value - found.low, found.high - found.value)
    return np.array([[max(end, 0.0)] for end in ends])


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending heights in [0, 1], moved until they are a gap apart.

    >>> [round(height, 2) for height in apart([0.5, 0.5, 1.0, 1.0], 0.1)]
    [0.5, 0.6, 0.9, 1.0]
    """
    result = list(places)
    for i in range(1, len(result)):
        result[i] = max(result[i], result[i - 1] + gap)
    ceiling = 1.0
    for i in reversed(range(len(result))):
        result[i] = min(result[i], ceiling)
        ceiling = result[i] - gap
    return result


def largest(arrays: Iterable[FloatArray]) -> float:
    """The largest finite number; 0 where there is none above it."""
    return max((float(a[np.isfinite(a)].max(initial=0.0)) for a in arrays), default=0.0)
