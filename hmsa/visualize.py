# SPDX-License-Identifier: Apache-2.0
"""Label maps as images: PaddleSeg's palette, pseudo-colour images and overlays.

A palette is a flat list [r0, g0, b0, r1, ...] of 256 colours, values 0-255.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

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
