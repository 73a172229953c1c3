"""What the pictures show: every group once, infinities at the edge, labels that break nothing."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from study.synthetic import SCHEDULES, Values, config, full, in_memory, rewards

from torchloc.study import Run
from torchloc.study.curves import MOST_GROUPS, drawn, overall_picture, pictures
from torchloc.study.drawing import COLOURS, Picture, looks
from torchloc.study.export import as_csv, as_json
from torchloc.study.groups import compare
from torchloc.study.report import _png
from torchloc.study.statistics import estimate
from torchloc.study.summary import PER_AGENT, Overall, Reference, Table, tabulate


def made(series: dict[str, Values], **options: Any) -> Run:
    return in_memory(config(iterations=len(series[PER_AGENT]), **options), series)


def shown(
    runs: list[Run], references: tuple[Reference, ...] = ()
) -> tuple[Table, dict[str, Picture]]:
    comparison = compare(runs, PER_AGENT)
    (panel,) = comparison.panels
    table = tabulate(panel, metric=PER_AGENT, within=5.0, references=references)
    styles = looks(comparison.methods)
    return table, {picture.kind: picture for picture in pictures(table, styles, PER_AGENT)}


def colours(axes: Any) -> list[str]:
    """Colours of the lines of groups, in order."""
    return [line.get_color() for line in axes.get_lines() if line.get_color() in COLOURS]


@pytest.fixture(scope="module")
def everything() -> tuple[Table, dict[str, Picture]]:
    """Six schedules with two seeds each, everything logged."""
    rng = np.random.default_rng(0)
    runs = [
        made(full(rng, schedule, agents=4, level=0.9, iterations=6), schedule=schedule, seed=seed)
        for schedule in SCHEDULES
        for seed in range(2)
    ]
    near, far = Reference("joint optimum", 0.92, ""), Reference("uniform", -50.0, "")
    return shown(runs, (near, far))


def test_everything_logged_is_drawn_with_a_line_a_group(
    everything: tuple[Table, dict[str, Picture]],
) -> None:
    _, found = everything
    kinds = ["reward", "rho", "locality_optimality", "schedule", "ledger", "effects"]
    assert list(found) == kinds
    counts = {"reward": 2, "rho": 4, "locality_optimality": 4, "schedule": 3, "ledger": 6}
    for kind, count in {**counts, "effects": 2}.items():
        axes = found[kind].figure.axes
        assert len(axes) == count
        for one in axes:
            assert set(colours(one)) == set(COLOURS[: len(SCHEDULES)])
        (legend,) = found[kind].figure.legends
        assert [text.get_text() for text in legend.get_texts()] == list(SCHEDULES)


def test_every_axis_is_named(everything: tuple[Table, dict[str, Picture]]) -> None:
    _, found = everything
    for picture in found.values():
        axes = picture.figure.axes
        assert axes[0].get_ylabel() and all(one.get_xlabel() for one in axes)
    assert found["schedule"].figure.axes[0].get_yscale() == "log"
    right = found["reward"].figure.axes[1]
    assert right.get_xlabel() == "seconds (wall clock)" and right.get_xlim()[0] == 0.0


def test_bands_are_where_there_are_seeds(everything: tuple[Table, dict[str, Picture]]) -> None:
    table, found = everything
    assert len(found["reward"].figure.axes[0].collections) == len(SCHEDULES)
    _, alone = shown([table.panel.runs[0]])
    axes = alone["reward"].figure.axes[0]
    assert not axes.collections and not alone["reward"].figure.legends


def test_a_reference_far_away_is_named_and_does_not_squeeze_the_curves(
    everything: tuple[Table, dict[str, Picture]],
) -> None:
    _, found = everything
    left, right = found["reward"].figure.axes
    assert left.get_ylim()[0] > 0.0 and left.get_ylim()[1] > 0.92
    assert [text.get_text() for text in right.texts] == ["uniform ↓", "joint optimum"]


def test_an_infinite_bound_is_a_triangle_at_the_edge() -> None:
    series = rewards([0.1, 0.2, 0.3])
    infinite = {**series, "rho/paper": [2.0, np.inf, np.inf], "rho/span": [np.inf] * 3}
    _, found = shown([made(infinite, schedule="linear"), made(series, schedule="cosine")])
    span, paper = found["rho"].figure.axes[2:]
    triangles = [line for line in paper.get_lines() if line.get_marker() == "^"]
    assert any(line.get_xdata().tolist() == [2.0, 3.0] for line in triangles)
    assert span.get_ylim()[1] < 10 and "infinite" in found["rho"].caption
    assert "no finite bound" in found["locality_optimality"].caption
    for picture in found.values():
        picture.figure.canvas.draw()


def test_huge_bounds_make_the_axis_logarithmic() -> None:
    series = {**rewards([0.1, 0.2]), "rho/paper": [2.0, 1e6]}
    _, found = shown([made(series)])
    assert found["rho"].figure.axes[0].get_yscale() == "symlog"


def test_what_was_not_logged_is_not_drawn() -> None:
    _, found = shown([made({PER_AGENT: [0.1, 0.2]})])
    assert list(found) == ["reward"]
    assert [text.get_text() for text in found["reward"].figure.axes[1].texts] == [
        "no seconds logged"
    ]


def test_effects_are_those_on_the_reward_where_they_are_logged() -> None:
    series = {
        PER_AGENT: [0.1, 0.2],
        "effect/temperature": [0.0, -1.0],
        "effect/updates": [1.0, 1.0],
    }
    _, found = shown([made(series)])
    first, second = found["effects"].figure.axes
    assert first.get_ylabel() == "effect on the objective, an iteration"
    assert [line.get_ydata()[-1] for line in (first.lines[0], second.lines[0])] == [-1.0, 1.0]
    more = {"effect/temperature_reward": [0.0, 0.5], "effect/locality": [-0.1, -0.2]}
    _, found = shown([made({**series, **more})])
    first, second = found["effects"].figure.axes
    assert first.get_ylabel() == "effect on the reward per step, an iteration"
    assert [line.get_ydata()[-1] for line in (first.lines[0], second.lines[0])] == [0.5, -0.2]


def test_one_iteration_is_enough() -> None:
    rng = np.random.default_rng(0)
    series = full(rng, "constant", agents=4, level=0.9, iterations=1)
    _, found = shown([made(series), made(series, seed=1)])
    for picture in found.values():
        picture.figure.canvas.draw()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 26))
def test_no_number_breaks_a_picture(seed: int) -> None:
    """Series of another version, or of a damaged file: nan, infinities, huge and negative numbers."""
    rng = np.random.default_rng(seed)
    odd = np.array([np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-40, -3.0, 0.0])
    runs = []
    for schedule, repeat in (("linear", 0), ("linear", 1), ("cosine", 0)):
        series = full(rng, schedule, agents=4, level=0.9, iterations=5)
        for tag in series:
            if tag != PER_AGENT:
                whole = rng.random() < 0.3
                hit = rng.random(5) < (1.0 if whole else 0.4)
                fill = rng.choice(odd) if whole else rng.choice(odd, 5)
                series[tag] = np.where(hit, fill, series[tag])
        runs.append(made(series, schedule=schedule, seed=repeat))
    table, found = shown(runs)
    for picture in found.values():
        _png(picture, 40)
    comparison = compare(runs, PER_AGENT)
    assert as_csv(comparison, [table])
    assert json.loads(
        as_json(comparison, [table], [], metric=PER_AGENT, within=5.0, title="odd"),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )


def test_beyond_the_palette_the_best_are_drawn() -> None:
    runs = [
        made({PER_AGENT: [0.0, float(k)]}, changes={"evaluation.kappa": k})
        for k in range(MOST_GROUPS + 3)
    ]
    table, found = shown(runs)
    labels = [group.label for group in drawn(table)]
    assert labels == [f"evaluation.kappa={k}" for k in range(3, MOST_GROUPS + 3)]
    assert len(set(colours(found["reward"].figure.axes[0]))) == MOST_GROUPS
    assert len(table.rows) == MOST_GROUPS + 3


@pytest.mark.parametrize("label", ["$x_{$", "_hidden", "日本\n\x00\udcff", "a" * 500, r"\frac"])
def test_no_label_breaks_a_picture(label: str) -> None:
    runs = [made({PER_AGENT: [0.0, 1.0]}, changes={"policy.kind": k}) for k in (label, "b")]
    _, found = shown(runs)
    figure = found["reward"].figure
    assert len(figure.legends[0].get_texts()) == 2
    figure.set_layout_engine("none")
    if label.isascii():
        figure.savefig(io.BytesIO(), dpi=20)


def test_methods_over_all_problems_are_points_with_intervals() -> None:
    found = [
        Overall("a", estimate([0.5, 0.7]), 2),
        Overall("b", estimate([0.4]), 2),
    ]
    (axes,) = overall_picture(found).figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
