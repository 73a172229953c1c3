"""How a command ends: one line for what the user can mend, a traceback for a defect, an exit code."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

from torchloc.errors import FileError, InputError, SolveError

DONE, FAILED, BAD_INPUT, UNCERTIFIED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143


_told = False  # SIGTERM has come since the command began


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be, so that a run saves itself in the same way."""


def heed() -> None:
    """Raises a SIGTERM again that was lost: Python drops what is raised while an object is destroyed.

    Raises:
        Terminated: The command was told to end, and is still running.
    """
    if _told:
        raise Terminated


def refuse(message: str) -> NoReturn:
    """What an argument parser calls in place of printing its usage."""
    raise InputError(f"{message}; see --help")


def exit_code(name: str, body: Callable[[], int], start: Callable[..., Any] | None = None) -> int:
    """Runs a command to its end.

    Args:
        name: The command, for messages.
        body: Gives the exit code of a run without an exception.
        start: A traceback is shown from this function on, where it passed through it.
    """
    global _told
    _told = False
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return body()
    except InputError as error:
        _complain(name, error)
        return BAD_INPUT
    except (SolveError, FileError) as error:
        _complain(name, error)
        return FAILED
    except Terminated:
        print(f"{name}: terminated", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        traceback.print_exception(type(error), error, _from(start, error.__traceback__))
        return FAILED
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    global _told
    _told = True
    raise Terminated


def _complain(name: str, error: Exception) -> None:
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)


def _from(start: Callable[..., Any] | None, trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback from a function on, where it passed through it."""
    part = trace
    while part is not None and part.tb_frame.f_code is not getattr(start, "__code__", None):
        part = part.tb_next
    return part or trace
