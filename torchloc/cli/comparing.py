"""`torchloc-compare RUNS…`: runs read back from disk, set beside each other in one page.

Everything is computed before anything is written; files appear whole or not at all. Exit codes: 0 runs were
compared, 1 none of those found is whole (the page says why), 2 bad input.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from torchloc.cli.outcome import printable, refusing
from torchloc.config.ranges import Range, closest
from torchloc.errors import InputError, SolveError

if TYPE_CHECKING:
    from torchloc.study.groups import Panel
    from torchloc.study.runs import Run
    from torchloc.study.summary import Reference, Row, Table

METRIC = "reward/per_agent"
PAGE, ROWS, NUMBERS, PICTURES = "comparison.html", "comparison.csv", "comparison.json", "figures"
_WITHIN = Range(0, 100, low_open=True, high_open=True)
_OURS = re.compile(r"(\d\d+_)?[a-z_]+\.png")
_LISTED = 10
"""Runs left out that the terminal lists; the page lists all."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="torchloc-compare",
        description="Compares runs: one page with tables and pictures, and the same as CSV and JSON.",
        epilog="Exit codes: 0 runs were compared, 1 no run is whole, 2 bad input.",
        allow_abbrev=False,
    )
    add = result.add_argument
    add(
        "runs",
        nargs="+",
        metavar="RUNS",
        help="folders with runs anywhere in them: a run, a sweep, runs/NAME",
    )
    add("--out", metavar="DIR", default="comparison", help="where to write (default: comparison)")
    add(
        "--within",
        metavar="X",
        type=_percent,
        default=5.0,
        help="time to within X %% of the best final (default: 5)",
    )
    add("--metric", metavar="TAG", default=METRIC, help=f"what is compared (default: {METRIC})")
    add("--no-baselines", action="store_true", help="compute no reference policies")
    add("--title", default="Comparison of runs", help="heads the page")
    return result


def run(arguments: Sequence[str] | None = None) -> bool:
    """Compares and reports.

    Returns:
        Whether there was a whole run to compare.

    Raises:
        InputError: Something is not as it must be.
    """
    args = _parse(arguments)
    out = Path(os.path.abspath(args.out))
    _check_out(out, args.out)

    # Late, because they are slow.
    from torchloc.study import export, report
    from torchloc.study.groups import compare
    from torchloc.study.runs import read_runs
    from torchloc.study.summary import overall, tabulate

    runs = read_runs(args.runs)
    _check_metric(runs, args.metric)
    comparison = compare(runs, args.metric)
    tables = []
    for panel in comparison.panels:
        found, missing = ([], []) if args.no_baselines else _references(panel, args.metric)
        tables.append(
            tabulate(
                panel, metric=args.metric, within=args.within, references=found, missing=missing
            )
        )
    together = overall(comparison, tables)
    shown = report.draw(comparison, tables, together, args.metric)
    page = report.page(
        comparison,
        tables,
        together,
        shown,
        metric=args.metric,
        within=args.within,
        title=args.title,
        written=datetime.now(),
    )
    files = {
        PAGE: page.encode(),
        ROWS: export.as_csv(comparison, tables).encode(),
        NUMBERS: export.as_json(
            comparison,
            tables,
            together,
            metric=args.metric,
            within=args.within,
            title=args.title,
        ).encode(),
        **{f"{PICTURES}/{one.file}": one.png for one in shown},
    }
    _write(out, args.out, files)
    _show(tables, comparison.left_out, out / PAGE)
    return bool(tables)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    return refusing(parser()).parse_intermixed_args(arguments)


