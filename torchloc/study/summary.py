"""What a comparison says in numbers: finals, times, certificates and work of every group, beside references.

With m the metric of a run, higher being better (a metric where lower is better counts negated),

    target = best − x %·(best − worst),   best: the best final, worst: the worst first value,

over the runs of one problem; the time to it is the first iteration from which on m stays at or above it. Where the
uniform policy u and the optimum o over all joint policies are known, the normalised final is (m − u)/(o − u): 0 is
the uniform policy, 1 the optimum. Only that is averaged over problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchloc.mdp.checks import FloatArray
from torchloc.study.groups import Comparison, Group, Panel
from torchloc.study.runs import Run, clock
from torchloc.study.statistics import (
    Estimate,
    estimate,
    interquartile_mean,
    interval,
    pooled,
    settled,
)

RUNGS = ("coupled", "exact", "span", "paper")
PER_AGENT, AVERAGE = "reward/per_agent", "reward/average"
WORK = "work/ball"
UNIFORM, OPTIMUM, LOCAL_OPTIMUM = "uniform", "joint optimum", "local optimum"
MOST_POINTS = 400
"""Points of a curve at most; of longer runs evenly spaced iterations are drawn."""
BAND_RESAMPLES = 500
_ADAPTIVE = ("torchloc.schedules.Certified", "torchloc.schedules.Tradeoff")
_EQUAL = 1e-3
_LOWER = ("rho", "gap", "bound", "norm_rows", "norm_columns", "lipschitz", "seconds", "work")
_SINGLE = 2.0**-22
"""Relative slack of a target: two roundings of the single precision that event files hold."""


@dataclass(frozen=True)
class Reference:
    """A policy that was not trained here.

    Attributes:
        name: `uniform`, `joint optimum`, ….
        value: In the unit of the metric.
        note: How it was found.
    """

    name: str
    value: float
    note: str


@dataclass(frozen=True, eq=False)
class Numbers:
    """One run; nan where something was not logged, infinite where a target was not reached.

    Attributes:
        final: The metric after the last iteration.
        rho: Rung → upper bound of ρ after the last iteration.
        iterations_to, seconds_to: Time to the target of its problem.
        seconds: Wall-clock time of all iterations.
        work: Coordinates in the agents' κ-balls, summed over agents and iterations.
    """

    run: Run
    final: float
    rho: dict[str, float]
    iterations_to: float
    seconds_to: float
    seconds: float
    work: float


@dataclass(frozen=True, eq=False)
class Row:
    """A group: IQMs over its runs, and what must be said of it.

    Attributes:
        group: Its runs.
        numbers: Of every run.
        final, normalised, rho, iterations_to, seconds_to, seconds, work: IQMs of `Numbers`.
        reached: How many runs reached the target.
        skipped, damped: Block updates that the guard took not at all, or in part; over all runs.
        note: What the reader must know; may be empty.
    """

    group: Group
    numbers: tuple[Numbers, ...]
    final: Estimate
    normalised: Estimate
    rho: dict[str, Estimate]
    iterations_to: Estimate
    seconds_to: Estimate
    reached: int
    seconds: Estimate
    work: Estimate
    skipped: int
    damped: int
    note: str


@dataclass(frozen=True, eq=False)
class Table:
    """A panel in numbers.

    Attributes:
        rows: Best final first.
        references: Best first.
        missing: Why references are missing.
        target: The final that counts as reached.
        span: Uniform and optimum; None where one is unknown or they are equal.
    """

    panel: Panel
    rows: tuple[Row, ...]
    references: tuple[Reference, ...]
    missing: tuple[str, ...]
    target: float
    span: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Overall:
    """A method over all problems with a known span."""

    label: str
    normalised: Estimate
    problems: int


@dataclass(frozen=True, eq=False)
class Curve:
    """A series over the runs of a group: the IQM and its pointwise interval.

    Attributes:
        x, centre: (T,).
        low, high: (T,); None of one run.
        count: Runs behind it.
    """

    x: FloatArray
    centre: FloatArray
    low: FloatArray | None
    high: FloatArray | None
    count: int


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better."""
    return metric.split("/")[0] not in _LOWER


def agents(runs: Sequence[Run]) -> int | None:
    """How many agents there are; None where every reward is 0 or not logged."""
    for run in runs:
        if AVERAGE in run.series and PER_AGENT in run.series:
            whole, each = run.series[AVERAGE][1], run.series[PER_AGENT][1]
            most = int(np.argmax(np.abs(each))) if len(each) == len(whole) else 0
            if each[most] != 0.0 and math.isfinite(whole[most] / each[most]):
                return max(round(float(whole[most] / each[most])), 1)
    return None


