# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from hmsa.errors import UsageError
from hmsa.visualize import color_palette, legend, overlay, palette, pseudo_color, sheet


@pytest.fixture
def label():
    return np.random.default_rng(0).integers(0, 256, (30, 40)).astype(np.uint8)


@pytest.mark.parametrize("custom_color", [[], [1, 2, 3, 40, 50, 60]])
def test_pictures_are_paddlesegs(tmp_path, label, custom_color):
    from paddleseg.utils import visualize

    colors = color_palette(custom_color)
    assert colors == visualize.get_color_map_list(256, custom_color=custom_color)

    image = np.random.default_rng(1).integers(0, 256, (30, 40, 3)).astype(np.uint8)  # RGB
    path = str(tmp_path / "image.png")
    cv2.imwrite(path, image[:, :, ::-1])
    theirs = visualize.visualize(path, label, colors, weight=0.6)[:, :, ::-1]
    assert_allclose(overlay(image, label, colors).astype(int), theirs.astype(int), atol=1)
    assert_array_equal(
        np.asarray(pseudo_color(label, colors).convert("RGB")),
        np.asarray(visualize.get_pseudo_color_map(label, colors).convert("RGB")),
    )


def test_a_pseudo_color_file_still_holds_the_classes(tmp_path, label):
    pseudo_color(label, color_palette()).save(tmp_path / "label.png")
    with Image.open(tmp_path / "label.png") as picture:
        assert picture.mode == "P"
        assert_array_equal(np.asarray(picture), label)


def test_overlay_by_hand():
    image = np.full((1, 2, 3), 100, np.uint8)
    colors = color_palette([255, 0, 0, 0, 50, 200])
    result = overlay(image, np.array([[0, 1]], np.uint8), colors)
    assert_array_equal(result, [[[162, 60, 60], [60, 80, 140]]])


@pytest.mark.parametrize("custom_color", [[1, 2], [1, 2, 256], [-1, 0, 0], [0] * 771])
def test_custom_colors_that_cannot_be(custom_color):
    with pytest.raises(UsageError, match="custom colours should be R G B"):
        color_palette(custom_color)


@pytest.mark.parametrize("n", [1, 19, 256])
def test_the_palette_is_paddlesegs(n):
    from paddleseg.utils.visualize import get_color_map_list

    assert palette(n) == get_color_map_list(n)
    assert palette(2) == [128, 0, 0, 0, 128, 0]


def test_a_class_has_the_custom_colour_or_else_its_own_or_else_the_palettes():
    colors = color_palette([1, 2, 3], [(9, 9, 9), (4, 5, 6)])
    assert colors == [1, 2, 3, 4, 5, 6, *palette(256)[6:]]
    assert color_palette([1, 2, 3] * 3, [(9, 9, 9), (4, 5, 6)]) == color_palette([1, 2, 3] * 3)


def test_a_legend_shows_every_colour():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    for width in (None, 600):
        picture = legend(["Straße", "x" * 100, "中"], colors, width)
        assert picture.dtype == np.uint8
        for color in colors:
            assert (picture == color).all(axis=2).sum() > 100
        assert (picture.sum(axis=2) == 0).any()  # letters
    assert picture.shape[1] == 600
    assert len(legend(["a", "b", "c"], colors, 600)) < len(picture)  # in columns


def test_a_sheet_is_image_prediction_and_overlay():
    image = np.full((64, 200, 3), 100, np.uint8)
    label = np.zeros((64, 200), np.uint8)
    label[:, 100:] = 255
    colors = color_palette((), [(10, 20, 30)])
    found = sheet(image, label, colors, [(0, "road"), (255, "unknown")], 0.5)
    assert found.shape[1] == 3 * 200 + 2 * 8 and found.shape[0] > 64
    prediction = np.reshape(colors, (256, 3))[label]
    for left, expected in ((0, image), (208, prediction), (416, overlay(image, label, colors, 0.5))):
        assert_array_equal(found[:64, left : left + 200], expected)
    assert (found[64:] == (10, 20, 30)).all(axis=2).sum() > 100

    large = sheet(np.zeros((10, 5000, 3), np.uint8), np.zeros((10, 5000), np.uint8), colors, [(0, "road")], 0.5)
    assert large.shape[1] == 3 * 1280 + 2 * 8
