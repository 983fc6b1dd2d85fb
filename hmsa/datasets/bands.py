# SPDX-License-Identifier: Apache-2.0
"""Images of any number of channels, as satellites, microscopes and thermal cameras give them, read as they are stored.

A channel is a grey value or a colour's, or what a sensor saw in its band: uint8, uint16 or float32. Images of three
channels are those of `hmsa.datasets.images`, uint8 RGB. Of other numbers nothing is converted or left out: a file has
the channels of the recipe, or it is a DataError.
"""

from __future__ import annotations

import io
import logging
from math import prod
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
from PIL import Image

from hmsa.config.fields import MAX_CHANNELS
from hmsa.datasets import images
from hmsa.datasets.images import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    check_size,
    decoding,
    orientation_of,
    read_upright,
    turned,
)
from hmsa.errors import UnfitError

BAND_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
"""Of images of another number of channels than three."""

_NUMPY_START = b"\x93NUMPY"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by the header's kind of colour; a palette's are red, green, blue
_PIL_CHANNELS = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "P": 3, "RGBA": 4}
_AS_TIFF = "save it as a TIFF, a PNG or an .npy file of uint8, uint16 or floating-point numbers"
_AS_FLOAT = "write it in floating point (gdal_translate -ot Float32 in.tif out.tif), or in 8 or 16 bits without a sign"


def suffixes_of(in_channels: int) -> tuple[str, ...]:
    """Of the files that are taken for images of so many channels, in lower case."""
    return IMAGE_SUFFIXES if in_channels == 3 else BAND_SUFFIXES


def channels_in(path: str | Path) -> int:
    """What a recipe should say in `in_channels` to have all that such a file holds: 3 of what is shown as RGB.

    DataError if it cannot be read.
    """
    data = images.read_bytes(path, bytes_per_pixel=8 * MAX_CHANNELS)
    if data.startswith(images.tiff.STARTS):
        return images.tiff.channels_of(data)
    is_grey_of_16_bits = data.startswith(b"\x89PNG") and data[24:26] == b"\x10\0"  # depth and kind of colour
    return 1 if is_grey_of_16_bits else 3


def read_bands(path: str | Path, in_channels: int, max_pixels: Optional[int] = None) -> tuple[np.ndarray, int]:
    """The image [H, W, C], C = `in_channels`, turned upright, and EXIF's orientation, see `images.read_upright`.

    Three channels are uint8 RGB as there. Others are uint8, uint16 or float32, of a TIFF of any compression (read by
    tifffile; its first image, or its first stack of C planes), of an .npy file [H, W, C] or, for one channel, [H, W],
    of a PNG (grey, grey and opacity, RGB and opacity; 8 or 16 bits), or of 8 bits of one of Pillow's formats.

    Raises:
        DataError: it cannot be read, has another number of channels, or numbers that are not finite.
    """
    if in_channels == 3:
        return read_upright(path, max_pixels)
    data = images.read_bytes(path, max_pixels, bytes_per_pixel=max(16, 8 * in_channels))
    return decoded_bands(data, path, in_channels, max_pixels)


def decoded_bands(
    data: bytes, path: str | Path, in_channels: int, max_pixels: Optional[int] = None
) -> tuple[np.ndarray, int]:
    """`read_bands` of a file's content; `path` is what messages call it."""
    if in_channels == 3:
        return images.decoded(data, path, max_pixels)
    with decoding(path, f"a readable image of {in_channels} channel{'s' * (in_channels > 1)}", "replace or remove it"):
        if data.startswith(_NUMPY_START):
            image, orientation = _numpy(data, in_channels, max_pixels), 1
        elif data.startswith(images.tiff.STARTS):
            image, orientation = _tiff(data, in_channels, max_pixels)
        else:
            image, orientation = _png_or_other(data, in_channels, max_pixels)

        if image.dtype == np.float32 and not np.isfinite(image).all():
            count = int((~np.isfinite(image)).sum())
            raise UnfitError(
                f"{count} of its numbers are not finite",
                "write another number in their place, and ignore them in the label",
            )
        return turned(image, orientation), orientation


def _check_channels(found: int, in_channels: int) -> None:
    if found != in_channels:
        raise UnfitError(
            f"it has {found} channel{'s' * (found != 1)}, where in_channels in the recipe says {in_channels}",
            f"{f'set in_channels to {found}, or ' * (found <= MAX_CHANNELS)}give images of {in_channels}",
        )


def _number_type(stored: np.dtype) -> np.dtype:
    """Of the image that is made of such numbers."""
    if stored.kind == "f":
        return np.dtype(np.float32)
    if stored.kind == "u" and stored.itemsize <= 2:
        return stored.newbyteorder("=")
    raise UnfitError(f"its numbers are {stored.name}, whose range is not known", _AS_FLOAT)


