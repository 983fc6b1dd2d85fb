# SPDX-License-Identifier: Apache-2.0
"""Boundary IoU (Cheng, Girshick, Dollár, Berg, Kirillov, arXiv 2103.16562), which small errors at edges lower."""

from __future__ import annotations

import math
from typing import ClassVar, Optional, Union

import numpy as np

from hmsa.metrics import Metric, divide, means


class BoundaryIoU(Metric):
    """IoU of the boundary regions of prediction and label, for every class.

    The boundary region of a class holds the pixels of its mask within `boundary_width` of the mask's outside, which
    the outside of the image belongs to. The paper (section 4) takes the IoU of two instances' regions, and from that
    average precision. Here, as for the IoU of semantic segmentation, there are no instances: a class's intersections
    and unions are summed over all images of the data set before one is divided by the other.

    Ignored pixels belong to no mask, neither of the label nor of the prediction, and so to no region; what borders on
    them is boundary in both.
    """

    titles: ClassVar[dict[str, str]] = {
        "boundary_iou": "boundary IoU",
        "mean_boundary_iou": "mean boundary IoU, all classes",
        "mean_boundary_iou_present": "mean boundary IoU, classes present",
    }

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__(num_classes, ignore_index)
        self.state = np.zeros((3, num_classes), np.int64)  # pixels in both regions, the prediction's, the label's

    def update(self, prediction: np.ndarray, label: np.ndarray, confidence: Optional[np.ndarray] = None) -> None:
        valid = label != self.ignore_index
        prediction = np.where(valid, prediction, label)
        width = boundary_width(*label.shape)
        predicted, labelled = (boundary(classes, width) & valid for classes in (prediction, label))
        both = predicted & labelled & (prediction == label)

        self.state += [
            np.bincount(classes[where], minlength=self.num_classes)[: self.num_classes]
            for classes, where in ((label, both), (prediction, predicted), (label, labelled))
        ]

    def scores(self) -> dict[str, Union[float, np.ndarray]]:
        both, predicted, labelled = self.state
        iou = divide(both, predicted + labelled - both)
        mean, mean_present = means(iou, labelled > 0)  # a class has boundary pixels in every label that it is in
        return {"mean_boundary_iou": mean, "mean_boundary_iou_present": mean_present, "boundary_iou": iou}


def boundary_width(height: int, width: int, share: float = 0.02) -> int:
    """Width in pixels of boundary regions: a share of the image's diagonal, rounded, at least 1."""
    return max(1, round(share * math.sqrt(height**2 + width**2)))


def boundary(classes: np.ndarray, width: int) -> np.ndarray:
    """The boundary regions of all classes of a label map at once.

    The authors erode each class's mask, framed by zeros, `width` times by a square of 3x3, which leaves the pixels
    whose square of (2 * width + 1)^2 lies in the mask. Those of all classes are the pixels in whose square the least
    and the greatest class are the same, if the frame is neither.

    Args:
        classes: uint8 [H, W].
        width: in pixels.

    Returns:
        bool [H, W]: whether a pixel lies in the boundary region of its own class.
    """
    least = _over_squares(np.minimum, np.pad(classes, width, constant_values=0), 2 * width + 1)
    greatest = _over_squares(np.maximum, np.pad(classes, width, constant_values=255), 2 * width + 1)
    return least != greatest


def _over_squares(extreme: np.ufunc, values: np.ndarray, side: int) -> np.ndarray:
    """The extreme of every square of `side` pixels within `values` [h, w] -> [h - side + 1, w - side + 1].

    Along one axis after the other, each time joining two pieces of the squares' sides that may overlap: in log2(side)
    steps, where a filter of OpenCV's takes `side`.
    """
    for axis in (0, 1):
        values, done = values.swapaxes(0, axis), 1
        while done < side:
            step = min(done, side - done)
            values, done = extreme(values[:-step], values[step:]), done + step
        values = values.swapaxes(0, axis)
    return values
