# SPDX-License-Identifier: Apache-2.0
"""Bootstrapped cross-entropy: only a picture's hardest pixels count (Wu, Shen, van den Hengel, arXiv 1605.06885)."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor

from hmsa.losses.softmax import Probabilities, Term, softmax_losses
from hmsa.memory import as_tensor


class BootstrappedCrossEntropyLoss:
    """Mean cross-entropy of each picture's hardest pixels, averaged over pictures.

    Among a picture's valid pixels: if the (K+1)-th largest loss exceeds the threshold, the mean of all losses above the
    threshold; else the mean of the K largest. Fewer valid pixels than K: their mean. None: 0.

    Args:
        min_K: K, the least number of pixels that count.
        loss_th: the threshold.
        ignore_index: the label of pixels that never count.
    """

    def __init__(self, *, min_K: int, loss_th: float, ignore_index: int = 255) -> None:
        if min_K < 1:
            raise ValueError(f"min_K must be at least 1, found {min_K}")
        self.min_K = min_K
        self.loss_th = loss_th
        self.ignore_index = ignore_index

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [N, K, H, W], labels [N, H, W] int64 -> scalar >= 0."""
        return softmax_losses(logits, labels, [self])[0]

    def term(self, shared: Probabilities) -> Term:
        """Value and derivative, see `hmsa.losses.softmax`."""
        loss, valid = shared.cross_entropy, shared.valid
        n, m = loss.shape
        above = (loss > self.loss_th).astype("float32")  # [N, M]
        above_count = above.sum(axis=1, keepdim=True)  # [N, 1]
        if self.min_K >= m:
            weights = valid  # every valid pixel counts
        else:
            # The K hardest: all above the K-th largest loss, and as large a share of those equal to it as is left.
            cut = _kth_largest(paddle.where(valid > 0, loss, paddle.full_like(loss, -1.0)), self.min_K)
            harder = (loss > cut).astype("float32") * valid
            equal = (loss == cut).astype("float32") * valid
            left = self.min_K - harder.sum(axis=1, keepdim=True)
            share = left / equal.sum(axis=1, keepdim=True).clip(min=1.0)
            hardest = harder + equal * share.clip(max=1.0)
            weights = paddle.where(above_count > self.min_K, above, hardest)
        weights = weights / (n * weights.sum(axis=1, keepdim=True).clip(min=1.0))
        return Term(value=(weights * loss).sum(), pixel=weights)


def _kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest of each row of `values` [N, M]: [N, 1]. Needs k <= M."""
    if values.place.is_cpu_place():
        position = values.shape[1] - k
        return as_tensor(np.partition(values.numpy(), position, axis=1)[:, position : position + 1])
    return paddle.topk(values, k, axis=1, sorted=True)[0][:, -1:]
