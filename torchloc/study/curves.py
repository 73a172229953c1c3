"""The pictures of one problem, and the one of all problems together.

Beyond `MOST_GROUPS` groups the best by final reward are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from torchloc.study.drawing import (
    COLOURS,
    GREY,
    Look,
    Looks,
    Picture,
    apart,
    largest,
    legend,
    lines,
    looks,
    panels,
    plain,
    tidy,
    whiskers,
)
from torchloc.study.groups import Group
from torchloc.study.summary import (
    AVERAGE,
    OPTIMUM,
    PER_AGENT,
    RUNGS,
    UNIFORM,
    WORK,
    Curve,
    Overall,
    Reference,
    Row,
    Table,
    curve,
    timed,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_GROUPS = 8
_RUNG_TITLES = {
    "coupled": "coupled  $K^\\pi$",
    "exact": "exact  $E^s + E^a\\Pi$",
    "span": "span",
    "paper": "paper",
}
_LEDGER = {
    "realised": "realised gain",
    "guarantee": "guaranteed gain",
    "prox_gain": "gain by the model",
    "truncation_error": "truncation error",
    "scope_error": "scope error",
    "fit_error": "fit error",
}
_SMALLEST_TERM = 1e-6
"""Ledger terms below it are drawn linearly: they are 0 for every purpose."""
_ON_REWARD = {
    "temperature_reward": "of the change of τ alone",
    "updates_reward": "of the updates",
    "locality": "of keeping it local",
}
_ON_OBJECTIVE = {"temperature": "of the change of τ alone", "updates": "of the updates"}
_STEEP = 20.0
"""Largest bound on ρ of a linear axis."""


def drawn(table: Table) -> list[Group]:
    """The groups that are drawn, in order of appearance."""
    best = {row.group.key for row in table.rows[:MOST_GROUPS]}
    return [group for group in table.panel.groups if group.key in best]


def pictures(table: Table, styles: Looks, metric: str) -> list[Picture]:
    """All pictures of a problem that its series allow.

    Args:
        table: The problem.
        styles: The look of each method; where these are more than `MOST_GROUPS`, the drawn groups
            get looks of their own.
        metric: The tag that is compared.
    """
    groups = drawn(table)
    if len(styles) > MOST_GROUPS:
        styles = looks(group.key for group in groups)
    found = (
        _reward(table, groups, styles, metric),
        _rho(groups, styles),
        _locality(table, groups, styles, metric),
        _schedule(groups, styles),
        _ledger(groups, styles),
        _effects(groups, styles),
    )
    return [picture for picture in found if picture is not None]


def unit(metric: str) -> str:
    """What an axis of the metric says.

    >>> unit("reward/per_agent"), unit("rho/coupled")
    ('reward per agent and step', 'rho/coupled')
    """
    names = {PER_AGENT: "reward per agent and step", AVERAGE: "reward per step"}
    return names.get(metric, metric)


def _logged(groups: Sequence[Group], tag: str) -> bool:
    return any(tag in run.series for group in groups for run in group.runs)


def _of(tag: str, group: Group) -> Curve | None:
    return curve(group.runs, tag)


def _reward(table: Table, groups: Sequence[Group], styles: Looks, metric: str) -> Picture:
    figure, (left, right) = panels(2, 4.0)
    lines(left, groups, styles, partial(_of, metric))
    lines(right, groups, styles, lambda group: timed(group.runs, metric))
    tidy(left, up=unit(metric))
    tidy(right, across="seconds (wall clock)")
    if right.get_lines():
        right.set_xlim(left=0.0)
    else:
        note = {"transform": right.transAxes, "ha": "center", "color": GREY}
        right.text(0.5, 0.5, "no seconds logged", **note)
    _beside(left, right, table.references)
    legend(figure, groups, styles)
    caption = "Lines: interquartile mean over seeds. Bands: its 95 % interval at every iteration."
    if table.references:
        caption += " Dashed: reference policies."
    return Picture("reward", "Reward", caption, figure)


def _beside(left: Axes, right: Axes, references: Sequence[Reference]) -> None:
    """Dashed lines, named at the right edge; of those far from every curve only an arrow."""
    low, high = left.get_ylim()
    room = 1.2 * (high - low)
    near = [r for r in references if low - room <= r.value <= high + room]
    for reference in near:
        wide = 1.2 if reference.name in (OPTIMUM, UNIFORM) else 0.8
        for axes in (left, right):
            axes.axhline(reference.value, color=GREY, linewidth=wide, linestyle="--", zorder=1)
    if near:
        low, high = min(low, *(r.value for r in near)), max(high, *(r.value for r in near))
        left.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        low, high = left.get_ylim()
    ascending = sorted(references, key=lambda reference: reference.value)
    places = [(min(max(r.value, low), high) - low) / (high - low) for r in ascending]
    for height, r in zip(apart(places, 0.055), ascending, strict=True):
        arrow = "" if r in near else " ↑" if r.value > high else " ↓"
        place = {"transform": right.transAxes, "va": "center"}
        right.text(1.015, height, plain(r.name) + arrow, fontsize=8, color=GREY, **place)


def _rho(groups: Sequence[Group], styles: Looks) -> Picture | None:
    there = [rung for rung in RUNGS if _logged(groups, f"rho/{rung}")]
    if not there:
        return None
    curves = {(g.key, rung): curve(g.runs, f"rho/{rung}") for g in groups for rung in there}
    known = [found for found in curves.values() if found is not None]
    ends = [c.centre if c.high is None else np.maximum(c.centre, c.high) for c in known]
    top = largest([*ends, *(c.centre for c in known)])
    ceiling = 1.08 * max(top, 1.1)
    figure, axis = panels(len(there), 3.5)
    for axes, rung in zip(axis, there, strict=True):
        lines(axes, groups, styles, lambda g, r=rung: curves[g.key, r], ceiling=ceiling)
        axes.axhline(1.0, color=GREY, linewidth=1, linestyle="--", zorder=1)
        tidy(axes, title=_RUNG_TITLES[rung])
    if top > _STEEP:
        axis[0].set_yscale("symlog", linthresh=1.0)
    axis[0].set_ylim(0.0, ceiling)
    tidy(axis[0], up="certified bound on ρ", title=_RUNG_TITLES[there[0]])
    legend(figure, groups, styles)
    caption = (
        "Upper bounds of the spectral radius by every rung. Below the dashed line, 1, a policy is "
        "certified: influence decays with distance."
    )
    if any(np.isinf(found.centre).any() for found in known):
        caption += " Triangles at the upper edge: infinite."
    return Picture("rho", "Locality", caption, figure)


def _locality(table: Table, groups: Sequence[Group], styles: Looks, metric: str) -> Picture | None:
    there = [rung for rung in RUNGS if any(row.rho[rung].known for row in table.rows)]
    if not there:
        return None
    figure, axis = panels(len(there), 3.9)
    rows = {row.group.key: row for row in table.rows}
    infinite = False
    for axes, rung in zip(axis, there, strict=True):
        for group in groups:
            _path(axes, group, rung, metric, styles[group.key])
            infinite |= _mark(axes, rows[group.key], rung, styles[group.key])
        axes.axvline(1.0, color=GREY, linewidth=1, linestyle="--", zorder=1)
        axes.margins(x=0.08)
        tidy(axes, across="bound on ρ", title=_RUNG_TITLES[rung])
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axis[0].set_ylabel(unit(metric), fontsize=9)
    legend(figure, groups, styles)
    caption = (
        "Marks: where each group ends, with intervals. Thin lines: the way there from a dot. Up is "
        "better, left is more local; left of the dashed line is certified."
    )
    if infinite:
        caption += " Hollow marks at the right edge: no finite bound."
    return Picture("locality_optimality", "Locality and optimality", caption, figure)


def _mark(axes: Axes, row: Row, rung: str, look: Look) -> bool:
    """Where a group ends; whether at an infinite bound."""
    across, up = row.rho[rung], row.final
    if not across.known:
        return False
    shape = {"color": look.colour, "marker": look.marker, "markersize": 7, "zorder": 4}
    if math.isinf(across.value):
        edge = axes.get_yaxis_transform()
        hollow = {"transform": edge, "clip_on": False, "markerfacecolor": "white"}
        axes.plot([1.0], [up.value], linestyle="none", **shape, **hollow)
        return True
    rim = {"markeredgecolor": "white", "markeredgewidth": 0.7, "elinewidth": 1.2, "capsize": 2}
    bars = {"xerr": whiskers(across), "yerr": whiskers(up)}
    axes.errorbar(across.value, up.value, **bars, **shape, **rim)
    return False


def _path(axes: Axes, group: Group, rung: str, metric: str, look: Look) -> None:
    both = [run for run in group.runs if f"rho/{rung}" in run.series]
    across, up = curve(both, f"rho/{rung}"), curve(both, metric)
    if across is None or up is None or not np.array_equal(across.x, up.x):
        return
    finite = np.where(np.isfinite(across.centre), across.centre, np.nan)
    thin = {"color": look.colour, "zorder": 2, "alpha": 0.55}
    axes.plot(finite, up.centre, linewidth=0.9, **thin)
    axes.plot(finite[:1], up.centre[:1], ".", markersize=4, **thin)


def _schedule(groups: Sequence[Group], styles: Looks) -> Picture | None:
    names = {
        "schedule/temperature": "temperature τ",
        "schedule/kappa": "radius κ",
        WORK: "ball work so far (coordinates)",
    }
    there = [tag for tag in names if _logged(groups, tag)]
    if not there:
        return None
    figure, axis = panels(len(there), 3.4, sharey=False)
    for axes, tag in zip(axis, there, strict=True):
        whole = tag == WORK
        lines(axes, groups, styles, lambda g, t=tag, c=whole: curve(g.runs, t, cumulative=c))
        tidy(axes, up=names[tag])
        if tag == "schedule/temperature":
            if np.isfinite(axes.dataLim.minposy):  # something is positive
                axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
            axes.locator_params(axis="y", integer=True)
    legend(figure, groups, styles)
    caption = "What the schedule set, and what it cost."
    if WORK in there:
        caption += (
            " Ball work: coordinates in the agents' κ-balls, summed over agents and iterations."
        )
    return Picture("schedule", "Temperature, radius and work", caption, figure)


def _ledger(groups: Sequence[Group], styles: Looks) -> Picture | None:
    there = [term for term in _LEDGER if _logged(groups, f"ledger/{term}")]
    if not there:
        return None
    rows = -(-len(there) // 3)
    figure, axis = panels(len(there), 2.4 * rows + 0.6, rows=rows)
    for axes, term in zip(axis, there, strict=True):
        lines(axes, groups, styles, partial(_of, f"ledger/{term}"))
        axes.axhline(0.0, color=GREY, linewidth=0.8, zorder=1)
        tidy(axes, title=_LEDGER[term])
    _logarithmic(axis[0])
    axis[0].set_ylabel("per iteration", fontsize=9)
    legend(figure, groups, styles)
    caption = (
        "Sums over the block updates of an iteration, in units of the objective; logarithmic beyond "
        f"±{_SMALLEST_TERM:g}. The guaranteed gain never exceeds the realised one."
    )
    return Picture("ledger", "Ledger", caption, figure)


def _logarithmic(axes: Axes) -> None:
    """An axis logarithmic on both sides of 0, a tick every second power of ten."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = axes.dataLim.intervaly
    first = round(math.log10(_SMALLEST_TERM)) + 2
    last = max(math.ceil(math.log10(max(high, -low, _SMALLEST_TERM))), first)
    powers = [10.0**exponent for exponent in range(first, last + 1, 2)]
    axes.set_yscale("symlog", linthresh=_SMALLEST_TERM, linscale=0.5)
    axes.yaxis.set_major_locator(FixedLocator([*(-p for p in reversed(powers)), 0.0, *powers]))
    axes.yaxis.set_minor_locator(NullLocator())
    bottom = 2.0 * low if low < -_SMALLEST_TERM else -_SMALLEST_TERM
    axes.set_ylim(bottom, max(2.0 * high, 10.0 * _SMALLEST_TERM))


