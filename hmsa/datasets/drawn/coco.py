# SPDX-License-Identifier: Apache-2.0
"""COCO's JSON file: many images, their categories, and polygons or run lengths. Drawn as pycocotools draws them."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional

import numpy as np

from hmsa.datasets.drawn.masks import LeftOut, Notes, Size, Unusable, drawn_size, images_below, inner_path, mask_name
from hmsa.datasets.drawn.tables import IGNORED, Color, Table, clean
from hmsa.datasets.images import read_bytes
from hmsa.datasets.lists import is_file
from hmsa.errors import DataError, UsageError, shown

_LONGEST = 10**6  # pixels along a polygon, of each of which pycocotools keeps some 60 bytes

Entry = dict[str, Any]


class ImageEntry(NamedTuple):
    """An image of the file."""

    number: Any  # its id
    path: Path
    name: str  # as the file has it
    size: Optional[Size]  # as the file has it


@dataclass
class Annotations:
    """What a file holds."""

    path: Path
    categories: dict[Any, str]  # id -> name, by id
    colors: Optional[dict[Any, Color]]
    images: list[ImageEntry]
    of_image: dict[Any, list[Entry]]  # an image's id -> its annotations
    left_out: list[LeftOut] = field(default_factory=list)

    def table(self) -> Table:
        """The categories by id, each name once."""
        names = tuple(dict.fromkeys(self.categories.values()))
        if self.colors is None:
            return Table(names)
        first = {name: self.colors[number] for number, name in reversed(self.categories.items())}
        return Table(names, tuple(first[name] for name in names))


class Meaning(NamedTuple):
    """What categories stand for, and how they are drawn."""

    numbers: dict[str, int]  # category's name -> class, or IGNORED
    unlabelled: int
    order: Literal["area", "file"] = "area"  # smaller ones above larger ones, or later ones above earlier ones
    crowd_is_class: bool = True  # a crowd is drawn as its category, else as IGNORED


# --- The file ---


def read(path: Path, images: Path, but: Iterable[Path] = ()) -> Annotations:
    """A file of annotations whose images lie below a folder; entries that say nothing are noted.

    An image is `images` / its file_name, or the only one of that name below `images`.

    Raises:
        DataError: the file is none of COCO's, or none of its images is found.
    """
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
        lists = {key: content.get(key) for key in ("images", "categories", "annotations")}
        lacking = [key for key, value in lists.items() if not isinstance(value, list)]
        if lacking:
            raise ValueError(f"it has no list {' and no list '.join(map(repr, lacking))}")
    except (AttributeError, ValueError, RecursionError) as error:
        reason = "it is a list" if isinstance(error, AttributeError) else error
        raise DataError(
            f"{path} should be a file of COCO's form, but: {reason}; give the one with polygons (instances_*.json)"
        ) from None

    left_out: list[LeftOut] = []
    categories, colors = _categories(lists["categories"], path)
    found = _images(lists["images"], path, images, left_out)
    if not found:
        raise DataError(
            f"{path} should name images below {images}, but of {len(lists['images'])} none is found: name the folder "
            "they lie in"
        )
    known = {entry["id"] for entry in lists["images"] if isinstance(entry, dict) and _is_id(entry.get("id"))}
    of_image = defaultdict(list)
    for place, entry in enumerate(lists["annotations"], 1):
        number = entry.get("image_id") if isinstance(entry, dict) else None
        if _is_id(number) and number in known:
            of_image[number].append(entry)
        else:
            what = f"annotation {place} is of an image that the file does not have ({shown(number)})"
            left_out.append(LeftOut("no image", str(path), what))

    used = {entry.path.resolve() for entry in found}
    lonely = [image for image in images_below(images, but) if image.resolve() not in used]
    left_out += [LeftOut("no annotation", str(image), f"{path} does not name it") for image in lonely]
    return Annotations(path, categories, colors, found, dict(of_image), left_out)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str))


def _categories(entries: list[Any], path: Path) -> tuple[dict[Any, str], Optional[dict[Any, Color]]]:
    """By id, with their colours if all have one."""
    names, colors = {}, {}
    for entry in entries:
        if not isinstance(entry, dict) or not _is_id(entry.get("id")) or not isinstance(entry.get("name"), str):
            raise DataError(f"{path} should give every category an id and a name, found {shown(entry)}: correct it")
        if entry["id"] in names:
            raise DataError(f"{path} should give every category its own id, found {entry['id']} twice: correct it")
        names[entry["id"]] = clean(entry["name"])
        color = entry.get("color")
        if isinstance(color, list) and len(color) == 3 and all(value in range(256) for value in color):
            colors[entry["id"]] = tuple(map(int, color))
    ids = sorted(names, key=lambda number: (isinstance(number, str), number))
    return {number: names[number] for number in ids}, colors if colors and len(colors) == len(names) else None


def _images(entries: list[Any], path: Path, folder: Path, left_out: list[LeftOut]) -> list[ImageEntry]:
    """Those that are found, and no id twice."""
    by_name: Optional[dict[str, list[Path]]] = None
    found, ids = [], set()
    for place, entry in enumerate(entries, 1):
        number, name = (entry.get("id"), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        inner = inner_path(name) if isinstance(name, str) else None
        if not _is_id(number) or number in ids or not isinstance(name, str) or not name:
            what = f"image {place} ({shown(name)}) has no id of its own or no file_name"
            left_out.append(LeftOut("broken image entry", str(path), what))
            continue
        ids.add(number)
        image = folder / inner if inner else None
        if image is None or not is_file(image):
            if by_name is None:
                by_name = defaultdict(list)
                for other in images_below(folder):
                    by_name[other.name].append(other)
            same = by_name[re.split(r"[\\/]", name)[-1]]
            image = same[0] if len(same) == 1 else None
            if image is None:
                what = f"image {place} ({shown(name)}) is not below {folder}"
                what += f", and {len(same)} images there have its name" if same else ""
                left_out.append(LeftOut("no image", str(path), what))
                continue
        size: Any = (entry.get("height"), entry.get("width"))
        found.append(ImageEntry(number, image, name, None if size == (None, None) else size))
    return found


def mask_of(image: ImageEntry, folder: Path) -> Any:
    """The name of its mask: as the image lies below `folder`."""
    return mask_name(image.path.relative_to(folder))


# --- One image ---


def draw(annotations: Annotations, image: ImageEntry, meaning: Meaning, notes: Notes) -> Optional[np.ndarray]:
    """The mask, uint8 [H, W]: class numbers, `meaning.unlabelled` where nothing is; None if that would be all.

    DataError if the image has another size than the file says.
    """
    size = drawn_size(image.path, image.size or (None, None), annotations.path)
    drawn = []
    for entry in annotations.of_image.get(image.number, ()):
        name = annotations.categories.get(_hashable(entry.get("category_id")))
        what = f"annotation {shown(entry.get('id'))} ({shown(name)})"
        if name is None:
            notes.add("unknown category", f"{what}: there is no category {shown(entry.get('category_id'))}")
        elif name not in meaning.numbers:
            notes.add("unknown label", what)
        else:
            try:
                area = _area(entry.get("segmentation"), size)
            except Unusable as error:
                notes.add(error.kind, f"{what}: {error}")
                continue
            is_ignored = entry.get("iscrowd") == 1 and not meaning.crowd_is_class
            drawn.append((area, IGNORED if is_ignored else meaning.numbers[name]))

    if not drawn:
        reason = "it has no annotation that can be drawn"
        if meaning.unlabelled == IGNORED:
            notes.add("nothing drawn", f"{reason}: there is no mask")
            return None
        notes.add("nothing drawn", f"{reason}: its mask is all background")
    if meaning.order == "area":
        drawn.sort(key=lambda pair: -pair[0].count)
    columns = np.full(size[0] * size[1], meaning.unlabelled, np.uint8)  # pixels column by column, as COCO counts them
    for area, value in drawn:
        columns[area.pixels()] = value
    return np.ascontiguousarray(columns.reshape(size[::-1]).T)


def _hashable(value: Any) -> Any:
    return value if _is_id(value) else None


class Area(NamedTuple):
    """What an annotation covers."""

    count: int  # of pixels
    pixels: Callable[[], np.ndarray]  # bool [H * W], column by column; made when asked for, as there may be hundreds


def _area(segmentation: Any, size: Size) -> Area:
    """Of polygons or run lengths; Unusable says why there is none."""
    if segmentation in (None, [], {}):
        raise Unusable("empty", "it has no segmentation")
    if isinstance(segmentation, dict):
        runs = _given_runs(segmentation, size)
        area = Area(int(runs[1::2].sum()), lambda: np.repeat(np.arange(len(runs)) % 2 == 1, runs))
    elif isinstance(segmentation, list):
        area = _union(segmentation, size)
    else:
        raise Unusable("cannot be filled", "its segmentation is neither polygons nor run lengths")
    if not area.count:
        raise Unusable("empty", "it covers no pixel of the image")
    return area


def _given_runs(segmentation: Entry, size: Size) -> np.ndarray:
    """Lengths of runs of pixels outside and inside in turn, column by column, int64 and H * W in all."""
    counts, said = segmentation.get("counts"), segmentation.get("size")
    if said != list(size):
        raise Unusable("broken run lengths", f"its run lengths are of size {shown(said)}, the image's is {list(size)}")
    try:
        if isinstance(counts, str):
            return _checked(decoded(counts), size)
        if isinstance(counts, list) and all(type(count) is int for count in counts):
            return _checked(np.array(counts, np.int64), size)
    except (ValueError, OverflowError) as error:
        raise Unusable("broken run lengths", f"its run lengths are broken: {error}") from error
    raise Unusable("broken run lengths", "its run lengths are no list of numbers and no text")


def _checked(runs: np.ndarray, size: Size) -> np.ndarray:
    total = size[0] * size[1]
    if (runs < 0).any() or (runs > total).any() or runs.sum() != total:
        raise ValueError(f"they should add up to {total} pixels")
    return runs


def decoded(text: str) -> np.ndarray:
    """Run lengths, int64, of COCO's compressed text; ValueError if it is none.

    Each is written in groups of five bits, the lowest first, a sixth says that more follow, and the sign bit of the
    last goes on; from the fourth on it is the difference from the one two before. pycocotools does the same, but trusts
    the text: a damaged one makes it read or write elsewhere in memory.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"{character!r} is no part of them")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("they end too early")
    return np.array(runs, np.int64)


