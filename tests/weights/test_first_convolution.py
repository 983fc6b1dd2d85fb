# SPDX-License-Identifier: Apache-2.0
"""Weights for images of three channels as a start for those of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest

import hmsa
from hmsa.errors import DataError
from hmsa.models import BACKBONES, MscaleOCRNet
from hmsa.weights.loading import for_channels, load_pretrained

NAME = "backbone.conv1.weight"


def network(in_channels: int, seed: int = 0) -> MscaleOCRNet:
    paddle.seed(seed)
    backbone = BACKBONES["HRNet_W18_NV_Small_V1"](in_channels=in_channels)
    sizes = {"ocr_mid_channels": 16, "ocr_key_channels": 8, "attention_mid_channels": 8}
    return MscaleOCRNet(num_classes=4, backbone=backbone, in_channels=in_channels, **sizes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.pdparams"
    paddle.save(network(3, seed=1).state_dict(), str(path))
    return path


def test_by_hand() -> None:
    kernel = np.array([1, 2, 6], np.float32).reshape(1, 3, 1, 1)
    assert for_channels(kernel, 1).ravel().tolist() == [9]
    assert for_channels(kernel, 4).ravel().tolist() == [2.25] * 4


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_grey_is_answered_as_before(channels: int) -> None:
    kernel = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    grey = np.random.default_rng(1).normal(size=(1, 1, 9, 9)).astype(np.float32)
    before, after = (
        paddle.nn.functional.conv2d(paddle.to_tensor(np.repeat(grey, n, axis=1)), paddle.to_tensor(k)).numpy()
        for n, k in ((3, kernel), (channels, for_channels(kernel, channels)))
    )
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("part", ["", "backbone"])
def test_training_starts_from_them_and_says_so(weights: Path, channels: int, part: str) -> None:
    model, other = network(channels, seed=2), network(3, seed=1)
    report = load_pretrained(model.backbone if part else model, weights)
    said = f"conv1.weight is of 3 channels: each of the {channels} here has their mean, times 3/{channels}"
    assert said in report and "not fitting" not in report and "\n" not in report
    expected = for_channels(other.backbone.conv1.weight.numpy(), channels)
    np.testing.assert_array_equal(model.state_dict()[NAME].numpy(), expected)
    np.testing.assert_array_equal(model.backbone.conv2.weight.numpy(), other.backbone.conv2.weight.numpy())


def test_weights_of_as_many_channels_are_taken_as_they_are(weights: Path) -> None:
    model = network(3, seed=2)
    assert "channels" not in load_pretrained(model, weights)
    np.testing.assert_array_equal(model.backbone.conv1.weight.numpy(), network(3, seed=1).backbone.conv1.weight.numpy())


def test_evaluation_prediction_and_export_stay_strict(weights: Path) -> None:
    model = network(4, seed=2)
    before = model.backbone.conv1.weight.numpy().copy()
    with pytest.raises(DataError, match=r"backbone.conv1.weight: \[64, 3, 3, 3\] instead of \[64, 4, 3, 3\]"):
        hmsa.load_weights(model, weights)
    np.testing.assert_array_equal(model.backbone.conv1.weight.numpy(), before)


def test_other_channels_to_three_do_not_fit(tmp_path: Path) -> None:
    paddle.save(network(4, seed=1).state_dict(), str(tmp_path / "w.pdparams"))
    report = load_pretrained(network(3, seed=2), tmp_path / "w.pdparams")
    assert "not fitting: backbone.conv1.weight: [64, 4, 3, 3] instead of [64, 3, 3, 3]" in report
