# SPDX-License-Identifier: Apache-2.0
"""Losses of one softmax: all losses on an output share its probabilities, and their gradient has a closed form.

N images, K classes, M = H * W pixels. With class probabilities p and a label y for each valid pixel, every loss here
has a derivative made of three small parts,

    d loss / d p[k] = region[k] + [k = y] * label     with respect to the probabilities, and
    d loss / d z[k] = pixel * (p[k] - [k = y])        directly with respect to the logits z (cross-entropy),

so that, with s = sum_k p[k] * region[k] + p[y] * label, the chain rule through the softmax gives

    d loss / d z[k] = p[k] * (region[k] - s + pixel) + [k = y] * (p[y] * label - pixel).

Ignored pixels have p = 0 here, which keeps them out of every sum and gives them a gradient of zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import paddle
from paddle import Tensor

from hmsa.losses.dense import dense_softmax
from hmsa.system.device import as_tensor


@dataclass
class Probabilities:
    """What the losses on one output share. Everything is 0 at ignored pixels."""

    totals: Tensor  # [N, K] float32, sum of each class's probability over the image
    of_label: Tensor  # [N, M] float32
    cross_entropy: Tensor  # [N, M] float32, -log of `of_label`
    valid: Tensor  # [N, M] float32, 1 or 0
    bin: Tensor  # [N, M] int64, n * K + label

    def sum_by_class(self, values: Tensor) -> Tensor:
        """Sum of `values` [N, M] over the pixels of each image labelled k: [N, K]."""
        n, k = self.totals.shape
        return paddle.bincount(self.bin.flatten(), weights=values.flatten(), minlength=n * k).reshape([n, k])

    def by_class(self, weight: Optional[Sequence[float]]) -> Tensor:
        """A number a class (None: 1 for all), for every image: [N, K]."""
        n, k = self.totals.shape
        weight = [1.0] * k if weight is None else weight
        assert len(weight) == k
        return as_tensor(np.tile(np.array(weight, np.float32), (n, 1)))

    def of_pixels(self, weight: Optional[Sequence[float]]) -> Tensor:
        """A number a class (None: 1 for all), at every pixel's label: [N, M], 0 at ignored pixels."""
        return self.valid if weight is None else self.of_own_class(self.by_class(weight))

    def of_own_class(self, values: Tensor) -> Tensor:
        """`values` [N, K], looked up at every pixel's label: [N, M], 0 at ignored pixels."""
        return paddle.gather(values.flatten(), self.bin.flatten()).reshape(self.bin.shape) * self.valid


@dataclass
class Term:
    """A loss's value [] and the parts of its derivative; a part that is None is zero."""

    value: Tensor
    region: Optional[Tensor] = None  # [N, K]
    label: Optional[Tensor] = None  # [N, M], 0 at ignored pixels
    pixel: Optional[Tensor] = None  # [N, M], 0 at ignored pixels


@dataclass
class SoftmaxLoss(ABC):
    """A loss that is a function of class probabilities and labels; its fields are those of its Spec.

    Args:
        ignore_index: the label of pixels that never count.
    """

    ignore_index: int

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [N, K, H, W], labels [N, H, W] int64 -> scalar >= 0."""
        return softmax_losses(logits, labels, [self])[0]

    @abstractmethod
    def term(self, shared: Probabilities) -> Term:
        """Value and derivative on one output."""


def _weighted_sum(weights: Sequence[Tensor], parts: Sequence[Optional[Tensor]]) -> Optional[Tensor]:
    products = [weight * part for weight, part in zip(weights, parts) if part is not None]
    return paddle.add_n(products) if products else None


class _SoftmaxLosses(paddle.autograd.PyLayer):
    """Logits [N, K, M] and labels [N, M] -> one value a loss, with one gradient for all of them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, losses: Sequence[SoftmaxLoss]) -> tuple[Tensor, ...]:
        n, k, _ = logits.shape
        is_valid = labels != losses[0].ignore_index
        labels = paddle.where(is_valid, labels, paddle.zeros_like(labels))
        valid = is_valid.astype("float32")
        dense = dense_softmax(logits.astype("float32"), labels, valid)
        shared = Probabilities(
            totals=dense.totals,
            of_label=paddle.exp(-dense.cross_entropy) * valid,
            cross_entropy=dense.cross_entropy,
            valid=valid,
            bin=labels + k * paddle.arange(n, dtype="int64").unsqueeze(1),
        )
        ctx.dense, ctx.dtype = dense, logits.dtype
        ctx.terms = [loss.term(shared) for loss in losses]
        return tuple(term.value for term in ctx.terms)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        region = _weighted_sum(gradients, [term.region for term in ctx.terms])
        label = _weighted_sum(gradients, [term.label for term in ctx.terms])
        pixel = _weighted_sum(gradients, [term.pixel for term in ctx.terms])
        every = paddle.zeros_like(ctx.dense.cross_entropy) if pixel is None else pixel  # [N, M]: pixel - p[y] * label
        own = -every  # [N, M]: p[y] * label - pixel
        if label is not None:
            weighted = paddle.exp(-ctx.dense.cross_entropy) * label
            every, own = every - weighted, own + weighted
        return ctx.dense.gradient(every, own, region).astype(ctx.dtype)


def softmax_losses(logits: Tensor, labels: Tensor, losses: Sequence[SoftmaxLoss]) -> list[Tensor]:
    """Values of several losses on one output, from one softmax.

    Args:
        logits: [N, K, H, W], any float type; computed in float32.
        labels: [N, H, W] int64 train ids, or the losses' common `ignore_index`. Not written to.
        losses: at least one, all with the same `ignore_index`.

    Returns:
        One scalar a loss.
    """
    assert [logits.shape[0], *logits.shape[2:]] == list(labels.shape)
    assert len({loss.ignore_index for loss in losses}) == 1
    values = _SoftmaxLosses.apply(logits.flatten(2), labels.flatten(1), losses)
    return list(values) if isinstance(values, (list, tuple)) else [values]
