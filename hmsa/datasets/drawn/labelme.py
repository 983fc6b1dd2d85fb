# SPDX-License-Identifier: Apache-2.0
"""Labelme's JSON files, one an image: polygons, rectangles, circles and masks, drawn with Pillow as labelme draws them.

Programs that write the same form (AnyLabeling, X-AnyLabeling and others) are understood as far as the kinds of shapes
agree. Coordinates are (x, y) in pixels of the image as it is seen.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Optional

import cv2
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from hmsa.datasets.drawn.masks import LeftOut, Notes, Size, drawn_size, images_below, mask_name
from hmsa.datasets.drawn.tables import IGNORED, clean
from hmsa.datasets.find import search
from hmsa.datasets.images import IMAGE_SUFFIXES, read_bytes
from hmsa.datasets.lists import is_file
from hmsa.errors import DataError, shown, suggest

HOLES = ("hole", "_hole_", "__hole__")
"""Labels of what is cut out of a shape, unless told otherwise."""

POLYGONS = ("polygon", "rotation")  # the second is a rectangle at an angle, by its four corners
FILLED = (*POLYGONS, "rectangle", "circle", "mask")


class Annotated(NamedTuple):
    """An annotation and its image."""

    path: Path
    image: Path
    name: PurePath  # of the mask
    labels: tuple[str, ...] = ()  # of its shapes that can be filled


class Meaning(NamedTuple):
    """What labels stand for, and in which order they are drawn."""

    numbers: Mapping[str, int]  # label -> class, or IGNORED
    unlabelled: int
    holes: frozenset[str] = frozenset(HOLES)
    order: tuple[str, ...] = ()  # labels from below to above; others lie below them all, as in the file


class Shape(NamedTuple):
    """Something that fills an area."""

    place: int  # in the file, from 1
    label: str
    kind: str  # of FILLED
    points: np.ndarray  # float64 [n, 2], x and y
    group: Any  # of things that belong together; None: of none
    bitmap: Optional[Image.Image] = None  # mode L, 0 or 255; of a mask, its upper left corner at the first point

    def __str__(self) -> str:
        return f"shape {self.place} ({self.kind} {shown(self.label)})"


# --- Which files ---


def find(annotations: Path, images: Optional[Path], but: Iterable[Path] = ()) -> tuple[list[Annotated], list[LeftOut]]:
    """The annotations in a folder (or the one in a file) with their images, and those that lack the other.

    An image is where its annotation says; or has the same name in the folder `images`, in the same or no folder
    below; or has the annotation's name but for the ending. What lies below `but` is passed over.
    """
    root = annotations if annotations.is_dir() else annotations.parent
    paths = [path for path in search(root, "**") if path.suffix.lower() == ".json"] if annotations.is_dir() else []
    paths = [annotations] if annotations.is_file() else paths
    if not paths:
        found = "holds none" if annotations.is_dir() else "does not exist"
        raise DataError(f"{annotations} should hold labelme's annotations, *.json, but it {found}: correct the path")

    annotated, left_out, broken = [], [], False
    for path in tqdm(paths, unit="file", leave=False, disable=None):
        try:
            content = read(path)
        except DataError as error:
            broken = True
            left_out.append(LeftOut("cannot be read", str(path), str(error).removeprefix(f"{path} ")))
            continue
        image = _image_of(content, path, path.parent.relative_to(root), images)
        if image is None:
            left_out.append(LeftOut("no image", str(path), "its image was not found"))
        else:
            annotated.append(Annotated(path, image, _mask_name(path, image, root, images or root), _labels(content)))

    if not annotated and not broken:
        raise DataError(
            f"{annotations} should hold annotations of images that are there, but of none of {len(paths)} is the image "
            "found: name the folder of the images"
        )
    used = {item.image.resolve() for item in annotated}
    lonely = [path for path in images_below(images or root, but) if path.resolve() not in used]
    left_out += [LeftOut("no annotation", str(path), "no annotation names it") for path in lonely]
    return annotated, left_out


def _image_of(content: dict[str, Any], path: Path, folder: PurePath, images: Optional[Path]) -> Optional[Path]:
    said = content.get("imagePath")
    said = said.replace("\\", "/") if isinstance(said, str) else ""
    name = PurePath(said).name
    candidates = [path.parent / said] if name else []
    folders = [path.parent, *([images / folder, images] if images else [])]
    candidates += [place / name for place in folders if name]
    endings = [ending for suffix in IMAGE_SUFFIXES for ending in (suffix, suffix.upper())]
    candidates += [place / (path.stem + ending) for place in folders for ending in endings]
    return next(filter(is_file, candidates), None)


def _mask_name(path: Path, image: Path, root: Path, images: Path) -> PurePath:
    """As the image lies below the folder of images; of one elsewhere, as its annotation lies."""
    try:
        return mask_name(image.resolve().relative_to(images.resolve()))
    except ValueError:
        return mask_name(path.relative_to(root).with_name(image.name))


def _labels(content: dict[str, Any]) -> tuple[str, ...]:
    shapes = (shape for shape in content["shapes"] if isinstance(shape, dict) and _kind(shape) in FILLED)
    return tuple({clean(shape["label"]) for shape in shapes if isinstance(shape.get("label"), str)})


def all_labels(annotated: Iterable[Annotated], but: Iterable[str] = HOLES) -> list[str]:
    """Of shapes that can be filled, in alphabetical order."""
    found = {label for item in annotated for label in item.labels} - {"", *but}
    return sorted(found, key=lambda label: (label.casefold(), label))


# --- One file ---


def read(path: Path) -> dict[str, Any]:
    """The content of an annotation; DataError if it is none. `shapes` is a list."""
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            raise ValueError("it has no list of shapes")
    except (ValueError, RecursionError) as error:  # JSON's and Unicode's are ValueErrors
        raise DataError(f"{path} should be an annotation of labelme, but {error}: save it again or remove it") from None
    return content


def draw(item: Annotated, meaning: Meaning, notes: Notes) -> Optional[np.ndarray]:
    """The mask, uint8 [H, W]: class numbers, `meaning.unlabelled` where nothing is; None if that would be all.

    Later shapes lie over earlier ones, or as `meaning.order` says. A shape whose label is a hole's is cut out: of all
    shapes of its group, or, without one, of the last shape before it that it touches; what lies below is seen. So is a
    shape that lies wholly inside another of the same label and group.

    Raises:
        DataError: the file is none of labelme's, or its image has another size.
    """
    content = read(item.path)
    said = content.get("imageHeight"), content.get("imageWidth")
    height, width = size = drawn_size(item.image, said, item.path)
    shapes = list(_usable(content["shapes"], size, meaning, notes))
    layers = _with_holes(shapes, size, meaning.holes, notes)
    ranks = {label: rank for rank, label in enumerate(meaning.order)}
    layers.sort(key=lambda layer: ranks.get(layer[0].label, -1))
    if not layers:
        reason = "no shape is left" if content["shapes"] else "it has no shapes"
        if meaning.unlabelled == IGNORED:
            notes.add("nothing drawn", f"{reason}: there is no mask")
            return None
        notes.add("nothing drawn", f"{reason}: its mask is all background")

    canvas = Image.new("L", (width, height), meaning.unlabelled)
    for shape, holes in layers:
        if holes:
            cut = _filled(shape, size)
            for hole in holes:
                _fill(cut, hole, 0)
            canvas.paste(meaning.numbers[shape.label], (0, 0), cut)
        else:
            _fill(canvas, shape, meaning.numbers[shape.label])
    return np.array(canvas)


def _usable(entries: Sequence[Any], size: Size, meaning: Meaning, notes: Notes) -> Iterable[Shape]:
    """The shapes that have an area in the image and a label that is known; the others are noted."""
    for place, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("label"), str):
            notes.add("broken shape", f"shape {place} has no label")
            continue
        label, kind = clean(entry["label"]), _kind(entry)
        name = f"shape {place} ({shown(kind)} {shown(label)})"
        if kind not in FILLED:
            notes.add("cannot be filled", name)
            continue
        if label not in meaning.numbers and label not in meaning.holes:
            notes.add("unknown label", f"{name}: {suggest(label, meaning.numbers)}")
            continue
        try:
            shape = _shape(entry, place, label, kind)
            problem = _problem(shape, size)
        except ValueError as error:
            notes.add("broken shape", f"{name}: {error}")
            continue
        if problem:
            notes.add(problem, name)
        else:
            yield shape


def _kind(entry: dict[str, Any]) -> Any:
    """Files of before 2019 know polygons alone, and do not say so."""
    return entry.get("shape_type") or "polygon"


def _shape(entry: dict[str, Any], place: int, label: str, kind: str) -> Shape:
    """ValueError says what is wrong with it."""
    points = _points(entry.get("points"))
    if kind == "circle" and len(points) != 2:
        raise ValueError(f"expected a centre and a point of the circle, found {len(points)} points")
    if kind == "rectangle":
        if len(points) not in (2, 4):
            raise ValueError(f"expected two or four corners, found {len(points)}")
        if len(points) == 2:
            points = np.sort(points, axis=0)
        else:
            kind = "polygon"
    bitmap = None
    if kind == "mask":
        bitmap, points = _bitmap(entry.get("mask"), points)
    group = entry.get("group_id")
    return Shape(place, label, kind, points, group if isinstance(group, (int, str)) else None, bitmap)


def _points(value: Any) -> np.ndarray:
    """float64 [n, 2] of a list of pairs."""
    try:
        points = np.array([[float(x), float(y)] for x, y in value], np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("its points are no list of pairs of numbers") from None
    if not np.isfinite(points).all():
        raise ValueError("its points are no list of pairs of numbers")
    return points


def _bitmap(text: Any, points: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """A PNG in base64, and the two corners of its place, the second one still inside, as whole numbers."""
    if len(points) != 2:
        raise ValueError(f"expected two corners of the mask, found {len(points)}")
    points = np.trunc(points)
    width, height = (points[1] - points[0] + 1).tolist()
    try:
        data = base64.b64decode(text, validate=True)
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.size == (width, height):
            pixels = np.asarray(image)
    except (MemoryError, KeyboardInterrupt):
        raise
    except (binascii.Error, TypeError) as error:
        raise ValueError("its mask is not written in base64") from error
    except Exception as error:  # on damaged files Pillow raises almost anything
        raise ValueError(f"its mask is no readable PNG ({' '.join(str(error).split())})") from error
    if image.size != (width, height):
        raise ValueError(f"its mask has {image.width}x{image.height} pixels, its place {width:g}x{height:g}")
    if pixels.ndim == 3:
        pixels = pixels.any(axis=2)
    return Image.fromarray(np.where(pixels, 255, 0).astype(np.uint8)), points


def _problem(shape: Shape, size: Size) -> str:
    """Why it has no area in an image of this size; empty if it has one."""
    points = shape.points
    if shape.kind in POLYGONS and (len(points) < 3 or np.linalg.matrix_rank(points - points[:1]) < 2):
        return "empty"
    if shape.kind == "rectangle" and (points[0] == points[1]).any():
        return "empty"
    if shape.kind == "circle" and (points[0] == points[1]).all():
        return "empty"
    if shape.bitmap is not None and shape.bitmap.getbbox() is None:
        return "empty"
    lowest, highest = _bounds(shape)
    if (highest < 0).any() or (lowest > np.array(size[::-1]) - 0.5).any():
        return "outside the image"
    if max(-lowest.min(), highest.max()) > 4 * max(size):  # where Pillow draws for minutes, or something else
        return "reaches too far outside the image"
    return ""


def _bounds(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest (x, y)."""
    if shape.kind == "circle":
        radius = np.hypot(*(shape.points[1] - shape.points[0]))
        return shape.points[0] - radius, shape.points[0] + radius
    return shape.points.min(axis=0), shape.points.max(axis=0)


