# SPDX-License-Identifier: Apache-2.0
"""Images of any number of channels: every form they are stored in is read as what was written."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from hmsa.datasets.bands import displayed, read_bands, suffixes_of
from hmsa.datasets.find import find_images
from hmsa.datasets.images import read_image
from hmsa.errors import DataError

H, W = 37, 53
RNG = np.random.default_rng(0)


def numbers(channels: int, dtype: Any) -> np.ndarray:
    high = 2 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max + 1
    values = RNG.normal(size=(H, W, channels)) if high == 2 else RNG.integers(0, high, (H, W, channels))
    return values.astype(dtype)


def read(path: Path, channels: int, **options: Any) -> np.ndarray:
    image, orientation = read_bands(path, channels, **options)
    assert orientation == 1 and image.flags.c_contiguous
    return image


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 4, 5, 16])
@pytest.mark.parametrize("planes", ["contig", "separate", "pages"])
def test_tiffs(tmp_path: Path, channels: int, dtype: Any, planes: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    image = numbers(channels, dtype)
    stored = image if planes == "contig" else np.moveaxis(image, 2, 0)
    options = {"planarconfig": planes} if planes != "pages" and channels > 1 else {}
    compression = "lzw" if planes == "contig" else None
    tifffile.imwrite(tmp_path / "a.tif", stored.squeeze(), photometric="minisblack", compression=compression, **options)
    found = read(tmp_path / "a.tif", channels)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("stored", [np.float16, np.float64, ">f4", ">u2"])
def test_other_numbers_of_the_same_values(tmp_path: Path, stored: Any) -> None:
    image = RNG.integers(0, 2000, (H, W, 4)).astype(stored)
    np.save(tmp_path / "a.npy", image)
    found = read(tmp_path / "a.npy", 4)
    assert found.dtype == (np.uint16 if stored == ">u2" else np.float32)
    np.testing.assert_array_equal(found, image.astype(np.float64))


@pytest.mark.parametrize("order", "CF")
def test_arrays(tmp_path: Path, order: Any) -> None:
    image = numbers(6, np.uint16)
    np.save(tmp_path / "a.npy", np.asarray(image, order=order))
    np.testing.assert_array_equal(read(tmp_path / "a.npy", 6), image)
    np.save(tmp_path / "grey.npy", np.asarray(image[..., 0], order=order))
    np.testing.assert_array_equal(read(tmp_path / "grey.npy", 1), image[..., :1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pngs(tmp_path: Path, dtype: Any) -> None:
    image = numbers(4, dtype)
    cv2.imwrite(str(tmp_path / "four.png"), cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA))
    np.testing.assert_array_equal(read(tmp_path / "four.png", 4), image)
    cv2.imwrite(str(tmp_path / "grey.png"), image[..., 0])
    np.testing.assert_array_equal(read(tmp_path / "grey.png", 1), image[..., :1])
    if dtype == np.uint8:
        Image.fromarray(image[..., :2].copy(), "LA").save(tmp_path / "two.png")
        np.testing.assert_array_equal(read(tmp_path / "two.png", 2), image[..., :2])


def test_a_grey_jpeg_turned_by_its_exif_data(tmp_path: Path) -> None:
    pil = Image.fromarray(cv2.GaussianBlur(numbers(1, np.uint8)[..., 0], (0, 0), 3))
    exif = Image.Exif()
    exif[274] = 6
    pil.save(tmp_path / "a.jpg", quality=95, exif=exif)
    image, orientation = read_bands(tmp_path / "a.jpg", 1)
    assert image.shape == (W, H, 1) and orientation == 6
    np.testing.assert_array_equal(image[..., 0], np.rot90(np.asarray(Image.open(tmp_path / "a.jpg")), -1))


def test_three_channels_are_read_as_ever(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), numbers(3, np.uint16))
    np.testing.assert_array_equal(read(tmp_path / "a.png", 3), read_image(tmp_path / "a.png"))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.npy", npy(numbers(5, np.uint8)), "it has 5 channels, where in_channels in the recipe says 4; set in_chann"),
        ("a.npy", npy(numbers(40, np.uint8)), "it has 40 channels, where in_channels in the recipe says 4; give imag"),
        ("a.png", png(numbers(3, np.uint8)), "it has 3 channels, where in_channels"),
        ("a.png", png(numbers(1, np.uint8)), "it has 1 channel, where in_channels"),
        ("a.npy", npy(numbers(4, np.uint8).transpose(2, 0, 1)), "looks like channels first; save it as [height, width"),
        ("a.npy", npy(np.zeros((2, H, W, 4))), "its array has 4 dimensions; save it as [height, width, channels]"),
        ("a.npy", npy(numbers(4, np.int16)), "its numbers are int16, whose range is not known; write it in floating"),
        ("a.npy", npy(np.full((H, W, 4), None)), "its numbers are object, whose range is not known"),
        ("a.npy", npy(numbers(4, np.uint8))[:-1], "replace or remove it"),
        ("a.npy", npy(np.where(np.arange(4) == 2, np.nan, np.ones((H, W, 4)))), f"{H * W} of its numbers are not fin"),
        ("a.npy", b"\x93NUMPY\x03\0", "replace or remove it"),
        ("a.npy", npy(np.zeros((0, W, 4), np.uint8)), "its size is 53x0 pixels"),
        ("a.npy", npy(np.zeros((200, 200, 4), np.uint8)), "its size is 200x200 pixels, expected 1 to 9000"),
        ("a.png", b"nothing", "no image format is recognised"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_bands(tmp_path / name, 4, 9000)
    assert str(caught.value).startswith(f"{tmp_path / name} should be a readable image of 4 channels, but: ")
    assert sentence in str(caught.value)


def test_refused_tiffs(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"

    def refused(array: np.ndarray, **options: Any) -> str:
        tifffile.imwrite(path, array, **options)
        with pytest.raises(DataError) as caught:
            read_bands(path, 4, 9000)
        return str(caught.value)

    rows = refused(numbers(4, np.uint16), photometric="minisblack")  # as it is written where nothing else is said
    assert f"{H} pages of {W}x4 numbers, which look like its rows; write all channels into one page" in rows
    assert "it has 3 channels" in refused(numbers(3, np.uint8))
    assert "its numbers are int16" in refused(numbers(4, np.int16), planarconfig="contig", photometric="minisblack")
    assert "its axes are" in refused(np.zeros((2, 2, H, W), np.uint8), metadata={"axes": "TCYX"}, imagej=True)
    assert "expected 1 to 9000 pixels" in refused(np.zeros((100, 100, 4), np.uint8), photometric="rgb")
    tifffile.imwrite(path, numbers(4, np.uint16), planarconfig="contig", photometric="minisblack")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="replace or remove it"):
        read_bands(path, 4)


def test_without_tifffile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(numbers(4, np.uint8)).save(tmp_path / "a.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(
        DataError, match=r"tifffile where in_channels is not 3, and it is not installed; pip install .\["
    ):
        read_bands(tmp_path / "a.tif", 4)


def test_what_people_see() -> None:
    grey = displayed(np.linspace(500, 900, H * W, dtype=np.float32).reshape(H, W, 1))
    assert grey.shape == (H, W, 3) and grey.dtype == np.uint8 and (grey[..., :1] == grey).all()
    assert grey.min() == 0 and grey.max() == 255 and abs(int(grey[H // 2, W // 2, 0]) - 127) < 3
    assert (displayed(np.full((H, W, 5), 7, np.uint16)) == 0).all()  # a plain image divides by nothing
    image = numbers(3, np.uint8)
    assert displayed(image) is image or (displayed(image) == image).all()
    np.testing.assert_array_equal(displayed(numbers(6, np.uint8)).shape, (H, W, 3))


def test_arrays_are_found_where_images_have_other_channels(tmp_path: Path) -> None:
    for name in ("a.npy", "b.TIF", "c.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [file.path.name for file in find_images(str(tmp_path), suffixes=suffixes_of(4))] == ["a.npy", "b.TIF"]
    assert [file.path.name for file in find_images(str(tmp_path))] == ["b.TIF"]
