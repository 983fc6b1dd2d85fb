# SPDX-License-Identifier: Apache-2.0
"""Writing results: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import IO, Callable

from hmsa.errors import DataError


def writable_folder(path: str | Path) -> Path:
    """Make a folder and make sure that files can be written to it, before hours of work depend on it."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"{folder}: cannot write to this folder ({error.strerror}); choose another") from error
    return folder


def write_atomically(path: str | Path, content: bytes | Callable[[IO[bytes]], None], *, durable: bool = False) -> None:
    """Write a file that appears complete or not at all, replacing an older one; parent folders are made.

    Args:
        content: the bytes, or what writes them to the file it is given.
        durable: whether to wait until it is on the disk, which takes milliseconds a file.
    """
    path = Path(path)
    # One writer a name: the process id keeps ranks apart.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            partial.write_bytes(content)
        else:
            with partial.open("wb") as file:
                content(file)
        if durable:
            flush_to_disk(partial)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def flush_to_disk(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk, where a power failure cannot undo it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
