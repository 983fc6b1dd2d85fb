# SPDX-License-Identifier: Apache-2.0
"""Tversky loss (Salehi, Erdogmus, Gholipour, arXiv 1706.05721): dice with a price of its own for either mistake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from hmsa.losses.softmax import Probabilities, SoftmaxLoss, Term

_EPSILON = 1e-8


@dataclass
class TverskyLoss(SoftmaxLoss):
    """weight * (1 - (TP + smooth) / (TP + alpha * FP + beta * FN + smooth)), averaged over images and classes.

    Over the valid pixels of an image, with the class's probability p and t = 1 where it is the label, TP is sum(p * t),
    FP is sum(p * (1 - t)) and FN is sum((1 - p) * t). With alpha = beta = 0.5 it is `DiceLoss` of twice the `smooth`; a
    larger beta finds more of small classes. An image of ignored pixels alone has loss 0.

    Args:
        weight: a number a class, by which its loss is multiplied; the mean stays one over all classes. None: 1 for all.
        alpha: price of pixels that are taken for the class.
        beta: price of its pixels that are missed.
        smooth: added above and below; pulls the loss of small classes towards 0.
    """

    weight: Optional[Sequence[float]]
    alpha: float
    beta: float
    smooth: float

    def term(self, shared: Probabilities) -> Term:
        n, k = shared.totals.shape
        weight = shared.by_class(self.weight) / (n * k)  # [N, K]
        true = shared.sum_by_class(shared.of_label)  # [N, K], TP
        prices = self.alpha * shared.totals + self.beta * shared.sum_by_class(shared.valid)
        both = 1 - self.alpha - self.beta
        total = both * true + prices + (self.smooth + _EPSILON)  # [N, K]
        any_valid = (shared.valid.sum(axis=1, keepdim=True) > 0).astype("float32")  # [N, 1]
        ratio = (true + self.smooth) / total
        return Term(
            value=(weight * (1 - ratio) * any_valid).sum(),
            region=weight * self.alpha * ratio / total,
            label=shared.of_own_class(weight * (both * ratio - 1) / total),
        )
