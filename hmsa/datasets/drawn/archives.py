# SPDX-License-Identifier: Apache-2.0
"""Unpacking what was downloaded."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from tqdm import tqdm

from hmsa.datasets.drawn.masks import inner_path
from hmsa.errors import DataError
from hmsa.system.files import write_atomically

MAX_BYTES = 4 << 30  # of all files in an archive; CamVid's largest has 600 MB


def check(path: Path, address: str) -> None:
    """DataError unless a file is a whole zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{address} should be a zip archive, but: {error}; try again, or download it by hand"
        ) from error
    if damaged:
        raise DataError(f"{address} should be a whole archive, but {damaged} is damaged: try again")


def unpack(path: Path, folder: Path, below: str = "") -> int:
    """Write the images and texts of a zip archive into a folder, each whole; returns how many there are.

    Of an archive, the part from the folder named `below` on. Files that are there in their size are kept.
    """
    count = 0
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if sum(member.file_size for member in members) > MAX_BYTES:
            raise DataError(f"{path} should hold at most {MAX_BYTES} bytes, but it holds more: unpack it by hand")
        for member in tqdm(members, unit="file", leave=False, disable=None):
            name = inner_path(member.filename)
            if name is None or name.suffix.lower() not in (".png", ".txt") or name.name.startswith("."):
                continue
            if below:
                if below not in name.parts[:-1]:
                    continue
                name = name.relative_to(*name.parts[: name.parts.index(below)]) if name.parts[0] != below else name
            target = folder / name
            if not (target.is_file() and target.stat().st_size == member.file_size):
                with archive.open(member) as source:
                    write_atomically(target, lambda file, source=source: shutil.copyfileobj(source, file))
            count += 1
    return count
