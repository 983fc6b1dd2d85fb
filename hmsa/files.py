# SPDX-License-Identifier: Apache-2.0
"""Writing results: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

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


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file that appears complete or not at all, replacing an older one; parent folders are made."""
    path = Path(path)
    # One writer a name: the process id keeps ranks apart.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
