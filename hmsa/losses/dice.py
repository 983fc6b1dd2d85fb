# SPDX-License-Identifier: Apache-2.0
"""Dice loss (Milletari, Navab, Ahmadi, arXiv 1606.04797) with the denominator linear, as PaddleSeg 2.8 defines it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from hmsa.losses.softmax import Probabilities, SoftmaxLoss, Term

_EPSILON = 1e-8


@dataclass
class DiceLoss(SoftmaxLoss):
    """weight * (1 - (2 * sum(p * t) + smooth) / (sum(p) + sum(t) + smooth)), averaged over images and classes.

    The sums run over the valid pixels of an image; p is the class's probability, t is 1 where it is the label. A
    class with neither label nor probability has loss 0, and so has an image of ignored pixels alone. Without weights
    the loss is at most 1.

    Args:
        weight: a number a class, by which its loss is multiplied; the mean stays one over all classes. None: 1 for all.
        smooth: added above and below; pulls the loss of small classes towards 0.
    """

    weight: Optional[Sequence[float]]
    smooth: float

    def term(self, shared: Probabilities) -> Term:
        n, k = shared.totals.shape
        weight = shared.by_class(self.weight) / (n * k)  # [N, K]
        overlap = 2 * shared.sum_by_class(shared.of_label) + self.smooth  # [N, K]
        total = shared.totals + shared.sum_by_class(shared.valid) + (self.smooth + _EPSILON)  # [N, K]
        any_valid = (shared.valid.sum(axis=1, keepdim=True) > 0).astype("float32")  # [N, 1]
        ratio = overlap / total
        return Term(
            value=(weight * (1 - ratio) * any_valid).sum(),
            region=weight * ratio / total,
            label=shared.of_own_class(-2 * weight / total),
        )
