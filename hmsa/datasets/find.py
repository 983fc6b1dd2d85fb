# SPDX-License-Identifier: Apache-2.0
"""Finding files in folders, by patterns and in lists, and saying what was left out on the way."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Optional

from hmsa.datasets.images import IMAGE_SUFFIXES, starts_as_image
from hmsa.datasets.lists import listed, listed_images
from hmsa.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".m4v", ".mkv", ".webm", ".mpg", ".mpeg")
"""Of the videos that are read."""

OVERLAYS, COLOR_MAPS = "added_prediction", "pseudo_color_prediction"
LABEL_IDS, SHEETS, LEGENDS = "label_ids", "sheets", "legend"
CONFIDENCES, ATTENTIONS, SHARES, SCALES = "confidence", "attention", "decided", "scales"
"""Folders of results, which no search takes for data unless it is told to."""

MARK = ".hmsa_results"
"""An empty file beside folders of results that neither overlays nor colour maps tell by their names."""

OVERLAY_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Of the formats that an overlay keeps; those of other images become PNG."""


@dataclass(frozen=True)
class ImageFile:
    """An image to predict, and the relative paths its results are written under."""

    path: Path
    overlay_name: PurePath  # keeps the image's own format where that is in OVERLAY_SUFFIXES
    label_name: PurePath  # always .png


@dataclass
class LeftOut:
    """What a search has passed over."""

    others: Counter[str] = field(default_factory=Counter)  # files that are no images, by suffix
    videos: list[str] = field(default_factory=list)  # their names
    folders: int = 0  # that a pattern names as it does files
    hidden: int = 0  # without what macOS writes everywhere
    results: int = 0  # of an earlier prediction
    again: int = 0  # links to folders that are searched under their own name
    unreadable: list[str] = field(default_factory=list)  # folders, and links that lead nowhere, with the reason

    def __str__(self) -> str:
        """Such as "left out 3 other files (.md)"; empty if there is nothing to tell."""
        suffixes = ", ".join(sorted(filter(None, self.others))[:5])
        told = [
            (sum(self.others.values()), "other file{s}" + (f" ({suffixes})" if suffixes else "")),
            (len(self.videos), f"video{{s}}, to be given one by one ({listed(self.videos, 5)})"),
            (self.folders, "folder{s}"),
            (self.hidden, "hidden file{s} or folder{s}"),
            (self.results, "result{s} of an earlier prediction"),
            (self.again, "link{s} to folders that are searched anyway"),
            (len(self.unreadable), "folder{s} that cannot be searched (" + "; ".join(self.unreadable[:5]) + ")"),
        ]
        parts = [f"{count} {what.replace('{s}', '' if count == 1 else 's')}" for count, what in told if count]
        return f"left out {', '.join(parts)}" if parts else ""


def search(folder: Path, pattern: str, left_out: Optional[LeftOut] = None) -> list[Path]:
    """What matches `pattern` below `folder`, sorted; `**` stands for any number of folders, also at the end.

    Links to folders are followed, but below a `**`, which could go round for ever, no folder is searched twice. Hidden
    files and folders, and results of predictions, are passed over unless the pattern names them. A folder is in the
    answer only where the pattern ends at it.

    Raises:
        DataError: a folder cannot be searched, or a link leads nowhere, and there is no `left_out` to note it in.
    """
    noted = LeftOut() if left_out is None else left_out
    parts = PurePath(pattern).parts
    ancestors = Path(os.path.realpath(folder)).parents
    todo: deque[tuple[Path, frozenset[int]]] = deque([(folder, _with_skipped({0}, parts))])
    links: deque[tuple[Path, frozenset[int]]] = deque()
    searched: set[tuple[str, frozenset[int]]] = set()
    found = []

    while todo or links:
        here, places = (todo or links).popleft()  # links last: files are known by the names without them
        if any(place < len(parts) and parts[place] == "**" for place in places):
            real = os.path.realpath(here)
            if (real, places) in searched or Path(real) in ancestors:
                noted.again += 1
                continue
            searched.add((real, places))

        for entry, is_result in _entries(here, noted):
            path, is_folder = here / entry.name, _is_folder(entry)
            after = _step(places, parts, entry.name, passed_over=is_result or entry.name.startswith("."))
            if is_folder and after - {len(parts)}:
                (links if entry.is_symlink() else todo).append((path, after))
            elif len(parts) in after:
                found.append(path)
            elif after and not path.suffix and leads_nowhere(path):  # to a folder, as it looks
                noted.unreadable.append(f"{path}: a link that leads nowhere")
            elif is_result:
                noted.results += sum(len(names) for _, _, names in os.walk(path))
            elif entry.name.startswith("."):
                noted.hidden += not entry.name.startswith(("._", ".DS_Store", MARK))

    if noted.unreadable and left_out is None:
        raise DataError(
            f"{folder} should be readable with all below it, but found {'; '.join(noted.unreadable[:5])}: make it "
            "readable or remove it"
        )
    return sorted(found)


def _entries(folder: Path, left_out: LeftOut) -> list[tuple[os.DirEntry[str], bool]]:
    """What is in a folder, by name, and whether it is a folder of results."""
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        left_out.unreadable.append(f"{folder}: {error.strerror}")
        return []
    results = {OVERLAYS, COLOR_MAPS, MARK} & {entry.name for entry in entries}
    if results:
        results |= {LABEL_IDS, SHEETS, LEGENDS, CONFIDENCES, ATTENTIONS, SHARES, SCALES}
    return [(entry, entry.name in results and _is_folder(entry)) for entry in entries]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def leads_nowhere(path: Path) -> bool:
    """Whether it is a link, and what it leads to is not there."""
    return path.is_symlink() and not os.path.exists(path)  # noqa: PTH110 (pathlib's raises where a link leads to itself)


