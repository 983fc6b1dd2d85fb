# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hmsa.datasets.drawn.labelme import Annotated, Meaning, all_labels, draw, find
from hmsa.datasets.drawn.masks import Notes
from hmsa.errors import DataError

NUMBERS = {"background": 0, "road": 1, "car": 2, "sky": 3, "__ignore__": 255}


def shape(label: str, points: Any, kind: Optional[str] = "polygon", group: Any = None, **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, "flags": {}, **more}


def rectangle(label: str, x0: float, y0: float, x1: float, y1: float, group: Any = None) -> dict[str, Any]:
    return shape(label, [[x0, y0], [x1, y1]], "rectangle", group)


def png(pixels: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def save(path: Path, *shapes: Any, size: tuple[int, int] = (6, 8), image: Any = "a.png", **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"shapes": list(shapes), "imagePath": image, "imageHeight": size[0], "imageWidth": size[1], **more}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def photo(path: Path, size: tuple[int, int] = (6, 8), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path, **options)
    return path


def mask_and_notes(folder: Path, *shapes: Any, size: tuple[int, int] = (6, 8), **meaning: Any):
    item = Annotated(save(folder / "a.json", *shapes, size=size), photo(folder / "a.png", size), Path("a.png"))
    notes = Notes("a.json")
    label = draw(item, Meaning(**{"numbers": NUMBERS, "unlabelled": 0, **meaning}), notes)
    return label, [(note.kind, note.what) for note in notes.items]


def mask_of(folder: Path, *shapes: Any, **options: Any) -> list[str]:
    """Rows of digits; nothing may be left out."""
    label, notes = mask_and_notes(folder, *shapes, **options)
    assert notes == []
    assert label is not None and label.dtype == np.uint8
    return ["".join("x" if value == 255 else str(value) for value in row) for row in label.tolist()]


# What is drawn, by hand


def test_a_polygon_holds_its_edge(tmp_path):
    triangle = shape("road", [[1, 1], [5, 1], [5, 5]])
    assert mask_of(tmp_path, triangle) == ["00000000", "01111100", "00111100", "00011100", "00001100", "00000100"]


def test_a_rectangle_by_any_two_corners_or_by_four(tmp_path):
    expected = ["00000000", "00111100", "00111100", "00000000", "00000000", "00000000"]
    assert mask_of(tmp_path, rectangle("road", 2, 1, 5, 2)) == expected
    assert mask_of(tmp_path, rectangle("road", 5, 1, 2, 2)) == expected
    four = [[2, 1], [5, 1], [5, 2], [2, 2]]
    assert mask_of(tmp_path, shape("road", four, "rectangle")) == expected
    assert mask_of(tmp_path, shape("road", four, "rotation")) == expected


def test_a_circle_by_its_centre_and_a_point_on_it(tmp_path):
    circle = shape("sky", [[3, 2], [3, 4]], "circle")
    assert mask_of(tmp_path, circle) == ["00333000", "03333300", "03333300", "03333300", "00333000", "00000000"]


def test_old_files_do_not_name_the_kind(tmp_path):
    square = {"label": "road", "points": [[0, 0], [1, 0], [1, 1], [0, 1]]}
    assert mask_of(tmp_path, square)[:3] == ["11000000", "11000000", "00000000"]
    assert mask_of(tmp_path, {**square, "shape_type": None})[:3] == ["11000000", "11000000", "00000000"]


@pytest.mark.parametrize("kind", [np.uint8, bool])
def test_a_mask_lies_at_its_first_corner(tmp_path, kind):
    bits = np.array([[1, 0, 1], [0, 1, 1]], kind)
    mask = shape("car", [[4.0, 2.0], [6.0, 3.0]], "mask", mask=png(bits))
    assert mask_of(tmp_path, mask) == ["00000000", "00000000", "00002020", "00000220", "00000000", "00000000"]


def test_a_mask_may_reach_out_of_the_image(tmp_path):
    mask = shape("car", [[-1, 4], [1, 6]], "mask", mask=png(np.ones((3, 3), np.uint8)))
    assert mask_of(tmp_path, mask)[3:] == ["00000000", "22000000", "22000000"]


def test_later_lies_over_earlier_or_as_ordered(tmp_path):
    shapes = rectangle("car", 1, 1, 3, 3), rectangle("road", 2, 2, 5, 4), rectangle("sky", 0, 0, 2, 2)
    assert mask_of(tmp_path, *shapes)[:5] == ["33300000", "33320000", "33311100", "02111100", "00111100"]
    ordered = mask_of(tmp_path, *shapes, order=("road", "car"))  # sky, which is not named, below
    assert ordered[:5] == ["33300000", "32220000", "32221100", "02221100", "00111100"]


def test_ignored_labels_and_pixels_that_nobody_drew_in(tmp_path):
    shapes = rectangle("road", 0, 0, 3, 1), rectangle("__ignore__", 1, 0, 2, 1)
    assert mask_of(tmp_path, *shapes)[:3] == ["1xx10000", "1xx10000", "00000000"]
    assert mask_of(tmp_path, *shapes, unlabelled=255)[:3] == ["1xx1xxxx", "1xx1xxxx", "xxxxxxxx"]


# Holes


def test_a_hole_shows_what_lies_below_the_shape(tmp_path):
    shapes = rectangle("road", 0, 0, 6, 4), rectangle("car", 1, 1, 5, 3), rectangle("hole", 2, 2, 3, 3)
    assert mask_of(tmp_path, *shapes)[:5] == ["11111110", "12222210", "12112210", "12112210", "11111110"]
    later = rectangle("sky", 3, 2, 4, 3)
    assert mask_of(tmp_path, *shapes, later)[2] == "12133210"  # cut out before it was drawn


def test_a_hole_with_a_group_is_cut_out_of_the_group_alone(tmp_path):
    hole = rectangle("hole", 1, 0, 2, 1, group=7)
    shapes = hole, rectangle("car", 0, 0, 3, 1, group=7), rectangle("sky", 2, 1, 4, 2, group=8)
    assert mask_of(tmp_path, *shapes)[:3] == ["20020000", "20333000", "00333000"]


def test_a_hole_of_a_hole_label_of_ones_own(tmp_path):
    shapes = rectangle("car", 0, 0, 3, 1), rectangle("window", 1, 0, 2, 1)
    assert mask_of(tmp_path, *shapes, holes=frozenset(["window"]))[:2] == ["20020000", "20020000"]


def test_what_lies_wholly_inside_its_own_group_is_a_hole(tmp_path):
    shapes = rectangle("car", 0, 0, 4, 4, group=1), rectangle("car", 1, 1, 3, 3, group=1)
    assert mask_of(tmp_path, *shapes) == ["22222000", "20002000", "20002000", "20002000", "22222000", "00000000"]


@pytest.mark.parametrize(
    "inner",
    [
        rectangle("car", 1, 1, 3, 3),  # of no group
        rectangle("car", 1, 1, 3, 3, group=2),
        rectangle("car", 0, 0, 4, 4, group=1),  # a copy
        rectangle("car", 2, 2, 4, 3, group=1),  # that shares an edge
    ],
)
def test_what_else_lies_inside_is_no_hole(tmp_path, inner):
    assert mask_of(tmp_path, rectangle("car", 0, 0, 4, 4, group=1), inner)[:5] == ["22222000"] * 5


def test_a_hole_in_nothing_is_noted(tmp_path):
    label, notes = mask_and_notes(tmp_path, rectangle("hole", 0, 0, 1, 1), rectangle("car", 4, 4, 5, 5))
    assert notes == [("hole in nothing", "shape 1 (rectangle 'hole')")]
    assert (label != 0).sum() == 4


# What is left out


@pytest.mark.parametrize(
    ("entry", "kind", "what"),
    [
        (shape("bus", [[0, 0], [3, 0], [3, 3]]), "unknown label", "shape 1 ('polygon' 'bus'): choose from"),
        (shape("Road", [[0, 0], [3, 0], [3, 3]]), "unknown label", "did you mean road?"),
        (shape("road", [[0, 0], [3, 0]], "line"), "cannot be filled", "shape 1 ('line' 'road')"),
        (shape("road", [[0, 0], [3, 0]], "linestrip"), "cannot be filled", "'linestrip'"),
        (shape("road", [[0, 0]], "point"), "cannot be filled", "'point'"),
        (shape("road", [[0, 0], [3, 3]], ["x"]), "cannot be filled", "['x']"),
        (shape("road", []), "empty", ""),
        (shape("road", [[1, 1], [2, 2]]), "empty", ""),
        (shape("road", [[1, 1], [2, 2], [4, 4], [0, 0]]), "empty", ""),
        (rectangle("road", 2, 2, 2, 5), "empty", ""),
        (shape("road", [[2, 2], [2, 2]], "circle"), "empty", ""),
        (shape("road", [[0, 0], [1, 1]], "mask", mask=png(np.zeros((2, 2), np.uint8))), "empty", ""),
        (rectangle("road", 8, 0, 12, 5), "outside the image", ""),
        (rectangle("road", 1, -9, 3, -2), "outside the image", ""),
        (shape("road", [[20, 20], [22, 20]], "circle"), "outside the image", ""),
        (rectangle("road", 1, 1, 1e6, 3), "reaches too far outside the image", ""),
        (shape("road", [[1, 1], [1e9, 2]], "circle"), "reaches too far outside the image", ""),
        (shape("road", [[1, 1], [2, 2], [3, 1]], "circle"), "broken shape", "found 3 points"),
        (shape("road", [[1, 1], [2, 2], [3, 1]], "rectangle"), "broken shape", "two or four corners, found 3"),
        (shape("road", [[1, "x"], [2, 2], [3, 1]]), "broken shape", "no list of pairs of numbers"),
        (shape("road", [[1, 2, 3], [2, 2], [3, 1]]), "broken shape", "no list of pairs of numbers"),
        (shape("road", [[1, float("nan")], [2, 2], [3, 1]]), "broken shape", "no list of pairs of numbers"),
        (shape("road", [[1, 10**400], [2, 2], [3, 1]]), "broken shape", "no list of pairs of numbers"),
        (shape("road", None), "broken shape", "no list of pairs of numbers"),
        (shape("road", [[0, 0], [1, 1]], "mask"), "broken shape", "not written in base64"),
        (shape("road", [[0, 0], [1, 1]], "mask", mask="?"), "broken shape", "not written in base64"),
        (shape("road", [[0, 0], [1, 1]], "mask", mask="aaaa"), "broken shape", "no readable PNG"),
        (shape("road", [[0, 0], [2, 1]], "mask", mask=png(np.ones((2, 2), np.uint8))), "broken shape", "2x2 pixels"),
        ({"points": [[0, 0], [3, 0], [3, 3]]}, "broken shape", "shape 1 has no label"),
        ("road", "broken shape", "shape 1 has no label"),
    ],
)
def test_what_is_left_out(tmp_path, entry, kind, what):
    label, notes = mask_and_notes(tmp_path, entry, rectangle("car", 0, 0, 0, 0), rectangle("car", 0, 0, 1, 1))
    assert [note[0] for note in notes] == [kind, "empty"]
    assert what in notes[0][1]
    assert (label != 0).sum() == 4  # the rest is drawn


def test_nothing_drawn(tmp_path):
    label, notes = mask_and_notes(tmp_path)
    assert notes == [("nothing drawn", "it has no shapes: its mask is all background")]
    assert label.shape == (6, 8) and not label.any()
    label, notes = mask_and_notes(tmp_path, shape("bus", [[0, 0], [3, 0], [3, 3]]), unlabelled=255)
    assert label is None and notes[1] == ("nothing drawn", "no shape is left: there is no mask")


# Sizes


def test_another_size_than_the_image(tmp_path):
    item = Annotated(save(tmp_path / "a.json", size=(8, 6)), photo(tmp_path / "a.png"), Path("a.png"))
    with pytest.raises(DataError, match=r"a\.png should have the size that \S+a\.json says, 6x8, but it has 8x6"):
        draw(item, Meaning(NUMBERS, 0), Notes(""))


def test_without_a_size_the_image_says_it(tmp_path):
    path = save(tmp_path / "a.json", rectangle("car", 0, 0, 9, 9), imageHeight=None, imageWidth=None)
    label = draw(Annotated(path, photo(tmp_path / "a.png"), Path("a.png")), Meaning(NUMBERS, 0), Notes(""))
    assert label is not None and label.shape == (6, 8) and (label == 2).all()


@pytest.mark.parametrize("size", [(6, 8), (8, 6)])
def test_an_image_that_exif_turns(tmp_path, size):
    """Drawn on as it is seen, or, by programs that know no EXIF, as it is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photo(tmp_path / "a.jpg", (6, 8), exif=exif)
    path = save(tmp_path / "a.json", rectangle("car", 0, 0, 1, 1), size=size)
    label = draw(Annotated(path, image, Path("a.png")), Meaning(NUMBERS, 0), Notes(""))
    assert label is not None and label.shape == size


# Which files


def test_images_are_found_however_they_are_named(tmp_path):
    root, images = tmp_path / "json", tmp_path / "images"
    expected = {
        "1/a.json": (photo(root / "1/a.JPG"), "a.JPG"),
        "2/b.json": (photo(root / "photos/b.png"), "..\\photos\\b.png"),
        "3/c.json": (photo(images / "3/c ä.png"), "C:\\Users\\me\\c ä.png"),
        "4/d.json": (photo(images / "d.png"), "d.png"),
        "5/e.json": (photo(images / "5/e.jpeg"), None),
        "6/f.json": (photo(images / "6/f.png"), "renamed.png"),
    }
    for name, (_, said) in expected.items():
        save(root / name, image=said)
    annotated, left_out = find(root, images)
    assert {str(item.path.relative_to(root)): item.image.resolve() for item in annotated} == {
        name: image for name, (image, _) in expected.items()
    }
    masks = [item.name.as_posix() for item in annotated]
    assert masks == ["1/a.png", "2/b.png", "3/c ä.png", "d.png", "5/e.png", "6/f.png"]
    assert left_out == []


def test_what_lacks_the_other(tmp_path):
    save(tmp_path / "a.json", image=photo(tmp_path / "a.png").name)
    photo(tmp_path / "Über uns.JPG")
    photo(tmp_path / "out/masks/a.png")
    save(tmp_path / "gone.json", image="gone.png")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    annotated, left_out = find(tmp_path, None, but=[tmp_path / "out"])
    assert [item.name.as_posix() for item in annotated] == ["a.png"]
    assert [(item.kind, Path(item.file).name) for item in left_out] == [
        ("cannot be read", "broken.json"),
        ("no image", "gone.json"),
        ("cannot be read", "list.json"),
        ("no annotation", "Über uns.JPG"),
    ]
    assert "it has no list of shapes" in left_out[2].what


def test_one_file_is_enough(tmp_path):
    path = save(tmp_path / "a.json", image=photo(tmp_path / "a.png").name)
    photo(tmp_path / "b.png")
    assert [item.path for item in find(path, None)[0]] == [path]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(DataError, match="but it does not exist"):
        find(tmp_path / "gone", None)
    with pytest.raises(DataError, match="but it holds none"):
        find(tmp_path, None)
    save(tmp_path / "a.json", image="gone.png")
    with pytest.raises(DataError, match="of none of 1 is the image found: name the folder of the images"):
        find(tmp_path, None)


def test_labels_of_what_can_be_filled(tmp_path):
    shapes = [rectangle(" car  park", 0, 0, 1, 1), shape("point", [[0, 0]], "point"), rectangle("hole", 0, 0, 1, 1), 3]
    save(tmp_path / "a.json", *shapes, rectangle("Bus", 0, 0, 1, 1), image=photo(tmp_path / "a.png").name)
    assert all_labels(find(tmp_path, None)[0]) == ["Bus", "car park"]


# Against OpenCV, and against anything

corners = st.lists(st.tuples(st.integers(-6, 46), st.integers(-6, 36)), min_size=3, max_size=8)


@given(corners)
@settings(max_examples=150, deadline=None)
def test_polygons_as_opencv_fills_them(tmp_path_factory, points):
    """Pillow's and OpenCV's answers differ at the edge alone."""
    folder = tmp_path_factory.mktemp("polygon")
    label, notes = mask_and_notes(folder, shape("road", points), size=(30, 40))
    filled, edge = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    whole = np.array(points, np.int32)
    cv2.fillPoly(filled, [whole], 1)
    cv2.polylines(edge, [whole], isClosed=True, color=1, thickness=3)
    if notes and notes[0][0] != "nothing drawn":
        assert notes[0][0] in ("empty", "outside the image")
        assert (filled[edge == 0] == 0).all()
    else:
        assert (label[edge == 0] == filled[edge == 0]).all()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(["road", "hole"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["label", "points"]), inner),
    max_leaves=12,
)
pairs = st.lists(st.lists(st.integers(-9, 30) | anything, min_size=2, max_size=2), max_size=5)
entries = st.fixed_dictionaries(
    {
        "label": st.sampled_from(["road", "car", "hole"]) | anything,
        "points": pairs | anything,
        "shape_type": st.sampled_from(["polygon", "rectangle", "circle", "mask", "line"]) | anything,
        "group_id": st.none() | st.integers(0, 2) | anything,
        "mask": st.just(png(np.ones((2, 2), np.uint8))) | st.text(max_size=9) | anything,
    }
)


@pytest.mark.slow
@given(
    height=st.sampled_from([6, None]) | anything,
    width=st.sampled_from([8, None]) | anything,
    shapes=st.lists(entries | anything, max_size=5) | anything,
    image=st.just("a.png") | anything,
)
@settings(max_examples=400, deadline=None)
def test_any_json_is_drawn_or_named(tmp_path_factory, height, width, shapes, image):
    folder = tmp_path_factory.mktemp("json")
    photo(folder / "a.png")
    content = {"imageHeight": height, "imageWidth": width, "shapes": shapes, "imagePath": image}
    (folder / "a.json").write_text(json.dumps(content), encoding="utf-8")
    annotated, left_out = find(folder, None)
    for item in annotated:
        assert all(isinstance(label, str) for label in item.labels)
        try:
            label = draw(item, Meaning(NUMBERS, 0), Notes(""))
        except DataError as error:
            assert str(item.path) in str(error) and "\n" not in str(error)
        else:
            assert label is not None and label.shape == (6, 8) and label.max() <= 2
    assert annotated or left_out


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_named(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "a.json").write_bytes(content)
    annotated, left_out = find(folder, None)
    assert annotated == [] and len(left_out) == 1
