# SPDX-License-Identifier: Apache-2.0
"""Expected calibration error (Naeini, Cooper, Hauskrecht, AAAI 2015; as Guo et al., arXiv 1706.04599, have it)."""

from __future__ import annotations

from typing import ClassVar, Optional, Union

import numpy as np

from hmsa.metrics import Metric, divide

BINS = 15
"""Equal parts of the confidences from 0 to 1; one on the border of two counts in the lower."""

UNIT = 2**16
"""Confidences are rounded to multiples of 1 / UNIT, once for each pixel, so that their sums are exact."""

_STARTS = np.array([0] + [index * UNIT // BINS + 1 for index in range(1, BINS)])
"""The least confidence of each bin, in units."""


class Calibration(Metric):
    """How far the network's confidence is from how often it is right, over all valid pixels of a data set.

    Pixels are put in `BINS` by the probability of the class that they are given. The error is the mean over pixels of
    |accuracy - mean confidence| of their bin. A confidence of NaN counts as 0.
    """

    titles: ClassVar[dict[str, str]] = {"ece": "expected calibration error"}
    lower_is_better: ClassVar[tuple[str, ...]] = ("ece",)
    needs_confidence = True

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__(num_classes, ignore_index)
        self.state = np.zeros((3, BINS), np.int64)  # of each bin: pixels, those that are right, sum of units

    def update(self, prediction: np.ndarray, label: np.ndarray, confidence: Optional[np.ndarray] = None) -> None:
        assert confidence is not None
        valid = label != self.ignore_index
        units = np.rint(UNIT * np.fmin(np.fmax(confidence[valid], 0), 1)).astype(np.int64)
        right = prediction[valid] == label[valid]

        counts = np.bincount(2 * units + right, minlength=2 * (UNIT + 1)).reshape(-1, 2)  # by units: wrong, right
        pixels, hits = counts.sum(axis=1), counts[:, 1]
        self.state += [np.add.reduceat(values, _STARTS) for values in (pixels, hits, pixels * np.arange(UNIT + 1))]

    def scores(self) -> dict[str, Union[float, np.ndarray]]:
        """`ece`, and `reliability` [BINS, 3]: of each bin the mean confidence, the accuracy and the pixels."""
        pixels, hits, units = self.state
        error = np.abs(UNIT * hits - units).sum() / UNIT
        reliability = np.stack([divide(units / UNIT, pixels), divide(hits, pixels), pixels.astype(float)], axis=1)
        return {"ece": float(divide(error, pixels.sum())), "reliability": reliability}