# --- Holes ---

Layer = tuple[Shape, list[Shape]]


def _with_holes(shapes: Sequence[Shape], size: Size, labels: frozenset[str], notes: Notes) -> list[Layer]:
    """The shapes that are seen, in the order of the file, each with what is cut out of it."""
    holes = [shape for shape in shapes if shape.label in labels]
    layers: list[Layer] = [(shape, []) for shape in shapes if shape.label not in labels]
    for hole in holes:
        owners = _owners(hole, layers, size)
        for _, cut in owners:
            cut.append(hole)
        if not owners:
            notes.add("hole in nothing", str(hole))

    inner = set()
    for shape, _ in layers:
        around = None if shape.group is None else _around(shape, layers, size)
        if around:
            around[1].append(shape)
            inner.add(shape.place)
    return [layer for layer in layers if layer[0].place not in inner]


def _owners(hole: Shape, layers: Sequence[Layer], size: Size) -> list[Layer]:
    """What a hole is cut out of."""
    if hole.group is not None:
        return [layer for layer in layers if layer[0].group == hole.group]
    area = np.asarray(_filled(hole, size))
    for layer in reversed(layers):
        shape = layer[0]
        if shape.place < hole.place and _meet(shape, hole) and (area & np.asarray(_filled(shape, size))).any():
            return [layer]
    return []


