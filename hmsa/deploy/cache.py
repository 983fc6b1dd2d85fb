# SPDX-License-Identifier: Apache-2.0
"""Programs of inference engines, kept from one start to the next.

An entry is a folder named by the SHA-256 of everything its content depends on. It is written beside, and renamed when
it is whole; `entry.json` in it holds every file's hash, so that a damaged entry is noticed and made anew.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable

from hmsa.errors import DataError
from hmsa.files import writable_folder
from hmsa.weight_files import sha256

MOST_KEPT = 8
"""Entries; the one not used for longest goes first. One of HRNet-W48 takes 0.3 GB."""

_INDEX = "entry.json"


def cache_folder() -> Path:
    """HMSA_CACHE, else `hmsa` in the user's cache folder; a temporary one where that cannot be written to."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("HMSA_CACHE") or Path(base) / "hmsa")
    try:
        return writable_folder(folder)
    except DataError as error:
        print(f"warning: {error}; inference programs are not kept this time", file=sys.stderr)
        temporary = tempfile.mkdtemp(prefix="hmsa-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return Path(temporary)


def entry(depends_on: Any, write: Callable[[Path], None]) -> Path:
    """The folder for what `depends_on` (JSON data) describes; `write` fills a new one if there is none that is whole.

    Raises:
        DataError: there is no room, or `write` raised an OSError.
        Exception: whatever else `write` raises; nothing is kept of what it wrote.
    """
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]
    cache = cache_folder()
    folder = cache / key
    if _is_whole(folder):
        os.utime(folder)
        return folder
    made = Path(tempfile.mkdtemp(dir=cache, prefix=f".{key}-"))
    try:
        write(made)
        index = {path.name: sha256(path) for path in made.iterdir()}
        (made / _INDEX).write_text(json.dumps(index), encoding="utf-8")
        if not _is_whole(folder):  # else another process was quicker, and may be reading it
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    except OSError as error:
        if _is_whole(folder):  # Another process was quicker after all.
            return folder
        raise DataError(f"{cache}: expected room for inference programs, but: {error}; set HMSA_CACHE") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    kept = sorted(
        (path for path in cache.iterdir() if (path / _INDEX).is_file()), key=lambda path: path.stat().st_mtime
    )
    for old in kept[:-MOST_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        return bool(index) and all(sha256(folder / name) == digest for name, digest in index.items())
    except (OSError, ValueError, AttributeError):
        return False
