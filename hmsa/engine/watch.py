# SPDX-License-Identifier: Apache-2.0
"""What evaluations, one after the other, say of a run: that it may end, or that the network does not learn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from hmsa.errors import UsageError, shown, suggest
from hmsa.metrics import Metric

SAME_ANSWERS = 3
"""Evaluations in a row with one class everywhere, after which a person is told."""


@dataclass
class Watched:
    """The score that may end a run, up to now."""

    metric: str
    best: Optional[float] = None
    iteration: int = 0  # of the best
    without_gain: int = 0  # evaluations since


@dataclass(frozen=True)
class EarlyStopping:
    """Ends a run after `patience` evaluations in a row that were no better than the best before them.

    A score of which nothing can be said (NaN) is no better than any.
    """

    metric: str
    patience: int
    lower_is_better: bool

    @classmethod
    def on(cls, metric: str, patience: int, metrics: Sequence[Metric]) -> EarlyStopping:
        """Early stopping on one of the scores of `metrics`.

        Raises:
            UsageError: they have no score of the whole of that name.
        """
        scores = {
            name: name in of_metric.lower_is_better
            for of_metric in metrics
            for name, value in of_metric.scores().items()
            if isinstance(value, float)
        }
        if metric not in scores:
            raise UsageError(
                f"expected a score that evaluations give, found {shown(metric)}: {suggest(metric, scores)}"
            )
        return cls(metric, patience, scores[metric])

    def watch(self, before: Optional[Watched], scores: Mapping[str, Any], iteration: int) -> Watched:
        """What is known after the evaluation of `iteration`; another metric than before starts anew."""
        value = float(scores[self.metric])
        if before is None or before.metric != self.metric:
            before = Watched(self.metric)
        best = before.best
        gained = best is None or (value < best if self.lower_is_better else value > best)
        if gained and not math.isnan(value):
            return Watched(self.metric, value, iteration)
        return Watched(self.metric, best, before.iteration, before.without_gain + 1)

    def reason(self, watched: Optional[Watched]) -> str:
        """Why the run ends now; empty if it goes on."""
        if watched is None or watched.metric != self.metric or watched.without_gain < self.patience:
            return ""
        since = f"in {watched.without_gain} evaluations in a row (early_stopping.patience is {self.patience})"
        if watched.best is None:
            return f"{self.metric} was no number {since}"
        moved = "fallen below" if self.lower_is_better else "risen above"
        return (
            f"{self.metric} has not {moved} {watched.best:.4f}, which it was at iteration {watched.iteration}, {since}"
        )


def only_answer(confusion: np.ndarray) -> Optional[int]:
    """The class that is predicted everywhere, if there is only one; int64 [K, K], rows are the truth."""
    predicted = np.flatnonzero(confusion.sum(axis=0))
    return int(predicted[0]) if len(predicted) == 1 else None


def advice_on_one_answer(name: str, confusion: np.ndarray) -> str:
    """What to tell a person whose network answers the class `name` everywhere, time and again."""
    told = f"warning: the network answers {name} everywhere, in {SAME_ANSWERS} evaluations in a row or more; "
    true = confusion.sum(axis=1)
    if np.count_nonzero(true) < 2:
        return told + (
            "the labels of val_dataset hold no other class: check whether their values are the class numbers, or add "
            "images that show more"
        )
    return told + (
        f"{100 * true.max() / true.sum():.0f} % of the labelled pixels are of the most frequent class: look at the "
        "labels, then try model.pretrained, class_weights: auto, a lower lr_scheduler.learning_rate, or more iters"
    )