def _numpy(data: bytes, in_channels: int, max_pixels: Optional[int]) -> np.ndarray:
    """The array of an .npy file; its header is a literal, and pickled objects are refused."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, is_fortran, stored = read(file)
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3:
        raise UnfitError(f"its array has {len(shape)} dimensions", "save it as [height, width, channels]")
    if shape[2] != in_channels == shape[0]:
        raise UnfitError(f"its array {list(shape)} looks like channels first", "save it as [height, width, channels]")
    _check_channels(shape[2], in_channels)
    check_size(shape[1], shape[0], max_pixels)
    made = _number_type(stored)
    array = np.frombuffer(data, stored, prod(shape), file.tell())
    return array.reshape(shape, order="F" if is_fortran else "C").astype(made)


def _tiff(data: bytes, in_channels: int, max_pixels: Optional[int]) -> tuple[np.ndarray, int]:
    try:
        import tifffile
    except ImportError:
        raise UnfitError(
            "TIFFs are read by the package tifffile where in_channels is not 3, and it is not installed",
            "pip install .[tiff]",
        ) from None

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # else it tells of every odd tag, file after file
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series: Any = file.series[0]  # the first image, or pages of one size and kind
        page = series.keyframe
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            raise UnfitError("its numbers stand for the colours of a palette", _AS_TIFF)

        # Letters of the axes: Y and X of a plane, S of a pixel's samples, others of pages.
        axes = [(letter, size) for letter, size in zip(series.axes, series.shape) if letter in "YX" or size > 1]
        letters = "".join(letter for letter, _ in axes)
        sizes = dict(axes)
        others = letters.replace("Y", "").replace("X", "")
        if len(others) > 1 or "YX" not in letters:
            raise UnfitError(
                f"its axes are {series.axes} {list(series.shape)}, which are not those of one image", _AS_TIFF
            )
        if others != "S" and sizes["X"] == in_channels != sizes.get(others):
            raise UnfitError(
                f"it has {sizes.get(others, 1)} pages of {sizes['Y']}x{sizes['X']} numbers, which look like its rows",
                "write all channels into one page (tifffile.imwrite(..., planarconfig='contig'))",
            )
        _check_channels(sizes.get(others, 1), in_channels)
        check_size(sizes["X"], sizes["Y"], max_pixels)
        made = _number_type(np.dtype(series.dtype))

        image = series.asarray(maxworkers=1).reshape([size for _, size in axes])
        if others and letters[0] == others:
            image = np.moveaxis(image, 0, -1)
        tag = page.tags.get("Orientation")
        orientation = int(tag.value) if tag is not None and tag.value in range(1, 9) else 1
        return np.ascontiguousarray(image.reshape(sizes["Y"], sizes["X"], in_channels), made), orientation


def _png_or_other(data: bytes, in_channels: int, max_pixels: Optional[int]) -> tuple[np.ndarray, int]:
    pil, data, _ = images.opened(data, IMAGE_FORMATS, max_pixels)
    if pil.format != "PNG":
        return _by_pillow(pil, data, in_channels), orientation_of(pil)

    kind = data[25]
    _check_channels(_PNG_CHANNELS.get(kind, 0), in_channels)
    image = images.decode_png(data, cv2.IMREAD_UNCHANGED)  # of four where there is opacity, blue first
    if in_channels == 1:
        image = image[..., np.newaxis]
    else:
        image = image[..., [0, 3]] if in_channels == 2 else cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
    return np.ascontiguousarray(image), orientation_of(pil)


def _by_pillow(pil: Image.Image, data: bytes, in_channels: int) -> np.ndarray:
    if pil.mode not in _PIL_CHANNELS:
        raise UnfitError(f"its pixels are of the kind {pil.mode}, which are not read as channels", _AS_TIFF)
    _check_channels(_PIL_CHANNELS[pil.mode], in_channels)
    images.load(pil, data)
    image = np.array(pil.convert("L") if pil.mode == "1" else pil)
    return image.reshape(*image.shape[:2], in_channels)


def displayed(image: np.ndarray) -> np.ndarray:
    """An image [H, W, C] for people to look at, uint8 [H, W, 3]: its first three channels, of fewer the first in grey.

    uint8 stays as it is; of other numbers, those between the 2nd and the 98th percentile of each channel are stretched
    over 0..255.
    """
    shown = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if shown.dtype == np.uint8:
        return np.ascontiguousarray(shown)
    step = max(1, round((shown.shape[0] * shown.shape[1] / 1e6) ** 0.5))  # a million pixels are enough to know
    low, high = np.percentile(shown[::step, ::step].reshape(-1, 3).astype(np.float32), (2, 98), axis=0)
    scale = 255 / np.maximum(high - low, np.finfo(np.float32).tiny)
    return np.clip(np.rint((shown - low) * scale), 0, 255).astype(np.uint8)
