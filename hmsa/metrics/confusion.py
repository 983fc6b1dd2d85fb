# SPDX-License-Identifier: Apache-2.0
"""The confusion matrix, and the scores that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_EXACT_COUNTS = 2**24


def confusion_matrix(
    prediction: np.ndarray, label: np.ndarray, num_classes: int, ignore_index: int = 255
) -> np.ndarray:
    """Count pixels by their true and their predicted class.

    Args:
        prediction: class of every pixel, any integer type and shape, values 0 to num_classes - 1.
        label: true class of every pixel, same shape, values 0 to num_classes - 1 or `ignore_index`.
        num_classes: K, 1 to 256; a class that `ignore_index` is counts nowhere either.
        ignore_index: label, 0 to 255, of pixels that count nowhere.

    Returns:
        int64 [K, K]: rows are the truth, columns the prediction.

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
    wrong = np.flatnonzero(counts[:, K:].any(axis=0)) + K
    if wrong.size:
        raise ValueError(f"prediction has class {wrong[-1]}, expected 0 to {K - 1}")
    counts[ignore_index] = 0
    wrong = np.flatnonzero(counts[K:].any(axis=1)) + K
    if wrong.size:
        raise ValueError(f"label has values {wrong.tolist()}, expected 0 to {K - 1} or {ignore_index}")
    return counts[:K, :K].copy()


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


@dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix over K classes, as fractions from 0 to 1; NaN where nothing can be said.

    A class with no pixel in the labels and none in the predictions has IoU and dice NaN. A class that is
    predicted but not in the labels has IoU 0, and does not count as present.
    """

    iou: np.ndarray  # float64 [K]
    dice: np.ndarray  # float64 [K]
    precision: np.ndarray  # float64 [K], NaN for a class never predicted
    recall: np.ndarray  # float64 [K], NaN for a class without labelled pixels
    present: np.ndarray  # bool [K], has labelled pixels
    mean_iou: float  # over all K classes, NaN counting as 0, as PaddleSeg has it
    mean_iou_present: float  # over the classes present
    mean_dice: float  # over all K classes, NaN counting as 0
    pixel_accuracy: float
    kappa: float  # Cohen's


def scores(confusion: np.ndarray) -> Scores:
    """Compute every score from a confusion matrix, int64 [K, K] with rows for the truth."""
    matrix = confusion.astype(np.float64)
    hit, true, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)  # each [K]
    total = matrix.sum()
    iou = _divide(hit, true + predicted - hit)
    dice = _divide(2 * hit, true + predicted)
    present = true > 0
    accuracy = float(_divide(hit.sum(), total))
    chance = float(_divide((true * predicted).sum(), total**2))
    return Scores(
        iou=iou,
        dice=dice,
        precision=_divide(hit, predicted),
        recall=_divide(hit, true),
        present=present,
        mean_iou=float(np.nan_to_num(iou).mean()),
        mean_iou_present=float(iou[present].mean()) if present.any() else float("nan"),
        mean_dice=float(np.nan_to_num(dice).mean()),
        pixel_accuracy=accuracy,
        kappa=float(_divide(accuracy - chance, 1 - chance)),
    )


def _divide(numerator: np.ndarray | float, denominator: np.ndarray | float) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    bottom = np.asarray(denominator, np.float64)
    return np.divide(numerator, bottom, out=np.full_like(bottom, np.nan), where=bottom != 0)
