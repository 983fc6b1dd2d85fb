# SPDX-License-Identifier: Apache-2.0
"""Label maps as images: colours, pseudo-colour images, overlays, heat maps, legends and sheets of all of them.

A palette is a flat list [r0, g0, b0, r1, ...] of 256 colours, values 0-255.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hmsa.errors import UsageError


def color_palette(custom_color: Sequence[int] = (), class_colors: Sequence[Optional[Sequence[int]]] = ()) -> list[int]:
    """PaddleSeg's palette, its first colours replaced by those of `class_colors` that are not None, and these by
    `custom_color` (r0 g0 b0 r1 ...).

    Raises:
        UsageError: numbers in `custom_color` that are no colours.
    """
    if len(custom_color) % 3 or len(custom_color) > 768 or not all(0 <= value <= 255 for value in custom_color):
        raise UsageError(
            "custom colours should be R G B for up to 256 classes, each 0 to 255, but they are "
            f"{len(custom_color)} numbers from {min(custom_color)} to {max(custom_color)}",
            settings=["custom_color"],
        )
    colors = palette(256)
    for number, color in enumerate(class_colors):
        if color is not None:
            colors[3 * number : 3 * number + 3] = color
    return [*custom_color, *colors[len(custom_color) :]]


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

    Returns uint8 [H, W, 3] RGB: `image_share` of the image, the rest colour. It is what PaddleSeg makes; `highlight`
    is easier to read.
    """
    return cv2.addWeighted(image, image_share, color_table(colors)[label], 1 - image_share, 0)


def highlight(
    image: np.ndarray, label: np.ndarray, colors: Sequence[int], opacity: float = 0.4, *, plain: Collection[int] = ()
) -> np.ndarray:
    """An overlay that leaves the image readable: the edges of regions are stronger, and some of them are left alone.

    Args:
        image: uint8 [H, W, 3] RGB.
        label: uint8 [H, W].
        colors: 256 colours, see above.
        opacity: o of the colours inside of regions, 0 to 1; on edges it is 1 - (1 - o)^2.
        plain: numbers in `label` where the image is left as it is, as of a background.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    table = color_table(colors)
    shown = cv2.addWeighted(table[label], opacity, image, 1 - opacity, 0)
    edge = edges(label)
    shown[edge] = np.rint(table[label[edge]] + (1 - opacity) ** 2 * (image[edge] - table[label[edge]].astype(float)))
    kept = np.isin(label, list(plain))
    shown[kept] = image[kept]
    return shown


def edges(label: np.ndarray) -> np.ndarray:
    """Whether a pixel's neighbour to the left, to the right, above or below has another number, bool [H, W]."""
    found = np.zeros(label.shape, bool)
    for axis in (0, 1):
        differs = np.diff(label, axis=axis) != 0
        for rest in (np.s_[1:], np.s_[:-1]):
            found[(slice(None),) * axis + (rest,)] |= differs
    return found


def color_table(colors: Sequence[int]) -> np.ndarray:
    """256 colours as uint8 [256, 3]."""
    return np.asarray(colors, np.uint8).reshape(256, 3)


def heat(values: np.ndarray) -> np.ndarray:
    """Numbers from 0 (dark blue) to 1 (yellow), float [H, W], in the colours of Matplotlib's viridis: uint8 [H, W, 3]
    RGB.

    Steps look equal all along, also to people who cannot tell some colours apart. The scale never depends on the image;
    NaN counts as 0.
    """
    levels = np.rint(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1])


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


