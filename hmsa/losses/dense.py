# SPDX-License-Identifier: Apache-2.0
"""The two passes over every class of every pixel that a softmax loss needs, for GPUs and for CPUs.

`TensorSoftmax` is written in Paddle operators. `ArraySoftmax` does the same in NumPy, in blocks that stay in the
processor's cache and on several threads: on a CPU, Paddle's element-wise operators use one thread and go through memory
once each. N pictures, K classes, M pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Optional, Protocol

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

_BLOCK_PIXELS = 4096


class DenseSoftmax(Protocol):
    """Probabilities of all classes, with 0 at ignored pixels."""

    cross_entropy: Tensor  # [N, M] float32, 0 at ignored pixels
    totals: Tensor  # [N, K] float32, sum of each class's probability over the valid pixels

    def gradient(self, every: Tensor, own: Tensor, region: Optional[Tensor]) -> Tensor:
        """[N, K, M]: p[k] * (region[k] - sum_j p[j] * region[j] + every) + [k = y] * own."""
        ...


def dense_softmax(logits: Tensor, labels: Tensor, valid: Tensor) -> DenseSoftmax:
    """The one for where `logits` [N, K, M] float32 is; labels [N, M] int64 in 0..K-1, valid [N, M] 1 or 0."""
    return (ArraySoftmax if logits.place.is_cpu_place() else TensorSoftmax)(logits, labels, valid)


class TensorSoftmax:
    """In Paddle operators, on any device."""

    def __init__(self, logits: Tensor, labels: Tensor, valid: Tensor) -> None:
        log_probabilities = F.log_softmax(logits, axis=1)
        own = paddle.take_along_axis(log_probabilities, labels.unsqueeze(1), axis=1).squeeze(1)
        self.cross_entropy = -own * valid
        self._probabilities = paddle.exp(log_probabilities) * valid.unsqueeze(1)
        self._labels = labels
        self.totals = self._probabilities.sum(axis=2)

    def gradient(self, every: Tensor, own: Tensor, region: Optional[Tensor]) -> Tensor:
        factor = every.unsqueeze(1)
        if region is not None:
            factor = factor - paddle.bmm(region.unsqueeze(1), self._probabilities) + region.unsqueeze(2)
        return paddle.put_along_axis(
            self._probabilities * factor, self._labels.unsqueeze(1), own.unsqueeze(1), axis=1, reduce="add"
        )


class ArraySoftmax:
    """In NumPy, on a CPU."""

    def __init__(self, logits: Tensor, labels: Tensor, valid: Tensor) -> None:
        scores, self._labels, is_valid = logits.numpy(), labels.numpy(), valid.numpy()
        self._probabilities = probabilities = np.empty_like(scores)
        cross_entropy = np.empty_like(is_valid)
        blocks = list(_blocks(scores.shape[0], scores.shape[2]))

        def run(block: tuple[int, slice]) -> np.ndarray:
            n, pixels = block
            p = probabilities[n, :, pixels]
            np.subtract(scores[n, :, pixels], scores[n, :, pixels].max(axis=0), out=p)
            own = np.take_along_axis(p, self._labels[n, None, pixels], axis=0)[0]
            np.exp(p, out=p)
            total = p.sum(axis=0)
            p *= is_valid[n, pixels] / total
            cross_entropy[n, pixels] = (np.log(total) - own) * is_valid[n, pixels]
            return p.sum(axis=1)

        totals = np.zeros(scores.shape[:2], np.float32)
        for (n, _), part in zip(blocks, _in_threads(run, blocks)):
            totals[n] += part
        self.cross_entropy = paddle.to_tensor(cross_entropy)
        self.totals = paddle.to_tensor(totals)

    def gradient(self, every: Tensor, own: Tensor, region: Optional[Tensor]) -> Tensor:
        every_array, own_array = every.numpy(), own.numpy()
        regions = None if region is None else region.numpy()
        gradient = np.empty_like(self._probabilities)

        def run(block: tuple[int, slice]) -> None:
            n, pixels = block
            p, g = self._probabilities[n, :, pixels], gradient[n, :, pixels]
            if regions is None:
                np.multiply(p, every_array[n, pixels], out=g)
            else:
                np.add(regions[n, :, None], every_array[n, pixels] - regions[n] @ p, out=g)
                g *= p
            g[self._labels[n, pixels], np.arange(p.shape[1])] += own_array[n, pixels]

        _in_threads(run, list(_blocks(gradient.shape[0], gradient.shape[2])))
        return paddle.to_tensor(gradient)


def _blocks(pictures: int, pixels: int) -> Iterator[tuple[int, slice]]:
    for n in range(pictures):
        for start in range(0, pixels, _BLOCK_PIXELS):
            yield n, slice(start, min(start + _BLOCK_PIXELS, pixels))


def _in_threads(run: Callable, blocks: list[tuple[int, slice]]) -> list:
    """`run` on every block, results in order; as many threads as Paddle was told to use (OMP_NUM_THREADS)."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    if threads == 1 or len(blocks) == 1:
        return [run(block) for block in blocks]
    with ThreadPoolExecutor(threads) as executor:
        return list(executor.map(run, blocks))
