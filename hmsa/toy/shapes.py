# SPDX-License-Identifier: Apache-2.0
"""Drawn discs, squares and triangles as somebody's own images: of many sizes, with masks in any of the usual forms."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from hmsa.errors import DataError, UsageError
from hmsa.system.files import write_atomically


class Kind(NamedTuple):
    """A class of drawn things."""

    name: str
    corners: int  # of the polygon that is drawn
    material: tuple[int, int, int]  # red, green, blue, about which the things vary
    value: int  # in masks of numbers
    color: tuple[int, int, int]  # in masks of colours


BACKGROUND = Kind("background", 0, (120, 120, 116), 0, (0, 0, 0))
KINDS = (
    Kind("disc", 40, (62, 96, 190), 50, (0, 0, 255)),
    Kind("square", 4, (190, 74, 60), 100, (255, 0, 0)),
    Kind("triangle", 3, (70, 160, 76), 200, (0, 255, 0)),
)

MASKS = ("values", "colors", "binary", "labelme")
"""Forms of masks: grey values 0, 50, 100, 200; RGB colours; 0 and 255 (anything); polygons beside the images."""


class Shape(NamedTuple):
    """A drawn thing."""

    kind: Kind
    points: np.ndarray  # int32 [corners, 2] of x, y in pixels


def write_shapes(folder: str | Path, *, masks: str = "values", count: int = 40, seed: int = 0) -> None:
    """Draw `count` images as JPEG in `folder`/images, and their masks in `folder`/masks or, as polygons, beside them.

    The same arguments give the same images. Raises UsageError for arguments that do not fit, DataError where the folder
    holds anything.
    """
    root = Path(folder)
    if masks not in MASKS or count < 1 or seed < 0:
        raise UsageError(
            f"expected masks to be one of {', '.join(MASKS)}, and at least 1 image and a seed of at least 0, found "
            f"{masks}, {count} and {seed}: correct them"
        )
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} should be an empty folder or none, but holds something: choose another")

    for index in range(count):
        rng = np.random.default_rng((seed, index))
        height, width = rng.integers(140, 320, 2).tolist()
        shapes = _arranged(rng, height, width)
        name = f"shapes_{index:03d}"
        write_atomically(root / f"images/{name}.jpg", _encoded(_drawn(rng, shapes, height, width), "JPEG"))
        if masks == "labelme":
            content = json.dumps(_labelme(shapes, f"{name}.jpg", height, width), indent=1).encode()
            write_atomically(root / f"images/{name}.json", content)
        else:
            write_atomically(root / f"masks/{name}.png", _encoded(_mask(shapes, masks, height, width), "PNG"))


def _arranged(rng: np.random.Generator, height: int, width: int) -> list[Shape]:
    """Four to seven things, later ones in front; each of the kinds is there."""
    kinds = [*rng.permutation(len(KINDS)), *rng.integers(0, len(KINDS), rng.integers(1, 5))]
    shapes = []
    for kind in (KINDS[number] for number in kinds):
        radius = rng.uniform(0.12, 0.24) * min(height, width)
        x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        angles = rng.uniform(0, 2 * np.pi) + np.arange(kind.corners) * 2 * np.pi / kind.corners
        points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
        shapes.append(Shape(kind, points.round().astype(np.int32)))
    return shapes


def _drawn(rng: np.random.Generator, shapes: list[Shape], height: int, width: int) -> np.ndarray:
    """The image, uint8 [height, width, 3] RGB: speckled ground and things, each lighter on one side."""
    image = np.empty((height, width, 3), np.float32)
    image[:] = BACKGROUND.material + rng.normal(0, 12, 3)
    for shape in shapes:
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [shape.points], 1)
        image[mask == 1] = shape.kind.material + rng.normal(0, 14, 3)
    left, right = rng.uniform(0.8, 1.2, 2).tolist()
    light = np.linspace(left, right, width)[np.newaxis, :, np.newaxis]
    image = image * light + rng.normal(0, 9, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def _mask(shapes: list[Shape], form: str, height: int, width: int) -> np.ndarray:
    """The mask, uint8 [height, width] or, of colours, [height, width, 3] RGB."""
    mask = np.zeros((height, width, 3) if form == "colors" else (height, width), np.uint8)
    for shape in shapes:
        value: Any = {"values": shape.kind.value, "colors": shape.kind.color, "binary": 255}[form]
        cv2.fillPoly(mask, [shape.points], value)
    return mask


def _labelme(shapes: list[Shape], image: str, height: int, width: int) -> dict[str, Any]:
    """What the program Labelme would have written."""
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {"label": s.kind.name, "points": s.points.tolist(), "group_id": None, "shape_type": "polygon", "flags": {}}
            for s in shapes
        ],
        "imagePath": image,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _encoded(pixels: np.ndarray, form: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, form, quality=92)
    return content.getvalue()
