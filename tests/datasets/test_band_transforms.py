# SPDX-License-Identifier: Apache-2.0
"""Transforms of images of any number of channels and of 8 or 16 bits or floating point."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import with_defaults as C

from hmsa.datasets import transforms as T
from hmsa.datasets.transforms import DIVISORS
from hmsa.errors import DataError

KINDS = [pytest.param(n, dtype, id=f"{n} {dtype}") for n in (1, 2, 4, 5, 16) for dtype in DIVISORS]
H, W = 61, 83


def image_of(channels: int, dtype: str, seed: int = 0) -> np.ndarray:
    """Smooth, [H, W, C], over the whole range of the numbers."""
    coarse = np.random.default_rng(seed).random((6, 8, channels))
    smooth = np.stack([cv2.resize(coarse[..., c], (W, H)) for c in range(channels)], axis=2)
    return (smooth * DIVISORS[dtype]).astype(dtype)


def apply(transform: T.Transform, image: np.ndarray, seed: int = 0) -> np.ndarray:
    label = np.zeros(image.shape[:2], np.uint8)
    sample = {"img": image.copy(), "label": label, "trans_info": [], "gt_fields": ["label"], "image_path": "a.tif"}
    sample = transform(sample, np.random.default_rng(seed))
    assert sample["label"].shape == sample["img"].shape[:2]
    assert sample["img"].dtype == (np.float32 if isinstance(transform, T.Normalize) else image.dtype)
    return sample["img"]


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_geometry_is_that_of_each_channel_alone(channels: int, dtype: str) -> None:
    scaling = C.ResizeStepScaling(min_scale_factor=0.6, max_scale_factor=1.7, scale_step_size=0)
    crop = C.RandomPaddingCrop(crop_size=[64, 96])
    both = T.fused([scaling, crop])[0]
    assert isinstance(both, T.ScaledCrop)
    image = image_of(channels, dtype)
    resize, padding = C.Resize(target_size=[40, 30]), C.Padding(target_size=[90, 70])
    for transform in (scaling, crop, both, C.RandomHorizontalFlip(prob=1.0), resize, padding):
        found = apply(transform, image)
        assert found.shape[2] == channels
        for channel in range(channels):
            alone = apply(transform, image[..., channel : channel + 1])
            allowed = {"uint8": 0, "uint16": 1, "float32": 1e-6}[dtype]  # OpenCV's for one channel rounds otherwise
            assert np.abs(found[..., channel : channel + 1].astype(float) - alone).max() <= allowed, transform


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_padding_is_the_same_grey_after_normalize(channels: int, dtype: str) -> None:
    image = image_of(channels, dtype)
    lists = [*range(40, 40 + 3 * channels, 3)]
    for value, expected in ((51, [51] * channels), (lists, lists)):
        padded = apply(C.Padding(target_size=[90, 70], im_padding_value=value), image)
        np.testing.assert_array_equal(padded[:H, :W], image)
        normal = apply(T.Normalize(mean=[0.25] * channels, std=[0.5] * channels), padded)
        for corner in (normal[H:], normal[:, W:]):
            np.testing.assert_allclose(corner - (np.array(expected) / 255 - 0.25) / 0.5, 0, atol=1e-5)


@pytest.mark.parametrize(("channels", "dtype"), [*KINDS, pytest.param(3, "uint8", id="RGB")])
def test_normalize(channels: int, dtype: str) -> None:
    mean, std = np.linspace(0.2, 0.7, channels), np.linspace(0.1, 0.4, channels)
    image = image_of(channels, dtype)
    found = apply(T.Normalize(mean=mean.tolist(), std=std.tolist()), image)
    np.testing.assert_allclose(found, (image / float(DIVISORS[dtype]) - mean) / std, atol=2e-6)
    assert found.transpose(2, 0, 1).flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_padding_of_three_channels_stays_as_stored(dtype: str) -> None:
    padded = apply(C.Padding(target_size=[90, 70]), (image_of(3, "uint8")).astype(dtype))
    assert (padded[H:] == (127 if dtype == "uint8" else 127.5)).all()
    listed = apply(C.Padding(target_size=[90, 70], im_padding_value=[1, 2, 3]), image_of(3, "uint8"))
    assert (listed[H:] == [1, 2, 3]).all()


def test_colours_are_the_first_three_of_more(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(T, "_said", set())
    image = image_of(5, "uint8")
    for seed in (1, 2):
        distort = C.RandomDistort(hue_prob=1.0, contrast_prob=1.0)
        found = apply(distort, image, seed)
        np.testing.assert_array_equal(found[..., 3:], image[..., 3:])
        np.testing.assert_array_equal(found[..., :3], apply(distort, image[..., :3].copy(), seed))
        assert (found[..., :3] != image[..., :3]).any()
    warned = capsys.readouterr().err
    assert (
        warned
        == "warning: RandomDistort changes the first three channels alone, taken for red, green and blue, as in a.tif\n"
    )


@pytest.mark.parametrize(("channels", "dtype"), [(4, "uint16"), (4, "float32"), (2, "uint8")])
def test_no_colours_to_distort(channels: int, dtype: str) -> None:
    with pytest.raises(
        DataError, match=f"a.tif should hold colours of 8 bits .* {channels} channels of {dtype}: remove"
    ):
        apply(C.RandomDistort(), image_of(channels, dtype))


def test_one_channel_through_a_transform_of_paddleseg() -> None:
    def theirs(sample: T.Sample) -> T.Sample:
        return {**sample, "img": cv2.blur(sample["img"], (3, 3))}

    assert apply(T.PaddleSegTransform(theirs), image_of(1, "uint16")).shape == (H, W, 1)
