# SPDX-License-Identifier: Apache-2.0
"""The two passes over every class of every pixel that a softmax loss needs, for GPUs and for CPUs.

`TensorSoftmax` is written in Paddle operators. `ArraySoftmax` does the same in NumPy, in blocks that stay in the
processor's cache and on several threads: on a CPU, Paddle's element-wise operators use one thread and go through memory
once each. N images, K classes, M pixels.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Optional, Union

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.utils import dlpack

from hmsa.system.device import as_tensor
from hmsa.system.environment import threads

_BLOCK_PIXELS = 4096


def dense_softmax(logits: Tensor, labels: Tensor, valid: Tensor) -> Union[ArraySoftmax, TensorSoftmax]:
    """The one for where `logits` [N, K, M] float32 is; labels [N, M] int64 in 0..K-1, valid [N, M] 1 or 0."""
    return (ArraySoftmax if logits.place.is_cpu_place() else TensorSoftmax)(logits, labels, valid)


class TensorSoftmax:
    """Probabilities of all classes, with 0 at ignored pixels; in Paddle operators, on any device.

    Attributes:
        cross_entropy: [N, M] float32, 0 at ignored pixels.
        totals: [N, K] float32, sum of each class's probability over the valid pixels.
    """

    def __init__(self, logits: Tensor, labels: Tensor, valid: Tensor) -> None:
        log_probabilities = F.log_softmax(logits, axis=1)
        own = paddle.take_along_axis(log_probabilities, labels.unsqueeze(1), axis=1).squeeze(1)
        self.cross_entropy = -own * valid
        self._probabilities = paddle.exp(log_probabilities) * valid.unsqueeze(1)
        self._labels = labels
        self.totals = self._probabilities.sum(axis=2)

    def gradient(self, every: Tensor, own: Tensor, region: Optional[Tensor]) -> Tensor:
        """[N, K, M]: p[k] * (region[k] - sum_j p[j] * region[j] + every) + [k = y] * own. To be asked for once."""
        factor = every.unsqueeze(1)
        if region is not None:
            region = region.unsqueeze(2)
            # No product of matrices: GPUs since Ampere would compute it in TF32.
            factor = factor - (region * self._probabilities).sum(axis=1, keepdim=True) + region
        return paddle.put_along_axis(
            self._probabilities * factor, self._labels.unsqueeze(1), own.unsqueeze(1), axis=1, reduce="add"
        )


class ArraySoftmax:
    """The same in NumPy, on a CPU. One buffer, as large as the logits, holds the probabilities, then the gradient."""

    def __init__(self, logits: Tensor, labels: Tensor, valid: Tensor) -> None:
        dense = logits.numpy()  # a copy, which becomes the probabilities
        n, k, m = dense.shape
        self._labels, is_valid = labels.numpy().astype(np.min_scalar_type(k)), valid.numpy()
        cross_entropy = np.empty_like(is_valid)
        blocks = _blocks(n, m)

        def run(block: tuple[int, slice]) -> np.ndarray:
            n, pixels = block
            p = dense[n, :, pixels]
            p -= p.max(axis=0)
            own = np.take_along_axis(p, self._labels[n, None, pixels], axis=0)[0]
            np.exp(p, out=p)
            total = p.sum(axis=0)
            p *= is_valid[n, pixels] / total
            cross_entropy[n, pixels] = (np.log(total) - own) * is_valid[n, pixels]
            return p.sum(axis=1)

        totals = np.zeros((n, k), np.float32)
        for (n, _), part in zip(blocks, _in_threads(run, blocks)):
            totals[n] += part
        self.cross_entropy = as_tensor(cross_entropy)
        self.totals = as_tensor(totals)
        self._probabilities: Optional[np.ndarray] = dense

    def gradient(self, every: Tensor, own: Tensor, region: Optional[Tensor]) -> Tensor:
        dense, self._probabilities = self._probabilities, None
        if dense is None:
            raise RuntimeError("the gradient of these losses can be asked for once, as it replaces the probabilities")
        every_array, own_array = every.numpy(), own.numpy()
        regions = None if region is None else region.numpy()

        def run(block: tuple[int, slice]) -> None:
            n, pixels = block
            p = dense[n, :, pixels]
            if regions is None:
                p *= every_array[n, pixels]
            else:
                p *= regions[n][:, None] + (every_array[n, pixels] - regions[n] @ p)
            p[self._labels[n, pixels], np.arange(p.shape[1])] += own_array[n, pixels]

        _in_threads(run, _blocks(dense.shape[0], dense.shape[2]))
        return dlpack.from_dlpack(dense.__dlpack__())  # the tensor takes the memory over


def _blocks(images: int, pixels: int) -> list[tuple[int, slice]]:
    starts = range(0, pixels, _BLOCK_PIXELS)
    return [(n, slice(start, start + _BLOCK_PIXELS)) for n in range(images) for start in starts]


def _in_threads(run: Callable, blocks: list[tuple[int, slice]]) -> list:
    """`run` on every block, results in order."""
    if threads() == 1 or len(blocks) == 1:
        return [run(block) for block in blocks]
    with ThreadPoolExecutor(threads()) as executor:
        return list(executor.map(run, blocks))
