# SPDX-License-Identifier: Apache-2.0
"""From annotations to files of masks, many at a time, and a report of all that is not in them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple, Optional

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from hmsa.datasets.classes import Classes
from hmsa.datasets.find import search
from hmsa.datasets.images import IMAGE_FORMATS, IMAGE_SUFFIXES, check_size, read_label
from hmsa.datasets.lists import is_file
from hmsa.errors import DataError, UnfitError, shown
from hmsa.system.files import write_atomically
from hmsa.visualize import color_palette, pseudo_color

IGNORED_COLOR = (224, 224, 192)  # Pascal VOC's, of the border between things

Size = tuple[int, int]  # height, width


class LeftOut(NamedTuple):
    """Something that is not in the masks as it was drawn."""

    kind: str  # such as "unknown label"
    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


class Unusable(ValueError):
    """Why something cannot be drawn; `kind` is that of its note."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass
class Notes:
    """What is left out of one file."""

    file: str
    items: list[LeftOut] = field(default_factory=list)

    def add(self, kind: str, what: str) -> None:
        self.items.append(LeftOut(kind, self.file, what))


class Task(NamedTuple):
    """A mask to make."""

    name: PurePath  # below the folder of masks, ends in .png
    file: str  # what the report calls its source
    draw: Callable[[Notes], Optional[np.ndarray]]  # uint8 [H, W] of class numbers and 255; None: there is no mask


@dataclass
class Result:
    """How many masks came of the tasks."""

    written: int = 0
    before: int = 0  # there already, and the same
    different: list[Path] = field(default_factory=list)  # there already, and something else, which stays
    left_out: list[LeftOut] = field(default_factory=list)


def write_masks(
    tasks: Iterable[Task], folder: Path, classes: Classes, *, num_workers: int, overwrite: bool = False
) -> Result:
    """Draw every mask in threads and write it as a palette PNG in the classes' colours, whole or not at all.

    A mask that is there is drawn anew all the same and compared, so that a run that was stopped may be started again
    with a whole report; one that differs stays unless `overwrite`. A DataError of a task becomes a note.
    """
    result = Result()
    tasks = _with_names_of_their_own(tasks, result)
    colors = [*color_palette((), classes.colors)[: 3 * 255], *IGNORED_COLOR]

    def run(task: Task) -> tuple[Task, str, Notes]:
        notes = Notes(task.file)
        try:
            label = task.draw(notes)
            outcome = "" if label is None else _write(folder / task.name, label, colors, overwrite=overwrite)
        except DataError as error:
            notes.add("cannot be read", str(error).removeprefix(f"{task.file} "))
            outcome = ""
        return task, outcome, notes

    executor = ThreadPoolExecutor(max(num_workers, 1))
    try:
        futures = [executor.submit(run, task) for task in tasks]
        for future in tqdm(as_completed(futures), total=len(futures), unit="mask", disable=not futures):
            task, outcome, notes = future.result()
            result.written += outcome == "written"
            result.before += outcome == "before"
            result.different += [folder / task.name] if outcome == "different" else []
            result.left_out += notes.items
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    result.left_out.sort()
    result.different.sort()
    return result


def _with_names_of_their_own(tasks: Iterable[Task], result: Result) -> list[Task]:
    """Without those whose mask would have the name of another's, on some file systems at least."""
    taken: dict[str, str] = {}
    alone = []
    for task in tasks:
        other = taken.setdefault(str(task.name).casefold(), task.file)
        if other is task.file:
            alone.append(task)
        else:
            what = f"its mask would have the name of that of {other}, {task.name}; rename one"
            result.left_out.append(LeftOut("name taken", task.file, what))
    return alone


def _write(path: Path, label: np.ndarray, colors: Sequence[int], *, overwrite: bool) -> str:
    """ "written", "before" or "different"."""
    if path.exists():
        if _holds(path, label):
            return "before"
        if not overwrite:
            return "different"
    content = io.BytesIO()
    pseudo_color(label, colors).save(content, "PNG", compress_level=3)
    write_atomically(path, content.getvalue())
    return "written"


def _holds(path: Path, label: np.ndarray) -> bool:
    try:
        return np.array_equal(read_label(path), label)
    except DataError:  # something else of that name, or a damaged file
        return False


class ImageSize(NamedTuple):
    """Of an image, as it is to be seen, and as its pixels are stored: EXIF data may ask for a turn."""

    upright: Size
    stored: Size


def image_size(path: Path) -> ImageSize:
    """What the file's header says; DataError if it is no image."""
    try:
        if not is_file(path):  # a pipe would wait for a writer
            raise OSError("it is no file")
        with Image.open(path, formats=(*IMAGE_FORMATS, "MPO")) as image:
            stored = image.height, image.width
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except MemoryError:
        raise
    except Exception as error:  # on damaged files Pillow raises almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} should be a readable image, but: {reason}; replace or remove it") from error
    return ImageSize(stored[::-1] if turned else stored, stored)


def drawn_size(path: Path, said: tuple[Any, Any], source: Path) -> Size:
    """The image's size, upright or as stored: what the annotations in `source` say, height and width, unless None.

    DataError if the image has another, or too many pixels for a mask.
    """
    found = image_size(path)
    size = next((size for size in found if said in (size, (None, None))), None)
    if size is None:
        raise DataError(
            f"{path} should have the size that {source} says, {shown(said[1])}x{shown(said[0])}, but it has "
            f"{found.upright[1]}x{found.upright[0]}: the image was changed after it was drawn on; find the other"
        )
    try:
        check_size(size[1], size[0])
    except UnfitError as error:
        raise DataError(f"{path} is too large, {error}: cut it into tiles") from error
    return size


def mask_name(image: PurePath) -> PurePath:
    """Of an image's path below a folder: the mask's, below another."""
    return image.with_suffix(".png") if image.suffix.lower() in IMAGE_SUFFIXES else image.with_name(image.name + ".png")


def images_below(folder: Path, but: Iterable[Path] = ()) -> list[Path]:
    """All images below a folder by their suffix, sorted; not those below one of `but`. DataError if it is no folder."""
    if not folder.is_dir():
        raise DataError(f"{folder} should be a folder of images, but there is none of this name: correct the path")
    but = {path.resolve() for path in but}
    found = [path for path in search(folder, "**") if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
    return [path for path in found if not but & set(path.resolve().parents)]


def inner_path(text: str) -> Optional[PurePosixPath]:
    """A path from an annotation, on any system, below some folder; None if it leads out of every folder."""
    path = PurePosixPath(text.replace("\\", "/"))
    parts = [part for part in path.parts if part != "."]
    is_inside = parts and ".." not in parts and not path.is_absolute() and ":" not in parts[0] and "\0" not in text
    return PurePosixPath(*parts) if is_inside else None


def report(left_out: Sequence[LeftOut], shown: int = 3) -> str:
    """What was left out, by kind, with the first few of each; empty if nothing was."""
    lines = []
    for kind, count in Counter(item.kind for item in left_out).most_common():
        items = [item for item in left_out if item.kind == kind]
        files = len({item.file for item in items})
        lines.append(f"{kind}: {count} in {files} file{'s' * (files > 1)}")
        lines += [f"    {item}" for item in items[:shown]]
        lines += [f"    and {count - shown} more"] if count > shown else []
    return "\n".join(lines)
