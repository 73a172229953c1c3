"""Runs read back from disk, drawn, and compared.

`read_run` and `run_figure` are for one run. A comparison goes through the files in this order: `runs` reads,
`groups` sorts by what differs, `statistics` and `summary` make numbers, `curves` pictures, `report` and `export`
files. Nothing here imports torch, TensorBoard or matplotlib before it is needed.
"""

from torchloc.study.picture import run_figure
from torchloc.study.runs import Run, Series, find_runs, load_run, read_run, read_runs

__all__ = [
    "Run",
    "Series",
    "find_runs",
    "load_run",
    "read_run",
    "read_runs",
    "run_figure",
]