def known_optima(runs: Sequence[Run], metric: str) -> list[Reference]:
    """The optima that the runs themselves planned: what they earn and the gap that they logged."""
    undiscounted = all(_discount(run) == 1.0 for run in runs)
    count = {PER_AGENT: agents(runs), AVERAGE: 1}.get(metric) if undiscounted else None
    plans = [(OPTIMUM, PER_AGENT, "gap/per_agent_and_step", 1)] if metric == PER_AGENT else []
    if count is not None:
        plans.append((OPTIMUM, AVERAGE, "gap/joint_optimum", count))
        plans.append((LOCAL_OPTIMUM, AVERAGE, "gap/deterministic_local", count))
    found: dict[str, Reference] = {}
    for name, reward, gap, divisor in plans:
        values = [
            run.series[reward][1][-1] + run.series[gap][1][-1]
            for run in runs
            if reward in run.series and gap in run.series
        ]
        if values:
            value = float(np.median(values)) / divisor
            found.setdefault(name, Reference(name, value, "planned by the runs"))
    return list(found.values())


def tabulate(
    panel: Panel,
    *,
    metric: str,
    within: float,
    references: Sequence[Reference] = (),
    missing: Sequence[str] = (),
) -> Table:
    """All numbers of a panel.

    Args:
        panel: The runs.
        metric: The tag that decides; every run has it.
        within: x of the target, in per cent.
        references: Policies to set beside the groups, in the unit of the metric; what the runs
            planned themselves is added.
        missing: Why other references are missing.
    """
    sign = 1.0 if higher_is_better(metric) else -1.0
    given = {reference.name for reference in references}
    beside = [*references, *(r for r in known_optima(panel.runs, metric) if r.name not in given)]
    beside.sort(key=lambda reference: sign * reference.value)
    beside.reverse()
    ends = [sign * run.series[metric][1][[0, -1]] for run in panel.runs]
    best, worst = max(last for _, last in ends), min(first for first, _ in ends)
    target = float(best - within / 100.0 * max(best - worst, 0.0) - _SINGLE * abs(best))
    span = _span(beside)
    rows = [_row(group, metric, sign, target, span) for group in panel.groups]
    rows.sort(key=lambda row: -sign * row.final.value)
    return Table(panel, tuple(rows), tuple(beside), tuple(missing), sign * target, span)


def overall(comparison: Comparison, tables: Sequence[Table]) -> list[Overall]:
    """Every method over the problems whose span is known; methods that have them all first.

    Empty where fewer than two problems have one.
    """
    usable = [table for table in tables if table.span is not None]
    if len(usable) < 2:
        return []
    found = []
    for key, label in comparison.methods.items():
        strata = []
        for table in usable:
            assert table.span is not None
            for row in table.rows:
                if row.group.key == key:
                    strata.append(_normalised([n.final for n in row.numbers], table.span))
        if strata:
            found.append(Overall(label, pooled(strata), len(strata)))
    return sorted(found, key=lambda one: (-one.problems, -one.normalised.value))


def adaptive_notes(table: Table, metric: str) -> list[str]:
    """What every adaptive schedule pays or gains beside the best fixed one of the problem, a sentence each.

    Finals that differ by less than a thousandth of what was won from the worst first value to the best final
    count as equal. Empty where one of the two kinds is missing.
    """
    sign = 1.0 if higher_is_better(metric) else -1.0
    fixed = [row for row in table.rows if not _is_adaptive(row.group)]
    if not fixed:
        return []
    best = max(fixed, key=lambda row: sign * row.final.value)
    ends = [sign * run.series[metric][1][[0, -1]] for run in table.panel.runs]
    won = max(last for _, last in ends) - min(first for first, _ in ends)
    notes = []
    for row in table.rows:
        if not _is_adaptive(row.group):
            continue
        gap = sign * (best.final.value - row.final.value)
        if gap > _EQUAL * won:
            reached = f"ends {gap:.4g} short of the best fixed schedule ({best.group.label})"
        else:
            reached = f"ends no lower than the best fixed schedule ({best.group.label})"
        work = row.work.value / best.work.value if best.work.value > 0.0 else math.nan
        spent = "" if math.isnan(work) else f", with {work:.3g} times its ball work"
        notes.append(f"{row.group.label} {reached}{spent}.")
    return notes


def _is_adaptive(group: Group) -> bool:
    """Whether the schedule of a group reads the certificate."""
    schedule = group.runs[0].config.get("schedule")
    target = schedule.get("_target_") if isinstance(schedule, dict) else None
    return target in _ADAPTIVE


def curve(runs: Sequence[Run], tag: str, *, cumulative: bool = False) -> Curve | None:
    """A series against the iteration, of the runs that logged it, at the iterations that all did."""
    return _curve([run.series[tag] for run in runs if tag in run.series], cumulative)


