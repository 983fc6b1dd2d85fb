# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest

from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.histogram import balanced_weights, class_histogram, counted_before
from hmsa.datasets.survey import survey
from hmsa.errors import DataError


@pytest.fixture
def make_dataset(tmp_path):
    def make(labels, seed=0, bad_sample_limit=None):
        pairs = []
        for index, label in enumerate(labels):
            paths = [str(tmp_path / f"{index}{ending}") for ending in (".jpg", ".png")]
            cv2.imwrite(paths[0], np.zeros((*np.shape(label), 3), np.uint8))
            cv2.imwrite(paths[1], np.asarray(label, np.uint8))
            pairs.append(tuple(paths))
        return SegmentationDataset(
            pairs=pairs,
            classes=Classes.numbered(4),
            training=True,
            seed=seed,
            bad_sample_limit=bad_sample_limit,
        )

    return make


def test_pixels_are_counted_without_ignored_ones(make_dataset):
    found = class_histogram(make_dataset([[[0, 0, 1], [255, 255, 3]], [[1], [1]]]))
    assert found.pixels.tolist() == [2, 3, 0, 1]
    assert (found.labels, found.of) == (2, 2)


def test_of_many_a_sample_that_depends_on_the_seed_alone(make_dataset):
    labels = [np.full((8, 8), index % 4) for index in range(20)]
    found = [class_histogram(make_dataset(labels, seed), max_labels=7) for seed in (0, 0, 1, 2)]
    assert all(histogram.pixels.sum() == 7 * 64 for histogram in found)
    assert (found[0].labels, found[0].of) == (7, 20)
    np.testing.assert_array_equal(found[0].pixels, found[1].pixels)
    assert any((found[0].pixels != other.pixels).any() for other in found[2:])


def test_a_label_of_no_use_is_an_error_or_left_out_as_in_training(make_dataset, tmp_path):
    labels = [[[0, 1]], [[2, 7]]]
    with pytest.raises(DataError, match=r"1\.png should hold class numbers"):
        class_histogram(make_dataset(labels))
    assert class_histogram(make_dataset(labels, bad_sample_limit=1)).pixels.tolist() == [1, 1, 0, 0]


def test_a_look_at_all_labels_has_counted_them(make_dataset):
    dataset = make_dataset([[[0, 0, 1], [255, 255, 3]], [[1], [1]]])
    found, expected = counted_before(survey(dataset, masks_only=True), dataset), class_histogram(dataset)
    assert found.pixels.tolist() == expected.pixels.tolist() == [2, 3, 0, 1]
    assert found[1:] == expected[1:]
    assert counted_before(survey(dataset, masks_only=True, max_pairs=1), dataset) is None
    for labels in ([[[0, 1]], [[2, 7]]], [[[255]]]):
        dataset = make_dataset(labels, bad_sample_limit=1)
        assert counted_before(survey(dataset, masks_only=True), dataset) is None


def test_ignored_pixels_alone_are_refused(make_dataset):
    with pytest.raises(DataError, match="found none but ignored pixels"):
        class_histogram(make_dataset([[[255]]]))


def test_weights_follow_the_formula_and_have_the_mean_1():
    shares = np.array([0.5, 0.3, 0.2])
    raw = 1 / np.log(1.02 + shares)
    assert balanced_weights((shares * 1000).astype(int)) == pytest.approx((raw / raw.mean()).tolist(), abs=1e-6)
    assert np.mean(balanced_weights(np.array([1, 10**12, 77]))) == pytest.approx(1, abs=1e-6)


def test_a_class_that_never_occurs_takes_nothing_from_the_others():
    present = balanced_weights(np.array([70, 30]))
    assert balanced_weights(np.array([70, 0, 30])) == [present[0], 1.0, present[1]]
