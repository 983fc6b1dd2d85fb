# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose

from hmsa.metrics.calibration import BINS, UNIT, Calibration


def measured(*images, num_classes=3):
    metric = Calibration(num_classes, 255)
    for prediction, label, confidence in images:
        metric.update(np.asarray(prediction, np.uint8), np.asarray(label, np.uint8), np.asarray(confidence, np.float32))
    return metric


def plain_error(right, confidence):
    """Equation 3 of Guo et al., bin m of M holding the confidences in ((m - 1) / M, m / M]."""
    error, edges = 0.0, np.linspace(0, 1, 16)
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (low < confidence) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def test_the_error_by_hand():
    """Two pixels of 0.5 (bin 8), one right; three of 0.75 (bin 12), all right; one of 1 (the last), wrong."""
    label = [[0, 0, 1], [1, 2, 255], [2, 255, 255]]
    prediction = [[0, 1, 1], [1, 2, 0], [0, 0, 0]]
    confidence = [[0.5, 0.5, 0.75], [0.75, 0.75, 0.9], [1, 0.1, np.nan]]
    scores = measured((prediction, label, confidence)).scores()
    assert scores["ece"] == pytest.approx((2 * 0 + 3 * 0.25 + 1 * 1) / 6)
    curve = scores["reliability"]
    assert curve.shape == (15, 3)
    assert_allclose(curve[[7, 11, 14]], [[0.5, 0.5, 2], [0.75, 1, 3], [1, 0, 1]])
    assert np.isnan(np.delete(curve, [7, 11, 14], axis=0)[:, :2]).all() and curve[:, 2].sum() == 6


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_the_error_is_that_of_plain_numpy(count, seed):
    rng = np.random.default_rng(seed)
    label, prediction = rng.integers(0, 3, (2, 1, count))
    label[rng.random(label.shape) < 0.2] = 255
    confidence = np.rint(rng.random(label.shape) ** 0.3 * UNIT) / UNIT  # what is counted, so that no bin differs
    confidence = np.maximum(confidence, 1 / UNIT)
    valid = label != 255
    result = measured((prediction, label, confidence)).scores()["ece"]
    if valid.any():
        assert result == pytest.approx(plain_error((prediction == label)[valid], confidence[valid]), abs=1e-12)
    else:
        assert np.isnan(result)


@settings(deadline=None)
@given(hnp.arrays(np.float32, 40, elements=st.floats(0, 1, width=32)), st.integers(0, 40))
def test_images_in_any_parts_give_the_same_bits(confidence, cut):
    label = np.arange(40) % 3
    prediction = np.arange(40) // 2 % 3
    whole = measured((prediction, label, confidence))
    parts = [measured((prediction[p], label[p], confidence[p])) for p in (slice(cut), slice(cut, None))]
    together = measured()
    together.state = parts[0].state + parts[1].state
    assert whole.state.dtype == np.int64
    assert np.array(whole.scores()["ece"]).tobytes() == np.array(together.scores()["ece"]).tobytes()


def test_what_is_no_probability_counts_as_the_nearest():
    """Rounding may lead beyond 1, and a network without an answer says NaN."""
    metric = measured(([0, 0, 0], [0, 0, 0], [np.nan, -1, 1.0000001]))
    assert metric.state[0, 0] == 2 and metric.state[0, -1] == 1
    assert metric.state[2].tolist() == [0] * (BINS - 1) + [UNIT]


def test_no_pixels():
    for metric in (measured(), measured(([0], [255], [0.5]))):
        assert np.isnan(metric.scores()["ece"])
        assert np.isnan(metric.scores()["reliability"][:, :2]).all()
