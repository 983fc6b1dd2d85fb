# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from hmsa.datasets.drawn import voc
from hmsa.datasets.drawn.masks import Notes
from hmsa.errors import DataError

COLORS = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
CODE = voc.coding(COLORS)
CREAM, WHITE, RED, GREEN, BLACK = (224, 224, 192), (255, 255, 255), COLORS[1], COLORS[2], COLORS[0]


def save(path: Path, colors: list[list[tuple[int, int, int]]]) -> Path:
    Image.fromarray(np.array(colors, np.uint8)).save(path)
    return path


def drawn(path: Path, *, nearest: bool = False) -> tuple[list[list[int]], list[tuple[str, str]]]:
    notes = Notes(str(path))
    label = voc.draw(path, CODE, notes, nearest=nearest)
    assert label.dtype == np.uint8
    return label.tolist(), [(note.kind, note.what) for note in notes.items]


def test_the_classes_of_voc():
    assert len(voc.VOC.names) == 21 and voc.VOC.names[15] == "person"
    assert voc.VOC.colors is not None
    assert [voc.VOC.colors[number] for number in (0, 1, 2, 15, 20)] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (192, 128, 128),
        (0, 64, 128),
    ]


def test_colors_become_numbers_and_borders_ignored(tmp_path):
    path = save(tmp_path / "a.png", [[BLACK, RED, CREAM], [WHITE, GREEN, RED]])
    assert drawn(path) == ([[0, 1, 255], [255, 2, 1]], [])


def test_a_palette_is_read_by_its_colors(tmp_path):
    image = Image.fromarray(np.array([[0, 7, 255]], np.uint8), mode="P")
    palette = [0] * 768
    palette[21:24], palette[765:768] = GREEN, CREAM
    image.putpalette(palette)
    image.save(tmp_path / "a.png")
    assert drawn(tmp_path / "a.png")[0] == [[0, 2, 255]]


def test_white_may_be_a_class(tmp_path):
    code = voc.coding((BLACK, WHITE))
    path = save(tmp_path / "a.png", [[BLACK, WHITE, CREAM]])
    assert voc.draw(path, code, Notes(""), nearest=False).tolist() == [[0, 1, 255]]


def test_stray_colors_are_ignored_or_given_the_nearest(tmp_path):
    dark, almost = (90, 10, 0), (250, 250, 250)
    path = save(tmp_path / "a.png", [[RED, dark, dark, (200, 0, 10)], [GREEN, almost, BLACK, BLACK]])
    what = "4 pixels (50.00%) of (90, 10, 0): 2, (200, 0, 10): 1, (250, 250, 250): 1"
    assert drawn(path) == ([[1, 255, 255, 255], [2, 255, 0, 0]], [("colour of no class, ignored", what)])
    assert drawn(path, nearest=True) == ([[1, 0, 0, 1], [2, 255, 0, 0]], [("given the nearest colour", what)])


def test_the_most_frequent_strays_are_shown(tmp_path):
    _, notes = drawn(save(tmp_path / "a.png", [[RED, *[(number, 9, 9) for number in range(5)], (4, 9, 9)]]))
    assert notes[0][1].endswith("of (4, 9, 9): 2, (0, 9, 9): 1, (1, 9, 9): 1 and 2 more colours")


def test_a_jpeg_is_read_by_the_nearest(tmp_path):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = RED
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=80)
    label, notes = drawn(tmp_path / "a.jpg", nearest=True)
    assert (np.array(label)[:, :14] == 0).all() and (np.array(label)[:, 18:] == 1).all()
    assert notes


@pytest.mark.parametrize(
    ("color", "remedy"),
    [((3, 3, 3), "its numbers may be class numbers already"), ((3, 4, 5), "name the colours of the classes")],
)
def test_masks_of_other_colors(tmp_path, color, remedy):
    path = save(tmp_path / "a.png", [[color, color]])
    with pytest.raises(DataError, match=rf"only \({color[0]}, {color[1]}, {color[2]}\): 2: {remedy}"):
        drawn(path)


def test_colors_that_tell_nothing_apart():
    with pytest.raises(DataError, match=r"classes 0 and 2 should differ in colour, but both have \(1, 2, 3\)"):
        voc.coding(((1, 2, 3), (4, 5, 6), (1, 2, 3)))


def test_which_files(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        voc.find(tmp_path / "gone")
    with pytest.raises(DataError, match="holds none"):
        voc.find(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("a ä.PNG", "sub/b.bmp", "out/c.png"):
        save(tmp_path / name, [[RED]])
    (tmp_path / "notes.txt").touch()
    paths = voc.find(tmp_path, but=[tmp_path / "out"])
    names = [task.name.as_posix() for task in voc.tasks(paths, tmp_path, CODE, nearest=False)]
    assert names == ["a ä.png", "sub/b.png"]


@given(arrays(np.uint8, (5, 4, 3), elements=st.sampled_from([0, 1, 127, 128, 192, 224, 254, 255])), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_pixel_by_hand(tmp_path_factory, image, nearest):
    image[0, 0] = RED
    path = tmp_path_factory.mktemp("masks") / "a.png"
    Image.fromarray(image).save(path)
    label = voc.draw(path, CODE, Notes(""), nearest=nearest)
    known = {BLACK: 0, RED: 1, GREEN: 2, CREAM: 255, WHITE: 255}
    for color, number in zip(image.reshape(-1, 3).tolist(), label.ravel().tolist()):
        distances = {other: sum((a - b) ** 2 for a, b in zip(other, color)) for other in known}
        fitting = {known[other] for other, distance in distances.items() if distance == min(distances.values())}
        assert number in (fitting if nearest else {known.get(tuple(color), 255)})
