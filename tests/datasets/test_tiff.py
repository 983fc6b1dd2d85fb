# SPDX-License-Identifier: Apache-2.0
"""TIFFs as geographic tools write them: what is read is what they hold, and what is not read is told apart."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.datasets import images
from hmsa.datasets.images import read_image
from hmsa.errors import DataError

GREY, RGB, PALETTE, CMYK = 1, 2, 3, 5
H, W = 48, 80
BANDS = np.random.default_rng(0).integers(0, 256, (H, W, 8), np.uint8)


def tiff(
    array: np.ndarray, meaning: int, *, extras=(), planes=False, tile=0, big=False, order="<", kind=1, more=()
) -> bytes:
    """A TIFF of [H, W, C] without compression: in one strip, or in tiles of `tile` pixels, for each plane its own."""
    height, width, bands = array.shape
    parts = [array[..., i : i + 1] for i in range(bands)] if planes else [array]
    if tile:
        padded = [np.pad(part, ((0, -height % tile), (0, -width % tile), (0, 0))) for part in parts]
        corners = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
        parts = [part[y : y + tile, x : x + tile] for part in padded for y, x in corners]
    chunks = [part.astype(array.dtype.newbyteorder(order)).tobytes() for part in parts]
    shorts = {258: [array.itemsize * 8] * bands, 259: [1], 262: [meaning], 277: [bands], 284: [1 + planes]}
    shorts |= {339: [kind] * bands, **({338: list(extras)} if extras else {}), **dict(more)}
    longs = {256: [width], 257: [height], (324 if tile else 273): [0], (325 if tile else 279): [*map(len, chunks)]}
    longs |= {322: [tile], 323: [tile]} if tile else {278: [height]}
    size, counter, room = ("Q", "Q", 8) if big else ("I", "H", 4)
    tags = sorted([*((tag, 3, "H", v) for tag, v in shorts.items()), *((tag, 4, "I", v) for tag, v in longs.items())])
    start = 16 if big else 8
    end = start + struct.calcsize(order + counter) + len(tags) * (4 + 2 * room) + room
    outside = [(len(v) or 1) * struct.calcsize(letter) for _, _, letter, v in tags]
    first = end + sum(n for n in outside if n > room) + (len(chunks) - 1) * 4 * (len(chunks) > 1) + 8
    offsets = [first + sum(map(len, chunks[:i])) for i in range(len(chunks))]
    entries, rest = b"", b""
    for tag, number, letter, values in tags:
        values = offsets if tag in (273, 324) else values
        raw = struct.pack(f"{order}{len(values)}{letter}", *values)
        entries += struct.pack(f"{order}HH{size}", tag, number, len(values))
        entries += raw.ljust(room, b"\0") if len(raw) <= room else struct.pack(order + size, end + len(rest))
        rest += raw if len(raw) > room else b""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(f"{order}HH{size}", 8, 0, start) if big else struct.pack(order + size, start)
    directory = struct.pack(order + counter, len(tags)) + entries + b"\0" * room + rest
    return (head + directory).ljust(first, b"\0") + b"".join(chunks)


def read(folder: Path, content: bytes) -> np.ndarray:
    (folder / "tile.tif").write_bytes(content)
    return read_image(folder / "tile.tif")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("tile", [0, 16, 32])
@pytest.mark.parametrize("big", [False, True])
def test_red_green_and_blue_are_read_or_refused_however_they_lie(tmp_path, order, planes, tile, big):
    content = tiff(BANDS[..., :3], RGB, planes=planes, tile=tile, big=big, order=order)
    if big and order == ">":  # Pillow takes it for a small one
        with pytest.raises(DataError, match=r"tile\.tif .* it is a TIFF that is damaged or of a kind that is not read"):
            read(tmp_path, content)
    else:
        np.testing.assert_array_equal(read(tmp_path, content), BANDS[..., :3])


def test_grey_palette_inks_and_one_bit(tmp_path):
    grey = BANDS[..., :1]
    np.testing.assert_array_equal(read(tmp_path, tiff(grey, GREY, tile=16)), np.repeat(grey, 3, axis=2))
    Image.fromarray(grey[..., 0] > 99).save(tmp_path / "bits.tif", compression="group4")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.tif"), np.repeat((grey > 99) * np.uint8(255), 3, axis=2))
    table = BANDS[:16, :16, 0].repeat(3)
    content = tiff(grey, PALETTE, more=[(320, [int(v) * 257 for v in table[:256]] * 3)])
    np.testing.assert_array_equal(read(tmp_path, content), np.repeat(table[:256][grey], 3, axis=2))
    inks = Image.fromarray(BANDS[..., :4], mode="CMYK")
    np.testing.assert_array_equal(read(tmp_path, tiff(BANDS[..., :4], CMYK)), np.asarray(inks.convert("RGB")))


@pytest.mark.parametrize("bands", [4, 5, 6])
def test_what_lies_behind_blue_is_left_out_and_said_once(tmp_path, monkeypatch, capsys, bands):
    monkeypatch.setattr(images, "_said", set())
    for _ in range(2):
        image = read(tmp_path, tiff(BANDS[..., :bands], RGB, extras=[0] * (bands - 3)))
        np.testing.assert_array_equal(image, BANDS[..., :3])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"tile.tif has {bands} bands: red, green and blue are read, the rest is left out" in line


def test_transparency_is_left_out_as_of_any_image(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(images, "_said", set())
    np.testing.assert_array_equal(read(tmp_path, tiff(BANDS[..., :4], RGB, extras=[2])), BANDS[..., :3])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("array", "options", "cause", "remedy"),
    [
        (BANDS[..., :3], {"meaning": GREY, "extras": [0, 0]}, "its 3 bands are marked as grey", "PHOTOMETRIC=RGB"),
        (BANDS[..., :4], {"meaning": GREY, "extras": [0] * 3}, "its 4 bands are marked as grey", "PHOTOMETRIC=RGB"),
        (BANDS, {"meaning": GREY, "extras": [0] * 7, "big": True, "tile": 16}, "its 8 bands are marked", "-b 1 -b 2"),
        (BANDS[..., :4], {"meaning": RGB, "extras": [0], "planes": True}, "4 bands are stored", "INTERLEAVE=PIXEL"),
        (BANDS, {"meaning": RGB, "extras": [0] * 5}, "it has 8 bands, and at most 6 are read", "-b 1 -b 2 -b 3"),
        (BANDS.astype(np.uint16), {"meaning": GREY}, "unsigned numbers of 16 bits, whose range is", "-ot Byte -scale"),
        (BANDS[..., :3].astype(np.uint16), {"meaning": RGB, "big": True}, "unsigned numbers of 16 bits", "-ot Byte"),
        (BANDS[..., :1].astype(np.int16), {"meaning": GREY, "kind": 2}, "signed numbers of 16 bits", "-ot Byte"),
        (BANDS[..., :1].view(np.int8), {"meaning": GREY, "kind": 2}, "signed numbers of 8 bits", "-ot Byte"),
        (BANDS[..., :3].astype(np.float32), {"meaning": RGB, "kind": 3}, "floating-point numbers of 32", "-ot Byte"),
        (BANDS[..., :1].astype(np.float64), {"meaning": GREY, "kind": 3}, "floating-point numbers of 64", "-ot Byte"),
        (BANDS[..., :3], {"meaning": 32844}, "not read (3 bands of 8 bits, photometric interpretation 32844", "gdal"),
        (BANDS[..., :3], {"meaning": RGB, "more": [(259, [34887])]}, "compression 34887)", "gdal_translate"),
    ],
)  # fmt: skip
def test_the_cause_is_named_with_the_remedy(tmp_path, capfd, array, options, cause, remedy):
    with pytest.raises(DataError) as error:
        read(tmp_path, tiff(array, **options))
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'tile.tif'} should be a readable image, but: ") and "\n" not in message
    assert cause in message and remedy in message.partition(cause)[2]
    assert "format is recognised" not in message
    assert capfd.readouterr().err == ""  # of Pillow's
