# SPDX-License-Identifier: Apache-2.0
"""Pictures of a report, as text that stands in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Optional

import cv2
import numpy as np
from PIL import Image

from hmsa.visualize import color_table, heat

LONGER_SIDE = 960
"""Pixels of a picture's longer side at most."""

CROP = 176
"""Pixels of a side of a crop's three pictures."""

WRONG, RIGHT_DIMMED = (213, 60, 0), 0.35
"""Errors in error maps, red green blue; and how much of the image's brightness is left elsewhere."""


def photo(image: np.ndarray, quality: int = 78) -> str:
    """A picture, uint8 [H, W, 3] RGB, made small enough, as the address of a WebP."""
    return _address(shrunk(image), quality=quality)


def colored(label: np.ndarray, colors: Sequence[int], ignore_index: Optional[int] = None) -> str:
    """A label map, uint8 [H, W], in the colours of its classes; ignored pixels are grey."""
    label = _small(label)
    table = color_table(colors).copy()
    if ignore_index is not None:
        table[ignore_index] = 128
    return _address(table[label], lossless=True)


def heat_map(values: np.ndarray) -> str:
    """Numbers from 0 to 1, float32 [H, W], in the colours of `heat`."""
    return _address(heat(shrunk(np.asarray(values, np.float32), LONGER_SIDE // 2)), quality=70)


def errors(image: np.ndarray, wrong: np.ndarray) -> str:
    """The image in dim grey, uint8 [H, W, 3], and in red what is wrong, bool [H, W]."""
    picture = shrunk(image)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    dim = np.repeat((40 + RIGHT_DIMMED * grey)[..., None], 3, axis=2)
    share = shrunk(wrong.astype(np.float32))[..., None]
    return _address(np.rint(share * np.array(WRONG) + (1 - share) * dim).astype(np.uint8), quality=80)


def crop(
    image: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray,
    center: tuple[int, int],
    colors: Sequence[int],
    *,
    side: int,
    ignore_index: int,
    outlined: np.ndarray,
) -> str:
    """A square of the image, of its label and of the prediction, beside each other.

    Args:
        center: row and column.
        side: of the square, in pixels of the image.
        outlined: bool [H, W], what it is about.
    """
    top, left = (
        int(np.clip(middle - side // 2, 0, max(length - side, 0))) for middle, length in zip(center, label.shape)
    )
    place = np.s_[top : top + side, left : left + side]
    table = color_table(colors).copy()
    table[ignore_index] = 128
    size = (CROP, CROP)
    near = cv2.INTER_AREA if side > CROP else cv2.INTER_CUBIC
    shown = cv2.resize(np.ascontiguousarray(image[place]), size, interpolation=near)
    maps = [cv2.resize(table[classes[place]], size, interpolation=cv2.INTER_NEAREST) for classes in (label, prediction)]

    mask = cv2.resize(outlined[place].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        for picture in (shown, *maps):
            cv2.drawContours(picture, contours, -1, color, width, cv2.LINE_AA)
    gap = np.full((CROP, 4, 3), 255, np.uint8)
    return _address(np.hstack([shown, gap, maps[0], gap, maps[1]]), quality=82)


def busiest(where: np.ndarray, side: int) -> tuple[int, int]:
    """The middle, row and column, of the square of `side` pixels that holds most of `where`, bool [H, W]."""
    step = max(side // 32, 1)
    small = cv2.resize(
        where.astype(np.float32), None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA
    )  # of at least a pixel, as a side is at least as long as a step
    held = cv2.boxFilter(small, -1, (side // step, side // step), normalize=False, borderType=cv2.BORDER_CONSTANT)
    row, column = np.unravel_index(held.argmax(), held.shape)
    return int(row * step + step // 2), int(column * step + step // 2)


def crop_side(height: int, width: int) -> int:
    """Pixels of a crop's side, for images of this size."""
    return int(min(np.clip(max(height, width) // 5, 48, 320), height, width))


def shrunk(values: np.ndarray, longer_side: int = LONGER_SIDE) -> np.ndarray:
    """A picture or a map at a size that a report has room for; left as it is where it is small enough."""
    height, width = values.shape[:2]
    share = longer_side / max(height, width)
    if share >= 1:
        return values
    return cv2.resize(
        values, (max(round(width * share), 1), max(round(height * share), 1)), interpolation=cv2.INTER_AREA
    )


def _small(label: np.ndarray) -> np.ndarray:
    height, width = shrunk(np.empty(label.shape, np.uint8)).shape
    return cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)


def _address(picture: np.ndarray, **options: int | bool) -> str:
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(content, format="WEBP", method=4, **options)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
