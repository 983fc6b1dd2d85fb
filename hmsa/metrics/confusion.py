# SPDX-License-Identifier: Apache-2.0
"""The confusion matrix, and the scores that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Optional, Union

import cv2
import numpy as np

from hmsa.metrics import NO_CLASS, Metric, divide, means

_EXACT_COUNTS = 2**24


class Confusion(Metric):
    """Which class was taken for which, over all pixels of a data set; its state is the matrix, see `scores`, whose last
    column counts pixels that were given no class."""

    titles: ClassVar[dict[str, str]] = {
        "iou": "IoU",
        "mean_iou": "mean IoU, all classes",
        "mean_iou_present": "mean IoU, the {classes_present} of {num_classes} classes present",
        "mean_dice": "mean dice, all classes",
    }

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__(num_classes, ignore_index)
        self.state = np.zeros((num_classes, num_classes + 1), np.int64)

    def update(self, prediction: np.ndarray, label: np.ndarray, confidence: Optional[np.ndarray] = None) -> None:
        self.state += confusion_matrix(prediction, label, self.num_classes, self.ignore_index, no_class=NO_CLASS)

    def scores(self) -> dict[str, Union[float, np.ndarray]]:
        return scores(self.state)


def confusion_matrix(
    prediction: np.ndarray, label: np.ndarray, num_classes: int, ignore_index: int = 255, no_class: Optional[int] = None
) -> np.ndarray:
    """Count pixels by their true and their predicted class.

    Args:
        prediction: class of every pixel, any integer type and shape, values 0 to num_classes - 1.
        label: true class of every pixel, same shape, values 0 to num_classes - 1 or `ignore_index`.
        num_classes: K, 1 to 256; a class that `ignore_index` is counts nowhere either.
        ignore_index: label, 0 to 255, of pixels that count nowhere.
        no_class: in `prediction`, of pixels that were given no class, unless a class has that number.

    Returns:
        int64 [K, K]: rows are the truth, columns the prediction; with `no_class` [K, K + 1], its column being the last.

    Raises:
        ValueError: the shapes differ, or a value is outside its range.
    """
    if not 1 <= num_classes <= 256 or not 0 <= ignore_index <= 255:
        raise ValueError(
            f"expected 1 to 256 classes and an ignore_index of 0 to 255, which 8 bits can hold, found {num_classes} "
            f"and {ignore_index}: merge classes, or mark ignored pixels by another number"
        )
    if prediction.shape != label.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, label {label.shape}: they must be equal")
    K = num_classes
    counts = _count_pairs(_as_bytes("label", label), _as_bytes("prediction", prediction))
    none = np.zeros((256, 0 if no_class is None else 1), np.int64)
    if no_class is not None and no_class >= K:
        none[:, 0], counts[:, no_class] = counts[:, no_class], 0
    wrong = np.flatnonzero(counts[:, K:].any(axis=0)) + K
    if wrong.size:
        raise ValueError(f"prediction has class {wrong[-1]}, expected 0 to {K - 1}")
    counts[ignore_index] = none[ignore_index] = 0
    wrong = np.flatnonzero(counts[K:].any(axis=1)) + K
    if wrong.size:
        raise ValueError(f"label has values {wrong.tolist()}, expected 0 to {K - 1} or {ignore_index}")
    return np.hstack([counts[:K, :K], none[:K]])


def _as_bytes(name: str, values: np.ndarray) -> np.ndarray:
    """`values` as uint8 [1, M]; ValueError if they do not fit."""
    if values.dtype != np.uint8 and values.size and not 0 <= values.min() <= values.max() <= 255:
        raise ValueError(f"{name} has values {values.min()} to {values.max()}, expected 0 to 255")
    return values.astype(np.uint8, copy=False).reshape(1, -1)


def _count_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How often each pair of values occurs, int64 [256, 256], in two arrays uint8 [1, M].

    In parts, as OpenCV's counts are float32, exact up to 2^24.
    """
    counts = np.zeros((256, 256), np.int64)
    for start in range(0, first.shape[1], _EXACT_COUNTS):
        part = slice(start, start + _EXACT_COUNTS)
        pair = [first[:, part], second[:, part]]
        counts += cv2.calcHist(pair, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    return counts


def scores(confusion: np.ndarray) -> dict[str, Union[float, np.ndarray]]:
    """Every score of a confusion matrix over K classes, as fractions from 0 to 1; NaN where nothing can be said.

    A class with no pixel in the labels and none in the predictions has IoU and dice NaN. A class that is predicted but
    not in the labels has IoU 0, and does not count as present.

    Args:
        confusion: int64 [K, K], rows are the truth, columns the prediction; or [K, K + 1], the last column being pixels
            that were given no class.

    Returns:
        mean_iou, mean_dice: over all K classes, NaN counting as 0, as PaddleSeg has it.
        mean_iou_present: over the classes present, which have labelled pixels.
        pixel_accuracy, kappa (Cohen's).
        classes_present: how many.
        iou, dice, precision (NaN for a class never predicted), recall (NaN for a class not present): float64 [K].
        confusion_matrix: [K, K]. pixels_without_class: how many of the labelled ones were given none.
    """
    K = len(confusion)
    matrix = confusion[:, :K].astype(np.float64)
    true = confusion.sum(axis=1).astype(np.float64)
    hit, predicted = np.diag(matrix), matrix.sum(axis=0)  # each [K]
    total = true.sum()
    present = true > 0

    iou = divide(hit, true + predicted - hit)
    dice = divide(2 * hit, true + predicted)
    mean_iou, mean_iou_present = means(iou, present)
    mean_dice, _ = means(dice, present)
    accuracy = float(divide(hit.sum(), total))
    chance = float(divide((true * predicted).sum(), total**2))

    return {
        "mean_iou": mean_iou,
        "mean_iou_present": mean_iou_present,
        "mean_dice": mean_dice,
        "pixel_accuracy": accuracy,
        "kappa": float(divide(accuracy - chance, 1 - chance)),
        "classes_present": int(present.sum()),
        "iou": iou,
        "dice": dice,
        "precision": divide(hit, predicted),
        "recall": divide(hit, true),
        "confusion_matrix": confusion[:, :K],
        "pixels_without_class": int(confusion[:, K:].sum()),
    }


def category_iou(confusion: np.ndarray, categories: Sequence[str]) -> dict[str, float]:
    """IoU of groups of classes, within which one may be taken for another; NaN where nothing can be said.

    Args:
        confusion: see `scores`.
        categories: that of each class.
    """
    found = {}
    for category in dict.fromkeys(categories):
        inside = np.array([name == category for name in categories])  # bool [K]
        hit = confusion[:, : len(inside)][np.ix_(inside, inside)].sum()
        true, taken = confusion[inside].sum(), confusion[:, : len(inside)][:, inside].sum()
        found[category] = float(divide(hit, true + taken - hit))
    return found