DISTINCT_COLORS: tuple[tuple[int, int, int], ...] = (
    (34, 51, 102),
    (255, 238, 17),
    (119, 17, 0),
    (0, 136, 119),
    (119, 255, 221),
    (187, 170, 255),
    (153, 17, 255),
    (187, 136, 0),
    (170, 204, 136),
    (238, 51, 119),
    (68, 187, 170),
    (153, 85, 17),
    (102, 51, 68),
    (153, 119, 170),
    (51, 0, 187),
    (153, 119, 255),
    (68, 102, 68),
    (255, 204, 255),
    (119, 85, 153),
    (204, 187, 0),
)
"""Colours that stay apart for people without one of the three kinds of cones (simulated as Machado, Oliveira and
Fernandes, 2009, do it): the first K are meant for K classes.

They were found by search. The smallest CIEDE2000 distance between any two, by usual sight and by the three kinds of
colour blindness, is at least 22.7 of the first 8, 14.9 of the first 12 and 11.3 of all 20.
"""


def distinct_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """A colour, red, green and blue, for each class: `DISTINCT_COLORS`, then PaddleSeg's palette."""
    rest = zip(*(palette(count)[channel::3] for channel in range(3)))
    return (*DISTINCT_COLORS, *list(rest)[len(DISTINCT_COLORS) :])[:count]


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
    font = lettering()
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


def heat_legend(title: str, width: Optional[int] = None) -> np.ndarray:
    """The colours of `heat` from 0 to 1 with their numbers, below a title; uint8 [h, w, 3] RGB."""
    font, side, bar = lettering(), 2 * _GAP, 256  # pixels
    picture = Image.new(
        "RGB", (max(width or 0, int(font.getlength(title)) + 2 * side, bar + 2 * side), 3 * _LINE), "white"
    )
    draw = ImageDraw.Draw(picture)
    draw.text((side, _LINE // 2), title, fill="black", font=font, anchor="lm")
    picture.paste(Image.fromarray(heat(np.tile(np.linspace(0, 1, bar), (_LINE - 6, 1)))), (side, _LINE + 2))
    for level in (0, 0.25, 0.5, 0.75, 1):
        place = side + round(level * (bar - 1))
        draw.line((place, 2 * _LINE - 4, place, 2 * _LINE), fill="black")
        draw.text((place, 2 * _LINE + 9), f"{level:g}", fill="black", font=font, anchor="mm")
    return np.asarray(picture)


def panel_size(height: int, width: int) -> tuple[int, int]:
    """Width and height, as OpenCV takes them, of an image's panels: its own, or smaller ones of at most 1280 pixels."""
    share = min(_MAX_PANEL / max(height, width), 1)
    return max(round(width * share), 1), max(round(height * share), 1)


def sheet(rows: Sequence[Sequence[tuple[str, np.ndarray]]], foot: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Panels side by side in rows, each below its name, above what explains them; uint8 [h, w, 3] RGB.

    Args:
        rows: names and pictures, uint8 [H, W, 3] RGB, all of one size, see `panel_size`.
        foot: legends.
    """
    parts = [_beside([_named(name, picture) for name, picture in row]) for row in rows]
    width = max(part.shape[1] for part in [*parts, *foot])
    return np.vstack([_widened(part, width) for part in [*parts, *foot]])


def sheet_width(rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> int:
    """Pixels that a legend below these rows has room for."""
    return max([_MIN_SHEET, *(sum(picture.shape[1] + _GAP for _, picture in row) - _GAP for row in rows)])


def _beside(pictures: Sequence[np.ndarray]) -> np.ndarray:
    between = np.full((len(pictures[0]), _GAP, 3), 255, np.uint8)
    return np.hstack([part for picture in pictures for part in (between, picture)][1:])


def _named(name: str, picture: np.ndarray) -> np.ndarray:
    """A picture below its name, which is cut to its width."""
    title = Image.new("RGB", (picture.shape[1], _LINE), "white")
    ImageDraw.Draw(title).text((2, _LINE // 2), name, fill="black", font=lettering(), anchor="lm")
    return np.vstack([np.asarray(title), picture])


def _widened(picture: np.ndarray, width: int) -> np.ndarray:
    right = width - picture.shape[1]
    return cv2.copyMakeBorder(picture, 0, 0, 0, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))


@cache
def lettering() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with Matplotlib, and knows the letters of most of Europe's languages."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")), _FONT)
