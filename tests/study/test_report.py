"""The page and the tables: self-contained, escaped, and with every run in them."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from study.synthetic import config, in_memory, rewards

from torchloc.study import Run, export, report
from torchloc.study.groups import Comparison, compare
from torchloc.study.summary import PER_AGENT, Reference, Table, overall, tabulate

HOSTILE = "\"><script>alert('x')</script><img src=x onerror=alert(1)>&\x00"
WHEN = datetime(2026, 1, 2, 3, 4)


class Page(HTMLParser):
    """Tags with their attributes, ids, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def made(
    runs: list[Run], references: tuple[Reference, ...] = ()
) -> tuple[Comparison, list[Table], str]:
    comparison = compare(runs, PER_AGENT)
    tables = [
        tabulate(panel, metric=PER_AGENT, within=5.0, references=references, missing=[HOSTILE])
        for panel in comparison.panels
    ]
    return comparison, tables, written(comparison, tables, [])


def written(
    comparison: Comparison, tables: list[Table], shown: list[report.Shown], **options: Any
) -> str:
    together = overall(comparison, tables)
    settings = {"metric": PER_AGENT, "within": 5.0, "title": HOSTILE, "written": WHEN, **options}
    return report.page(comparison, tables, together, shown, **settings)


def hostile() -> list[Run]:
    """Whatever a run can name is hostile; one whole run, one that failed."""
    series = rewards([0.1, 0.2, 0.3], optimum=0.5)
    runs = []
    for seed, kind in ((HOSTILE, "a" + HOSTILE), (1, "b")):
        settings = config(seed=seed, changes={"policy.kind": kind, "env.name": HOSTILE})
        runs.append(in_memory(settings, series, name=HOSTILE + "\udcff"))
    failed = in_memory(config(seed=2), {}, name=HOSTILE)
    fields = {**vars(failed), "trouble": HOSTILE, "status": "failed"}
    return [*runs, Run(**fields)]


def test_hostile_text_stays_text() -> None:
    beside = (Reference("uniform", 0.1, HOSTILE), Reference(HOSTILE, 0.2, ""))
    comparison, tables, page = made(hostile(), beside)
    found = Page(page)
    kinds = {tag for tag, _ in found.tags}
    assert not kinds & {"script", "img", "link", "iframe", "object", "style"} - {"style"}
    assert not any(name.startswith("on") for _, attrs in found.tags for name in attrs)
    # Title, heading, run names, settings, reasons and notes: there, as text.
    assert found.text.count("<script>alert('x')</script>") >= 10
    assert page.encode() and not found.open
    rows = export.as_csv(comparison, tables)
    assert rows.encode() and json.loads(
        export.as_json(comparison, tables, [], metric=PER_AGENT, within=5.0, title=HOSTILE)
    )


def test_the_page_loads_nothing_and_its_links_lead_somewhere() -> None:
    runs = [
        in_memory(config(env=env, seed=seed), rewards([0.1, 0.2 + seed / 10], optimum=0.5))
        for env in ("ising", "sis")
        for seed in range(2)
    ]
    beside = (Reference("uniform", 0.0, "every action equally likely"),)
    _, _, page = made(runs, beside)
    found = Page(page)
    ids = {attrs["id"] for _, attrs in found.tags if "id" in attrs}
    links = [attrs["href"] for tag, attrs in found.tags if tag == "a"]
    assert links and all(link and link[0] == "#" and link[1:] in ids for link in links)
    assert {"together", "p1", "p2", "definitions"} <= ids
    assert not any("src" in attrs or "srcset" in attrs for _, attrs in found.tags)
    policies = [a["content"] for tag, a in found.tags if a.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "every action equally likely" in found.text
    assert "2026-01-02 03:04" in found.text and "http" not in page.replace("http-equiv", "")


def test_pictures_beyond_the_room_are_named_and_not_embedded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comparison, tables, _ = made([in_memory(config(), rewards([0.1, 0.2]))])
    shown = report.draw(comparison, tables, [], PER_AGENT)
    assert [one.file for one in shown] == [
        "01_reward.png", "01_rho.png", "01_locality_optimality.png", "01_schedule.png"
    ]  # fmt: skip
    assert all(one.png.startswith(b"\x89PNG") for one in shown)
    whole = written(comparison, tables, shown)
    images = [attrs for tag, attrs in Page(whole).tags if tag == "img"]
    assert len(images) == 4
    assert all((a["src"] or "").startswith("data:image/png;base64,") for a in images)
    monkeypatch.setattr(report, "LARGEST_PAGE", report._ROOM + len(shown[0].png) * 3 // 2)
    page = written(comparison, tables, shown)
    assert len(page) < len(whole) and Page(page).text.count("01_rho.png") == 1
    assert len([tag for tag, _ in Page(page).tags if tag == "img"]) < 4


def test_what_the_guard_did_is_noted() -> None:
    series = rewards([0.1, 0.2])
    guarded = {**series, "ledger/skipped": [2, 1], "ledger/damped": [0, 4]}
    runs = [in_memory(config(schedule=s), v) for s, v in (("linear", series), ("cosine", guarded))]
    _, _, page = made(runs)
    noted = [line for line in Page(page).text.splitlines() if "its guard" in line]
    assert noted == [
        "cosine: its guard skipped 3 block updates and damped 4, over all iterations and runs."
    ]


def test_nothing_whole_is_said() -> None:
    run = in_memory(config(), {})
    _, tables, page = made([Run(**{**vars(run), "trouble": "0 of 3"})])
    assert not tables and "nothing to compare yet" in Page(page).text and "0 of 3" in page


def test_the_rows_of_the_csv_and_the_groups_of_the_json() -> None:
    series = rewards([0.1, 0.2, 0.3])
    runs = [
        in_memory(config(seed=s, schedule=schedule), series, name=f"{schedule}{s}")
        for schedule in ("linear", "cosine")
        for s in range(2)
    ]
    runs[0].series["rho/paper"][1][-1] = float("inf")
    failed = in_memory(config(seed=9, schedule="cosine"), {}, name="failed")
    runs.append(Run(**{**vars(failed), "trouble": "no solution", "status": "failed"}))
    comparison, tables, _ = made(runs)
    rows = list(csv.DictReader(io.StringIO(export.as_csv(comparison, tables))))
    assert [row["run"] for row in rows] == ["linear0", "linear1", "cosine0", "cosine1", "failed"]
    first, *_, last = rows
    assert first["setting:schedule"] == "linear" and float(first["final"]) == 0.3
    assert first["rho_paper"] == "inf" and first["normalised"] == "" and first["ball_work"] == ""
    assert last["left_out_because"] == "no solution" and last["setting:schedule"] == "cosine"
    assert last["final"] == "" and last["status"] == "failed"

    text = export.as_json(comparison, tables, [], metric=PER_AGENT, within=5.0, title="t")
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    (problem,) = found["problems"]
    linear, cosine = problem["groups"]
    assert linear["rho_paper"]["value"] == "inf" and cosine["rho_paper"]["value"] == 2.6
    assert linear["ball_work"] == {"value": None, "low": None, "high": None, "count": 0}
    assert "no repeats" in cosine["note"] and cosine["runs"][1]["seed"] == 1
    assert found["left_out"][0]["reason"] == "no solution"
