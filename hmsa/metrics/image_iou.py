# SPDX-License-Identifier: Apache-2.0
"""IoU image by image, after Wang et al. (arXiv 2310.19252): small objects count as much as large ones."""

from __future__ import annotations

from typing import ClassVar, Optional, Union

import numpy as np

from hmsa.metrics import Metric, divide, means

UNIT = 2**32
"""An image's IoU is rounded to a multiple of 1 / UNIT, so that sums are exact."""


class ImageIoU(Metric):
    """Of each class the mean, over the images that it is in (in label or prediction), of its IoU in the image.

    IoU over all pixels of a data set forgives a small object that is missed beside large ones; this does not.
    """

    titles: ClassVar[dict[str, str]] = {
        "image_iou": "IoU by image",
        "mean_image_iou": "mean IoU by image, all classes",
        "mean_image_iou_present": "mean IoU by image, classes present",
    }

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__(num_classes, ignore_index)
        self.state = np.zeros((3, num_classes), np.int64)  # images with the class, in their labels, units of IoU

    def update(self, prediction: np.ndarray, label: np.ndarray, confidence: Optional[np.ndarray] = None) -> None:
        valid = label != self.ignore_index
        predicted, labelled = prediction[valid], label[valid]
        hits, taken, there = (
            np.bincount(classes, minlength=self.num_classes)[: self.num_classes]
            for classes in (labelled[predicted == labelled], predicted, labelled)
        )
        union = taken + there - hits
        units = np.rint(UNIT * np.nan_to_num(divide(hits, union))).astype(np.int64)
        self.state += [union > 0, there > 0, units]

    def scores(self) -> dict[str, Union[float, np.ndarray]]:
        images, labelled, units = self.state
        iou = divide(units / UNIT, images)
        mean, mean_present = means(iou, labelled > 0)
        return {"mean_image_iou": mean, "mean_image_iou_present": mean_present, "image_iou": iou}
