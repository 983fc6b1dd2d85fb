# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from hmsa.metrics.boundary import BoundaryIoU, boundary, boundary_width


def measured(*pairs, num_classes=3):
    metric = BoundaryIoU(num_classes, 255)
    for prediction, label in pairs:
        metric.update(np.asarray(prediction, np.uint8), np.asarray(label, np.uint8))
    return metric


def authors_boundary(mask, width):
    """`mask_to_boundary` of the authors' published code, for a width in pixels."""
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)
    return mask - eroded[1:-1, 1:-1]


def test_the_boundary_of_a_block_by_hand():
    label = np.zeros((7, 8), np.uint8)
    label[2:7, 3:8] = 1
    assert_array_equal(
        boundary(label, 1).astype(int),
        [
            [1, 1, 1, 1, 1, 1, 1, 1],
            [1, 0, 1, 1, 1, 1, 1, 1],
            [1, 0, 1, 1, 1, 1, 1, 1],
            [1, 0, 1, 1, 0, 0, 0, 1],
            [1, 0, 1, 1, 0, 0, 0, 1],
            [1, 0, 1, 1, 0, 0, 0, 1],
            [1, 1, 1, 1, 1, 1, 1, 1],
        ],
    )


def test_scores_by_hand():
    """A block of 4x4 in 8x8 that is predicted one pixel further to the right; regions are one pixel wide."""
    label, prediction = np.zeros((2, 8, 8), np.uint8)
    label[2:6, 2:6] = 1
    prediction[2:6, 3:7] = 1
    metric = measured((prediction, label))
    # The ring of each block is 12 pixels: of the upper and lower sides 3 each are common, of the others none.
    both, predicted, labelled = metric.state
    assert (both[1], predicted[1], labelled[1]) == (6, 12, 12)
    # The background's: the frame of the image, 28 pixels, and a ring of 20 around the block; 4 of that of the
    # prediction are in the frame. Of the label's ring 5 pixels are predicted to be background: rows 1 and 6 are
    # common in 5 columns each (2 to 6), which makes 10.
    assert (predicted[0], labelled[0]) == (28 + 20 - 6, 28 + 20)
    scores = metric.scores()
    assert_allclose(scores["boundary_iou"], [both[0] / (42 + 48 - both[0]), 6 / 18, np.nan])
    assert both[0] == 28 + 5 + 5
    assert scores["mean_boundary_iou"] == pytest.approx((38 / 52 + 1 / 3) / 3)
    assert scores["mean_boundary_iou_present"] == pytest.approx((38 / 52 + 1 / 3) / 2)


def test_images_are_summed_before_they_are_divided():
    first, second = np.zeros((2, 6, 6), np.uint8)
    second[:] = 1
    scores = measured((first, first), (first, second), num_classes=2).scores()
    ring = 20
    assert_allclose(scores["boundary_iou"], [ring / (2 * ring), 0])


def test_ignored_pixels_are_in_neither_region():
    """A perfect prediction stays perfect, whatever it says where nobody asks."""
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 3, (5, 7)), np.ones((6, 6))).astype(np.uint8)
    ignored = np.zeros_like(label, bool)
    ignored[10:22, 5:30] = True
    prediction = np.where(ignored, rng.integers(0, 3, label.shape), label)
    metric = measured((prediction, np.where(ignored, 255, label)))
    assert_array_equal(metric.scores()["boundary_iou"], [1, 1, 1])
    assert metric.state[2].sum() == (boundary(np.where(ignored, 255, label), 1) & ~ignored).sum()


def test_nothing_but_ignored_pixels_and_no_images():
    for metric in (measured(), measured((np.zeros((4, 5)), np.full((4, 5), 255)))):
        scores = metric.scores()
        assert np.isnan([*scores["boundary_iou"], scores["mean_boundary_iou_present"]]).all()
        assert scores["mean_boundary_iou"] == 0


def test_a_class_that_is_only_predicted_is_0_and_not_present():
    scores = measured((np.full((4, 4), 2), np.zeros((4, 4)))).scores()
    assert_array_equal(scores["boundary_iou"], [0, np.nan, 0])
    assert scores["mean_boundary_iou_present"] == 0


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(1024, 2048, 46), (1, 1, 1), (30, 40, 1), (60, 80, 2), (96, 128, 3)]
)
def test_the_width_is_2_percent_of_the_diagonal(height, width, expected):
    assert boundary_width(height, width) == expected


maps = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=19), elements=st.sampled_from([0, 1, 254])
)


@settings(deadline=None)
@given(maps, st.integers(1, 25))
def test_one_pass_gives_the_authors_boundary_of_every_class(label, width):
    """Also of images smaller than the width."""
    expected = sum(authors_boundary((label == k).astype(np.uint8), width) for k in np.unique(label))
    assert_array_equal(boundary(label, width).astype(np.uint8), expected)


@settings(deadline=None)
@given(st.data(), st.tuples(st.integers(1, 70), st.integers(1, 150)))
def test_scores_are_those_of_the_authors_masks(data, shape):
    patches = hnp.arrays(np.uint8, (5, 9), elements=st.sampled_from([0, 1, 2, 255]))
    label, prediction = (
        np.kron(data.draw(patches), np.ones((14, 17), np.uint8))[: shape[0], : shape[1]] for _ in range(2)
    )
    prediction = prediction % 3
    width, valid = boundary_width(*shape), label != 255
    scores = measured((prediction, label)).scores()
    for k in range(3):
        regions = [
            authors_boundary((valid & (classes == k)).astype(np.uint8), width) for classes in (prediction, label)
        ]
        union = (regions[0] | regions[1]).sum()
        expected = (regions[0] & regions[1]).sum() / union if union else np.nan
        assert_allclose(scores["boundary_iou"][k], expected)
