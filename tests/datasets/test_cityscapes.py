# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from with_defaults import CityscapesAutolabeling

from hmsa.errors import DataError

COARSE_IMAGES = "leftImg8bit_trainextra/leftImg8bit/train_extra"


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    """Three training images in two cities, two of validation, one of test and four coarse ones."""
    picture, label = np.zeros((4, 8, 3), np.uint8), np.zeros((4, 8), np.uint8)
    fine = {"train": ("bonn/bonn_0", "bonn/bonn_1", "aachen/aachen_0"), "val": ("ulm/ulm_0", "ulm/ulm_1")}
    for split, names in fine.items():
        for name in names:
            save(tmp_path / f"leftImg8bit/{split}/{name}_leftImg8bit.png", picture)
            save(tmp_path / f"gtFine/{split}/{name}_gtFine_labelTrainIds.png", label)
    save(tmp_path / "leftImg8bit/test/berlin/berlin_0_leftImg8bit.png", picture)
    for number in range(4):
        save(tmp_path / f"{COARSE_IMAGES}/trier/trier_{number}_leftImg8bit.png", picture)
        save(tmp_path / f"convert_autolabelled/trier/trier_{number}_leftImg8bit.png", label)
    return tmp_path


def names(pairs) -> list[str]:
    return [Path(image).name.replace("_leftImg8bit.png", "") for image, _ in pairs]


def test_training_pairs(root):
    data = CityscapesAutolabeling(dataset_root=root, mode="train")
    assert names(data.pairs) == ["aachen_0", "bonn_0", "bonn_1"]
    assert data.pairs[1][1] == str(root / "gtFine/train/bonn/bonn_0_gtFine_labelTrainIds.png")
    assert names(data.coarse_pairs) == [f"trier_{i}" for i in range(4)]
    assert data.coarse_pairs[0][1] == str(root / "convert_autolabelled/trier/trier_0_leftImg8bit.png")
    assert len(data) == 6 and data.training
    assert data.classes.names[0] == "road" and len(data.classes) == 19
    assert data[0]["label"].shape == (4, 8)


def test_validation_pictures_can_be_added(root):
    data = CityscapesAutolabeling(dataset_root=root, mode="train", add_val=True, coarse_multiple=0.8)
    assert names(data.pairs) == ["aachen_0", "bonn_0", "bonn_1", "ulm_0", "ulm_1"]
    assert len(data) == 5 + 4


def test_validation_and_test(root):
    val = CityscapesAutolabeling(dataset_root=root, mode="val", add_val=True)
    assert names(val.epoch(3)) == ["ulm_0", "ulm_1"]
    assert not val.training
    test = CityscapesAutolabeling(dataset_root=root, mode="test")
    assert test.pairs == [(str(root / "leftImg8bit/test/berlin/berlin_0_leftImg8bit.png"), None)]
    assert "label" not in test[0]


def test_coarse_folders_are_optional(root):
    (root / "leftImg8bit_trainextra").rename(root / "elsewhere")
    assert len(CityscapesAutolabeling(dataset_root=root, mode="train", coarse_multiple=0)) == 3
    with pytest.raises(DataError, match=r"train_extra should hold .* does not exist"):
        CityscapesAutolabeling(dataset_root=root, mode="train")


def test_every_file_without_partner_is_named(root):
    (root / "gtFine/train/bonn/bonn_0_gtFine_labelTrainIds.png").unlink()
    (root / "leftImg8bit/train/aachen/aachen_0_leftImg8bit.png").unlink()
    with pytest.raises(DataError) as error:
        CityscapesAutolabeling(dataset_root=root, mode="train")
    message = str(error.value)
    assert "the 2 without a partner" in message
    assert "train/bonn/bonn_0_leftImg8bit.png" in message
    assert "train/aachen/aachen_0_gtFine_labelTrainIds.png" in message
    assert "bonn_1" not in message


def test_the_same_name_in_another_city_is_no_partner(root):
    (root / "convert_autolabelled/trier").rename(root / "convert_autolabelled/worms")
    with pytest.raises(DataError, match="the 8 without a partner"):
        CityscapesAutolabeling(dataset_root=root, mode="train")


def test_labels_that_were_not_converted(root):
    for path in (root / "gtFine").glob("val/*/*"):
        path.rename(path.with_name(path.name.replace("labelTrainIds", "labelIds")))
    with pytest.raises(DataError, match=r"run python tools/convert_cityscapes\.py --cityscapes_path "):
        CityscapesAutolabeling(dataset_root=root, mode="val")
    (root / "convert_autolabelled").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"run python tools/convert_cityscapes_autolabeling\.py --dataset_root "):
        CityscapesAutolabeling(dataset_root=root, mode="train")


def test_folders_that_are_missing_or_empty(tmp_path):
    with pytest.raises(DataError, match=r"leftImg8bit/train should hold .* does not exist: set dataset_root"):
        CityscapesAutolabeling(dataset_root=tmp_path / "nowhere", mode="train")
    (tmp_path / "leftImg8bit/train/ulm").mkdir(parents=True)
    with pytest.raises(DataError, match="holds none"):
        CityscapesAutolabeling(dataset_root=tmp_path, mode="train")
