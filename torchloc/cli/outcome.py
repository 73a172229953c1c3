"""How a command ends: one line for what the user can mend, a traceback for a defect, an exit code."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

from torchloc.config.ranges import closest
from torchloc.errors import FileError, InputError, SolveError

DONE, FAILED, BAD_INPUT, UNCERTIFIED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What numerical libraries read when they are loaded; processes inherit it."""


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


def refusing(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """A parser that raises one sentence in place of printing its usage, with the closest argument."""
    known = [flag[2:] for flag in parser._option_string_actions if flag.startswith("--")]

    def refuse(message: str) -> NoReturn:
        stray = message.partition("unrecognized arguments: ")[2]
        if not stray:
            joined = re.match(r"argument (\S+)/-\w: ignored explicit argument", message)
            if joined:
                raise InputError(f"a single dash takes one letter; did you mean {joined[1]}?")
            raise InputError(re.sub(r"^argument (\S+): (is )?", r"\1 \2", message) + "; see --help")
        flag, _, value = stray.split()[0].partition("=")
        hint = closest(flag.lstrip("-"), known).replace("mean ", "mean --")
        if value and not hint:
            hint = f"; a setting has no dashes: {stray.split()[0].lstrip('-')}"
        raise InputError(f"there is no argument {stray}{hint or '; see --help'}")

    parser.error = refuse  # type: ignore[method-assign]
    return parser


def printable(text: str) -> str:
    r"""A text on one line without what steers a terminal; names in files may hold it.

    >>> printable("a\x1b[2Jb\nc")
    'a\\x1b[2Jb c'
    """
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def check_threads() -> None:
    """Refuses counts of threads in the environment that libraries would drop or complain of.

    Raises:
        InputError: One is no list of whole numbers ≥ 1.
    """
    for name in THREADS:
        value = os.environ.get(name, "").strip()
        if value and not re.fullmatch(r"0*[1-9]\d*(\s*,\s*0*[1-9]\d*)*", value):
            raise InputError(
                f"the environment variable {name} is {value!r}; unset it, or give a whole number >= 1"
            )


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
        check_threads()
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
    print(f"{name}: {printable(str(error))}", file=sys.stderr)


def _from(start: Callable[..., Any] | None, trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback from a function on, where it passed through it."""
    part = trace
    while part is not None and part.tb_frame.f_code is not getattr(start, "__code__", None):
        part = part.tb_next
    return part or trace