def _effects(groups: Sequence[Group], styles: Looks) -> Picture | None:
    what = "reward per step"
    there = {name: of for name, of in _ON_REWARD.items() if _logged(groups, f"effect/{name}")}
    if not there:
        what = "objective"
        there = {k: of for k, of in _ON_OBJECTIVE.items() if _logged(groups, f"effect/{k}")}
    if not there:
        return None
    figure, axis = panels(len(there), 3.4)
    for axes, (name, title) in zip(axis, there.items(), strict=True):
        lines(axes, groups, styles, partial(_of, f"effect/{name}"))
        axes.axhline(0.0, color=GREY, linewidth=0.8, zorder=1)
        tidy(axes, title=title)
    axis[0].set_ylabel(f"effect on the {what}, an iteration", fontsize=9)
    legend(figure, groups, styles)
    caption = "What the change of temperature did, logits held, and what the updates did after it."
    return Picture("effects", "Effects of cooling and of learning", caption, figure)


def overall_picture(found: Sequence[Overall]) -> Picture:
    """Normalised finals over all problems: a point and an interval a method, best on top."""
    shown = list(found)[: 3 * MOST_GROUPS]
    figure, (axes,) = panels(1, 1.1 + 0.3 * len(shown))
    for place, one in enumerate(reversed(shown)):
        bars = {"xerr": whiskers(one.normalised), "capsize": 3, "elinewidth": 1.4}
        axes.errorbar(one.normalised.value, place, marker="o", color=COLOURS[0], **bars)
    axes.axvline(1.0, color=GREY, linewidth=1, linestyle="--", zorder=1)
    tidy(axes, across="normalised final (0: uniform policy, 1: joint optimum)")
    axes.set_yticks(range(len(shown)), [plain(one.label) for one in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    caption = "Interquartile mean over problems and seeds; 95 % interval of a stratified bootstrap."
    return Picture("overall", "All problems together", caption, figure)
