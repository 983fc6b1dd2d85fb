# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import metrics as sklearn_metrics

from hmsa.metrics.confusion import confusion_matrix, scores

LABEL = np.array([[0, 0, 1], [1, 2, 255]])
PREDICTION = np.array([[0, 1, 1], [1, 0, 2]])
# Class 3 occurs nowhere.
CONFUSION = np.array([[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_confusion_matrix_by_hand():
    matrix = confusion_matrix(PREDICTION, LABEL, 4)
    assert_array_equal(matrix, CONFUSION)
    assert matrix.dtype == np.int64


def test_scores_by_hand():
    result = scores(CONFUSION)
    assert_allclose(result["iou"], [1 / 3, 2 / 3, 0, np.nan])
    assert_allclose(result["dice"], [2 / 4, 4 / 5, 0, np.nan])
    assert_allclose(result["precision"], [1 / 2, 2 / 3, np.nan, np.nan])
    assert_allclose(result["recall"], [1 / 2, 1, 0, np.nan])
    assert result["classes_present"] == 3
    assert_array_equal(result["confusion_matrix"], CONFUSION)
    assert result["mean_iou"] == pytest.approx(1 / 4)
    assert result["mean_iou_present"] == pytest.approx(1 / 3)
    assert result["mean_dice"] == pytest.approx(1.3 / 4)
    assert result["pixel_accuracy"] == pytest.approx(3 / 5)
    chance = (2 * 2 + 2 * 3 + 1 * 0) / 25
    assert result["kappa"] == pytest.approx((3 / 5 - chance) / (1 - chance))


def test_class_only_predicted_is_not_present():
    result = scores(np.array([[3, 1], [0, 0]]))
    assert result["iou"][1] == 0
    assert result["classes_present"] == 1
    assert result["mean_iou_present"] == pytest.approx(3 / 4)
    assert result["mean_iou"] == pytest.approx(3 / 8)


def test_scores_of_nothing_are_nan():
    result = scores(np.zeros((3, 3), np.int64))
    assert np.isnan([result["pixel_accuracy"], result["kappa"], result["mean_iou_present"], *result["iou"]]).all()
    assert result["mean_iou"] == 0


def test_totals_beyond_32_bits():
    assert scores(np.array([[2**40, 0], [2**40, 0]]))["pixel_accuracy"] == 0.5


@settings(deadline=None)
@given(
    st.data(),
    st.integers(1, 254),
    st.sampled_from([np.uint8, np.int32, np.int64]),
    st.sampled_from([255, 254, 0]),
)
def test_confusion_matrix_equals_counting_one_by_one(data, num_classes, dtype, ignore_index):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=2, max_side=6))
    classes = st.integers(0, num_classes - 1)
    prediction = data.draw(hnp.arrays(np.uint8, shape, elements=classes))
    label = data.draw(hnp.arrays(dtype, shape, elements=classes | st.just(ignore_index)))
    expected = np.zeros((num_classes, num_classes), np.int64)
    for truth, guess in zip(label.ravel(), prediction.ravel()):
        if truth != ignore_index:
            expected[truth, guess] += 1
    assert_array_equal(confusion_matrix(prediction, label, num_classes, ignore_index), expected)


def test_confusion_matrix_of_a_large_picture_is_counted_in_parts(monkeypatch):
    monkeypatch.setattr("hmsa.metrics.confusion._EXACT_COUNTS", 4)
    assert_array_equal(confusion_matrix(PREDICTION, LABEL, 4), CONFUSION)


@settings(deadline=None)
@given(hnp.arrays(np.uint8, (2, 60), elements=st.integers(0, 4)))
def test_scores_agree_with_sklearn(arrays):
    label, prediction = arrays
    result = scores(confusion_matrix(prediction, label, 5))
    per_class = {"labels": range(5), "average": None, "zero_division": 0}
    assert_allclose(np.nan_to_num(result["iou"]), sklearn_metrics.jaccard_score(label, prediction, **per_class))
    assert_allclose(np.nan_to_num(result["dice"]), sklearn_metrics.f1_score(label, prediction, **per_class))
    assert_allclose(np.nan_to_num(result["precision"]), sklearn_metrics.precision_score(label, prediction, **per_class))
    assert_allclose(np.nan_to_num(result["recall"]), sklearn_metrics.recall_score(label, prediction, **per_class))
    assert result["pixel_accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(label, prediction))
    if len(np.union1d(label, prediction)) > 1:
        assert result["kappa"] == pytest.approx(sklearn_metrics.cohen_kappa_score(label, prediction))


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        ([0, 4], [0, 0], "prediction has class 4, expected 0 to 3"),
        ([0, 0], [0, 77], r"label has values \[77\], expected 0 to 3 or 255"),
        ([0, 0], [0, -1], "label has values -1 to 0"),
        ([0, 300], [0, 1], "prediction has values 0 to 300"),
        ([0], [0, 0], "must be equal"),
    ],
)
def test_values_out_of_range_are_refused(prediction, label, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(prediction), np.array(label), 4)


@pytest.mark.parametrize(
    ("num_classes", "ignore_index"), [(257, 255), (300, 255), (0, 255), (4, 256), (4, 300), (4, -1)]
)
def test_what_bytes_cannot_hold_is_refused(num_classes, ignore_index):
    with pytest.raises(ValueError, match=r"1 to 256 classes and an ignore_index of 0 to 255, .*: merge classes"):
        confusion_matrix(np.zeros(1, np.uint8), np.zeros(1, np.uint8), num_classes, ignore_index)


@pytest.mark.parametrize(("num_classes", "ignore_index"), [(255, 255), (256, 255), (256, 0)])
def test_as_many_classes_as_bytes_hold(num_classes, ignore_index):
    last = num_classes - 1
    matrix = confusion_matrix(
        np.array([last, 1]), np.array([last - (ignore_index == last), 1]), num_classes, ignore_index
    )
    assert matrix.shape == (num_classes, num_classes)
    assert matrix[:, last].sum() == matrix[1, 1] == 1
