# SPDX-License-Identifier: Apache-2.0
"""Choosing the pixels with the largest losses."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor

from hmsa.system.device import as_tensor


def hardest(loss: Tensor, valid: Tensor, k: int) -> Tensor:
    """How much each pixel is among the k >= 1 valid ones with the largest losses of its row.

    loss [R, M] >= 0 and valid [R, M], 1 or 0 -> [R, M], which adds up to k in each row: 1 for pixels above the k-th
    largest loss, and the same share of what is left for each of those equal to it. All valid pixels if there are fewer.
    """
    if k >= loss.shape[1]:
        return valid
    kth_largest = kth_by_partition if loss.place.is_cpu_place() else kth_by_topk
    cut = kth_largest(paddle.where(valid > 0, loss, paddle.full_like(loss, -1.0)), k)
    harder = (loss > cut).astype("float32") * valid
    equal = (loss == cut).astype("float32") * valid

    left = k - harder.sum(axis=1, keepdim=True)
    return harder + equal * (left / equal.sum(axis=1, keepdim=True).clip(min=1.0))


def kth_by_partition(values: Tensor, k: int) -> Tensor:
    """The k-th largest of each row of `values` [R, M]: [R, 1]. Needs k <= M. Fast on CPUs."""
    position = values.shape[1] - k
    return as_tensor(np.partition(values.numpy(), position, axis=1)[:, position : position + 1])


def kth_by_topk(values: Tensor, k: int) -> Tensor:
    """The same, fast on GPUs."""
    return paddle.topk(values, k, axis=1, sorted=True)[0][:, -1:]
