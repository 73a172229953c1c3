"""`python -m torchloc.study RUN PICTURE`: draws one run."""

from __future__ import annotations

import sys

from torchloc.study import read_run, run_figure


def main() -> None:
    """Draws the run of a folder into a file."""
    folder, picture = sys.argv[1:]
    run_figure(read_run(folder)).savefig(picture, dpi=130)


if __name__ == "__main__":
    main()
