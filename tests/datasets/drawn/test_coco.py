# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from hmsa.datasets.drawn import coco
from hmsa.datasets.drawn.coco import Meaning
from hmsa.datasets.drawn.masks import Notes
from hmsa.errors import DataError, UsageError

pycocotools = pytest.importorskip("pycocotools.mask")

H, W = 4, 6
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 1, "name": "person"}]
NUMBERS = {"background": 0, "person": 1, "car": 2, "toothbrush": 3}


def photo(path: Path, size: tuple[int, int] = (H, W)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    return path


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    """A polygon that covers the pixels from (x0, y0) to before (x1, y1)."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def annotation(category: Any, segmentation: Any, number: Any = 1, image: Any = 7, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": 0,
        **more,
    }


def save(folder: Path, *annotations: Any, images: Any = None, categories: Any = CATEGORIES) -> Path:
    entries = [{"id": 7, "file_name": "a.png", "height": H, "width": W}] if images is None else images
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": entries, "categories": categories, "annotations": list(annotations)}))
    return path


def mask_and_notes(folder: Path, *annotations: Any, size: tuple[int, int] = (H, W), **meaning: Any):
    photo(folder / "images/a.png", size)
    images = [{"id": 7, "file_name": "a.png", "height": size[0], "width": size[1]}]
    read = coco.read(save(folder, *annotations, images=images), folder / "images")
    notes = Notes("a.png")
    label = coco.draw(read, read.images[0], Meaning(**{"numbers": NUMBERS, "unlabelled": 0, **meaning}), notes)
    return label, [(note.kind, note.what) for note in notes.items]


def mask_of(folder: Path, *annotations: Any, **options: Any) -> list[str]:
    """Rows of digits; nothing may be left out."""
    label, notes = mask_and_notes(folder, *annotations, **options)
    assert notes == []
    assert label is not None and label.dtype == np.uint8
    return ["".join("x" if value == 255 else str(value) for value in row) for row in label.tolist()]


# What is drawn, by hand


def test_polygons_of_categories_with_gaps(tmp_path):
    two = [*box(0, 0, 1, 1), *box(4, 2, 6, 4)]
    shapes = annotation(90, two), annotation(3, box(1, 1, 3, 3))
    assert mask_of(tmp_path, *shapes) == ["300000", "022000", "022033", "000033"]


@pytest.mark.parametrize("counts", [[5, 2, 2, 2, 13], "5220;"])
def test_run_lengths_go_down_the_columns(tmp_path, counts):
    """Five pixels outside, two inside (the second column's rows 1 and 2), two outside, two inside, 13 outside. As text
    the fourth is 2 - 2 and the fifth 13 - 2, each a character from "0" on."""
    shape = annotation(3, {"size": [H, W], "counts": counts})
    assert mask_of(tmp_path, shape) == ["000000", "022000", "022000", "000000"]


def test_smaller_lies_over_larger_or_later_over_earlier(tmp_path):
    shapes = annotation(1, box(1, 1, 2, 2)), annotation(3, box(0, 0, 3, 3)), annotation(90, box(2, 2, 4, 4))
    assert mask_of(tmp_path, *shapes) == ["222000", "212000", "223300", "003300"]
    assert mask_of(tmp_path, *shapes, order="file") == ["222000", "222000", "223300", "003300"]
    assert mask_of(tmp_path, *reversed(shapes), order="file") == ["222000", "212000", "222300", "003300"]


def test_crowds(tmp_path):
    crowd = annotation(1, {"size": [H, W], "counts": [0, 8, 16]}, iscrowd=1)
    assert mask_of(tmp_path, crowd) == ["110000"] * 4
    assert mask_of(tmp_path, crowd, crowd_is_class=False) == ["xx0000"] * 4


def test_pixels_that_nobody_drew_in(tmp_path):
    assert mask_of(tmp_path, annotation(3, box(0, 0, 6, 2)), unlabelled=255) == ["222222", "222222", "xxxxxx", "xxxxxx"]


# What is left out


@pytest.mark.parametrize(
    ("entry", "kind", "what"),
    [
        (annotation(2, box(0, 0, 1, 1)), "unknown category", "annotation 1 (None): there is no category 2"),
        (annotation([], box(0, 0, 1, 1)), "unknown category", "there is no category []"),
        (annotation(3, None), "empty", "annotation 1 ('car'): it has no segmentation"),
        (annotation(3, []), "empty", "it has no segmentation"),
        (annotation(3, [[]]), "empty", "fewer than three corners"),
        (annotation(3, [[0, 0, 1, 1]]), "empty", "fewer than three corners"),
        (annotation(3, [[0, 0, 1, 1, 2]]), "cannot be filled", "an odd count of numbers"),
        (annotation(3, [[0, 0, 1, 1, "x", 3]]), "cannot be filled", "no list of numbers"),
        (annotation(3, [3]), "cannot be filled", "no list of numbers"),
        (annotation(3, "polygon"), "cannot be filled", "neither polygons nor run lengths"),
        (annotation(3, box(7, 0, 9, 2)), "empty", "it covers no pixel of the image"),
        (annotation(3, box(-5, -5, -2, -2)), "empty", "it covers no pixel of the image"),
        (annotation(3, box(0, 0, 1e9, 2)), "reaches too far outside the image", ""),
        (annotation(3, box(0, 0, float("inf"), 2)), "reaches too far outside the image", ""),
        (annotation(3, [[0, 0, 1, 0, 10**400, 1]]), "reaches too far outside the image", ""),
        (
            annotation(3, {"size": [W, H], "counts": [24]}),
            "broken run lengths",
            "of size [6, 4], the image's is [4, 6]",
        ),
        (annotation(3, {"counts": [24]}), "broken run lengths", "of size None"),
        (annotation(3, {"size": [H, W]}), "broken run lengths", "no list of numbers and no text"),
        (annotation(3, {"size": [H, W], "counts": [24.0]}), "broken run lengths", "no list of numbers"),
        (annotation(3, {"size": [H, W], "counts": [0, 10**9]}), "broken run lengths", "should add up to 24"),
        (annotation(3, {"size": [H, W], "counts": [10**30]}), "broken run lengths", ""),
        (annotation(3, {"size": [H, W], "counts": [30, -12, 6]}), "broken run lengths", "should add up to 24"),
        (annotation(3, {"size": [H, W], "counts": [0, 23]}), "broken run lengths", "should add up to 24"),
        (annotation(3, {"size": [H, W], "counts": "~~~"}), "broken run lengths", "'~' is no part of them"),
        (annotation(3, {"size": [H, W], "counts": "52o"}), "broken run lengths", "they end too early"),
        (annotation(3, {"size": [H, W], "counts": "o" * 99}), "broken run lengths", "'o' is no part of them"),
        (annotation(3, {"size": [H, W], "counts": [24]}), "empty", "it covers no pixel of the image"),
    ],
)
def test_what_is_left_out(tmp_path, entry, kind, what):
    label, notes = mask_and_notes(tmp_path, entry, annotation(3, box(0, 0, 2, 2), 2))
    assert [note[0] for note in notes] == [kind]
    assert what in notes[0][1]
    assert (label != 0).sum() == 4  # the rest is drawn


def test_categories_that_are_no_classes(tmp_path):
    _, notes = mask_and_notes(tmp_path, annotation(3, box(0, 0, 2, 2)), numbers={"person": 0})
    assert notes[0] == ("unknown label", "annotation 1 ('car')")


def test_nothing_drawn(tmp_path):
    label, notes = mask_and_notes(tmp_path)
    assert label.shape == (H, W) and not label.any()
    assert notes == [("nothing drawn", "it has no annotation that can be drawn: its mask is all background")]
    assert mask_and_notes(tmp_path, unlabelled=255)[0] is None


def test_a_polygon_too_long_for_pycocotools(tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "_LONGEST", 9)
    _, notes = mask_and_notes(tmp_path, annotation(3, box(0, 0, 2, 2)), annotation(3, box(0, 0, 3, 2)))
    assert notes == [("cannot be filled", "annotation 1 ('car'): its edges have more than 9 pixels")]


def test_without_pycocotools(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    runs = annotation(3, {"size": [H, W], "counts": [0, 24]})
    assert mask_of(tmp_path, runs) == ["222222"] * 4
    with pytest.raises(UsageError, match=r"pip install pycocotools, or hmsa\[coco\]"):
        mask_and_notes(tmp_path, annotation(3, box(0, 0, 2, 2)))


def test_another_size_than_the_image(tmp_path):
    photo(tmp_path / "a.png", (H + 1, W))
    read = coco.read(save(tmp_path), tmp_path)
    with pytest.raises(DataError, match=r"a\.png should have the size that \S+ says, 6x4, but it has 6x5"):
        coco.draw(read, read.images[0], Meaning(NUMBERS, 0), Notes(""))


# The file


def test_images_of_one_name_in_several_folders(tmp_path):
    images = [{"id": number, "file_name": name} for number, name in enumerate(["1/a.png", "2\\a.png", "./3/a ä.png"])]
    for name in ("1/a.png", "2/a.png", "3/a ä.png"):
        photo(tmp_path / name)
    read = coco.read(save(tmp_path, annotation(3, box(0, 0, 2, 2), image=1), images=images), tmp_path)
    names = [coco.mask_of(image, tmp_path).as_posix() for image in read.images]
    assert names == ["1/a.png", "2/a.png", "3/a ä.png"] and read.left_out == []
    drawn = [coco.draw(read, image, Meaning(NUMBERS, 0), Notes("")) for image in read.images]
    assert [int(label.any()) for label in drawn if label is not None] == [0, 1, 0]


def test_what_lacks_the_other(tmp_path):
    names = ["a.png", "deep.png", "/srv/far.png", "twice.png", "gone.png", "../out.png", None, ""]
    images: list[Any] = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    images += [{"id": 0, "file_name": "a.png"}, "a.png", {"file_name": "a.png"}]
    for name in ("a.png", "1/deep.png", "2/far.png", "1/twice.png", "2/twice.png", "lonely.JPG"):
        photo(tmp_path / "images" / name)
    photo(tmp_path / "out.png")
    entries = [annotation(3, box(0, 0, 1, 1), image=number) for number in (0, 99, [1], None)]
    read = coco.read(save(tmp_path, *entries, "x", images=images), tmp_path / "images")
    assert [image.path.name for image in read.images] == ["a.png", "deep.png", "far.png"]
    notes = [(note.kind, note.what.split(" is not ")[0].split(" has no id")[0]) for note in read.left_out]
    assert notes == [
        ("no image", "image 4 ('twice.png')"),
        ("no image", "image 5 ('gone.png')"),
        ("no image", "image 6 ('../out.png')"),
        ("broken image entry", "image 7 (None)"),
        ("broken image entry", "image 8 ('')"),
        ("broken image entry", "image 9 ('a.png')"),
        ("broken image entry", "image 10 (None)"),
        ("broken image entry", "image 11 ('a.png')"),
        ("no image", "annotation 2 is of an image that the file does not have (99)"),
        ("no image", "annotation 3 is of an image that the file does not have ([1])"),
        ("no image", "annotation 4 is of an image that the file does not have (None)"),
        ("no image", "annotation 5 is of an image that the file does not have (None)"),
        *[("no annotation", f"{tmp_path / 'instances.json'} does not name it")] * 3,
    ]
    assert read.left_out[0].what.endswith("and 2 images there have its name")


def test_categories_are_numbered_by_their_ids(tmp_path):
    photo(tmp_path / "a.png")
    assert coco.read(save(tmp_path), tmp_path).table() == (("person", "car", "toothbrush"), None)
    colors = [{**entry, "color": [entry["id"], 0, 9]} for entry in CATEGORIES]
    read = coco.read(save(tmp_path, categories=[*colors, {"id": 4, "name": "car ", "color": [7, 7, 7]}]), tmp_path)
    assert read.table() == (("person", "car", "toothbrush"), ((1, 0, 9), (3, 0, 9), (90, 0, 9)))
    assert coco.repeated_names(read) == ["car"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "it is a list"),
        ("3", "it is a list"),
        ("{}", "it has no list 'images' and no list 'categories' and no list 'annotations'"),
        ('{"images": [], "categories": [], "annotations": {}}', "it has no list 'annotations'"),
        ('{"images": [], "categories": [3], "annotations": []}', "every category an id and a name, found 3"),
        ('{"images": [], "categories": [{"id": 1.5, "name": "a"}], "annotations": []}', "an id and a name"),
        (
            '{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "annotations": []}',
            "its own id, found 1 twice",
        ),
        ('{"images": [], "categories": [], "annotations": []}', "of 0 none is found"),
        ("[" * 100000, "recursion"),
        ("\udcff", "codec can't decode"),
    ],
)
def test_files_that_are_no_annotations(tmp_path, content, reason):
    path = tmp_path / "instances.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(DataError, match=r"instances\.json should") as caught:
        coco.read(path, tmp_path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


# Against pycocotools, OpenCV, and anything

bits = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 9)), elements=st.integers(0, 1))


@given(bits, st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_compressed_run_lengths_as_pycocotools_has_them(mask, times):
    mask = mask.repeat(times, axis=0)  # for runs that take several characters
    encoded = pycocotools.encode(np.asfortranarray(mask))
    runs = coco.decoded(encoded["counts"].decode())
    assert runs.sum() == mask.size
    flat = np.repeat(np.arange(len(runs)) % 2, runs)
    assert (mask == flat.reshape(mask.shape[::-1]).T).all()


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_as_run_lengths(text):
    try:
        runs = coco.decoded(text)
    except (ValueError, OverflowError):
        return
    assert runs.ndim == 1


corners = st.lists(st.tuples(st.integers(-6, 46), st.integers(-6, 36)), min_size=3, max_size=8)


@given(st.lists(corners, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_polygons_as_pycocotools_and_opencv_fill_them(tmp_path_factory, polygons):
    """As pycocotools' union does; OpenCV's answer differs at the edge alone."""
    size = height, width = (30, 40)
    flat = [[value for corner in polygon for value in corner] for polygon in polygons]
    label, notes = mask_and_notes(tmp_path_factory.mktemp("polygon"), annotation(3, flat), size=size)
    union = pycocotools.decode(pycocotools.merge(pycocotools.frPyObjects(flat, height, width)))
    assert (label == 2 * union).all()
    assert bool(notes) == (not union.any())

    filled, edge = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    for polygon in polygons:
        whole = np.array(polygon, np.int32)
        alone = np.zeros(size, np.uint8)
        cv2.fillPoly(alone, [whole], 1)
        filled |= alone
        cv2.polylines(edge, [whole], isClosed=True, color=1, thickness=3)
    assert (union[edge == 0] == filled[edge == 0]).all()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["counts", "size", "id"]), inner),
    max_leaves=12,
)
numbers = st.lists(st.integers(-9, 30) | st.floats(-50, 50), max_size=9)
segmentations = (
    st.lists(numbers | anything, max_size=3)
    | st.fixed_dictionaries({"size": st.just([H, W]) | anything, "counts": numbers | st.text(max_size=9) | anything})
    | anything
)
entries = st.fixed_dictionaries(
    {
        "id": anything,
        "image_id": st.just(7) | anything,
        "category_id": st.sampled_from([1, 3, 90, 2]) | anything,
        "segmentation": segmentations,
        "iscrowd": st.sampled_from([0, 1]) | anything,
    }
)
image_entries = st.fixed_dictionaries(
    {
        "id": st.just(7) | anything,
        "file_name": st.just("a.png") | anything,
        "height": st.sampled_from([H, None]) | anything,
        "width": st.sampled_from([W, None]) | anything,
    }
)


@pytest.mark.slow
@given(
    images=st.lists(image_entries | anything, max_size=3),
    annotations=st.lists(entries | anything, max_size=5),
    categories=st.just(CATEGORIES) | st.lists(anything, max_size=2),
)
@settings(max_examples=400, deadline=None)
def test_any_json_is_drawn_or_named(tmp_path_factory, images, annotations, categories):
    folder = tmp_path_factory.mktemp("json")
    photo(folder / "a.png")
    path = save(folder, *annotations, images=images, categories=categories)
    try:
        read = coco.read(path, folder)
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    for image in read.images:
        try:
            label = coco.draw(read, image, Meaning(NUMBERS, 0), Notes(""))
        except DataError as error:
            assert str(image.path) in str(error) and "\n" not in str(error)
        else:
            assert label is not None and label.shape == (H, W) and label.max() <= 3
