"""One self-contained HTML page: tables, pictures and how its numbers are defined.

Pictures are embedded, nothing is loaded from elsewhere, and there is no script; the page's own policy forbids both.
Whatever comes from a run (names, settings, messages) is text to the template, which escapes it.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any

from torchloc.study.curves import MOST_GROUPS, drawn, overall_picture, pictures, unit
from torchloc.study.drawing import Picture, looks
from torchloc.study.groups import Comparison, told
from torchloc.study.statistics import COVERAGE, Estimate
from torchloc.study.summary import RUNGS, Overall, Reference, Row, Table, adaptive_notes

LARGEST_PAGE = 20 * 2**20
"""Bytes of a page at most; pictures beyond it are left out of it and lie in the folder beside it."""
_ROOM = 2**20
_DPI, _COARSE_DPI, _MANY = 120, 80, 60
"""Resolution of pictures, and of more than `_MANY` of them."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture, rendered.

    Attributes:
        file: Its name; made here, never of anything that a run says.
        place: Index of the problem; None for all together.
    """

    picture: Picture
    file: str
    png: bytes
    place: int | None


def draw(
    comparison: Comparison, tables: Sequence[Table], together: Sequence[Overall], metric: str
) -> list[Shown]:
    """All pictures of a comparison."""
    styles = looks(comparison.methods)
    found: list[tuple[int | None, Picture]] = []
    if together:
        found.append((None, overall_picture(together)))
    for place, table in enumerate(tables):
        found += [(place, picture) for picture in pictures(table, styles, metric)]
    dpi = _DPI if len(found) <= _MANY else _COARSE_DPI
    return [
        Shown(
            picture,
            f"{picture.kind}.png" if place is None else f"{place + 1:02d}_{picture.kind}.png",
            _png(picture, dpi),
            place,
        )
        for place, picture in found
    ]


def page(
    comparison: Comparison,
    tables: Sequence[Table],
    together: Sequence[Overall],
    shown: Sequence[Shown],
    *,
    metric: str,
    within: float,
    title: str,
    written: datetime,
) -> str:
    """The page as HTML.

    Args:
        comparison: The runs, sorted.
        tables: Their numbers, a problem each.
        together: Methods over all problems; empty where it is not known.
        shown: What `draw` gave.
        metric: The tag that is compared.
        within: x of the time to within x %.
        title: Heads the page.
        written: When.
    """
    from jinja2 import Environment, StrictUndefined

    source = resources.files("torchloc.study").joinpath("report.html.j2").read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    embedded, left = _embedded(shown)
    text = environment.from_string(source).render(
        title=title,
        written=written.strftime("%Y-%m-%d %H:%M"),
        metric=unit(metric),
        within=f"{within:g}",
        coverage=f"{100 * COVERAGE:g}",
        rungs=RUNGS,
        counts=_counts(comparison),
        factors=comparison.factors,
        common=comparison.common,
        together=[
            {
                "label": one.label,
                "value": cell(one.normalised),
                "problems": one.problems,
                "runs": one.normalised.count,
            }
            for one in together
        ],
        complete=max((one.problems for one in together), default=0),
        pictures=[picture for picture in embedded if picture["place"] is None],
        panels=[_panel(i, table, embedded, metric) for i, table in enumerate(tables)],
        left_out=[
            {
                "name": run.name,
                "status": run.status,
                "reached": f"{run.iterations} of {'?' if run.planned is None else run.planned}",
                "values": ", ".join(f"{k}={v}" for k, v in told(run, comparison.factors).items()),
                "seed": str(run.config.get("seed", "—")),
                "reason": reason,
            }
            for run, reason in comparison.left_out
        ],
        unembedded=left,
    )
    # Names of folders may hold bytes that are no text.
    return text.encode("utf-8", "replace").decode("utf-8")


def number(value: float, digits: int = 4) -> str:
    """A number for reading.

    >>> [number(x) for x in (0.123456, 1234567.0, float("inf"), float("nan"), -0.0)]
    ['0.1235', '1.235e+06', '∞', '—', '0']
    """
    if math.isnan(value):
        return "—"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value + 0.0:.{digits}g}".replace("-", "−", 1 if value < 0 else 0)


def cell(found: Estimate, digits: int = 4) -> dict[str, Any]:
    """An estimate as a cell: the number and its interval, if that has a length."""
    ends = ""
    if found.low is not None and found.high is not None and found.low < found.high:
        ends = f"[{number(found.low, digits)}, {number(found.high, digits)}]"
    return {"value": number(found.value, digits), "ends": ends}


def _png(picture: Picture, dpi: int) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    target = io.BytesIO()
    picture.figure.set_dpi(dpi)
    with warnings.catch_warnings():
        # The page has the text of a label whose letters the font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # What `savefig` does, without a rehearsal that doubles the time.
        FigureCanvasAgg(picture.figure).print_png(target)
    return target.getvalue()


def _embedded(shown: Sequence[Shown]) -> tuple[list[dict[str, Any]], list[str]]:
    """Pictures as the template takes them, and the files of those that do not fit."""
    room, found, left = LARGEST_PAGE - _ROOM, [], []
    for one in shown:
        data = base64.b64encode(one.png).decode("ascii")
        if len(data) > room:
            left.append(one.file)
            continue
        room -= len(data)
        found.append(
            {
                "place": one.place,
                "kind": one.picture.kind,
                "title": one.picture.title,
                "caption": one.picture.caption,
                "data": data,
            }
        )
    return found, left


def _counts(comparison: Comparison) -> dict[str, int]:
    return {
        "compared": sum(len(panel.runs) for panel in comparison.panels),
        "problems": len(comparison.panels),
        "methods": len(comparison.methods),
        "left_out": len(comparison.left_out),
    }


def _panel(
    place: int, table: Table, embedded: Sequence[dict[str, Any]], metric: str
) -> dict[str, Any]:
    """A problem as the template takes it."""
    panel = table.panel
    notes = adaptive_notes(table, metric)
    notes += [f"{row.group.label}: {row.note}." for row in table.rows if row.note]
    notes += [
        f"{row.group.label}: its guard skipped {row.skipped} block updates and damped {row.damped}, "
        f"over all iterations and runs."
        for row in table.rows
        if row.skipped or row.damped
    ]
    if any(len(row.numbers) == 1 for row in table.rows):
        notes.append("A group of one run has no interval.")
    if len(panel.groups) > MOST_GROUPS:
        notes.append(
            f"{len(panel.groups)} groups; the pictures show the {len(drawn(table))} with the best "
            f"final, the table has all."
        )
    best = table.rows[0].final.value if table.rows else math.nan
    beside = [(r.value, None, r) for r in table.references]
    lines = [*[(row.final.value, row, None) for row in table.rows], *beside]
    ascending = len(table.rows) > 1 and table.rows[0].final.value < table.rows[-1].final.value
    lines.sort(key=lambda line: line[0] if ascending else -line[0])
    return {
        "id": f"p{place + 1}",
        "label": panel.label,
        "problem": panel.problem,
        "fixed": panel.fixed,
        "notes": notes,
        "missing": table.missing,
        "target": number(table.target, 5),
        "lines": [
            _row(row, best) if row is not None else _reference(reference, table)
            for _, row, reference in lines
        ],
        "pictures": [picture for picture in embedded if picture["place"] == place],
        "has_work": any(row.work.known for row in table.rows),
        "has_span": table.span is not None,
        "runs": [
            {
                "name": n.run.name,
                "label": row.group.label,
                "seed": str(n.run.config.get("seed", "—")),
                "final": number(n.final, 6),
                "seconds": number(n.seconds),
                "status": n.run.status,
            }
            for row in table.rows
            for n in row.numbers
        ],
    }


def _row(row: Row, best: float) -> dict[str, Any]:
    return {
        "reference": False,
        "label": row.group.label,
        "note": "",
        "best": row.final.value == best,
        "count": str(len(row.numbers)),
        "final": cell(row.final, 5),
        "normalised": cell(row.normalised),
        "rho": [{**cell(row.rho[r]), "certified": row.rho[r].value < 1.0} for r in RUNGS],
        "iterations_to": cell(row.iterations_to),
        "seconds_to": cell(row.seconds_to, 3),
        "reached": f"{row.reached}/{len(row.numbers)}",
        "seconds": cell(row.seconds, 3),
        "work": cell(row.work),
    }


def _reference(reference: Reference | None, table: Table) -> dict[str, Any]:
    if reference is None:
        raise TypeError("a line is a group or a reference")
    share = ""
    if table.span is not None:
        low, high = table.span
        share = number((reference.value - low) / (high - low))
    return {
        "reference": True,
        "label": reference.name,
        "note": reference.note,
        "final": number(reference.value, 5),
        "normalised": share,
    }
