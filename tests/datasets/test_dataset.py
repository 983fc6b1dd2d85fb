# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import with_defaults as C
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import LABEL, PICTURE, encoded

from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.loader import batches
from hmsa.errors import DataError, UsageError


def make_pair(folder: Path, image: np.ndarray = PICTURE, label: np.ndarray | None = LABEL) -> tuple[str, str | None]:
    (folder / "a.png").write_bytes(encoded(image, "PNG"))
    if label is None:
        return str(folder / "a.png"), None
    (folder / "a_label.png").write_bytes(encoded(label, "PNG"))
    return str(folder / "a.png"), str(folder / "a_label.png")


def dataset(*pairs, **options) -> SegmentationDataset:
    return SegmentationDataset(**{"pairs": pairs, "classes": Classes.numbered(4), "training": True} | options)


# Samples


def test_a_training_sample(tmp_path):
    pair = make_pair(tmp_path)
    sample = dataset(pair, transforms=[C.RandomPaddingCrop(crop_size=(20, 16)), C.Normalize()])[0]
    assert sample["img"].dtype == np.float32 and sample["img"].shape == (3, 16, 20)
    assert sample["img"].flags.c_contiguous
    assert sample["label"].dtype == np.int64 and sample["label"].shape == (16, 20)
    assert sample["image_path"] == pair[0] and sample["trans_info"] == []


def test_an_evaluation_sample_keeps_its_label(tmp_path):
    sample = dataset(make_pair(tmp_path), training=False, transforms=[C.Resize(target_size=(18, 12))])[0]
    assert sample["img"].shape == (3, 12, 18)
    assert (sample["label"] == LABEL).all()
    assert sample["trans_info"] == [("resize", (24, 36))]


