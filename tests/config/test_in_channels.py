# SPDX-License-Identifier: Apache-2.0
"""`in_channels`: one key for a whole recipe, PaddleSeg's keys where they agree, and networks of so many channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import pytest

from hmsa import builder
from hmsa.config.reading import load_config
from hmsa.config.schema import Config
from hmsa.errors import UsageError

MODEL = (
    "model: {type: MscaleOCRNet, num_classes: 3, backbone: {type: HRNet_W18_NV_Small_V1, %s}, ocr_mid_channels: 16, "
)
MODEL += "ocr_key_channels: 8, attention_mid_channels: 8, scales: [1.0]}\n"
DATASET = "{type: Dataset, train_path: a, val_path: a, %s transforms: [%s{type: Normalize, mean: %s, std: %s}]}"


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(top: str = "", backbone: str = "", dataset: str = "", before: str = "", mean: Any = None) -> Config:
        mean = mean or [0.5] * 4
        text = top + MODEL % backbone
        text += (
            f"train_dataset: {DATASET % (dataset, before, mean, mean)}\nval_dataset: {DATASET % ('', '', mean, mean)}\n"
        )
        (tmp_path / "a.yml").write_text(text)
        return load_config(tmp_path / "a.yml")

    return read


def refused(build: Any, *args: Any, **options: Any) -> list[str]:
    with pytest.raises(UsageError) as info:
        build(*args, **options)
    return str(info.value).splitlines()


@pytest.mark.parametrize(
    "keys",
    [
        {"top": "in_channels: 4\n"},
        {"top": "in_channels: 4\n", "backbone": "in_channels: 4", "dataset": "img_channels: 4,"},
        {"backbone": "in_channels: 4", "dataset": "img_channels: 4,"},  # as PaddleSeg has it
    ],
)
def test_it_is_one_number(read: Any, tmp_path: Path, keys: Any) -> None:
    config = read(**keys)
    assert config.in_channels == 4
    (tmp_path / "dump.yml").write_text(config.dump())
    assert load_config(tmp_path / "dump.yml") == config == read(top="in_channels: 4\n")


def test_it_is_three_where_nothing_is_said(read: Any) -> None:
    config = read(mean=[0.5] * 3)
    assert config.in_channels == 3 and "img_channels" not in config.dump()
    assert config == read(mean=[0.5] * 3, backbone="in_channels: 3", dataset="img_channels: 3,")


def test_all_that_disagrees_is_told_at_once(read: Any) -> None:
    lines = refused(
        read,
        top="in_channels: 5\n",
        backbone="in_channels: 4",
        dataset="img_channels: 3,",
        before="{type: RandomPaddingCrop, im_padding_value: [1, 2]}, ",
    )
    keys = ["model.backbone.in_channels", "train_dataset.img_channels", "train_dataset.transforms.0.im_padding_value"]
    keys += [
        f"{name}.transforms.{i}.{k}" for name, i in (("train_dataset", 1), ("val_dataset", 0)) for k in ("mean", "std")
    ]
    assert [line.split("expected ")[1].split()[0] for line in lines] == keys
    assert "to be 5, which in_channels says for all of the recipe, found 4: write in_channels: 4 at the top" in lines[0]
    assert lines[2].endswith("to be a number for each of the 5 channels (in_channels), found 2: correct it")


@pytest.mark.parametrize("wrong", ["0", "17", "4.0", "three"])
def test_numbers_that_cannot_be(read: Any, wrong: str) -> None:
    assert "expected in_channels to be" in refused(read, top=f"in_channels: {wrong}\n")[0]


def test_no_colours_to_distort(read: Any) -> None:
    (line,) = refused(read, top="in_channels: 1\n", before="{type: RandomDistort}, ", mean=[0.5])
    assert line.endswith(
        "to suit images of 1 channel (in_channels), found RandomDistort, which needs red, green and blue: remove it"
    )
    assert read(top="in_channels: 4\n", before="{type: RandomDistort}, ").in_channels == 4


@pytest.mark.parametrize("wrong", ["-1", "[]", "[1, 300, 1, 1]", "grey"])
def test_padding_that_cannot_be(read: Any, wrong: str) -> None:
    lines = refused(read, top="in_channels: 4\n", before=f"{{type: RandomPaddingCrop, im_padding_value: {wrong}}}, ")
    assert "im_padding_value to be a number from 0 to 255, or a list of one for each channel, found" in lines[0]


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_a_network_of_so_many_channels(read: Any, channels: int) -> None:
    model = builder.build_model(read(top=f"in_channels: {channels}\n", mean=[0.5] * channels))
    assert model.backbone.conv1.weight.shape == [64, channels, 3, 3]
    model.eval()
    assert model(paddle.ones([1, channels, 64, 96]))["joint"].shape == [1, 3, 64, 96]


def test_a_network_of_three_channels_has_the_weights_it_always_had(read: Any) -> None:
    of_three = builder.build_model(read(mean=[0.5] * 3)).state_dict()
    of_four = builder.build_model(read(top="in_channels: 4\n")).state_dict()
    assert of_three.keys() == of_four.keys()
    assert [name for name in of_three if of_three[name].shape != of_four[name].shape] == ["backbone.conv1.weight"]


def test_backbones_of_paddleseg(tmp_path: Path) -> None:
    def config(name: str) -> Config:
        text = (MODEL % "").replace("HRNet_W18_NV_Small_V1", name).replace("}, ocr", "}, backbone_indices: [-1], ocr")
        (tmp_path / "a.yml").write_text(f"in_channels: 4\n{text}")
        return load_config(tmp_path / "a.yml")

    backbone = builder.build_model(config("ResNet18_vd")).backbone
    assert next(p for p in backbone.parameters() if len(p.shape) == 4).shape[1] == 4
    builder._look_for_idle_layers(config("ResNet18_vd"), backbone)  # runs it on images of four channels

    (line,) = refused(builder.build_model, config("UHRNet_W18_Small"))
    assert "expected in_channels to be 3, which is all that UHRNet_W18_Small takes, found 4: choose a backbone" in line


def test_no_transforms_of_imagenet_for_other_channels(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("in_channels: 4\n" + MODEL % "")
    (line,) = refused(builder.inference_transforms, load_config(tmp_path / "a.yml"))
    assert "expected val_dataset, whose transforms prepare images of 4 channels, found none" in line


def test_arrays_in_folders(tmp_path: Path) -> None:
    np.save(tmp_path / "a_image.npy", np.zeros((64, 64, 4), np.uint8))
    cv2.imwrite(str(tmp_path / "a_mask.png"), np.zeros((64, 64), np.uint8))
    for pattern in ("*_image", "*_image.npy"):
        (tmp_path / "a.yml").write_text(
            f"in_channels: 4\n{MODEL % ''}train_dataset:\n  type: Dataset\n  dataset_root: {tmp_path}\n"
            f"  image_dir: .\n  label_dir: .\n  image_pattern: '{pattern}'\n  label_pattern: '*_mask.png'\n"
            "  transforms: [{type: Normalize, mean: [0, 0, 0, 0], std: [1, 1, 1, 1]}]\n"
        )
        dataset = builder.build_dataset(load_config(tmp_path / "a.yml"), "train")
        assert dataset[0]["img"].shape == (4, 64, 64)


def test_images_of_the_recipes_channels(read: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((64, 64, 4), 51, np.uint8))

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64), np.uint8))
    (tmp_path / "a").write_text("a.npy a.png\n")
    sample = builder.build_dataset(read(top="in_channels: 4\n", dataset=f"dataset_root: {tmp_path},"), "train")[0]
    assert sample["img"].shape == (4, 64, 64) and sample["img"].dtype == np.float32
    np.testing.assert_allclose(sample["img"], (51 / 255 - 0.5) / 0.5, atol=1e-6)
