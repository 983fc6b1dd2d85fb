# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa.metrics.image_iou import ImageIoU

K = 4


def measured(images) -> ImageIoU:
    metric = ImageIoU(K, 255)
    for prediction, label in images:
        metric.update(np.asarray(prediction, np.uint8), np.asarray(label, np.uint8))
    return metric


def test_by_hand() -> None:
    """Class 0 has 1/2 and 1, class 1 has 2/3 and nothing, class 2 is only taken (0), class 3 nowhere."""
    first = ([[0, 1, 1, 2]], [[0, 0, 1, 1]])  # 0: 1 of 2; 1: 1 of 3; 2: 0 of 1
    second = ([[0, 0, 3, 0]], [[0, 0, 255, 255]])  # 0: 2 of 2; what is ignored does not count
    scores = measured([first, second]).scores()
    assert scores["image_iou"][:3] == pytest.approx([(1 / 2 + 1) / 2, 1 / 3, 0], abs=1e-9)
    assert np.isnan(scores["image_iou"][3])
    assert scores["mean_image_iou"] == pytest.approx((3 / 4 + 1 / 3) / 4)
    assert scores["mean_image_iou_present"] == pytest.approx((3 / 4 + 1 / 3) / 2)


def test_a_missed_small_object_counts() -> None:
    large, small = np.zeros((100, 100)), np.zeros((100, 100))
    large[:90], small[:2] = 1, 1
    scores = measured([(large, large), (np.zeros((100, 100)), small)]).scores()
    assert scores["image_iou"][1] == pytest.approx(0.5)  # over all pixels it is 9000 / 9200


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_parts_add_up_to_the_plain_mean(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    images = [tuple(rng.choice([0, 1, 2, 3], (2, 5, 7))) for _ in range(count)]
    images = [(prediction, np.where(rng.random((5, 7)) < 0.2, 255, label)) for prediction, label in images]

    whole, halves = measured(images), [measured(images[start::2]) for start in (0, 1)]
    np.testing.assert_array_equal(whole.state, sum(half.state for half in halves))

    for k in range(K):
        found = []
        for prediction, label in images:
            is_k, valid = (prediction == k), label != 255
            union = ((is_k | (label == k)) & valid).sum()
            if union:
                found.append((is_k & (label == k) & valid).sum() / union)
        expected = np.mean(found) if found else np.nan
        assert whole.scores()["image_iou"][k] == pytest.approx(expected, abs=1e-8, nan_ok=True)
