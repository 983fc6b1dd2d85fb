# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzz_images import H, W, png, with_crc
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import LABEL, PICTURE, encoded

from hmsa.datasets.images import (
    IMAGE_FORMATS,
    check_size,
    read_bytes,
    read_image,
    read_label,
    read_upright,
    starts_as_image,
)
from hmsa.errors import DataError


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_pictures_are_rgb_whoever_decodes_them(tmp_path, form):
    path = tmp_path / "picture"
    path.write_bytes(encoded(PICTURE, form, **({"lossless": True} if form == "WEBP" else {})))
    assert (read_image(path) == PICTURE).all()


def test_grey_alpha_and_jpeg_become_rgb(tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encoded(PICTURE[..., 0], "PNG"))
    assert (read_image(path) == PICTURE[..., :1]).all()
    path.write_bytes(encoded(np.dstack([PICTURE, PICTURE[..., 0]]), "PNG"))
    assert (read_image(path) == PICTURE).all()
    path.write_bytes(encoded(PICTURE, "JPEG", quality=95))
    assert np.abs(read_image(path).astype(int) - PICTURE).mean() < 4


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_pictures_are_turned_upright(tmp_path, form):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    path = tmp_path / "picture"
    path.write_bytes(encoded(PICTURE, form, exif=exif.tobytes(), quality=95))
    upright = np.rot90(PICTURE, -1)
    assert read_image(path).shape == upright.shape and read_upright(path)[1] == 6
    assert np.abs(read_image(path).astype(int) - upright).mean() < 6


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@given(st.floats(0.0, 0.9))
@settings(max_examples=15, deadline=None)
def test_half_a_picture_is_no_picture(tmp_path_factory, form, part):
    path = tmp_path_factory.mktemp("half") / "picture"
    whole = encoded(PICTURE, form)
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(DataError, match=str(path)):
        read_image(path)


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255))))
@settings(max_examples=60, deadline=None)
def test_damaged_pictures_are_read_or_named(tmp_path_factory, form, damage):
    data = bytearray(encoded(PICTURE, form))
    for place, value in damage:
        data[int(place * len(data))] = value
    path = tmp_path_factory.mktemp("damaged") / "picture"
    path.write_bytes(data)
    try:
        image = read_image(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert image.dtype == np.uint8 and image.shape[2] == 3


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_other_files_are_no_pictures(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read, expected in ((read_image, "a readable image"), (read_label, "a label image")):
        with pytest.raises(DataError, match=rf"a\.png should be {expected}.*no image format"):
            read(path)
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "missing.png")


def test_a_program_is_never_run(tmp_path, monkeypatch):
    """Pillow hands PostScript, whatever the file's ending, to Ghostscript."""
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(DataError, match=r"no image format is recognised \(PNG, JPEG,"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_label])
def test_a_pipe_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png should be a readable file, but: it is a pipe or a device"):
        read(tmp_path / "a.png")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "a.png").write_bytes(encoded(PICTURE, "PNG"))
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"a\.png should be a readable file, but: Permission denied"):
        read_image(tmp_path / "a.png")


