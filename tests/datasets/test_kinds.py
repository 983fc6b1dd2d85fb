# SPDX-License-Identifier: Apache-2.0
"""What kinds of masks there are, and the classes they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from hmsa.datasets import cityscapes
from hmsa.datasets.kinds import kind_of, look
from hmsa.errors import DataError

RNG = np.random.default_rng(0)


def blocks(*values: Any, count: int = 2) -> list[np.ndarray]:
    """Masks of squares that hold these numbers or colours, each at least once."""
    masks = []
    for _ in range(count):
        places = RNG.permutation(np.resize(np.arange(len(values)), 36)).reshape(6, 6)
        dtype = np.uint8 if np.max(values) < 256 else np.uint16
        masks.append(np.asarray(values, dtype)[places].repeat(16, 0).repeat(16, 1))
    return masks


def kind(folder: Path, masks: list[np.ndarray] | list[Image.Image], name: str = "{}.png"):
    paths = [folder / name.format(index) for index in range(len(masks))]
    for path, mask in zip(paths, masks):
        (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(path)
    return kind_of(look([str(path) for path in paths]))


def meant(kind) -> dict[str, list]:
    return {of.name: list(of.values) for of in kind.classes}


@pytest.mark.parametrize(
    ("values", "classes", "ignored", "numbered"),
    [
        ([0, 255], {"background": [0], "foreground": [255]}, [], False),
        ([0, 1], {"background": [0], "foreground": [1]}, [], True),
        ([0, 1, 2], {"class 0": [0], "class 1": [1], "class 2": [2]}, [], True),
        ([0, 1, 2, 255], {"class 0": [0], "class 1": [1], "class 2": [2]}, [255], True),
        ([0, 50, 100, 200], {"class 0": [0], "class 50": [50], "class 100": [100], "class 200": [200]}, [], False),
        ([0, 127, 255], {"class 0": [0], "class 127": [127], "class 255": [255]}, [], False),
        ([1, 2, 4, 255], {"class 1": [1], "class 2": [2], "class 4": [4]}, [255], False),
        ([0, 300, 60000], {"class 0": [0], "class 300": [300], "class 60000": [60000]}, [], False),
    ],
)
def test_masks_of_numbers(tmp_path, values, classes, ignored, numbered):
    found = kind(tmp_path, blocks(*values))
    assert (meant(found), found.ignored, found.numbered) == (classes, ignored, numbered)
    assert bool(found.remarks) == bool(ignored)


def test_thin_borders_of_255_are_ignored(tmp_path):
    mask = blocks(0, 50, 100)[0]
    edges = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
    found = kind(tmp_path, [np.where(edges, np.uint8(255), mask)])
    assert list(meant(found)) == ["class 0", "class 50", "class 100"]
    assert found.ignored == [255] and "move it from ignore into classes if it is a class" in found.remarks[0]


def test_colours_also_where_some_masks_are_grey(tmp_path):
    grey = Image.new("RGB", (96, 96), (128, 128, 128))
    found = kind(tmp_path, [*map(Image.fromarray, blocks((0, 0, 0), (255, 0, 0), (1, 2, 3), (128, 128, 128))), grey])
    assert meant(found) == {
        "black": [(0, 0, 0)], "#010203": [(1, 2, 3)], "grey": [(128, 128, 128)], "red": [(255, 0, 0)],
    }  # fmt: skip
    assert all(of.color == of.values[0] for of in found.classes)


def test_numbers_in_three_channels_are_values(tmp_path):
    found = kind(tmp_path, [mask[..., np.newaxis].repeat(3, 2) for mask in blocks(0, 1, 2)])
    assert (list(meant(found).values()), found.numbered) == ([[0], [1], [2]], False)


def test_palettes_are_their_indices_with_the_palette_s_colours(tmp_path):
    masks = []
    for mask in blocks(0, 1, 2):
        masks.append(Image.fromarray(mask, "P"))
        masks[-1].putpalette([9, 8, 7, 6, 5, 4, 3, 2, 1])
    found = kind(tmp_path, masks)
    assert found.numbered and [of.color for of in found.classes] == [(9, 8, 7), (6, 5, 4), (3, 2, 1)]


def test_cityscapes_label_ids_and_colours(tmp_path):
    ids = [0, 4, 7, 8, 11, 17, 20, 21, 23, 24, 26, 33]
    found = kind(tmp_path, blocks(*ids))
    expected = {
        cityscapes.CLASSES.names[k]: [number]
        for k, number in enumerate(cityscapes.CLASSES.raw_values or ())
        if number in ids
    }
    assert meant(found) == expected and found.named
    assert set(found.ignored) == cityscapes.LABEL_IDS - {value for values in expected.values() for value in values}
    few = kind(tmp_path, blocks(7, 8, 26), "x{}_gtFine_labelIds.png")
    assert list(meant(few)) == ["road", "sidewalk", "car"]
    colors = kind(tmp_path, blocks((0, 0, 0), *cityscapes.CLASSES.colors[:6]))
    assert tuple(meant(colors)) == cityscapes.CLASSES.names[:6] and (0, 0, 0) in colors.ignored


@pytest.mark.parametrize("masks", [blocks(0, 255), blocks((0, 0, 0), (255, 0, 0), (0, 255, 0))])
def test_smoothed_masks_are_a_sentence_with_the_fix(tmp_path, masks):
    smooth = [cv2.resize(mask, (83, 71), interpolation=cv2.INTER_CUBIC) for mask in masks]
    with pytest.raises(DataError, match=r"lie at edges alone, .* without smoothing .* --nearest --output FOLDER"):
        kind(tmp_path, smooth)


def test_rare_classes_are_no_edges(tmp_path):
    masks = [np.zeros((600, 600), np.uint8) for _ in range(4)]
    for number in range(1, 25):
        masks[number % 4][number * 20 :, :20][:20] = number * 9
    assert len(kind(tmp_path, masks).classes) == 25


def test_masks_that_tell_nothing_apart_or_too_much(tmp_path):
    with pytest.raises(DataError, match="but all 2 hold 255 alone: check that these are the masks"):
        kind(tmp_path, blocks(255))
    with pytest.raises(DataError, match=r"at most 254, but they hold 299, as masks of single things"):
        kind(tmp_path, [np.arange(300, dtype=np.uint16).repeat(64).reshape(300, 64).repeat(8, 0)])
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png should be a mask, but"):
        look([str(tmp_path / "bad.png")])
