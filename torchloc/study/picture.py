"""One run as a picture: reward, temperature and the ladder of rungs against the iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchloc.errors import InputError
from torchloc.study.runs import Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RUNGS = (
    ("coupled", "coupled $K^\\pi$", "#0b6e4f"),
    ("exact", "exact $E^s + E^a\\Pi$", "#2a78b5"),
    ("span", "span", "#8f6bb3"),
    ("paper", "paper", "#c8553d"),
)


def run_figure(series: Series) -> Figure:
    """Reward, temperature and ρ of every rung against the iteration.

    Args:
        series: What `read_run` gave.

    Raises:
        InputError: The series hold no iteration of a run.
    """
    from matplotlib.figure import Figure

    if "reward/per_agent" not in series:
        raise InputError("the series hold no reward/per_agent; did the run end an iteration?")
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, reward = series["reward/per_agent"]
    left.plot(steps, reward, color="#0b6e4f", marker="o", markersize=3, label="reward per agent")
    if "reward/per_agent_low" in series:
        low, high = (series[f"reward/per_agent_{end}"][1] for end in ("low", "high"))
        left.fill_between(steps, low, high, color="#0b6e4f", alpha=0.25, label="95 % interval")
    if "gap/per_agent_and_step" in series:
        optimum = float((reward + series["gap/per_agent_and_step"][1])[-1])
        left.axhline(optimum, color="#444444", linewidth=1, linestyle="--", label="joint optimum")
    left.set(xlabel="iteration", ylabel="reward per agent and step")
    cooling = left.twinx()
    cooling.plot(*series["schedule/temperature"], color="#c8a03d", linewidth=1, label="τ")
    cooling.set(ylabel="temperature τ", yscale="log")
    lines = [*left.get_lines(), *left.collections, *cooling.get_lines()]
    left.legend(handles=lines, loc="center right", framealpha=0.9)
    for rung, label, colour in _RUNGS:
        if f"rho/{rung}" in series:
            right.plot(*series[f"rho/{rung}"], color=colour, label=label, linewidth=1.6)
    right.axhline(1.0, color="#444444", linewidth=1, linestyle="--")
    right.text(steps[0], 0.93, "certified below 1", fontsize=8, verticalalignment="top")
    right.set(xlabel="iteration", ylabel="certified bound on ρ", ylim=(0, None))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.locator_params(axis="x", integer=True)
    return figure
