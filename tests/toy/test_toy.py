# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label, name2label
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from PIL import Image

from hmsa.datasets.cityscapes import CLASSES
from hmsa.errors import DataError, UsageError
from hmsa.toy import cityscapes, street
from hmsa.toy.drawing import CHOICES, MATERIALS, sprites

SIZE = {"size": (96, 160), "train": 3, "coarse": 3, "val": 2, "test": 1}
SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "make_toy_cityscapes.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "set"
    cityscapes.write_toy_cityscapes(folder, **SIZE)
    return folder


@pytest.fixture(scope="module")
def streets() -> list[tuple[list[dict], np.ndarray]]:
    """The first streets of the default validation split."""
    return [street.street(np.random.default_rng((42, 2, index)), 128, 256) for index in range(16)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def size_of(thing: dict) -> np.ndarray:
    """Width and height of an object in pixels."""
    return np.ptp(thing["polygon"], axis=0) + 1


def test_same_arguments_give_the_same_bytes_and_another_seed_does_not(root: Path, tmp_path: Path):
    cityscapes.write_toy_cityscapes(tmp_path / "again", **SIZE)
    assert contents(tmp_path / "again") == contents(root)
    cityscapes.write_toy_cityscapes(tmp_path / "other", **{**SIZE, "seed": 43})
    pictures = [path for path in contents(root) if path.endswith("_leftImg8bit.png")]
    assert all(contents(tmp_path / "other")[path] != contents(root)[path] for path in pictures)


def test_a_picture_does_not_depend_on_the_counts(root: Path, tmp_path: Path):
    cityscapes.write_toy_cityscapes(tmp_path / "small", **{**SIZE, "train": 1, "coarse": 0})
    small = {path: content for path, content in contents(tmp_path / "small").items() if path != cityscapes.MARKER}
    assert small.items() <= contents(root).items()


def test_tree_and_pairs_are_those_of_cityscapes(root: Path):
    counts = {"train": 3, "val": 2, "test": 1}
    names = []
    for split, count in counts.items():
        pictures = sorted(root.glob(f"leftImg8bit/{split}/*/*_leftImg8bit.png"))
        assert len(pictures) == count
        for picture in pictures:
            name = picture.name[: -len("_leftImg8bit.png")]
            assert name.split("_")[0] == picture.parent.name
            truth = root / "gtFine" / split / picture.parent.name
            for ending in ("labelIds.png", "instanceIds.png", "polygons.json"):
                assert (truth / f"{name}_gtFine_{ending}").is_file()
            names.append(name)
    coarse = sorted(root.glob("leftImg8bit_trainextra/leftImg8bit/train_extra/*/*_leftImg8bit.png"))
    labels = sorted(root.glob("refinement_final/train_extra/*/*_leftImg8bit.png"))
    assert [path.parts[-2:] for path in coarse] == [path.parts[-2:] for path in labels]
    assert len(coarse) == 3
    names += [path.name[: -len("_leftImg8bit.png")] for path in coarse]
    assert len(set(names)) == len(names) == 9
    assert len({path.parent.name for path in root.glob("leftImg8bit/train/*/*")}) == 3
    # An image and three labels for each of train, val and test, two files for each coarse image, and the marker.
    assert len(contents(root)) == 4 * 6 + 2 * 3 + 1


def test_pictures_are_rgb_and_labels_are_known_ids(root: Path):
    for path in root.rglob("*.png"):
        image = Image.open(path)
        assert image.size == (160, 96)
        if "instanceIds" in path.name:
            assert image.mode == "I;16"
            labels = np.asarray(Image.open(path.with_name(path.name.replace("instanceIds", "labelIds"))))
            numbers = np.asarray(image)
            np.testing.assert_array_equal(np.where(numbers < 1000, numbers, numbers // 1000), labels)
        elif "gtFine" in path.parts or "refinement_final" in path.parts:
            assert image.mode == "L"
            assert set(np.unique(image)) <= set(id2label)
        else:
            assert image.mode == "RGB"


def test_labels_are_what_cityscapesscripts_draws_from_the_polygons(root: Path, tmp_path: Path):
    for path in root.glob("gtFine/*/*/*_polygons.json"):
        json2labelImg(str(path), str(tmp_path / "drawn.png"), "ids")
        labels = path.with_name(path.name.replace("polygons.json", "labelIds.png"))
        np.testing.assert_array_equal(Image.open(tmp_path / "drawn.png"), Image.open(labels))


def test_test_labels_are_withheld(root: Path):
    (polygons,) = root.glob("gtFine/test/*/*_polygons.json")
    assert json.loads(polygons.read_text()) == {"imgHeight": 96, "imgWidth": 160, "objects": []}
    (labels,) = root.glob("gtFine/test/*/*_labelIds.png")
    assert not np.asarray(Image.open(labels)).any()


def test_every_class_is_in_a_good_share_of_the_pictures(streets):
    present = [
        {id2label[value].name for value in np.unique(cityscapes.label_ids(objects, *picture.shape[:2]))}
        for objects, picture in streets
    ]
    shares = {name: np.mean([name in names for names in present]) for name in CLASSES.names}
    assert {name: share for name, share in shares.items() if share < 0.15} == {}
    assert all("ego vehicle" in names and "unlabeled" not in names for names in present)


def test_objects_reach_from_a_few_pixels_to_half_the_picture(streets):
    movable = [
        size_of(thing)
        for objects, _ in streets
        for thing in objects
        if name2label[thing["label"]].category in ("vehicle", "human")
    ]
    assert min(size.max() for size in movable) <= 8
    assert max(size[0] / 256 for size in movable) >= 0.5
    assert max(size[1] / 128 for size in movable) >= 0.5
    assert min(size_of(thing).max() for objects, _ in streets for thing in objects) in (4, 5, 6)


def test_polygons_match_the_picture():
    """The sky is brighter than the road, label by label, at any size and shape."""
    for height, width in ((64, 64), (128, 256), (201, 333)):
        objects, picture = street.street(np.random.default_rng(7), height, width)
        assert picture.shape == (height, width, 3)
        assert picture.dtype == np.uint8
        ids = cityscapes.label_ids(objects, height, width)
        grey = picture.mean(axis=2)
        assert grey[ids == name2label["sky"].id].mean() > grey[ids == name2label["road"].id].mean() + 50


def test_auto_labels_lose_borders_and_small_objects_and_nothing_else():
    def square(label: str, left: int, top: int, side: int) -> dict:
        right, bottom = left + side - 1, top + side - 1
        return {"label": label, "polygon": [[left, top], [right, top], [right, bottom], [left, bottom]]}

    things = [
        square("road", 0, 0, 100),
        square("bus", 10, 10, 40),
        *(square("person", 60, y, 5) for y in range(5, 95, 10)),
    ]
    ids = cityscapes.label_ids(things, 100, 100)
    auto = cityscapes.auto_labels(np.random.default_rng(0), things, 100, 100)
    bus, person = name2label["bus"].id, name2label["person"].id
    assert (ids == bus).sum() == 40 * 40
    assert (auto == bus).sum() == 38 * 38
    # Each of the nine persons keeps its inner 3x3 pixels or is overlooked.
    kept = (auto == person).sum() / 9
    assert kept == int(kept)
    assert 0 < kept < 9
    agrees = (auto == ids) | (auto == 0) | (ids == person)
    assert agrees.all()


def test_running_again_repairs_the_set_and_other_options_are_refused(root: Path):
    before = contents(root)
    next(root.glob("gtFine/val/*/*_labelIds.png")).unlink()
    (root / "notes.txt").write_text("mine")
    cityscapes.write_toy_cityscapes(root, **SIZE)
    (root / "notes.txt").unlink()
    assert contents(root) == before
    with pytest.raises(DataError, match="same options"):
        cityscapes.write_toy_cityscapes(root, **{**SIZE, "seed": 1})
    assert contents(root) == before


def test_a_strangers_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="other files"):
        cityscapes.write_toy_cityscapes(tmp_path, **SIZE)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}
    with pytest.raises(DataError, match="cannot be written"):
        cityscapes.write_toy_cityscapes(tmp_path / "thesis.tex", **SIZE)


@pytest.mark.parametrize("wrong", [{"size": (32, 256)}, {"train": -1}, {"seed": -1}])
def test_wrong_options_are_refused_before_anything_is_written(tmp_path: Path, wrong: dict):
    with pytest.raises(UsageError, match="64 pixels"):
        cityscapes.write_toy_cityscapes(tmp_path / "set", **{**SIZE, **wrong})
    assert not (tmp_path / "set").exists()


def test_every_sprite_names_known_labels_and_materials():
    for name, sprite in sprites().items():
        assert sprite.label in name2label, name
        assert {material for material, _ in sprite.parts} <= {*MATERIALS, *CHOICES}, name
        assert min(up for _, up in sprite.outline) >= 0, name


def test_command_line_writes_a_set_and_says_what_comes_next(tmp_path: Path):
    folder = tmp_path / "toy"
    counts = ["--train", "1", "--coarse", "1", "--val", "1", "--test", "0"]
    command = [sys.executable, str(SCRIPT), "--output", str(folder), "--size", "128", "64", *counts]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert len(done.stdout.splitlines()) == 1
    assert "1 train, 1 coarse, 1 val and 0 test" in done.stdout
    assert f"tools/convert_cityscapes.py --cityscapes_path {folder}" in done.stdout
    (picture,) = folder.glob("leftImg8bit/val/*/*.png")
    assert Image.open(picture).size == (128, 64)
    failed = subprocess.run([*command[:-1], "-1"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr
