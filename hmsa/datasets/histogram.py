# SPDX-License-Identifier: Apache-2.0
"""How often each class occurs in the labels that are trained on, and what its pixels should weigh for that."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Optional

import cv2
import numpy as np
from tqdm import tqdm

from hmsa.datasets.dataset import Pair, SegmentationDataset
from hmsa.datasets.survey import Survey
from hmsa.errors import DataError
from hmsa.system.environment import threads

MAX_LABELS = 1000
"""That are counted; of more, a sample is."""

_SAMPLE = 4  # keeps this stream of random numbers apart from those of the data set


class Histogram(NamedTuple):
    """Pixels of each class, ignored ones left out."""

    pixels: np.ndarray  # int64 [K]
    labels: int  # that were counted
    of: int  # labels in an epoch


def class_histogram(dataset: SegmentationDataset, *, max_labels: int = MAX_LABELS, progress: bool = False) -> Histogram:
    """Count the classes in the labels of an epoch as they are in their files; in a sample of them, a function of the
    data set's seed, if there are more than `max_labels`.

    Raises:
        DataError: a label cannot be used, unless the data set has a `bad_sample_limit`, and others stand in for such;
            or there is no labelled pixel.
    """
    pairs = dataset.epoch(0)
    chosen = pairs
    if len(pairs) > max_labels:
        rng = np.random.default_rng((dataset.seed, 0, 0, _SAMPLE))
        chosen = [pairs[index] for index in np.sort(rng.choice(len(pairs), max_labels, replace=False))]

    def count(pair: Pair) -> np.ndarray:
        try:
            label = dataset.read_label(str(pair[1]))
        except DataError:
            if dataset.bad_sample_limit is None:
                raise
            return np.zeros(256, np.int64)
        # In float32, exact up to 2^24: rows of one label are fewer pixels.
        rows = max(1, 2**24 // label.shape[1])
        parts = [np.ascontiguousarray(label[top : top + rows], np.uint8) for top in range(0, len(label), rows)]
        counts = [cv2.calcHist([part], [0], None, [256], [0, 256])[:, 0] for part in parts]
        return np.sum(counts, axis=0, dtype=np.int64)

    with ThreadPoolExecutor(threads()) as executor:
        counts = executor.map(count, chosen)
        counted = tqdm(counts, "counting classes", len(chosen), unit="label", delay=1, disable=not progress)
        values = sum(counted, np.zeros(256, np.int64))

    values[dataset.classes.ignore_index] = 0
    pixels = values[: len(dataset.classes)]
    if not pixels.any():
        raise DataError(
            f"expected classes in the {len(chosen)} labels that are trained on, found none but ignored pixels: check "
            "their values, and ignore_index"
        )
    return Histogram(pixels, len(chosen), len(pairs))


def counted_before(survey: Survey, dataset: SegmentationDataset) -> Optional[Histogram]:
    """What `class_histogram` would find, of a look at all labels of an epoch; None where it was not of all, or not of
    use."""
    whole = survey.masks == len(survey.pairs) == survey.of == len(dataset) and not survey.strange_pixels
    return Histogram(survey.class_pixels, len(dataset), len(dataset)) if whole and survey.class_pixels.any() else None


def balanced_weights(pixels: np.ndarray) -> list[float]:
    """1 / ln(1.02 + share) for each class, divided by their mean (Paszke et al., ENet, arXiv 1606.02147).

    A class that does not occur has weight 1 and is not in the mean, which it would be most of.

    Args:
        pixels: int64 [K], above 0 somewhere.
    """
    present = pixels > 0
    weights = 1 / np.log(1.02 + pixels / pixels.sum())
    weights = np.where(present, weights / weights[present].mean(), 1.0)
    return [round(weight, 6) for weight in weights.tolist()]
