# SPDX-License-Identifier: Apache-2.0
"""The pixels of what training sees."""

from __future__ import annotations

import numpy as np
import pytest

from hmsa.datasets.bands import displayed
from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.loader import batches
from hmsa.datasets.transforms import Normalize, RandomDistort, RandomPaddingCrop
from hmsa.report import batch
from hmsa.visualize import lettering

CLASSES = Classes(names=("field", "wood"), colors=((255, 0, 0), (0, 0, 255)), ignore_index=255)
CROP = RandomPaddingCrop(
    crop_size=(20, 10), im_padding_value=127.5, label_padding_value=255, category_max_ratio=1, ignore_index=255,
    loop_times=1,
)  # fmt: skip


def write_dataset(folder, image, *more):
    """One image [H, W, C] with a label, cut to 20x10 and normalised."""
    np.save(folder / "a.npy", image)
    label = np.zeros(image.shape[:2], np.uint8)
    label[:, 10:] = 1
    np.save(folder / "label.npy", label)
    from PIL import Image

    Image.fromarray(label).save(folder / "a.png")
    channels = image.shape[2]
    normalise = Normalize(mean=[0.3] * channels, std=[0.2] * channels)
    return SegmentationDataset(
        pairs=[(str(folder / "a.npy"), str(folder / "a.png"))],
        classes=CLASSES,
        training=True,
        transforms=[CROP, *more, normalise],
        in_channels=channels,
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_crops_of_any_channels_are_shown_as_the_files_are(tmp_path, dtype, channels):
    image = (np.random.default_rng(0).random((10, 20, channels)) * 250).astype(dtype)
    dataset = write_dataset(tmp_path, image)
    (loaded,) = batches(dataset, [[0]], 0)
    crop = batch.crop_of(loaded, dataset)
    assert crop.path.endswith("a.npy")
    assert crop.is_coarse is None
    np.testing.assert_allclose(crop.image.astype(int), displayed(image).astype(int), atol=dtype == np.float32)


def test_ignored_pixels_are_striped_and_the_rest_has_its_colour(tmp_path):
    image = np.full((10, 20, 3), 100, np.uint8)
    label = np.zeros((10, 20), np.int64)
    label[:, 10:15], label[:, 15:] = 1, 255
    page = np.asarray(batch.sheet("title", [batch.Crop("x/a.png", image, label)], CLASSES, 0.5))
    picture = page[40 : 40 + 160, 12 : 12 + 320]  # sixteen times as large
    assert tuple(picture[80, 80]) == pytest.approx((178, 50, 50), abs=1)
    assert tuple(picture[80, 200]) == pytest.approx((50, 50, 178), abs=1)
    grey = picture[:, 242:].reshape(-1, 3)
    assert (grey.max(axis=1) - grey.min(axis=1)).max() == 0
    assert sorted(set(grey[:, 0].tolist())) == [114, 193]
    edge = picture[80, 159]  # of the first class, beside the second
    assert edge[0] > 200 and edge[1] < 40


def test_nothing_is_denormalised_without_normalize():
    image = np.random.default_rng(1).integers(0, 256, (4, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(batch.denormalised(image, [CROP], np.dtype(np.uint8)), image)


def test_distortions_by_what_was_drawn():
    names = ("brightness", "contrast", "saturation", "hue", "sharpness")
    some = {f"{name}_range": 0.2 for name in names} | {f"{name}_prob": 0.5 for name in names}
    transform = RandomDistort(**some)
    for seed in range(20):
        recorder = batch.Recorder(np.random.default_rng(seed))
        sample = {"img": np.zeros((2, 2, 3), np.uint8)}
        transform(sample, recorder)
        again = np.random.default_rng(seed)
        order = again.permutation(5)
        drawn = []
        for index in order:
            if again.random() < 0.5:
                centre = 0 if names[index] == "hue" else 1
                drawn.append(f"{names[index]} {again.uniform(centre - 0.2, centre + 0.2):.3g}")
        assert batch.described(transform, recorder.given) == (", ".join(drawn) or "nothing drawn")


@pytest.mark.parametrize(
    ("share", "said"), [(0, "0 %"), (0.0001, "< 1 %"), (0.012, "1 %"), (0.9999, "99 %"), (1, "100 %")]
)
def test_shares(share, said):
    assert batch.percent(share) == said


def test_names_are_shortened_in_their_middle():
    name = "aachen_" + "0" * 200 + "_leftImg8bit.png"
    shown = batch.shortened(name, 300)
    assert lettering().getlength(shown) <= 300
    assert shown.startswith("aachen_000") and shown.endswith("0_leftImg8bit.png") and "…" in shown
    assert batch.shortened("short.png", 300) == "short.png"
    assert batch.shortened("a\x1b[0m.png", 300) == "a\\x1b[0m.png"


def test_files_of_one_name_are_called_by_their_paths(monkeypatch):
    called = []
    monkeypatch.setattr(batch, "draw_page", lambda title, cells, entries: called.extend(cell.name for cell in cells))
    crop = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.int64)
    batch.sheet("", [batch.Crop("a/1.png", *crop), batch.Crop("b/1.png", *crop)], CLASSES, 0.4)
    batch.sheet("", [batch.Crop("a/1.png", *crop), batch.Crop("a/1.png", *crop)], CLASSES, 0.4)
    assert called == ["a/1.png", "b/1.png", "1.png", "1.png"]
