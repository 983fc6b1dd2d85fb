# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hmsa.datasets.statistics import ChannelSums, channel_statistics
from hmsa.datasets.transforms import Normalize
from hmsa.errors import DataError


@pytest.mark.parametrize(("dtype", "divisor"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_images_are_normalised_by_what_is_measured(tmp_path: Path, dtype: Any, divisor: float) -> None:
    rng = np.random.default_rng(0)
    scale = 40 if dtype == np.uint8 else 9000
    images = [np.abs(rng.normal(3 * scale, scale / 2, (20 + i, 30, 4))).astype(dtype) for i in range(3)]
    paths = [tmp_path / f"{i}.npy" for i in range(3)]
    for path, image in zip(paths, images):
        np.save(path, image)

    found = channel_statistics(paths, in_channels=4)
    pixels = np.concatenate([image.reshape(-1, 4) for image in images]).astype(np.float64)
    assert (found.images, found.pixels) == (3, len(pixels))
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0) / divisor, rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=0) / divisor, rtol=1e-9)

    transform = Normalize(mean=found.mean, std=found.std)
    normal = [transform({"img": image}, rng)["img"].reshape(-1, 4) for image in images]
    assert all(part.dtype == np.float32 for part in normal)
    np.testing.assert_allclose(np.concatenate(normal).mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(normal).std(axis=0), 1, atol=1e-4)


def test_sums_of_whole_numbers_are_exact_in_any_order_and_number_of_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), rng.integers(0, 65536 if i % 2 else 256, (9, 7), np.uint16 if i % 2 else np.uint8))
    one = channel_statistics(paths, in_channels=1)
    other = channel_statistics(paths[::-1], in_channels=1, num_workers=3)
    assert one == other

    again = ChannelSums()
    for path in paths:
        again.add(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., None])
    assert again == one


def test_a_plain_channel_has_no_deviation(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((8, 8, 2), 0.1, np.float32))
    assert channel_statistics([tmp_path / "a.npy"], in_channels=2).std == pytest.approx([0, 0], abs=1e-9)


def test_a_file_of_other_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 2), np.float32))
    with pytest.raises(DataError, match="it has 2 channels"):
        channel_statistics([tmp_path / "a.npy"] * 100, in_channels=5, num_workers=2)


def test_a_large_image_is_counted_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 65536, (50, 33, 2), np.uint16)
    whole = ChannelSums()
    whole.add(image)
    monkeypatch.setattr("hmsa.datasets.statistics._PIXELS_AT_ONCE", 70)
    parts = ChannelSums()
    parts.add(image)
    assert parts == whole
