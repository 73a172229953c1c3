"""A comparison as CSV (a row a run) and as JSON (groups with their intervals)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from torchloc.study.groups import Comparison, told
from torchloc.study.runs import Run
from torchloc.study.statistics import Estimate
from torchloc.study.summary import RUNGS, Numbers, Overall, Row, Table

_SETTINGS = "setting:"


def as_csv(comparison: Comparison, tables: Sequence[Table]) -> str:
    """A row a run, compared or not; infinite numbers are `inf`, unknown ones empty."""
    head = ["run", "problem", "method", *(f"{_SETTINGS}{key}" for key in comparison.factors)]
    head += ["seed", "status", "iterations", "planned", "final", "normalised"]
    head += [f"rho_{rung}" for rung in RUNGS]
    head += ["iterations_to", "seconds_to", "seconds", "ball_work", "left_out_because"]
    target = io.StringIO()
    writer = csv.DictWriter(target, head, restval="", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            for n in row.numbers:
                writer.writerow(
                    {
                        **_about(n.run, comparison),
                        "problem": table.panel.label,
                        "method": row.group.label,
                        **{key: _text(value) for key, value in _numbers(n, table).items()},
                    }
                )
    for run, reason in comparison.left_out:
        writer.writerow({**_about(run, comparison), "left_out_because": reason})
    return _clean(target.getvalue())


def as_json(
    comparison: Comparison,
    tables: Sequence[Table],
    together: Sequence[Overall],
    *,
    metric: str,
    within: float,
    title: str,
) -> str:
    """Everything as JSON; an infinite number is the string "inf", an unknown one null."""
    report = {
        "title": title,
        "metric": metric,
        "within_percent": within,
        "factors": {key: list(values) for key, values in comparison.factors.items()},
        "common": comparison.common,
        "problems": [_table(table) for table in tables],
        "together": [
            {"method": o.label, "problems": o.problems, "normalised": _estimate(o.normalised)}
            for o in together
        ],
        "left_out": [
            {
                "run": run.name,
                "status": run.status,
                "iterations": run.iterations,
                "planned": run.planned,
                "reason": reason,
            }
            for run, reason in comparison.left_out
        ],
    }
    return _clean(json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)) + "\n"


def _table(table: Table) -> dict[str, Any]:
    return {
        "label": table.panel.label,
        "settings": table.panel.problem,
        "fixed": table.panel.fixed,
        "target": _number(table.target),
        "references": [
            {"name": r.name, "value": _number(r.value), "note": r.note} for r in table.references
        ],
        "missing": list(table.missing),
        "groups": [_group(row, table) for row in table.rows],
    }


def _group(row: Row, table: Table) -> dict[str, Any]:
    return {
        "label": row.group.label,
        "settings": row.group.values,
        "note": row.note,
        "reached": row.reached,
        "final": _estimate(row.final),
        "normalised": _estimate(row.normalised),
        **{f"rho_{rung}": _estimate(row.rho[rung]) for rung in RUNGS},
        "iterations_to": _estimate(row.iterations_to),
        "seconds_to": _estimate(row.seconds_to),
        "seconds": _estimate(row.seconds),
        "ball_work": _estimate(row.work),
        "blocks_skipped": row.skipped,
        "blocks_damped": row.damped,
        "runs": [
            {
                "run": n.run.name,
                "seed": n.run.config.get("seed") if type(n.run.config.get("seed")) is int else None,
                "status": n.run.status,
                **{key: _number(value) for key, value in _numbers(n, table).items()},
            }
            for n in row.numbers
        ],
    }


def _numbers(n: Numbers, table: Table) -> dict[str, float]:
    normalised = math.nan
    if table.span is not None:
        normalised = (n.final - table.span[0]) / (table.span[1] - table.span[0])
    return {
        "final": n.final,
        "normalised": normalised,
        **{f"rho_{rung}": n.rho[rung] for rung in RUNGS},
        "iterations_to": n.iterations_to,
        "seconds_to": n.seconds_to,
        "seconds": n.seconds,
        "ball_work": n.work,
    }


def _about(run: Run, comparison: Comparison) -> dict[str, Any]:
    return {
        "run": run.name,
        **{f"{_SETTINGS}{k}": v for k, v in told(run, comparison.factors).items()},
        "seed": run.config.get("seed", ""),
        "status": run.status,
        "iterations": run.iterations,
        "planned": "" if run.planned is None else run.planned,
    }


def _estimate(found: Estimate) -> dict[str, Any]:
    ends = {
        end: None if x is None else _number(x)
        for end, x in (("low", found.low), ("high", found.high))
    }
    return {"value": _number(found.value), **ends, "count": found.count}


def _number(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _text(value: float) -> str:
    found = _number(value)
    return "" if found is None else str(found)


def _clean(text: str) -> str:
    """Text that can be written: names of folders may hold bytes that are none."""
    return text.encode("utf-8", "replace").decode("utf-8")
