# SPDX-License-Identifier: Apache-2.0
"""Metrics: what predictions are worth. Each counts in integers, so that any number of ranks finds the same bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Callable, ClassVar, Optional, Union

import numpy as np

from hmsa.components import MEAN_LOSS, METRICS, imported
from hmsa.former import names_of

if TYPE_CHECKING:
    from paddle import Tensor

__getattr__ = names_of(__name__)

NO_CLASS = 255
"""In predictions: of pixels that were given no class, which is always wrong. Only those of others have it."""


class Metric(ABC):
    """What is counted over the images of a data set, and the scores that follow from the counts.

    Attributes:
        state: the counts, int64 of any shape, 0 at first. An evaluation replaces them by their sum over all ranks.
        titles: what a table calls a score, where its name with blanks for "_" will not do; with {name} for any score
            of the same metric, or {num_classes}.
        needs_confidence: whether `update` needs it; working it out takes time.
        needs_logits: whether `update_logits` is to be called.
        lower_is_better: those of its scores that get smaller as predictions get better.
    """

    state: np.ndarray
    titles: ClassVar[Mapping[str, str]] = {}
    needs_confidence: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False
    lower_is_better: ClassVar[tuple[str, ...]] = ()

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    @abstractmethod
    def update(self, prediction: np.ndarray, label: np.ndarray, confidence: Optional[np.ndarray] = None) -> None:
        """Add an image to the counts.

        Args:
            prediction: uint8 [H, W], classes or, if it is none, `NO_CLASS`.
            label: uint8 [H, W], classes or `ignore_index`.
            confidence: float32 [H, W], the probability that the network gives the predicted class.
        """

    def update_logits(self, logits: Tensor, label: np.ndarray) -> None:  # noqa: B027 (most need none)
        """Add an image to the counts, before `update`: logits [1, K, H, W] and its label, uint8 [H, W]."""

    @abstractmethod
    def scores(self) -> dict[str, Union[float, np.ndarray]]:
        """The scores by name, as fractions from 0 to 1; NaN where nothing can be said.

        A float is a score of the whole: a line of the table and a curve of a training. An array [K] has a number a
        class: a column of the table. Whole numbers, and arrays of two dimensions or more, go to the JSON alone.
        """


def build_metrics(
    num_classes: int, ignore_index: int, loss: Optional[Callable[[Tensor, Tensor], Tensor]] = None
) -> list[Metric]:
    """One of each of `METRICS`, with nothing counted yet, and the mean of a loss where one is given.

    Args:
        loss: (logits [1, K, H, W] float32, labels [1, H, W] int64) -> scalar.
    """
    metrics = [imported(place)(num_classes, ignore_index) for place in METRICS.values()]
    return [*metrics, imported(MEAN_LOSS)(num_classes, ignore_index, loss)] if loss else metrics


def divide(numerator: Union[np.ndarray, float], denominator: Union[np.ndarray, float]) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    bottom = np.asarray(denominator, np.float64)
    return np.divide(numerator, bottom, out=np.full_like(bottom, np.nan), where=bottom != 0)


def means(per_class: np.ndarray, present: np.ndarray) -> tuple[float, float]:
    """Means of a score [K] over all classes, NaN counting as 0, and over those `present` (bool [K]); NaN if none is."""
    return (
        float(np.nan_to_num(per_class).mean()),
        float(per_class[present].mean()) if present.any() else float("nan"),
    )
