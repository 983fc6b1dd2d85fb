# SPDX-License-Identifier: Apache-2.0
"""Programs of backends, kept from one start to the next.

An entry is a folder named by the SHA-256 of everything its content depends on. It is written beside, and renamed when
it is whole; `entry.json` in it holds every file's hash, so that a damaged entry is noticed and made anew. The folder
they are in may hold anything else: what no `entry.json` names is never deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

from hmsa.errors import DataError
from hmsa.system.files import cache_folder, sha256

MAX_KEPT = 8
"""Entries; the one not used for longest goes first. One of HRNet-W48 takes 0.3 GB."""

_INDEX = "entry.json"
_ENTRY = re.compile("[0-9a-f]{32}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}-.+")
_ABANDONED = 24 * 60 * 60  # Seconds after which nobody is still writing an entry.


def entry(depends_on: Any, write: Callable[[Path], object]) -> Path:
    """The folder for what `depends_on` (JSON data) describes; `write` fills a new one if there is none that is whole.

    Raises:
        DataError: the cache cannot be used.
        Exception: whatever `write` raises besides OSError; nothing is kept of what it wrote.
    """
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]
    try:
        return _entry(cache_folder(), key, write)
    except OSError as error:
        raise DataError(
            f"expected room for inference programs, but: {error}; set HMSA_CACHE to a folder that can be written to "
            "and has room for some GB, or use the backend eager",
            settings=["backend"],
        ) from error


def _entry(cache: Path, key: str, write: Callable[[Path], object]) -> Path:
    folder = cache / key
    if not _is_whole(folder):
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache, prefix=f".{key}-"))
        try:
            (made / _INDEX).write_text("{}", encoding="utf-8")  # tells whose it is, should this process be killed
            write(made)
            index = {path.name: sha256(path) for path in made.iterdir() if path.name != _INDEX}
            (made / _INDEX).write_text(json.dumps(index), encoding="utf-8")
            _publish(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    with contextlib.suppress(OSError):  # A cache that can only be read is used as it is.
        os.utime(folder)
        _tidy(cache)
    return folder


def _publish(made: Path, folder: Path) -> None:
    """Give a new entry its name, unless another process was quicker: it may be reading what it made."""
    if not _is_whole(folder):
        damaged = made.with_name(f"{made.name}-damaged")
        with contextlib.suppress(OSError):
            folder.rename(damaged)
        _delete(damaged, _index(made))
    try:
        made.rename(folder)
    except OSError:
        if not _is_whole(folder):
            raise


def _tidy(cache: Path) -> None:
    """Delete what killed processes left unfinished, and the entries not used for longest."""
    entries = []
    for path in cache.iterdir():
        if _UNFINISHED.fullmatch(path.name) and (path / _INDEX).is_file():
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
        elif _ENTRY.fullmatch(path.name) and _index(path):
            entries.append((path.stat().st_mtime, path))
    for _, path in sorted(entries)[:-MAX_KEPT]:
        _delete(path, _index(path))


def _delete(folder: Path, names: Iterable[str]) -> None:
    """Delete these files of an entry, its index, and the folder if nobody else put anything in it."""
    with contextlib.suppress(OSError):
        for name in (*names, _INDEX):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _index(folder: Path) -> dict[str, str]:
    """File -> SHA-256, as the index of an entry says; nothing where there is no index that was written here."""
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        # A name that is not plain would be a path to somewhere else.
        ours = all(Path(name).name == name and re.fullmatch("[0-9a-f]{64}", digest) for name, digest in index.items())
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return index if ours else {}


def _is_whole(folder: Path) -> bool:
    index = _index(folder)
    try:
        return bool(index) and all(sha256(folder / name) == digest for name, digest in index.items())
    except DataError:
        return False
