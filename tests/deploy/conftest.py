# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of three images: of even size, of odd size, upright."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for height, width in ((64, 96), (75, 129), (128, 72)):
        patches = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
        patches.resize((width, height), Image.Resampling.BILINEAR).save(folder / f"{width}x{height}.png")
    return folder


def add_chunk(png, name, content):
    """A PNG with another chunk before its pixels."""
    start = png.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return png[:start] + chunk + png[start:]


@pytest.fixture(scope="session")
def kinds_of_images(tmp_path_factory):
    """Images of every kind that people have, smooth and noisy at once; sorted paths."""
    folder = tmp_path_factory.mktemp("kinds")
    rng = np.random.default_rng(5)

    def drawn(height, width, mode="RGB"):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noisy = np.clip(np.asarray(coarse, np.int16) + rng.integers(-12, 12, (height, width, 3)), 0, 255)
        return Image.fromarray(noisy.astype(np.uint8)).convert(mode)

    def turned(orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        return exif

    drawn(96, 160).save(folder / "plain.png")
    drawn(97, 161).save(folder / "odd.png")
    drawn(150, 70).save(folder / "portrait.jpg", quality=90)
    drawn(20, 20).save(folder / "20x20.png")
    drawn(77, 91, "L").save(folder / "grey.jpg")
    drawn(64, 96).quantize(64).save(folder / "palette.png", transparency=3)
    drawn(64, 96, "1").save(folder / "bits.png")
    drawn(60, 90, "RGBA").save(folder / "rgba.png")
    drawn(60, 90, "LA").save(folder / "grey_alpha.png")
    drawn(60, 90, "CMYK").save(folder / "cmyk.jpg")
    drawn(61, 93).save(folder / "progressive.jpg", progressive=True, subsampling=2, quality=70)
    for orientation in range(2, 9):
        drawn(48, 80).save(folder / f"turned{orientation}.jpg", exif=turned(orientation), subsampling=1)
    drawn(48, 80).save(folder / "turned.png", exif=turned(6))
    xmp = b'<x tiff:Orientation="8"/>'
    drawn(48, 80).save(folder / "xmp.jpg", xmp=xmp)
    deep = rng.integers(0, 65536, (40, 56), np.uint16)
    Image.fromarray(deep).save(folder / "16bit.png")

    # What says how colours are to be shown changes no number.
    drawn(40, 56).save(folder / "gamma.png")
    png = add_chunk((folder / "gamma.png").read_bytes(), b"gAMA", struct.pack(">I", 100000))
    (folder / "gamma.png").write_bytes(add_chunk(png, b"tRNS", struct.pack(">3H", 1, 2, 3)))
    return sorted(folder.iterdir())
