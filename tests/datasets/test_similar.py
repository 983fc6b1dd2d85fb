# SPDX-License-Identifier: Apache-2.0
"""Images that show nearly the same."""

import io
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from hmsa.datasets.similar import SIDE, near_pairs, thumbnail


def drawn(seed: int, size=(160, 120)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def saved_as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content))


CHANGES = {
    "saved again": lambda image: saved_as_jpeg(image, 60),
    "made smaller": lambda image: cv2.resize(image, (100, 75), interpolation=cv2.INTER_AREA),
    "lighter": lambda image: cv2.convertScaleAbs(image, alpha=0.8, beta=30),
    "noisy": lambda image: cv2.add(image, np.random.default_rng(0).integers(0, 12, image.shape, dtype=np.uint8)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_a_little_is_near(change):
    images = [drawn(seed) for seed in range(6)]
    images += [CHANGES[change](image) for image in images[:3]]
    assert near_pairs(np.stack([thumbnail(image) for image in images])).tolist() == [[0, 6], [1, 7], [2, 8]]


def test_others_and_flat_ones_are_not():
    images = [drawn(seed) for seed in range(40)] + [np.full((50, 60, 3), grey, np.uint8) for grey in (0, 0, 7, 200)]
    assert near_pairs(np.stack([thumbnail(image) for image in images])).shape == (0, 2)
    assert near_pairs(np.zeros((0, SIDE, SIDE), np.uint8)).shape == (0, 2)


@pytest.mark.parametrize("alike", ["equal", "nearly", "not"])
def test_many_images_take_neither_long_nor_much(alike):
    rng = np.random.default_rng(0)
    slope = np.add.outer(np.arange(SIDE) * 15, np.arange(SIDE) * 15)
    noise = rng.normal(0, {"equal": 0, "nearly": 3, "not": 60}[alike], (6000, SIDE, SIDE))
    many = np.clip(slope + noise, 0, 255).astype(np.uint8)
    start = time.process_time()
    pairs = near_pairs(many)
    assert time.process_time() - start < 10  # with every image against every other: minutes
    assert {"equal": len(pairs) == 5999, "nearly": len(pairs) > 4000, "not": len(pairs) == 0}[alike]
    assert len(np.unique(pairs[:, 1])) == len(pairs) and (pairs[:, 0] < pairs[:, 1]).all()