def test_a_sample_without_label(tmp_path):
    sample = dataset(make_pair(tmp_path, label=None), transforms=[C.Normalize()])[0]
    assert "label" not in sample
    np.testing.assert_allclose(sample["img"], PICTURE.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_a_sample_depends_on_seed_and_number_only(tmp_path):
    pairs = [make_pair(tmp_path)] * 3
    chain = [C.RandomPaddingCrop(crop_size=(20, 16)), C.RandomDistort(hue_range=63), C.Normalize()]
    first, again = (dataset(*pairs, transforms=chain, seed=7) for _ in range(2))
    third = [again[i]["img"] for i in (8, 0, 5)]
    for image, i in zip(third, (8, 0, 5)):
        assert (first[i]["img"] == image).all()
    other = dataset(*pairs, transforms=chain, seed=8)
    assert len({first[i]["img"].tobytes() for i in range(9)} | {other[0]["img"].tobytes()}) == 10


# What is wrong is named


@pytest.mark.parametrize(
    ("value", "options"), [(77, {}), (4, {}), (254, {"classes": Classes.numbered(4, ignore_index=0)})]
)
def test_label_values_out_of_range(tmp_path, value, options):
    label = LABEL.copy()
    label[3, 4] = value
    pair = make_pair(tmp_path, label=label)
    with pytest.raises(DataError, match=rf"a_label\.png should hold class numbers 0\.\.3.*holds {value}:"):
        dataset(pair, **options)[0]


def test_ignored_pixels_are_in_range(tmp_path):
    label = np.where(LABEL == 1, 255, LABEL).astype(np.uint8)
    assert (dataset(make_pair(tmp_path, label=label))[0]["label"] == label).all()


def test_sizes_that_differ(tmp_path):
    pair = make_pair(tmp_path, label=LABEL[:20])
    with pytest.raises(DataError, match=r"a_label\.png should be as large as its image .*36x24.*is 36x20"):
        dataset(pair)[0]


def turned_pair(folder: Path, turn: int, image: np.ndarray, label: np.ndarray) -> tuple[str, str | None]:
    """The image in a JPEG whose EXIF data ask for a turn, and a label."""
    exif = Image.Exif()
    exif[0x0112] = turn
    (folder / "a.jpg").write_bytes(encoded(image, "JPEG", exif=exif.tobytes()))
    (folder / "a_label.png").write_bytes(encoded(label, "PNG"))
    return str(folder / "a.jpg"), str(folder / "a_label.png")


@pytest.mark.parametrize("turn", range(2, 9))
@pytest.mark.parametrize("drawn_on", ["stored", "upright", "square"])
def test_a_label_of_a_turned_image_must_show_that_it_was_turned_too(tmp_path, turn, drawn_on):
    image, label = (PICTURE[:, :24], LABEL[:, :24]) if drawn_on == "square" else (PICTURE, LABEL)
    if drawn_on == "upright" and turn >= 5:
        label = np.rot90(label)
    data = dataset(turned_pair(tmp_path, turn, image, label))
    if drawn_on == "upright" and turn >= 5:
        assert (data[0]["label"] == label).all() and data[0]["img"].shape[1:] == label.shape
        return
    with pytest.raises(
        DataError, match=rf"a_label\.png .*a\.jpg is stored turned \(EXIF orientation {turn}\).*upright"
    ):
        data[0]


def test_turns_that_ask_for_nothing_and_sizes_that_are_neither(tmp_path):
    assert (dataset(turned_pair(tmp_path, 1, PICTURE, LABEL))[0]["label"] == LABEL).all()
    with pytest.raises(DataError, match=r"as large as its image .*24x36 .*is 36x20"):
        dataset(turned_pair(tmp_path, 6, PICTURE, LABEL[:20]))[0]
    image, _ = turned_pair(tmp_path, 3, PICTURE, LABEL)
    assert np.abs(dataset((image, None))[0]["img"] - np.rot90(PICTURE, 2).transpose(2, 0, 1)).mean() < 9


def test_the_limit_of_pixels_reaches_images_and_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    pair = make_pair(tmp_path)
    assert (dataset(pair, max_image_pixels=LABEL.size)[0]["label"] == LABEL).all()
    with pytest.raises(DataError, match="raise max_image_pixels"):
        dataset(pair, max_image_pixels=LABEL.size - 1)[0]
    (tmp_path / "a.png").write_bytes(encoded(PICTURE[:9, :9], "PNG"))
    with pytest.raises(DataError, match=r"a_label\.png .* raise max_image_pixels"):
        dataset(pair, max_image_pixels=LABEL.size - 1)[0]


@pytest.mark.parametrize("most", [300, 40000])
def test_labels_of_two_bytes_can_be_transformed(tmp_path, most):
    label = np.where(LABEL == 3, most, LABEL).astype(np.uint16)
    pair = make_pair(tmp_path)
    Image.fromarray(label).save(pair[1])
    chain = [C.ResizeStepScaling(min_scale_factor=0.5, max_scale_factor=0.5), C.RandomPaddingCrop(crop_size=(20, 14))]
    many = dataset(pair, classes=Classes.numbered(50000), transforms=chain)[0]["label"]
    assert many.dtype == np.int64 and set(np.unique(many)) == {0, 1, 2, most, 255}


def test_no_pictures():
    with pytest.raises(DataError, match="at least one image"):
        dataset()


# What is bad is left out, where that is asked for


@pytest.fixture
def some_bad(tmp_path):
    """Eight pairs that can be told apart; of three, the image or the label cannot be used."""
    pairs = []
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        pairs.append(make_pair(folder, np.full_like(PICTURE, number)))
    Path(pairs[1][0]).write_bytes(b"")
    Path(pairs[4][1]).unlink()
    Image.fromarray(np.full_like(LABEL, 77)).save(pairs[6][1])
    return pairs


def skipping(pairs, **options) -> SegmentationDataset:
    return dataset(*pairs, **{"bad_sample_limit": 3, "transforms": [C.RandomHorizontalFlip()]} | options)


def test_another_sample_stands_in_for_a_bad_one(some_bad, capsys):
    data = skipping(some_bad)
    samples = [data[i] for i in range(4 * 8)]
    assert {int(sample["img"][0, 0, 0]) for sample in samples} == {0, 2, 3, 5, 7}
    for index, sample in enumerate(samples):
        planned = data.epoch(index // 8)[index % 8][0]
        if planned not in data.skipped:
            assert sample["image_path"] == planned  # good ones stay where they are
    bad = [some_bad[i][0] for i in (1, 4, 6)]
    assert sorted(data.skipped) == bad
    reasons = "no image format is recognised", "No such file", "holds 77"
    assert all(reason in data.skipped[path] for path, reason in zip(bad, reasons))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("warning: another image stands in for ") for line in lines)


def test_what_stands_in_depends_on_seed_and_number_only(some_bad):
    first, again = skipping(some_bad), skipping(some_bad)
    there = {i: first[i] for i in range(24)}
    for i in reversed(range(24)):
        assert again[i]["image_path"] == there[i]["image_path"]
        assert (again[i]["img"] == there[i]["img"]).all() and (again[i]["label"] == there[i]["label"]).all()
    stands_in = [sample["image_path"] for i, sample in there.items() if first.epoch(i // 8)[i % 8][0] in first.skipped]
    assert len(set(stands_in)) > 2
    other = skipping(some_bad, seed=1)
    assert [other[i]["image_path"] for i in range(24)] != [sample["image_path"] for sample in there.values()]


def test_workers_replace_alike_and_warn_once(some_bad, capsys):
    indices = [[2 * i, 2 * i + 1] for i in range(20)]
    paths = [
        [batch["image_path"] for batch in batches(skipping(some_bad), indices, num_workers)] for num_workers in (0, 4)
    ]
    assert paths[0] == paths[1] and all(len(batch) == 2 for batch in paths[0])
    assert capsys.readouterr().err.count("\n") == 2 * 3


def test_more_bad_ones_than_the_limit(some_bad):
    data = skipping(some_bad, bad_sample_limit=2)
    with pytest.raises(DataError, match=r"at most 2 images that cannot be used \(bad_sample_limit\).*found 3: .*label"):
        [data[i] for i in range(8)]
    assert len(data.skipped) == 3


def test_nothing_but_bad_ones_comes_to_an_end(tmp_path):
    data = skipping([(str(tmp_path / f"{i}.png"), None) for i in range(5)], bad_sample_limit=100)
    with pytest.raises(DataError, match=r"at most 100 images .* and others to stand in for them, found 5: .*No such"):
        data[0]


def test_faults_of_the_recipe_are_not_left_out(some_bad):
    for transforms in ([C.Padding(target_size=(8, 8))], [lambda sample, rng: sample["no such key"]]):
        data = skipping(some_bad[2:4], transforms=transforms)
        with pytest.raises((DataError, KeyError), match=r"enlarge target_size|no such key"):
            data[0]
        assert data.skipped == {}


# Epochs

names = st.integers(1, 12)


def named(kind: str, count: int) -> list[tuple[str, str | None]]:
    return [(f"{kind}{i}", None) for i in range(count)]


@given(names, names, st.floats(0, 20), st.integers(0, 2**31), st.integers(0, 6))
@settings(max_examples=80, deadline=None)
def test_an_epoch_is_every_fine_picture_and_its_share_of_coarse_ones(fine, coarse, multiple, seed, epoch):
    options = {"coarse_pairs": named("c", coarse), "coarse_multiple": multiple, "seed": seed}
    data, same = (dataset(*named("f", fine), **options) for _ in range(2))
    pairs = data.epoch(epoch)
    assert len(pairs) == len(data) == fine + int(multiple * fine)
    assert sorted(p for p in pairs if p[0][0] == "f") == sorted(named("f", fine))
    same.epoch(epoch + 3)  # whatever else was asked for before
    assert same.epoch(epoch) == pairs


@given(names, names, st.floats(0.1, 9), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_coarse_pictures_are_all_seen_before_any_is_seen_again(fine, coarse, multiple, seed):
    options = {"coarse_pairs": named("c", coarse), "coarse_multiple": multiple, "seed": seed, "training": False}
    data = dataset(*named("f", fine), **options)
    drawn = [pair for epoch in range(8) for pair in data.epoch(epoch)[fine:]]
    for start in range(0, len(drawn), coarse):
        round_ = drawn[start : start + coarse]
        assert len(set(round_)) == len(round_)


def test_orders_differ_from_epoch_to_epoch_and_by_seed():
    options = {"coarse_pairs": named("c", 50), "coarse_multiple": 1.0}
    data = dataset(*named("f", 30), seed=1, **options)
    other = dataset(*named("f", 30), seed=2, **options)
    assert len({tuple(epoch) for epoch in (data.epoch(0), data.epoch(1), other.epoch(0))}) == 3
    first_places = [pair[0][0] for pair in data.epoch(0)]
    assert {"f", "c"} == set(first_places[:20])  # fine and coarse are mixed
    assert sorted(data.epoch(0)) != sorted(data.epoch(1))  # other coarse images


def test_an_evaluation_keeps_the_order_of_the_list():
    assert dataset(*named("f", 9), training=False).epoch(4) == named("f", 9)


# PaddleSeg's data sets


def test_a_data_set_of_paddleseg_is_taken_over(tmp_path):
    from paddleseg.datasets import OpticDiscSeg

    make_pair(tmp_path, label=np.minimum(LABEL, 1))
    (tmp_path / "train_list.txt").write_text("a.png a_label.png\n")
    theirs = OpticDiscSeg(mode="train", dataset_root=str(tmp_path), transforms=[])
    options = {"classes": Classes.numbered(2, ignore_index=7), "max_image_pixels": 10**6}
    ours = SegmentationDataset.from_paddleseg(theirs, training=True, **options)
    assert (ours[0]["label"] == np.minimum(LABEL, 1)).all()
    assert ours.classes == Classes.numbered(2, ignore_index=255)
    assert ours.max_image_pixels == 10**6


def test_a_data_set_with_reading_of_its_own_is_refused():
    theirs = SimpleNamespace(file_list=[["a", "b"]], num_classes=4, ignore_index=255)
    with pytest.raises(UsageError, match="SimpleNamespace prepares its labels in its own way"):
        SegmentationDataset.from_paddleseg(theirs, classes=Classes.numbered(4), training=True)