def _percent(text: str) -> float:
    """Reads x of x %; argparse puts the flag before the message."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value not in _WITHIN:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a number {_WITHIN} (per cent)")
    return value


def _check_out(out: Path, given: str) -> None:
    """Refuses what cannot be written before anything is read."""
    blocking = next(up for up in (out, *out.parents) if up.exists())
    if not given or not blocking.is_dir():
        what = f"{blocking} is a file" if given else "it is empty"
        raise InputError(f"--out {given!r}: {what}; give the name of a folder")
    for name in (PAGE, ROWS, NUMBERS):
        if (out / name).is_dir():
            raise InputError(f"--out {given}: {name} in it is a folder; give another name")
    if (out / PICTURES).is_symlink():
        raise InputError(
            f"--out {given}: {PICTURES} in it is a link, and pictures would be replaced where it leads; give "
            f"another name"
        )
    if (out / PICTURES).exists() and not (out / PICTURES).is_dir():
        raise InputError(f"--out {given}: {PICTURES} in it is a file; give another name")


def _check_metric(runs: Sequence[Run], metric: str) -> None:
    """Refuses a metric that no run logged, where any run logged anything."""
    tags = sorted({tag for run in runs for tag in run.series})
    if tags and metric not in tags:
        groups = ", ".join(sorted({f"{tag.split('/')[0]}/…" for tag in tags}))
        hint = closest(metric, tags) or f"; the runs logged {groups}"
        raise InputError(f"--metric {metric}: no run logged it{hint}")


def _references(panel: Panel, metric: str) -> tuple[list[Reference], list[str]]:
    """The reference policies of a problem in the unit of the metric, and why others are missing."""
    from torchloc.study.summary import AVERAGE, PER_AGENT, Reference, agents

    if metric not in (PER_AGENT, AVERAGE):
        return [], []
    count = 1 if metric == AVERAGE else agents(panel.runs)
    if count is None:
        return [], ["no run earned anything, so rewards per agent are unknown"]

    # Late, because it imports the models.
    from torchloc.cli.references import references

    try:
        known = references(panel.runs[0].config)
    except SolveError as error:
        return [], [str(error)]
    found = [Reference(one.name, one.reward / count, one.note) for one in known.found]
    return found, list(known.missing)


def _write(out: Path, given: str, files: dict[str, bytes]) -> None:
    """Writes a folder beside `out` and moves it, or its files one by one, into place."""
    scratch = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        (scratch / PICTURES).mkdir(parents=True)
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        if not out.exists():
            scratch.rename(out)
            return
        (out / PICTURES).mkdir(exist_ok=True)
        # The page last: what it names is there before it is.
        for name in sorted(files, key=lambda name: name == PAGE):
            (scratch / name).replace(out / name)
        for path in (out / PICTURES).iterdir():
            if _OURS.fullmatch(path.name) and f"{PICTURES}/{path.name}" not in files:
                path.unlink()
    except OSError as error:
        raise InputError(f"--out {given} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _show(tables: Sequence[Table], left_out: Sequence[tuple[Run, str]], page: Path) -> None:
    """Prints a table a problem, the runs left out and where the page lies."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    from torchloc.study.report import number

    # A terminal without Greek letters shows question marks, not a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    for table in tables:
        grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(printable(table.panel.label)))
        grid.title_justify = "left"
        grid.add_column("method", overflow="fold")
        for heading in ("seeds", "final", "interval", "ρ coupled", "ρ paper", "seconds", "work"):
            grid.add_column(heading, justify="right", no_wrap=True)
        for row in table.rows:
            grid.add_row(Text(printable(row.group.label)), *_cells(row))
        for one in table.references:
            grid.add_row(Text(one.name), "", number(one.value, 5), *[""] * 5, style="dim")
        console.print(grid)
        for reason in table.missing:
            told = printable(f"no reference: {reason}")
            console.print(Text(told, style="dim"), soft_wrap=True)
    for run, reason in left_out[:_LISTED]:
        told = printable(f"left out: {run.name} ({run.status}): {reason}")
        console.print(Text(told), soft_wrap=True)
    if len(left_out) > _LISTED:
        console.print(f"left out: {len(left_out) - _LISTED} more; the page lists them")
    console.out(str(page), highlight=False)


def _cells(row: Row) -> list[str]:
    from torchloc.study.report import cell, number

    final = cell(row.final, 5)
    ends = [number(row.rho[rung].value) for rung in ("coupled", "paper")]
    return [
        str(len(row.numbers)),
        final["value"],
        final["ends"],
        *ends,
        number(row.seconds.value, 3),
        number(row.work.value),
    ]
