# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy, over all pixels or the hardest ones of the batch (OHEM: Shrivastava et al., arXiv 1604.03540)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import paddle

from hmsa.losses.hardest import hardest
from hmsa.losses.softmax import Probabilities, SoftmaxLoss, Term


@dataclass
class CrossEntropyLoss(SoftmaxLoss):
    """Mean cross-entropy of the batch's valid pixels, each weighted by its class. No valid pixel: 0.

    With every pixel, in plain Paddle: `F.cross_entropy(logits, labels, weight, ignore_index=ignore_index, axis=1)`.

    Args:
        weight: a number a class; the mean is divided by the sum of its pixels' weights. None: 1 for all.
        top_k_percent_pixels: the part of the batch's pixels, in (0, 1], that counts: those with the largest (weighted)
            losses. Fewer valid pixels than that: all of them.
        avg_non_ignore: False also divides by the ignored pixels (as many as are among that part), with weight 1 each.
    """

    weight: Optional[Sequence[float]]
    top_k_percent_pixels: float
    avg_non_ignore: bool

    def term(self, shared: Probabilities) -> Term:
        loss, valid = shared.cross_entropy, shared.valid
        n, m = loss.shape
        weights = shared.of_pixels(self.weight)  # [N, M]

        count = max(1, int(self.top_k_percent_pixels * n * m))
        weights = weights * hardest((weights * loss).reshape([1, -1]), valid.reshape([1, -1]), count).reshape([n, m])
        total = weights.sum()
        if not self.avg_non_ignore:
            total = total + (count - valid.sum()).clip(min=0.0)

        weights = weights / total.clip(min=1e-8)
        return Term(value=(weights * loss).sum(), pixel=weights)


@dataclass
class OhemCrossEntropyLoss(SoftmaxLoss):
    """Mean cross-entropy of the batch's hard pixels, each weighted by its class, and of no fewer than `min_kept`.

    A valid pixel is hard where the probability of its own class is below `thresh`. Fewer hard pixels than `min_kept`:
    the `min_kept` with the smallest probabilities; fewer valid ones: all of them; none: 0. In plain Paddle, with the
    probabilities p and the losses of the valid pixels: `loss[p < max(thresh, sort(p)[min_kept])].mean()`. Which pixels
    are kept does not depend on the weights.

    Args:
        thresh: a probability.
        min_kept: pixels a batch.
        weight: a number a class; the mean is divided by the sum of its pixels' weights. None: 1 for all.
    """

    thresh: float
    min_kept: int
    weight: Optional[Sequence[float]]

    def term(self, shared: Probabilities) -> Term:
        loss, valid = shared.cross_entropy, shared.valid
        kept = (shared.of_label < self.thresh).astype("float32") * valid  # [N, M]
        if self.min_kept > 0:
            # Of these two sets one contains the other.
            least = hardest(loss.reshape([1, -1]), valid.reshape([1, -1]), self.min_kept)
            kept = paddle.maximum(kept, least.reshape(kept.shape))

        weights = kept * shared.of_pixels(self.weight)
        weights = weights / weights.sum().clip(min=1e-8)
        return Term(value=(weights * loss).sum(), pixel=weights)
