# SPDX-License-Identifier: Apache-2.0
"""Images as a Python program hands them over: paths, bytes, files, Pillow's, NumPy's."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, Any, Optional, Union

import numpy as np
from PIL import Image

from hmsa.datasets.bands import decoded_bands, read_bands
from hmsa.datasets.images import from_pil
from hmsa.datasets.transforms import DIVISORS
from hmsa.errors import UsageError

OneImage = Union[str, "os.PathLike[str]", bytes, IO[bytes], Image.Image, np.ndarray]
"""A path, a file's content, an open file, a Pillow image, or pixels: uint8 [H, W, 3] RGB, or as `read_bands` gives."""


def is_one(given: Any) -> bool:
    """Whether it is one of these, and nothing to go through."""
    return isinstance(given, (str, bytes, bytearray, memoryview, os.PathLike, io.IOBase, np.ndarray, Image.Image))


def pixels_of(given: Any, name: str, max_pixels: Optional[int], in_channels: int = 3) -> np.ndarray:
    """The image that was given, upright, [H, W, C] as `read_bands` gives it, and nobody else's."""
    if isinstance(given, Image.Image):
        if in_channels == 3:
            return from_pil(given, name)
        given = np.asarray(given)
    if isinstance(given, np.ndarray):
        return (_checked(given, name) if in_channels == 3 else _checked_bands(given, name, in_channels)).copy()
    if isinstance(given, (str, os.PathLike)):
        return _file(Path(given), max_pixels, in_channels)
    if isinstance(given, io.IOBase):
        given = given.read()
    if isinstance(given, (bytes, bytearray, memoryview)):
        return decoded_bands(bytes(given), name, in_channels, max_pixels)[0]
    raise UsageError(
        f"expected {name} to be a path, bytes, a Pillow image or a NumPy array, found a {type(given).__name__}: "
        "convert it"
    )


def _file(path: Path, max_pixels: Optional[int], in_channels: int) -> np.ndarray:
    if path.is_dir():
        raise UsageError(
            f'{path}: expected an image, found a folder: give its images, seg(sorted(Path("{path}").glob("*.jpg")))'
        )
    return read_bands(path, in_channels, max_pixels)[0]


def _checked_bands(pixels: np.ndarray, name: str, in_channels: int) -> np.ndarray:
    """UsageError unless it is [H, W, C], or [H, W] of one channel, with a pixel at least."""
    given = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
    if given.ndim != 3 or given.shape[2] != in_channels or not given.size or given.dtype.name not in DIVISORS:
        raise UsageError(
            f"expected {name} to be uint8, uint16 or float32 [H, W, {in_channels}], as this model's in_channels says, "
            f"found {pixels.dtype} {list(pixels.shape)}: convert it"
        )
    return given


def _checked(pixels: np.ndarray, name: str) -> np.ndarray:
    """UsageError unless it is uint8 [H, W, 3] with a pixel at least."""
    advice = ""
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1):
        advice = "repeat the grey channel three times (np.dstack([x] * 3))"
    elif pixels.ndim == 3 and pixels.shape[2] == 4:
        advice = "leave out the fourth channel (x[:, :, :3])"
    elif pixels.ndim == 3 and pixels.shape[0] == 3 != pixels.shape[2]:
        advice = "put the channels last (x.transpose(1, 2, 0))"
    elif pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        advice = "give one image, or a list of them"
    elif pixels.dtype != np.uint8:
        advice = "scale it to 0..255 and convert it with .astype(np.uint8)"
    if advice:
        raise UsageError(
            f"expected {name} to be uint8 [H, W, 3], red, green, blue, 0 to 255, found {pixels.dtype} "
            f"{list(pixels.shape)}: {advice}"
        )
    return pixels
