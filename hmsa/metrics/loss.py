# SPDX-License-Identifier: Apache-2.0
"""The loss of training, on whole images: what overfitting shows in first."""

from __future__ import annotations

from typing import Callable, ClassVar, Optional, Union

import hmsa.system.prepared  # noqa: F401

import numpy as np
import paddle
from paddle import Tensor

from hmsa.metrics import Metric
from hmsa.system.device import as_tensor

MAX_NUMBERS = 2**26
"""Logits that a loss is asked about at once: an image with more is taken in bands of rows."""

UNIT = 2**24
"""Losses are rounded to multiples of 1 / UNIT, so that their sums are exact."""

MAX_LOSS = 1e6
"""What a larger loss of an image, or one that is no number, counts as: a sum of 500,000 fits into 64 bits."""


class MeanLoss(Metric):
    """Mean over the images of a loss; one without a labelled pixel does not count.

    The loss of an image in several bands is their mean, each weighted by its labelled pixels.

    Args:
        loss: (logits [1, K, H, W] float32, labels [1, H, W] int64) -> scalar.
    """

    lower_is_better: ClassVar[tuple[str, ...]] = ("loss",)
    needs_logits: ClassVar[bool] = True

    def __init__(self, num_classes: int, ignore_index: int, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(num_classes, ignore_index)
        self.loss = loss
        self.state = np.zeros(2, np.int64)  # sum of the losses in units, images

    @paddle.no_grad()
    def update_logits(self, logits: Tensor, label: np.ndarray) -> None:
        total, count = 0.0, 0
        rows = max(1, MAX_NUMBERS // (logits.shape[1] * label.shape[1]))
        for top in range(0, len(label), rows):
            band = label[top : top + rows].astype(np.int64)
            labelled = np.count_nonzero(band != self.ignore_index)
            if labelled:
                total += labelled * float(self.loss(logits[:, :, top : top + rows], as_tensor(band[None])))
                count += labelled
        if count:
            loss = np.nan_to_num(total / count, nan=MAX_LOSS).clip(0, MAX_LOSS)
            self.state += [round(float(loss) * UNIT), 1]

    def update(self, prediction: np.ndarray, label: np.ndarray, confidence: Optional[np.ndarray] = None) -> None:
        """Nothing: it is logits that a loss is of."""

    def scores(self) -> dict[str, Union[float, np.ndarray]]:
        total, images = map(int, self.state)
        return {"loss": total / UNIT / images if images else float("nan")}