def timed(runs: Sequence[Run], tag: str) -> Curve | None:
    """A series against seconds: both coordinates are IQMs at the same iteration."""
    both = [run for run in runs if tag in run.series and clock(run.series) is not None]
    clocks = _curve([c for run in both if (c := clock(run.series)) is not None], False)
    found = _curve([run.series[tag] for run in both], False)
    if clocks is None or found is None or not np.array_equal(clocks.x, found.x):
        return None
    return Curve(clocks.centre, found.centre, found.low, found.high, found.count)


def _curve(series: Sequence[tuple[FloatArray, FloatArray]], cumulative: bool) -> Curve | None:
    if not series:
        return None
    shared = series[0][0]
    for steps, _ in series[1:]:
        shared = np.intersect1d(shared, steps)
    if not len(shared):
        return None
    chosen = shared
    if len(shared) > MOST_POINTS:
        chosen = shared[np.linspace(0, len(shared) - 1, MOST_POINTS).round().astype(int)]
    rows = []
    for steps, values in series:
        with np.errstate(invalid="ignore"):
            values = np.cumsum(values) if cumulative else values
        rows.append(values[np.searchsorted(steps, chosen)])
    matrix = np.array(rows)
    known = ~np.isnan(matrix).any(axis=0)
    chosen, matrix = chosen[known], matrix[:, known]
    centre = interquartile_mean(matrix)
    if len(matrix) < 2:
        return Curve(chosen, centre, None, None, 1)
    low, high = interval([matrix], resamples=BAND_RESAMPLES)
    return Curve(chosen, centre, low, high, len(matrix))


def _row(
    group: Group, metric: str, sign: float, target: float, span: tuple[float, float] | None
) -> Row:
    numbers = tuple(_numbers(run, metric, sign, target) for run in group.runs)
    finals = [n.final for n in numbers]
    series = [run.series[metric] for run in group.runs]
    alike = len(series) > 1 and all(
        np.array_equal(steps, series[0][0]) and np.array_equal(values, series[0][1])
        for steps, values in series
    )
    note = (
        "its seeds gave the same numbers: they are no repeats, and no interval is known"
        if alike
        else ""
    )

    def known(values: Sequence[float]) -> Estimate:
        found = estimate(values)
        return Estimate(found.value, None, None, found.count) if alike else found

    return Row(
        group=group,
        numbers=numbers,
        final=known(finals),
        normalised=estimate([]) if span is None else known(list(_normalised(finals, span))),
        rho={rung: known([n.rho[rung] for n in numbers]) for rung in RUNGS},
        iterations_to=known([n.iterations_to for n in numbers]),
        seconds_to=estimate([n.seconds_to for n in numbers]),
        reached=sum(math.isfinite(n.iterations_to) for n in numbers),
        seconds=estimate([n.seconds for n in numbers]),
        work=known([n.work for n in numbers]),
        skipped=_counted(group, "ledger/skipped"),
        damped=_counted(group, "ledger/damped"),
        note=note,
    )


def _numbers(run: Run, metric: str, sign: float, target: float) -> Numbers:
    steps, values = run.series[metric]
    reached = settled(steps, sign * values, target)
    times = clock(run.series)
    spent = reaching = math.nan
    if times is not None:
        spent = float(times[1][-1])
        reaching = math.inf if math.isinf(reached) else float(np.interp(reached, *times))
    return Numbers(
        run=run,
        final=float(values[-1]),
        rho={rung: _final(run, f"rho/{rung}") for rung in RUNGS},
        iterations_to=reached,
        seconds_to=reaching,
        seconds=spent,
        work=_spent(run),
    )


def _counted(group: Group, tag: str) -> int:
    found = [run.series[tag][1] for run in group.runs if tag in run.series]
    return round(sum(float(values[np.isfinite(values)].sum()) for values in found))


def _spent(run: Run) -> float:
    """The whole ball work; nan where it is not logged or no number."""
    work = run.series[WORK][1] if WORK in run.series else np.array([np.nan])
    return float(work.sum()) if np.isfinite(work).all() else math.nan


def _final(run: Run, tag: str) -> float:
    return float(run.series[tag][1][-1]) if tag in run.series else math.nan


def _span(references: Sequence[Reference]) -> tuple[float, float] | None:
    """The rewards of the uniform policy and of the optimum, where there is anything between them."""
    known = {reference.name: reference.value for reference in references}
    if UNIFORM not in known or OPTIMUM not in known:
        return None
    low, high = known[UNIFORM], known[OPTIMUM]
    return (low, high) if high - low > _SINGLE * max(abs(low), abs(high)) else None


def _normalised(finals: Sequence[float], span: tuple[float, float]) -> FloatArray:
    low, high = span
    return (np.asarray(finals, dtype=np.float64) - low) / (high - low)


def _discount(run: Run) -> float:
    evaluation = run.config.get("evaluation")
    found = evaluation.get("discount", 1.0) if isinstance(evaluation, dict) else 1.0
    return found if isinstance(found, int | float) else math.nan
