# SPDX-License-Identifier: Apache-2.0
"""Bootstrapped cross-entropy: only an image's hardest pixels count (Wu, Shen, van den Hengel, arXiv 1605.06885)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import paddle

from hmsa.losses.hardest import hardest
from hmsa.losses.softmax import Probabilities, SoftmaxLoss, Term


@dataclass
class BootstrappedCrossEntropyLoss(SoftmaxLoss):
    """Mean cross-entropy of each image's hardest pixels, averaged over images.

    Among an image's valid pixels: if the (K+1)-th largest loss exceeds the threshold, the mean of all losses above the
    threshold; else the mean of the K largest. Fewer valid pixels than K: their mean. None: 0.

    Args:
        min_K: K, the least number of pixels that count.
        loss_th: the threshold.
        weight: a number a class, by which its pixels' losses are multiplied first. None: 1 for all.
    """

    min_K: int
    loss_th: float
    weight: Optional[Sequence[float]]

    def term(self, shared: Probabilities) -> Term:
        valid = shared.valid
        of_class = shared.of_pixels(self.weight)  # [N, M]
        loss = of_class * shared.cross_entropy

        above = (loss > self.loss_th).astype("float32")  # [N, M]
        above_count = above.sum(axis=1, keepdim=True)  # [N, 1]
        chosen = paddle.where(above_count > self.min_K, above, hardest(loss, valid, self.min_K))
        chosen = chosen / (loss.shape[0] * chosen.sum(axis=1, keepdim=True).clip(min=1.0))
        return Term(value=(chosen * loss).sum(), pixel=chosen * of_class)
