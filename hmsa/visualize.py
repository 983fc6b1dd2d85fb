# SPDX-License-Identifier: Apache-2.0
"""Label maps as images: PaddleSeg's palette, pseudo-colour images, overlays, legends and sheets of all of them.

A palette is a flat list [r0, g0, b0, r1, ...] of 256 colours, values 0-255.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hmsa.errors import UsageError


def color_palette(custom_color: Sequence[int] = (), class_colors: Sequence[Sequence[int]] = ()) -> list[int]:
    """PaddleSeg's palette, its first colours replaced by `class_colors`, and those by `custom_color` (r0 g0 b0 r1 ...).

    Raises:
        UsageError: numbers in `custom_color` that are no colours.
    """
    if len(custom_color) % 3 or len(custom_color) > 768 or not all(0 <= value <= 255 for value in custom_color):
        raise UsageError(
            "custom colours should be R G B for up to 256 classes, each 0 to 255, but they are "
            f"{len(custom_color)} numbers from {min(custom_color)} to {max(custom_color)}",
            settings=["custom_color"],
        )
    colors = [*custom_color, *[value for color in class_colors for value in color][len(custom_color) :]]
    return [*colors, *palette(256)[len(colors) :]]


def unused_color(colors: Sequence[int], count: int) -> tuple[int, int, int]:
    """A colour, red, green and blue, that none of the first `count` of a palette has: black, white, grey, ..."""
    used = {tuple(colors[3 * number : 3 * number + 3]) for number in range(count)}
    candidates = [(0, 0, 0), (255, 255, 255), (128, 128, 128), *((level, 0, level) for level in range(1, 256))]
    return next(color for color in candidates if color not in used)


def pseudo_color(label: np.ndarray, colors: Sequence[int]) -> Image.Image:
    """A label map, uint8 [H, W], as a palette image: its pixels are the classes, its colours the palette."""
    colored = Image.fromarray(label, mode="P")
    colored.putpalette(list(colors))
    return colored


def overlay(image: np.ndarray, label: np.ndarray, colors: Sequence[int], image_share: float = 0.6) -> np.ndarray:
    """Mix an image, uint8 [H, W, 3] RGB, with the colours of its label map, uint8 [H, W].

    Returns uint8 [H, W, 3] RGB: `image_share` of the image, the rest colour.
    """
    table = np.asarray(colors, np.uint8).reshape(256, 3)
    return cv2.addWeighted(image, image_share, table[label], 1 - image_share, 0)


def palette(n: int) -> list[int]:
    """PaddleSeg's palette: `n` colours as a flat list [r0, g0, b0, r1, ...] of values 0..255, n <= 256.

    The bits of index + 1 are dealt out to red, green and blue in turn, each channel filled from its highest
    bit down, so that neighbours differ most.
    """
    return [
        sum((number >> (3 * place + channel) & 1) << (7 - place) for place in range(3))
        for number in range(1, n + 1)
        for channel in range(3)
    ]


# --- Pictures for people. ---

_FONT, _LINE, _GAP = 14, 22, 8  # pixels
_MAX_NAME = 40  # characters
_MAX_PANEL = 1280  # pixels of a panel's longer side
_MIN_SHEET = 480  # pixels of a sheet's width


def legend(names: Sequence[str], colors: Sequence[Sequence[int]], width: Optional[int] = None) -> np.ndarray:
    """Names beside their colours, black on white, uint8 [h, w, 3] RGB.

    Args:
        names, colors: of the classes to show, K of each; colours are (red, green, blue).
        width: of the picture, which has as many columns as fit; one column without it.
    """
    font = _font()
    shown = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 3]}..." for name in names]
    column = max((int(font.getlength(name)) for name in shown), default=0) + _LINE + 2 * _GAP
    columns = max((width or column) // column, 1)
    rows = -(-len(shown) // columns)

    picture = Image.new("RGB", (max(width or 0, column), rows * _LINE + _GAP), "white")
    draw = ImageDraw.Draw(picture)
    for number, (name, color) in enumerate(zip(shown, colors)):
        left, top = number // rows * column + _GAP, number % rows * _LINE + _GAP // 2
        box = (left, top + 3, left + _LINE - 6, top + _LINE - 3)
        draw.rectangle(box, fill=tuple(color), outline="black")
        draw.text((left + _LINE, top + _LINE // 2), name, fill="black", font=font, anchor="lm")
    return np.asarray(picture)


def sheet(
    image: np.ndarray, label: np.ndarray, colors: Sequence[int], key: Sequence[tuple[int, str]], opacity: float
) -> np.ndarray:
    """Image, prediction and overlay side by side, above a legend; uint8 [h, w, 3] RGB.

    Large images are made smaller, so that a panel has at most 1280 pixels on its longer side.

    Args:
        image: uint8 [H, W, 3] RGB.
        label: uint8 [H, W].
        colors: 256 colours, see above.
        key: the numbers and names that the legend shows.
        opacity: of the colours in the overlay, 0 to 1.
    """
    H, W = image.shape[:2]
    share = min(_MAX_PANEL / max(H, W), 1)
    size = (max(round(W * share), 1), max(round(H * share), 1))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)

    table = np.asarray(colors, np.uint8).reshape(256, 3)
    panels = [image, table[label], overlay(image, label, colors, 1 - opacity)]
    between = np.full((size[1], _GAP, 3), 255, np.uint8)
    top = np.hstack([panels[0], between, panels[1], between, panels[2]])
    bottom = legend(
        [name for _, name in key], [table[number].tolist() for number, _ in key], max(top.shape[1], _MIN_SHEET)
    )
    width = max(top.shape[1], bottom.shape[1])
    return np.vstack([_widened(top, width), _widened(bottom, width)])


def _widened(picture: np.ndarray, width: int) -> np.ndarray:
    right = width - picture.shape[1]
    return cv2.copyMakeBorder(picture, 0, 0, 0, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with Matplotlib, and knows the letters of most of Europe's languages."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")), _FONT)