def _with_skipped(places: Iterable[int], parts: tuple[str, ...]) -> frozenset[int]:
    """Positions in a pattern, and those behind every `**` at them, as it may stand for nothing."""
    reached = set(places)
    for place, part in enumerate(parts):
        if place in reached and part == "**":
            reached.add(place + 1)
    return frozenset(reached)


def _step(places: Iterable[int], parts: tuple[str, ...], name: str, *, passed_over: bool) -> frozenset[int]:
    """Positions in a pattern behind a name; what is `passed_over` has to be named by a part of its own."""
    after = set()
    for place in places:
        part = parts[place] if place < len(parts) else None
        if part == "**":
            after |= set() if passed_over else {place}
        elif part is not None and fnmatch.fnmatch(name, part):
            named = part == name or part.startswith(".")
            after |= {place + 1} if named or not passed_over else set()
    return _with_skipped(after, parts)


# Images to predict


def find_images(
    image_path: str, left_out: Optional[LeftOut] = None, suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> list[ImageFile]:
    """The images that a file, a folder (with all below it), a list or a glob pattern stands for.

    A file that neither is called an image nor starts as one is a list: a line starts with a path, relative to the
    list's folder. Results are named by the path below the folder (of the image, the list, the pattern's part without
    wildcards); no two results have the same name.

    Args:
        left_out: notes what was passed over.
        suffixes: of files that are images, in lower case.

    Raises:
        DataError: nothing found, or a list that cannot be read.
    """
    noted = LeftOut() if left_out is None else left_out
    try:
        folder, paths = _found(Path(image_path), noted, suffixes)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DataError(f"{image_path}: expected a path or a pattern, but: {error}; correct it") from error
    if not paths:
        is_there = glob.has_magic(image_path) or os.path.lexists(image_path)
        found = f"no image ({', '.join(suffixes)})" if is_there else "nothing of this name"
        raise DataError(
            f"{image_path}: expected an image, a folder of images, a list or a glob pattern, found {found}"
            f"{'; ' if str(noted) else ''}{noted}; correct the path"
        )
    return _named(paths, folder)


def _found(given: Path, left_out: LeftOut, suffixes: Sequence[str]) -> tuple[Path, list[Path]]:
    """The folder that results are named from, and the images."""
    if given.is_dir():
        return given, _images_of(search(given, "**", left_out), left_out, suffixes)
    if given.is_file():
        is_image = given.suffix.lower() in suffixes or starts_as_image(given)
        return given.parent, [given] if is_image else listed_images(given)
    fixed = list(takewhile(lambda part: not glob.has_magic(part), given.parts[:-1]))
    folder = Path(*fixed)
    pattern = os.path.normpath(Path(*given.parts[len(fixed) :]))
    return folder, _images_of(search(folder, pattern, left_out), left_out, suffixes)


def _images_of(paths: Iterable[Path], left_out: LeftOut, suffixes: Sequence[str]) -> list[Path]:
    """Those that are images by their suffix; what cannot be read is found out later."""
    images = []
    for path in paths:
        if path.is_dir():
            left_out.folders += 1
        elif path.suffix.lower() in suffixes:
            images.append(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            left_out.videos.append(path.name)
        elif not path.suffix and leads_nowhere(path):
            left_out.unreadable.append(f"{path}: a link that leads nowhere")
        else:
            left_out.others[path.suffix.lower()] += 1
    return images


def _named(paths: Iterable[Path], folder: Path) -> list[ImageFile]:
    """Name results by the path below `folder`; of images elsewhere, by their whole path.

    Where several names differ in their suffix alone, the colour map of x.png is x.png and that of x.jpg x.jpg.png.
    """
    root = _absolute(folder)
    names: dict[Path, PurePath] = {}
    originals: dict[Path, Path] = {}
    for path in paths:
        absolute = _absolute(path)
        name = absolute.relative_to(root if root in absolute.parents else absolute.anchor)
        names[absolute] = name if name.name else PurePath("root")  # a list may hold "/"
        originals.setdefault(absolute, path)

    wanted = Counter(_folded(name.with_suffix(".png")) for name in names.values())
    overlays, labels = ({_folded(parent) for name in names.values() for parent in name.parents} for _ in range(2))
    results: dict[Path, ImageFile] = {}
    # PNGs have the first claim to their own names.
    for absolute in sorted(names, key=lambda path: path.suffix.lower() != ".png"):
        name = names[absolute]
        is_alone = name.suffix.lower() == ".png" or wanted[_folded(name.with_suffix(".png"))] == 1
        label = name.with_suffix(".png") if is_alone else name.with_name(f"{name.name}.png")
        overlay = name if name.suffix.lower() in OVERLAY_SUFFIXES else name.with_name(f"{name.name}.png")
        results[absolute] = ImageFile(originals[absolute], _free(overlay, overlays), _free(label, labels))
    return [results[absolute] for absolute in names]


def _absolute(path: Path) -> Path:
    """From the root and without "..", links left as they are."""
    return Path(os.path.normpath(path.absolute()))


def _folded(name: PurePath) -> str:
    """Names that are one on some file systems (of Windows and macOS) as one."""
    return str(name).casefold()


def _free(name: PurePath, taken: set[str]) -> PurePath:
    """`name`, or with .png added until it is neither a result nor a folder of results."""
    while _folded(name) in taken:
        name = name.with_name(name.name + ".png")
    taken.add(_folded(name))
    return name
