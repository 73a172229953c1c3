"""`python -m torchloc COMMAND …`: the console commands where their scripts are not on the path."""

from __future__ import annotations

import sys

from torchloc import cli
from torchloc.config.ranges import closest

COMMANDS = {"certify": cli.certify, "compare": cli.compare, "train": cli.train}


def main() -> None:
    """Hand the rest of the command line to the command it names."""
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name not in COMMANDS:
        choices = ", ".join(COMMANDS)
        hint = closest(name or "", COMMANDS)
        print(f"usage: python -m torchloc COMMAND …, where COMMAND is one of: {choices}{hint}")
        sys.exit(0 if name in ("-h", "--help") else 2)
    del sys.argv[1]
    sys.argv[0] = f"torchloc-{name}"
    COMMANDS[name]()


if __name__ == "__main__":
    main()
