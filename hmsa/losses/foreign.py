# SPDX-License-Identifier: Apache-2.0
"""Losses that are not ours: how they are called, and a trial that says before training what they cannot do."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import paddle
from paddle import Tensor

from hmsa.system.device import as_tensor


class ForeignLoss:
    """A loss of PaddleSeg's or of a user's as one on named outputs: one number, whatever it does with its inputs.

    Args:
        loss: (logits [N, K, H, W] float32, labels [N, H, W] int64) -> a number, or several to be added up.
        ignore_index: the label of ignored pixels. Batches of these alone never reach the loss: some return nothing
            then, or end the process.
    """

    def __init__(self, loss: Callable[..., Any], *, ignore_index: int = 255) -> None:
        self.loss = loss
        self.ignore_index = ignore_index

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [N, K, H, W], labels [N, H, W] int64 -> scalar."""
        logits = logits.astype("float32")
        if not bool((labels != self.ignore_index).any()):
            return 0.0 * logits.sum()
        parts = self.loss(logits, labels.clone())  # it may write to its labels
        return paddle.add_n(list(parts)) if isinstance(parts, (list, tuple)) else parts

    def try_out(self, num_classes: int) -> None:
        """One forward and backward pass over small random logits, with ignored pixels and every class among the labels.

        Raises:
            ValueError: it cannot be trained with, and why.
            Exception: whatever the loss raises.
        """
        # Never as many images as classes: labels [N, H, W] would pass for something like logits [N, K, H, W].
        n, height, width = (3 if num_classes == 2 else 2), 64, 96
        noise = np.random.default_rng(0).standard_normal((n, num_classes, height, width))
        logits = as_tensor(noise.astype(np.float32))
        logits.stop_gradient = False
        classes = np.arange(height * width) * num_classes // (height * width)
        labels = np.tile(classes.reshape(1, height, width), (n, 1, 1))
        labels[:, :, :8] = self.ignore_index

        value = self(logits, as_tensor(labels))
        if not isinstance(value, Tensor) or int(np.prod(value.shape)) != 1:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"it returns {found} in place of one number")
        value.backward()
        gradient = np.zeros_like(noise) if logits.grad is None else logits.grad.numpy()
        if not np.isfinite(float(value)) or not np.isfinite(gradient).all():
            raise ValueError("its value or gradient is not finite")
        if not gradient.any(axis=(0, 2, 3)).all():
            raise ValueError("it gives the logits of some classes, or of all, no gradient")
