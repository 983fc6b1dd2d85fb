# SPDX-License-Identifier: Apache-2.0
"""Drawn shapes as somebody's own images: one world in four forms of masks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa.datasets.images import read_image
from hmsa.errors import DataError, UsageError
from hmsa.toy.shapes import BACKGROUND, KINDS, MASKS, write_shapes


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shapes")
    for masks in MASKS:
        write_shapes(root / masks, masks=masks, count=4, seed=7)
    return {masks: root / masks for masks in MASKS}


def test_the_same_arguments_give_the_same_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    write_shapes(tmp_path / "again", masks="values", count=4, seed=7)
    write_shapes(tmp_path / "other", masks="values", count=4, seed=8)

    assert contents(tmp_path / "again") == contents(folders["values"])
    assert contents(tmp_path / "other") != contents(folders["values"])


def test_all_forms_of_masks_say_the_same(folders: dict[str, Path]) -> None:
    sizes = set()
    for index in range(4):
        name = f"shapes_{index:03d}"
        images = [read_image(folder / f"images/{name}.jpg") for folder in folders.values()]
        assert all(np.array_equal(image, images[0]) for image in images)
        sizes.add(images[0].shape)

        values = cv2.imread(str(folders["values"] / f"masks/{name}.png"), cv2.IMREAD_UNCHANGED)
        colors = read_image(folders["colors"] / f"masks/{name}.png")
        binary = cv2.imread(str(folders["binary"] / f"masks/{name}.png"), cv2.IMREAD_UNCHANGED)
        polygons = np.zeros_like(values)
        kinds = {kind.name: kind for kind in KINDS}
        for shape in json.loads((folders["labelme"] / f"images/{name}.json").read_text())["shapes"]:
            cv2.fillPoly(polygons, [np.array(shape["points"], np.int32)], kinds[shape["label"]].value)

        assert set(np.unique(values)) == {kind.value for kind in (BACKGROUND, *KINDS)}
        assert np.array_equal(values, polygons)
        assert np.array_equal(binary, np.where(values > 0, 255, 0))
        for kind in (BACKGROUND, *KINDS):
            assert (colors[values == kind.value] == kind.color).all()
    assert len(sizes) == 4


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="choose another"):
        write_shapes(tmp_path)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.parametrize("wrong", [{"masks": "polygons"}, {"count": 0}, {"seed": -1}])
def test_arguments_that_do_not_fit(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UsageError, match="correct them"):
        write_shapes(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()