def test_more_pixels_than_the_limit(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(PICTURE, "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PICTURE[..., 0].size - 1)
    with pytest.raises(DataError, match="its size is 36x24 pixels, expected 1 to 863 pixels in all"):
        read_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(tmp_path / "a.png").shape == PICTURE.shape


@pytest.mark.parametrize("form", sorted({*IMAGE_FORMATS, "MPO"} - {"WEBP"}))
def test_the_limit_can_be_raised_and_pillows_own_stays(tmp_path, monkeypatch, form):
    """Above twice Pillow's limit `Image.open` refuses, whatever the caller would allow."""
    path = tmp_path / "a"
    path.write_bytes(encoded(PICTURE, form))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    size = PICTURE[..., 0].size
    assert np.abs(read_image(path, size).astype(int) - PICTURE).mean() < (0.1 if form in ("PNG", "TIFF", "PPM") else 40)
    with pytest.raises(DataError, match=rf"expected 1 to {size - 1} pixels in all; .* or raise max_image_pixels"):
        read_image(path, size - 1)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("mode", ["P", "L", "1", "CMYK"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_every_kind_of_tiff_above_pillows_limit(tmp_path, monkeypatch, mode, compression):
    Image.fromarray(PICTURE).convert(mode).save(tmp_path / "a.tif", compression=compression)
    expected = read_image(tmp_path / "a.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert (read_image(tmp_path / "a.tif", 10**6) == expected).all()


def test_webp_has_a_limit_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "a.webp").write_bytes(encoded(PICTURE, "WEBP"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        DataError, match=r"a\.webp .* more than 200 pixels are too many .*; save it as PNG, JPEG or TIFF"
    ):
        read_image(tmp_path / "a.webp", 10**6)


def test_the_limit_is_that_of_labels_and_of_bytes(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(LABEL, "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert (read_label(path, LABEL.size) == LABEL).all()
    with pytest.raises(DataError, match="raise max_image_pixels"):
        read_label(path, LABEL.size - 1)
    check_size(10, 20, 200)
    with pytest.raises(ValueError, match="its size is 10x20 pixels, expected 1 to 199 pixels in all"):
        check_size(10, 20, 199)
    path.write_bytes(bytes(1601))
    assert len(read_bytes(path, 101)) == 1601
    with pytest.raises(DataError, match=r"its 1601 bytes are more than 100 pixels take; .*raise max_image_pixels"):
        read_image(path)


@pytest.mark.parametrize("text", [b"P1.jpg x.png", b"BM_0001.jpg x.png", b""])
def test_names_that_look_like_a_signature(tmp_path, text):
    (tmp_path / "list").write_bytes(text)
    assert not starts_as_image(tmp_path / "list")


def test_sixteen_bits_become_eight(tmp_path):
    values = np.array([[0, 128, 129, 255, 257, 385, 386, 65535]], np.uint16)  # 257 x 0.5 is between 128 and 129
    (tmp_path / "a.png").write_bytes(encoded(values, "PNG"))
    assert read_image(tmp_path / "a.png")[0, :, 1].tolist() == [0, 0, 1, 1, 1, 1, 2, 255]


def test_more_bits_without_a_known_range_say_what_to_do(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + bytes(4))
    with pytest.raises(DataError, match=r"a\.pgm .* more than 8 bits, which are read of PNG alone; save it as a PNG"):
        read_image(tmp_path / "a.pgm")


def test_labels_are_indices_not_colours(tmp_path):
    path = tmp_path / "label.png"
    picture = Image.fromarray(LABEL)
    picture.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200, 9, 9, 9])
    picture.save(path)
    assert picture.mode == "P"
    assert (read_label(path) == LABEL).all()


def test_labels_of_two_bytes_and_of_one_bit(tmp_path):
    path = tmp_path / "label.png"
    Image.fromarray(np.full((2, 3), 300, np.uint16)).save(path)
    assert read_label(path).tolist() == [[300] * 3] * 2
    Image.fromarray(LABEL[:2, :3] > 1).save(path)
    assert (read_label(path) == (LABEL[:2, :3] > 1)).all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_labels_of_a_few_bits_are_not_stretched(tmp_path, depth):
    """Other decoders make shades of them: of 0..3 in two bits 0, 85, 170 and 255, which is no class."""
    label = np.random.default_rng(0).integers(0, 2**depth, (H, W, 1))
    (tmp_path / "label.png").write_bytes(png(label, depth, color=0))
    assert (read_label(tmp_path / "label.png") == label[..., 0]).all()


def test_missing_rows_are_no_class(tmp_path):
    """A PNG of which every checksum is right and the last row is missing; Pillow gives zeros for it."""
    whole = png(np.ones((H - 1, W, 1)), 8, color=0)
    (tmp_path / "label.png").write_bytes(with_crc(whole[:16] + struct.pack(">II", W, H) + whole[24:]))
    for read in (read_image, read_label):
        with pytest.raises(DataError, match=r"label\.png .*its pixels are damaged or missing"):
            read(tmp_path / "label.png")


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_no_bit_of_a_label_changes_unnoticed(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("bit") / "label.png"
    data = bytearray(encoded(LABEL, "PNG"))
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(DataError, match=str(path)):
        read_label(path)


@pytest.mark.parametrize("form", ["JPEG", "BMP", "TIFF", "GIF", "PPM"])
def test_labels_are_png(tmp_path, form):
    (tmp_path / "label.png").write_bytes(encoded(LABEL, form))
    remedy = "export masks anew as PNG" if form == "JPEG" else "convert it to PNG, which keeps its numbers"
    with pytest.raises(DataError, match=rf"but: it is a {form} file.*{remedy}"):
        read_label(tmp_path / "label.png")


def test_labels_that_ask_for_a_turn(tmp_path):
    turn = Image.Exif()
    turn[0x0112] = 3
    (tmp_path / "label.png").write_bytes(encoded(LABEL, "PNG", exif=turn.tobytes()))
    with pytest.raises(DataError, match=r"label\.png .*EXIF data ask for a turn"):
        read_label(tmp_path / "label.png")


def test_a_colour_picture_is_no_label(tmp_path):
    path = tmp_path / "label.png"
    Image.fromarray(PICTURE).save(path)
    with pytest.raises(DataError, match=r"label\.png.*one channel.*it has colours"):
        read_label(path)


@pytest.mark.slow
def test_damaged_odd_and_hostile_files():
    """In a process of its own, which a decoder may crash."""
    fuzz = [sys.executable, str(Path(__file__).with_name("fuzz_images.py")), "--count", "500", "--seed", "0"]
    result = subprocess.run(fuzz, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0 and "500 files, 0 of them wrong" in result.stdout, (
        result.stdout + result.stderr[-2000:]
    )
