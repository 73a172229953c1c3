"""The tour runs from top to bottom, and is stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TOUR = Path(__file__).resolve().parent.parent / "tour.ipynb"


def test_the_tour_is_short_and_stored_without_outputs() -> None:
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(cells) <= 12 and len(code) <= 10
    for cell in code:
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of the notebook client and its sockets
def test_the_tour_runs(tmp_path: Path) -> None:
    # Of the extra `dev` alone.
    import nbclient
    import nbformat

    tour = nbformat.read(TOUR, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    done = nbclient.NotebookClient(tour, timeout=300, resources=resources).execute()
    printed = "".join(
        output.get("text", "")
        for cell in done.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert "agent 2 sees coordinates [1, 2]" in printed
    assert "coupled  rho <= " in printed and printed.count("proved") == 4
    pictures = [
        output
        for cell in done.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1
