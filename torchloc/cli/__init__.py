"""The console commands. Exit codes are set here, in the outermost functions, and nowhere else.

0 done or certified, 1 the run failed, 2 bad input, 3 not certified or undecided, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import sys

from torchloc.cli import certifying, comparing, training
from torchloc.cli.outcome import (
    BAD_INPUT,
    DONE,
    FAILED,
    INTERRUPTED,
    TERMINATED,
    UNCERTIFIED,
    Terminated,
    exit_code,
)

__all__ = [
    "BAD_INPUT",
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "TERMINATED",
    "UNCERTIFIED",
    "Terminated",
    "certify",
    "compare",
    "train",
]


def train() -> None:
    """The console command `torchloc-train`."""

    def body() -> int:
        training.run()
        return DONE

    sys.exit(exit_code("torchloc-train", body, training.run_job))


def certify() -> None:
    """The console command `torchloc-certify`."""

    def body() -> int:
        return DONE if certifying.run() else UNCERTIFIED

    sys.exit(exit_code("torchloc-certify", body))


def compare() -> None:
    """The console command `torchloc-compare`."""

    def body() -> int:
        return DONE if comparing.run() else FAILED

    sys.exit(exit_code("torchloc-compare", body))
