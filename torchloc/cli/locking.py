"""One writer a run folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from torchloc.errors import InputError

LOCK, OWNER = ".lock", ".owner.json"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder; the operating system lets go when the process ends, however it ends.

    Raises:
        InputError: Another run has it; the message names the process and its machine.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{folder} is being written by {_owner(folder)}; wait until it ends, or stop it"
        ) from None
    try:
        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": f"{datetime.now():%F %T}",
        }
        (folder / OWNER).write_text(json.dumps(about) + "\n", encoding="utf-8")
        yield
    finally:
        # The lock's own file stays: another run may have opened it, and would lock what is gone.
        with suppress(FileNotFoundError):
            (folder / OWNER).unlink()
        lock.release()


def _owner(folder: Path) -> str:
    try:
        about = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {about['pid']} on {about['host']}, since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
