# SPDX-License-Identifier: Apache-2.0
"""What the files of a data set hold."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hmsa.datasets import survey as module
from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.survey import facts_of, spread, survey

RAW = Classes(("a", "b"), ((0, 0, 0), (9, 9, 9)), values=((0, 50), (100,)), ignored=(200,))


def dataset_of(folder: Path, masks, images=None, classes=None, **options) -> SegmentationDataset:
    """Files of arrays, images of noise where none are given."""
    rng = np.random.default_rng(0)
    pairs = []
    for index, mask in enumerate(masks):
        image = images[index] if images else rng.integers(0, 256, (*mask.shape[:2], 3), dtype=np.uint8)
        paths = str(folder / f"{index}.png"), str(folder / f"{index}_mask.png")
        for array, path in zip((image, mask), paths):
            Image.fromarray(array).save(path)
        pairs.append(paths)
    return SegmentationDataset(pairs=pairs, classes=classes or Classes.numbered(3), training=False, **options)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), raw=st.booleans())
def test_counts_are_those_of_a_naive_count(tmp_path, data, raw):
    values = [0, 50, 100, 200, 7] if raw else [0, 1, 2, 255, 9]
    shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
    masks = []
    for height, width in data.draw(st.lists(shapes, min_size=1, max_size=4)):
        cells = st.lists(st.sampled_from(values), min_size=height * width, max_size=height * width)
        masks.append(np.array(data.draw(cells), np.uint8).reshape(height, width))
    found = survey(dataset_of(tmp_path, masks, classes=RAW if raw else Classes.numbered(3)))

    meanings = [{0, 50}, {100}] if raw else [{0}, {1}, {2}]
    for number, meaning in enumerate(meanings):
        in_masks = [sum(value in meaning for value in mask.ravel().tolist()) for mask in masks]
        assert found.class_pixels[number] == sum(in_masks)
        assert found.class_images[number] == sum(count > 0 for count in in_masks)
    every = [value for mask in masks for value in mask.ravel().tolist()]
    assert found.ignored_pixels == every.count(200 if raw else 255)
    assert found.strange_pixels == every.count(7 if raw else 9)
    assert found.strange == [value for value in values[-1:] if value in every]
    assert found.pixels == len(every)
    assert dict(found.values) == {value: every.count(value) for value in set(every)}
    assert found.count("strange_masks") == sum(values[-1] in mask for mask in masks)


def test_mean_and_std_are_those_of_all_pixels(tmp_path):
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (size, 30, 3), dtype=np.uint8) // (channel + 1) for channel, size in enumerate((9, 40))
    ]
    found = survey(dataset_of(tmp_path, [image[..., 0] * 0 for image in images], images))
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    np.testing.assert_allclose(found.mean_and_std(), [pixels.mean(axis=0), pixels.std(axis=0)], rtol=1e-9)


def test_what_is_stored(tmp_path):
    rgb = np.zeros((8, 10, 3), np.uint8)
    forms = {
        "8 bit RGB": Image.fromarray(rgb),
        "8 bit grey": Image.fromarray(rgb[..., 0]),
        "8 bit RGB with alpha": Image.fromarray(rgb).convert("RGBA"),
        "8 bit palette": Image.fromarray(rgb).convert("P"),
        "16 bit grey": Image.fromarray(np.zeros((8, 10), np.uint16)),
    }
    for stored, image in forms.items():
        path = tmp_path / "image.png"
        image.save(path)
        facts = facts_of((str(path), None), RAW)
        assert facts.image is not None and facts.image.stored == stored and facts.problems == []
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "image.jpg")
    assert facts_of((str(tmp_path / "image.jpg"), None), RAW).image.stored == "8 bit CMYK"


def test_exif_turns(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image, upright, stored = (str(tmp_path / name) for name in ("a.jpg", "upright.png", "stored.png"))
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(image, exif=exif)
    Image.fromarray(np.zeros((10, 8), np.uint8)).save(upright)
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(stored)
    facts = facts_of((image, upright), RAW)
    assert facts.image is not None and (facts.image.size, facts.image.orientation) == ((8, 10), 6)
    assert facts.problems == []
    assert [kind for kind, _ in facts_of((image, stored), RAW).problems] == ["masks_of_turned_images"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (None, "missing_files"),
        (b"", "unreadable_images"),
        (b"\x89PNG\r\n\x1a\n", "unreadable_images"),
        (b"text", "unreadable_images"),
    ],
)
def test_files_that_are_no_images_are_told_and_not_thrown(tmp_path, content, kind):
    path = tmp_path / "ein Bild ü.PNG"
    if content is not None:
        path.write_bytes(content)
    facts = facts_of((str(path), str(path)), RAW)
    assert facts.image is None and facts.mask is None
    assert facts.problems[0][0] == kind and str(path) in facts.problems[0][1]


def test_only_so_many_values_and_names_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_VALUES", 50)
    monkeypatch.setattr(module, "MAX_NAMES", 2)
    masks = [np.arange(5000, dtype=np.uint16).reshape(50, 100) + 10 * index for index in range(5)]
    found = survey(dataset_of(tmp_path, masks))
    assert len(found.values) <= 53
    assert found.pixels == 25000 and found.count("strange_masks") == 5
    assert len(found.named["strange_masks"].first) == 2


def test_a_part_is_spread_evenly(tmp_path):
    assert spread(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert spread([1, 2], 5) == [1, 2] and spread([1, 2], None) == [1, 2]
    found = survey(dataset_of(tmp_path, [np.zeros((3, 3), np.uint8)] * 9), max_pairs=3, masks_only=True)
    assert found.sampled and found.masks == 3 and not found.sizes
    assert [Path(image).stem for image, _ in found.pairs] == ["0", "4", "8"]


def test_the_order_of_threads_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.choice([0, 1, 2, 255, 9], (20, 20)).astype(np.uint8) for _ in range(30)]
    dataset = dataset_of(tmp_path, masks)
    one, many = survey(dataset, num_workers=1), survey(dataset, num_workers=7)
    assert one.values == many.values and one.named == many.named
    np.testing.assert_array_equal(one.digests, many.digests)
    np.testing.assert_array_equal(one.mean_and_std(), many.mean_and_std())


def test_bytes_of_an_image_are_told_apart(tmp_path):
    content = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(content, "PNG")
    for name, data in (("a", content.getvalue()), ("b", content.getvalue()), ("c", content.getvalue() + b"x")):
        (tmp_path / name).write_bytes(data)
    digests = [facts_of((str(tmp_path / name), None), RAW).image.digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
