# SPDX-License-Identifier: Apache-2.0
"""Masks that hold other values than class numbers: numbers of 8 and 16 bits, colours, several a class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hmsa.config.reading import load_config
from hmsa.datasets.classes import Classes, class_numbers
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.images import read_mask
from hmsa.errors import DataError, UsageError

TOY = Path(__file__).parents[2] / "configs/mscale_ocr_toy.yml"


def classes_of(values, ignored=(), ignore_index=255):
    return replace(
        Classes.numbered(len(values), ignore_index), values=tuple(map(tuple, values)), ignored=tuple(ignored)
    )


def written(path: Path, mask: np.ndarray) -> str:
    assert cv2.imwrite(str(path), mask if mask.ndim == 2 else mask[..., ::-1])
    return str(path)


@st.composite
def masks(draw):
    """A mask, its classes, and its label as looked up pixel by pixel."""
    kind = draw(st.sampled_from(["u8", "u16", "color"]))
    number = st.integers(0, 255 if kind == "u8" else 65535)
    value = st.tuples(*[st.integers(0, 255)] * 3) if kind == "color" else number
    values = draw(st.lists(value, min_size=3, max_size=40, unique=True))
    ignored, K = draw(st.integers(0, len(values) - 2)), draw(st.integers(2, len(values) - len(values) // 2 + 1))
    K = min(K, len(values) - ignored)
    groups = [values[ignored:][k::K] for k in range(K)]
    classes = classes_of(groups, values[:ignored], draw(st.sampled_from([255, 254, K])))
    meaning = {v: k for k, group in enumerate(groups) for v in group}
    meaning.update(dict.fromkeys(values[:ignored], classes.ignore_index))

    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    places = rng.integers(0, len(values), (height, width))
    mask = np.array(values, np.uint16 if kind == "u16" else np.uint8)[places]
    return mask, classes, np.array([meaning[value] for value in values], np.uint8)[places]


@given(masks())
def test_every_pixel_is_looked_up(case) -> None:
    mask, classes, expected = case
    label = class_numbers(mask, classes)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize(
    ("mask", "values", "named"),
    [
        (np.array([[0, 50], [51, 9]], np.uint8), [[0], [50]], r"\[9, 51\]"),
        (np.array([[0, 50], [50, 60000]], np.uint16), [[0], [50]], r"\[60000\]"),
        (np.array([[[1, 2, 3], [3, 2, 1]]], np.uint8), [[(1, 2, 3)], [(0, 0, 0)]], r"\[\[3, 2, 1\]\]"),
        (np.arange(20, dtype=np.uint8)[np.newaxis], [[0], [1]], r"\[2, .*, 11\] and 8 more"),
    ],
)
def test_values_that_mean_nothing_are_named(mask, values, named) -> None:
    with pytest.raises(ValueError, match=named):
        class_numbers(mask, classes_of(values))


def test_what_masks_hold(tmp_path: Path) -> None:
    numbers = np.array([[0, 50], [100, 200]], np.uint8)
    colors = np.stack([numbers, numbers + 1, numbers], axis=-1)

    assert np.array_equal(read_mask(written(tmp_path / "grey.png", numbers)), numbers)
    same = np.repeat(numbers[..., np.newaxis], 3, axis=2)
    assert np.array_equal(read_mask(written(tmp_path / "grey_in_colors.png", same)), numbers)
    assert np.array_equal(read_mask(tmp_path / "grey_in_colors.png", colors=True), same)
    assert np.array_equal(read_mask(tmp_path / "grey.png", colors=True), same)
    assert np.array_equal(read_mask(written(tmp_path / "colors.png", colors)), colors)
    wide = numbers.astype(np.uint16) * 300
    assert np.array_equal(read_mask(written(tmp_path / "wide.png", wide)), wide)

    palette = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8), "P")
    palette.putpalette([9, 8, 7, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.png")
    assert read_mask(tmp_path / "palette.png").tolist() == [[0, 1], [1, 2]]
    assert read_mask(tmp_path / "palette.png", colors=True)[0].tolist() == [[9, 8, 7], [255, 0, 0]]

    Image.fromarray(np.dstack([colors, np.full((2, 2), 255, np.uint8)])).save(tmp_path / "opaque.png")
    assert np.array_equal(read_mask(tmp_path / "opaque.png", colors=True), colors)


def test_masks_that_leave_their_meaning_open(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2, 4), 9, np.uint8)).save(tmp_path / "seen_through.png")
    with pytest.raises(DataError, match=r"transparent.*save it as a PNG without"):
        read_mask(tmp_path / "seen_through.png", colors=True)
    with pytest.raises(DataError, match="16 bits a channel"):
        read_mask(written(tmp_path / "wide.png", np.full((2, 2, 3), 999, np.uint16)), colors=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "mask.jpg")
    with pytest.raises(DataError, match=r"it is a JPEG file.* export masks anew as PNG"):
        read_mask(tmp_path / "mask.jpg")


def dataset(tmp_path: Path, mask: np.ndarray, classes: Classes) -> SegmentationDataset:
    image = written(tmp_path / "image.png", np.zeros((*mask.shape[:2], 3), np.uint8))
    return SegmentationDataset(pairs=[(image, written(tmp_path / "mask.png", mask))], classes=classes, training=False)


def test_a_sample_holds_class_numbers(tmp_path: Path) -> None:
    mask = np.array([[0, 255, 7]], np.uint8)
    label = dataset(tmp_path, mask, classes_of([[0], [255]], [7]))[0]["label"]
    assert label.dtype == np.int64 and label.tolist() == [[0, 1, 255]]

    colors = np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8)
    assert dataset(tmp_path, colors, classes_of([[(0, 0, 0)], [(255, 0, 0)]]))[0]["label"].tolist() == [[1, 0]]


def test_a_mask_that_does_not_fit_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mask.png .*write \[9\] into the values of a class, or of ignore"):
        dataset(tmp_path, np.array([[0, 9]], np.uint8), classes_of([[0], [255]]))[0]
    with pytest.raises(DataError, match=r"mask.png .*holds colours: write them as \[red, green, blue\]"):
        dataset(tmp_path, np.array([[[0, 9, 3]]], np.uint8), classes_of([[0], [255]]))[0]


A, B = "{name: a, values: [0]}", "{name: b, values: [1]}"


@pytest.mark.parametrize(
    ("classes", "ignore", "said"),
    [
        (f"[{A}, {{name: b}}]", "null", r"classes\.1\.values to be given.* mean b"),
        (
            f"[{A}, {{name: b, values: [0]}}]",
            "null",
            r"classes\.1\.values .* found 0 which classes\.0\.values holds too",
        ),
        (f"[{A}, {{name: b, values: [1, 1]}}]", "null", r"found 1 twice"),
        (f"[{A}, {B}]", "[1]", r"ignore\.values .* which classes\.1\.values holds too"),
        (f"[{A}, {{name: b, values: [[0, 0, 0]]}}]", "null", r"classes\.1\.values to hold numbers"),
        (f"[{A}, {{name: b, values: [65536]}}]", "null", r"from 0 to 65535"),
        (f"[{A}, {{name: b, values: [[0, 0, 256]]}}]", "null", r"from 0 to 255"),
        (f"[{A}, {{name: b, values: []}}]", "null", r"at least 1 long"),
        ("null", "[0]", r"ignore\.values .* which classes\.0\.values holds too"),
    ],
)
def test_values_of_a_recipe_that_say_two_things(classes, ignore, said) -> None:
    with pytest.raises(UsageError, match=said):
        load_config(TOY, ["model.num_classes=2", f"classes={classes}", f"ignore={ignore}"])


def test_values_of_a_recipe() -> None:
    from hmsa.builder import classes

    lists = "{type: Dataset, val_path: x.txt, transforms: [{type: Normalize}]}"
    given = ["model.num_classes=2", "train_dataset=null", f"val_dataset={lists}"]
    given.append("classes=[{name: a, values: [0, 7]}, {name: b, values: [255]}]")
    config = load_config(TOY, [*given, "ignore=[100]"])
    found = classes(config)
    assert (found.values, found.ignored, found.raw_values) == (((0, 7), (255,)), (100,), (0, 255))
    assert load_config(TOY, [*given, "ignore={values: [100]}"]) == config

    only_ignored = classes(load_config(TOY, ["ignore=[100]"]))
    assert only_ignored.values == tuple((k,) for k in range(19)) and only_ignored.ignored == (100,)
