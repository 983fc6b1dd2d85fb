# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np
import pytest
from color_vision import SIGHT, ciede2000, smallest_distance
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from hmsa.errors import UsageError
from hmsa.visualize import (
    DISTINCT_COLORS,
    color_palette,
    distinct_colors,
    edges,
    heat,
    heat_legend,
    highlight,
    legend,
    overlay,
    palette,
    panel_size,
    pseudo_color,
    sheet,
    sheet_width,
)


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
    assert color_palette((), [None, (4, 5, 6)]) == [*palette(1), 4, 5, 6, *palette(256)[6:]]


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


def test_panels_stand_in_rows_below_their_names():
    blue, red = (np.full((64, 200, 3), color, np.uint8) for color in ((0, 0, 200), (200, 0, 0)))
    rows = [[("one", blue), ("two", red), ("three", blue)], [("four", red)]]
    found = sheet(rows, [legend(["road"], [(10, 20, 30)], sheet_width(rows))])
    assert found.shape[1] == sheet_width(rows) == 3 * 200 + 2 * 8
    for top, left, expected in ((22, 0, blue), (22, 208, red), (22, 416, blue), (108, 0, red)):
        assert_array_equal(found[top : top + 64, left : left + 200], expected)
    for left in (0, 208, 416):
        assert found[:22, left : left + 50].min() < 50  # letters
    assert (found[172:] == (10, 20, 30)).all(axis=2).sum() > 100
    assert (panel_size(10, 5000), panel_size(600, 400), panel_size(1, 9000)) == ((1280, 3), (400, 600), (1280, 1))


def test_an_overlay_has_stronger_edges_and_leaves_some_regions_alone():
    image = np.full((5, 9, 3), 100, np.uint8)
    label = np.repeat([[0, 0, 0, 1, 1, 1, 2, 2, 2]], 5, axis=0).astype(np.uint8)
    colors = color_palette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    found = highlight(image, label, colors, 0.4, plain=[1])
    assert_array_equal(edges(label)[0], [0, 0, 1, 1, 0, 1, 1, 0, 0])
    inside, edge = [140, 60, 60], [164, 36, 36]  # 0.6 of the image; 0.36 of it
    assert_array_equal(found[2, :3], [inside, inside, edge])
    assert_array_equal(found[2, 3:6], image[2, 3:6])
    assert_array_equal(found[2, 6:], [edge[::-1], inside[::-1], inside[::-1]])
    assert_array_equal(highlight(image, label, colors, 0), image)
    assert_array_equal(highlight(image, label, colors, 1), np.reshape(colors, (256, 3))[label])


def test_heat_has_one_scale_for_all_images():
    from matplotlib import colormaps

    values = np.linspace(0, 1, 256)[None]
    right = np.rint(255 * colormaps["viridis"](values)[..., :3])
    assert_allclose(heat(values).astype(int), right, atol=1)
    assert_array_equal(heat(np.array([[0.5, -3, 7, np.nan]])), heat(np.array([[0.5, 0, 1, 0]])))
    assert (heat_legend("what it tells", 400) == heat(np.ones((1, 1)))[0, 0]).all(axis=2).any()


FLOORS = {8: 22.7, 12: 14.9, 20: 11.3}
"""Classes -> smallest distance of their colours; searches for this number of classes alone reach 24.3, 18.3, 12.8."""


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("count", FLOORS)
def test_colours_are_told_apart_by_everybody(sight, count):
    assert smallest_distance(DISTINCT_COLORS[:count], sight) >= FLOORS[count]


def test_beyond_twenty_classes_come_paddlesegs_colours():
    colors = distinct_colors(256)
    assert len(set(colors)) == 256 and colors[:20] == DISTINCT_COLORS
    assert [value for color in colors[20:] for value in color] == palette(256)[60:]


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1, 2), (50, 0, 0), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
    ],
)
def test_the_distance_of_colours_is_that_of_its_authors(one, other, distance):
    """Rows of the table of Sharma, Wu and Dalal."""
    assert ciede2000(np.array(one), np.array(other)) == pytest.approx(distance, abs=5e-5)
