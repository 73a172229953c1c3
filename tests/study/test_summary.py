"""Finals, times, normalisation and curves of groups against values by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from study.synthetic import Values, config, in_memory, rewards

from torchloc.study import Run
from torchloc.study.groups import Comparison, compare
from torchloc.study.summary import (
    AVERAGE,
    MOST_POINTS,
    PER_AGENT,
    Reference,
    Table,
    adaptive_notes,
    agents,
    curve,
    known_optima,
    overall,
    tabulate,
    timed,
)

SLACK = 2.0**-22
"""Relative slack of a target."""


def made(values: Values, *, optimum: float | None = None, **options: Any) -> Run:
    settings = config(iterations=len(values), **options)
    return in_memory(settings, rewards(values, optimum=optimum))


def table(runs: list[Run], metric: str = PER_AGENT, **options: Any) -> Table:
    (panel,) = compare(runs, metric).panels
    return tabulate(panel, metric=metric, within=10.0, **options)


def test_finals_times_and_work_of_a_group() -> None:
    slow = [0.0, 0.2, 0.6, 0.95]
    fast = [0.1, 0.9, 0.91, 1.0]
    runs = [made(slow, seed=0), made(fast, seed=1)]
    runs[0].series["work/ball"] = (np.arange(1.0, 5.0), np.array([1.0, 2.0, 3.0, 4.0]))
    found = table(runs)
    # best 1, worst 0, so within 10 % is 0.9.
    assert found.target == pytest.approx(0.9, abs=SLACK)
    (row,) = found.rows
    assert (row.final.value, row.final.low, row.final.high) == (0.975, 0.95, 1.0)
    assert [n.iterations_to for n in row.numbers] == [4.0, 2.0]
    assert [n.seconds_to for n in row.numbers] == [4.0, 2.0] and row.reached == 2
    assert row.iterations_to.value == 3.0 and row.seconds.value == 4.0
    assert (row.work.value, row.work.count) == (10.0, 1)
    assert row.rho["coupled"].value == pytest.approx(0.5 * (1 + 0.975))
    assert not row.normalised.known and row.note == ""


def test_rows_are_sorted_and_who_never_arrives_is_counted() -> None:
    runs = [
        made([0.0, 0.5], seed=0, schedule="linear"),
        made([0.0, 1.0], seed=1, schedule="linear"),
        made([0.0, 1.0], seed=0, schedule="cosine"),
    ]
    found = table(runs)
    assert [row.group.label for row in found.rows] == ["cosine", "linear"]
    linear = found.rows[1]
    assert linear.reached == 1 and math.isinf(linear.iterations_to.value)
    assert linear.iterations_to.low == 2.0
    assert found.rows[0].final.low is None


def test_a_metric_that_is_better_lower_is_mirrored() -> None:
    runs = [made([0.8, 0.1], schedule="linear"), made([0.9, 0.5], schedule="cosine")]
    found = table(runs, "rho/coupled")
    assert [row.group.label for row in found.rows] == ["linear", "cosine"]
    # ρ = (1 + r)/2: best 0.55, worst 0.95.
    assert found.target == pytest.approx(0.55 + 0.1 * 0.4, rel=2 * SLACK)
    assert [row.reached for row in found.rows] == [1, 0]


def test_seeds_that_change_nothing_are_no_repeats() -> None:
    found = table([made([0.0, 1.0], seed=0), made([0.0, 1.0], seed=1)])
    (row,) = found.rows
    assert "no repeats" in row.note and row.final.low is None and row.final.count == 2


def test_runs_that_learn_nothing_have_a_target_all_the_same() -> None:
    (row,) = table([made([0.0, 0.0], seed=0)]).rows
    assert row.reached == 1 and row.iterations_to.value == 1.0


def test_optima_that_runs_planned_stand_beside_them() -> None:
    run = made([0.1, 0.5], optimum=0.75)
    # 4 agents; the gap to the local optimum is of the whole system.
    run.series["gap/deterministic_local"] = (np.array([1.0, 2.0]), np.array([1.4, 0.8]))
    found = {r.name: r.value for r in known_optima([run], PER_AGENT)}
    assert found == {"joint optimum": pytest.approx(0.75), "local optimum": pytest.approx(0.7)}
    whole = {r.name: r.value for r in known_optima([run], AVERAGE)}
    assert whole == {"joint optimum": pytest.approx(3.0), "local optimum": pytest.approx(2.8)}
    assert known_optima([run], "rho/coupled") == []
    assert agents([run]) == 4


def test_a_discounted_gap_counts_per_step_only() -> None:
    run = made([0.1, 0.5], optimum=0.75, changes={"evaluation.discount": 0.9})
    assert [r.value for r in known_optima([run], PER_AGENT)] == [pytest.approx(0.75)]
    assert known_optima([run], AVERAGE) == []


def test_given_references_come_first_and_are_sorted_with_the_best_on_top() -> None:
    given = [Reference("uniform", 0.1, ""), Reference("joint optimum", 0.8, "given")]
    found = table([made([0.1, 0.5], optimum=0.75)], references=given)
    assert [(r.name, r.value) for r in found.references] == [
        ("joint optimum", 0.8),
        ("uniform", 0.1),
    ]
    assert found.span == (0.1, 0.8)
    assert found.rows[0].normalised.value == pytest.approx(0.4 / 0.7)


def test_no_agents_are_known_of_runs_that_earn_nothing() -> None:
    run = made([0.0, 0.0], optimum=0.0)
    assert agents([run]) is None
    assert [r.name for r in known_optima([run], PER_AGENT)] == ["joint optimum"]


def sorted_out(scores: dict[str, dict[str, list[float]]]) -> tuple[Comparison, list[Table]]:
    """Environment → schedule → final of every seed, between uniform 1 and optimum 3."""
    runs = [
        made([1.0, final], env=env, schedule=schedule, seed=seed)
        for env, methods in scores.items()
        for schedule, finals in methods.items()
        for seed, final in enumerate(finals)
    ]
    comparison = compare(runs, PER_AGENT)
    ends = [Reference("uniform", 1.0, ""), Reference("joint optimum", 3.0, "")]
    tables = [
        tabulate(panel, metric=PER_AGENT, within=5.0, references=ends)
        for panel in comparison.panels
    ]
    return comparison, tables


def test_methods_over_all_problems() -> None:
    comparison, tables = sorted_out(
        {
            "ising": {"linear": [2.0, 2.0], "cosine": [3.0]},
            "sis": {"linear": [3.0, 3.0], "constant": [3.0]},
        }
    )
    found = {one.label: one for one in overall(comparison, tables)}
    # Normalised ½, ½, 1, 1: the mean of the middle two, and no resample within a problem differs.
    linear = found["linear"]
    assert (linear.normalised.value, linear.normalised.low, linear.problems) == (0.75, 0.75, 2)
    assert found["cosine"].problems == found["constant"].problems == 1
    assert next(iter(found)) == "linear"
    assert overall(comparison, tables[:1]) == []


def test_a_span_of_nothing_normalises_nothing() -> None:
    ends = [Reference("uniform", 2.0, ""), Reference("joint optimum", 2.0, "")]
    assert table([made([1.0, 2.0])], references=ends).span is None


def test_curves_are_over_the_runs_and_steps_that_are_shared() -> None:
    first, second = made([1.0, 2.0, 3.0], seed=0), made([3.0, 4.0, 9.0], seed=1)
    second.series[PER_AGENT] = (np.array([1.0, 3.0]), np.array([3.0, 9.0]))
    found = curve([first, second], PER_AGENT)
    assert found is not None and found.low is not None and found.high is not None
    assert found.x.tolist() == [1.0, 3.0] and found.centre.tolist() == [2.0, 6.0]
    assert found.low.tolist() == [1.0, 3.0] and found.high.tolist() == [3.0, 9.0]
    alone = curve([first], PER_AGENT, cumulative=True)
    assert alone is not None and alone.low is None and alone.centre.tolist() == [1.0, 3.0, 6.0]
    assert curve([first], "nothing/here") is None
    assert timed([second], PER_AGENT) is None
    clocked = timed([first], PER_AGENT)
    assert clocked is not None and clocked.x.tolist() == [1.0, 2.0, 3.0]


def test_long_curves_are_drawn_at_some_iterations_and_the_last() -> None:
    run = made(np.arange(1000.0))
    found = curve([run], PER_AGENT)
    assert found is not None and len(found.x) == MOST_POINTS
    assert found.x[0] == 1.0 and found.x[-1] == 1000.0
    whole = curve([run], PER_AGENT, cumulative=True)
    assert whole is not None and whole.centre[-1] == 999.0 * 500.0


def adaptive(name: str, values: Values, work: float) -> Run:
    target = f"torchloc.schedules.{name}"
    return worked(made(values, schedule=name.lower(), changes={"schedule._target_": target}), work)


def worked(run: Run, work: float) -> Run:
    steps = run.series[PER_AGENT][0]
    run.series["work/ball"] = (steps, np.full(len(steps), work))
    return run


def test_adaptive_schedules_are_told_beside_the_best_fixed_one() -> None:
    fixed = [
        worked(made([0.0, 0.7], schedule="linear"), 8.0),
        worked(made([0.0, 0.8], schedule="cosine"), 4.0),
    ]
    found = table(
        [
            *fixed,
            adaptive("Certified", [0.0, 0.8 - 1e-4], 2.0),
            adaptive("Tradeoff", [0.0, 0.5], 5.0),
        ]
    )
    first, second = adaptive_notes(found, PER_AGENT)
    assert first.endswith(
        "no lower than the best fixed schedule (cosine), with 0.5 times its ball work."
    )
    assert second.endswith(
        "0.3 short of the best fixed schedule (cosine), with 1.25 times its ball work."
    )
    assert adaptive_notes(table(fixed), PER_AGENT) == []
    assert adaptive_notes(table([adaptive("Tradeoff", [0.0, 0.5], 1.0)]), PER_AGENT) == []
