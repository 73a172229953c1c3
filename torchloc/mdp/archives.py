"""`.npz` archives, written whole, and read from anywhere: sizes are held against a limit, nothing is unpickled.

An archive names the bytes of every member, and a member the shape and the kind of its array; a few
kilobytes of a compressed archive can name terabytes.
"""

from __future__ import annotations

import io
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from torchloc.errors import InputError

LARGEST = 2**32
"""Bytes of all arrays of an archive together, at most."""
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def write(path: str | PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes to a temporary file beside `path`, then renames: a reader never sees half a file.

    Raises:
        InputError: The folder does not exist, or `read` would refuse so many bytes.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(
            f"{target} cannot be written: there is no folder {target.parent}; create it"
        )
    size = sum(np.asarray(array).nbytes for array in arrays.values())
    if size > LARGEST:
        raise InputError(
            f"{target} cannot be written: its arrays take {size:,} bytes, and no more than {LARGEST:,} "
            f"are read again"
        )
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # pyright: ignore[reportArgumentType]
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def read(path: str | PathLike[str], what: str, file: str) -> dict[str, NDArray[Any]]:
    """All arrays of an archive by name, each read to its end and held against its checksum.

    Args:
        path: The file.
        what: What it should be, for errors: `torchloc model`.
        file: What a file that is missing is called.

    Raises:
        InputError: It is no regular file, no archive of arrays, damaged, or larger than `LARGEST`.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("it is no regular file")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > LARGEST:
                raise ValueError(
                    f"its arrays take {size:,} bytes, over the limit of {LARGEST:,}; build it in code"
                )
            found = {
                member.filename.removesuffix(".npy"): _array(archive.read(member))
                for member in members
            }
    except FileNotFoundError:
        raise InputError(f"there is no {file} {path}") from None
    # What zipfile, zlib and NumPy's header reader raise on bytes that nobody wrote.
    except (
        ArithmeticError, EOFError, LookupError, MemoryError, NotImplementedError, OSError,
        RuntimeError, SyntaxError, TypeError, ValueError, struct.error, tokenize.TokenError,
        zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} is damaged or no {what}: {reason}") from error
    if len(found) < len(members):
        raise InputError(f"{path} is damaged or no {what}: an array stands twice in it")
    return found


def _array(content: bytes) -> NDArray[Any]:
    """The array of a `.npy` member, which takes no more memory than its bytes."""
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"an array of .npy version {version}")
    shape, _, dtype = _HEADERS[version](stream)
    entries, there = math.prod(shape), len(content) - stream.tell()
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which could run code")
    if min(shape, default=0) < 0 or entries * dtype.itemsize != there or (entries and not there):
        raise ValueError(f"an array of shape {shape} and {dtype} in {there} bytes")
    return npy.read_array(io.BytesIO(content), allow_pickle=False)