def _union(polygons: list[Any], size: Size) -> Area:
    """Of polygons [x0, y0, x1, y1, ...]."""
    mask = _pycocotools()
    checked = []
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(type(value) in (int, float) for value in polygon):
            raise Unusable("cannot be filled", "its polygon is no list of numbers")
        if len(polygon) % 2:
            raise Unusable("cannot be filled", "its polygon has an odd count of numbers")
        if len(polygon) >= 6:
            checked.append(_near(polygon, size))
    if not checked:
        raise Unusable("empty", "its polygon has fewer than three corners")
    runs = mask.merge(mask.frPyObjects(checked, *size))
    return Area(int(mask.area(runs)), lambda: mask.decode(runs).ravel("F").view(bool))


def _near(polygon: list[float], size: Size) -> list[float]:
    """The polygon, unless it is so large or far away that pycocotools would take all memory for it."""
    try:
        corners = np.array(polygon, np.float64).reshape(-1, 2)
    except OverflowError:
        corners = np.full((1, 2), math.inf)
    if not np.isfinite(corners).all() or np.abs(corners).max() > 4 * max(size):
        raise Unusable("reaches too far outside the image", "a corner is no number or lies far outside")
    if np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum() > _LONGEST:
        raise Unusable("cannot be filled", f"its edges have more than {_LONGEST} pixels")
    return corners.ravel().tolist()


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UsageError(
            f"polygons of COCO's are drawn by pycocotools, which is not there ({error}): pip install pycocotools, "
            "or hmsa[coco]"
        ) from error
    return mask


def repeated_names(annotations: Annotations) -> list[str]:
    """Names of categories that several ids have; they become one class."""
    return sorted(name for name, count in Counter(annotations.categories.values()).items() if count > 1)
