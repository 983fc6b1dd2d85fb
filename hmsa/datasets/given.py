# SPDX-License-Identifier: Apache-2.0
"""Images as a Python program hands them over: paths, bytes, files, Pillow's, NumPy's."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, Any, Optional, Union

import numpy as np
from PIL import Image

from hmsa.datasets.images import decoded, from_pil, read_image
from hmsa.errors import UsageError

OneImage = Union[str, "os.PathLike[str]", bytes, IO[bytes], Image.Image, np.ndarray]
"""A path, a file's content, an open file, a Pillow image, or pixels: uint8 [H, W, 3] RGB."""


def is_one(given: Any) -> bool:
    """Whether it is one of these, and nothing to go through."""
    return isinstance(given, (str, bytes, bytearray, memoryview, os.PathLike, io.IOBase, np.ndarray, Image.Image))


def pixels_of(given: Any, name: str, max_pixels: Optional[int]) -> np.ndarray:
    """The image that was given, upright, uint8 [H, W, 3] RGB, and nobody else's."""
    if isinstance(given, np.ndarray):
        return _checked(given, name).copy()
    if isinstance(given, Image.Image):
        return from_pil(given, name)
    if isinstance(given, (str, os.PathLike)):
        return _file(Path(given), max_pixels)
    if isinstance(given, io.IOBase):
        given = given.read()
    if isinstance(given, (bytes, bytearray, memoryview)):
        return decoded(bytes(given), name, max_pixels)[0]
    raise UsageError(
        f"expected {name} to be a path, bytes, a Pillow image or a NumPy array, found a {type(given).__name__}: "
        "convert it"
    )


def _file(path: Path, max_pixels: Optional[int]) -> np.ndarray:
    if path.is_dir():
        raise UsageError(
            f'{path}: expected an image, found a folder: give its images, seg(sorted(Path("{path}").glob("*.jpg")))'
        )
    return read_image(path, max_pixels)


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
