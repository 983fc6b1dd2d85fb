# SPDX-License-Identifier: Apache-2.0
"""Mean and standard deviation of a data set's images by channel, in the unit of `Normalize`."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Optional

import cv2
import numpy as np

from hmsa.datasets.bands import read_bands
from hmsa.datasets.transforms import divisor_of


@dataclass
class ChannelSums:
    """Sums over the pixels of images, which add up: exact of whole numbers, of others as exact as float64.

    `mean` and `std` are of the numbers that `Normalize` subtracts its mean from: those of the files, divided by 255
    (uint8), 65535 (uint16) or 1 (float32).
    """

    images: int = 0
    pixels: int = 0
    sums: list[Fraction] = field(default_factory=list)  # by channel
    squares: list[Fraction] = field(default_factory=list)

    def add(self, image: np.ndarray) -> None:
        """Count an image [H, W, C], as `read_bands` gives it."""
        self += sums_of(image)

    def __iadd__(self, other: ChannelSums) -> ChannelSums:
        """Count what another has counted."""
        self.images += other.images
        self.pixels += other.pixels
        self.sums = [a + b for a, b in zip(self.sums or [Fraction()] * len(other.sums), other.sums)]
        self.squares = [a + b for a, b in zip(self.squares or [Fraction()] * len(other.squares), other.squares)]
        return self

    @property
    def mean(self) -> list[float]:
        return [float(total / self.pixels) for total in self.sums]

    @property
    def std(self) -> list[float]:
        """Of all pixels (not of a sample of more)."""
        variances = [
            square / self.pixels - (total / self.pixels) ** 2 for total, square in zip(self.sums, self.squares)
        ]
        return [sqrt(max(variance, 0)) for variance in variances]


def sums_of(image: np.ndarray) -> ChannelSums:
    """The sums of an image [H, W, C]: uint8, uint16 or float32."""
    H, W, C = image.shape
    divisor = divisor_of(image)
    sums, squares = [Fraction()] * C, [Fraction()] * C
    rows = max(1, _PIXELS_AT_ONCE // W)
    for channel, top in product(range(C), range(0, H, rows)):
        total, square = _sums(image[top : top + rows], channel)
        sums[channel] += Fraction(total) / divisor
        squares[channel] += Fraction(square) / divisor**2
    return ChannelSums(1, H * W, sums, squares)


_PIXELS_AT_ONCE = 2**20  # of which there are 8 bytes each in memory beside the image


def _sums(rows: np.ndarray, channel: int) -> tuple[float, float]:
    """The sum of a channel in some rows, and that of its squares; ints of whole numbers."""
    if rows.dtype.kind != "u":
        values = rows[..., channel].astype(np.float64)
        return float(values.sum()), float(np.square(values).sum())
    size = int(np.iinfo(rows.dtype).max) + 1
    values = np.arange(size)
    # In float32, which holds these counts exactly.
    counts = cv2.calcHist([rows], [channel], None, [size], [0, size]).ravel().astype(np.int64)
    return int(counts @ values), int(counts @ values**2)


def channel_statistics(
    paths: Iterable[str | Path], *, in_channels: int = 3, max_pixels: Optional[int] = None, num_workers: int = 1
) -> ChannelSums:
    """`mean` and `std` by channel of all pixels of the images, as a recipe's `Normalize` takes them.

    Whatever the number of images, no more of them are in memory than threads; the result does not depend on their
    number, and of whole numbers not on the order of images either.

    Args:
        max_pixels: above which an image is refused; None is Pillow's limit.
        num_workers: threads that read and count.

    Raises:
        DataError: an image cannot be read, or has another number of channels.
    """
    measure = partial(_measured, in_channels=in_channels, max_pixels=max_pixels)
    total = ChannelSums()
    with ThreadPoolExecutor(num_workers) as pool:
        for sums in pool.map(measure, paths):
            total += sums
    return total


def _measured(path: str | Path, *, in_channels: int, max_pixels: Optional[int]) -> ChannelSums:
    image, _ = read_bands(path, in_channels, max_pixels)
    return sums_of(image)