def _around(shape: Shape, layers: Sequence[Layer], size: Size) -> Optional[Layer]:
    """The layer of the same label and group in which a shape lies wholly, its edge included."""
    for layer in layers:
        other = layer[0]
        if other is shape or (other.label, other.group) != (shape.label, shape.group) or not _meet(shape, other):
            continue
        area = cv2.dilate(np.asarray(_filled(shape, size)), np.ones((3, 3), np.uint8))
        if not (area & ~np.asarray(_filled(other, size))).any():
            return layer
    return None


def _meet(one: Shape, other: Shape) -> bool:
    """Whether the boxes around two shapes do."""
    (low, high), (other_low, other_high) = _bounds(one), _bounds(other)
    return bool((low <= other_high + 1).all() and (other_low <= high + 1).all())


# --- Pillow ---


def _filled(shape: Shape, size: Size) -> Image.Image:
    """Mode L, 255 in the shape and 0 elsewhere."""
    image = Image.new("L", (size[1], size[0]), 0)
    _fill(image, shape, 255)
    return image


def _fill(image: Image.Image, shape: Shape, value: int) -> None:
    """Fill a shape with a value, its edge included, as labelme does."""
    if shape.bitmap is not None:
        image.paste(value, tuple(shape.points[0].astype(int).tolist()), shape.bitmap)
        return
    pencil = ImageDraw.Draw(image)
    corners = list(map(tuple, shape.points.tolist()))
    if shape.kind == "circle":
        low, high = _bounds(shape)
        pencil.ellipse([*low.tolist(), *high.tolist()], fill=value, outline=value)
    elif shape.kind == "rectangle":
        pencil.rectangle(corners, fill=value, outline=value)
    else:
        pencil.polygon(corners, fill=value, outline=value)
