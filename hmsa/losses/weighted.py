# SPDX-License-Identifier: Apache-2.0
"""Sums of losses: the training loss, every loss on every named output, and several losses as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

import paddle
from paddle import Tensor

from hmsa.losses.softmax import SoftmaxLoss, softmax_losses

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits [N, K, H, W], labels [N, H, W] int64) -> scalar."""


def values(losses: Sequence[Loss], logits: Tensor, labels: Tensor) -> list[Tensor]:
    """One scalar a loss; those that work on the softmax share one."""
    shared = [loss for loss in losses if isinstance(loss, SoftmaxLoss)]
    of_softmax = iter(softmax_losses(logits, labels, shared) if shared else ())
    return [next(of_softmax) if isinstance(loss, SoftmaxLoss) else loss(logits, labels) for loss in losses]


@dataclass
class MixedLoss:
    """Sum of coef[i] * losses[i](logits, labels)."""

    losses: Sequence[Loss]
    coef: Sequence[float]

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [N, K, H, W], labels [N, H, W] int64 -> scalar."""
        return paddle.add_n([c * value for c, value in zip(self.coef, values(self.losses, logits, labels))])


@dataclass
class WeightedLoss:
    """Sum over outputs and losses of weight[output] * loss(outputs[output], labels).

    Args:
        terms: losses by name.
        weights: weight of each output that takes part.
    """

    terms: Mapping[str, Loss]
    weights: Mapping[str, float]

    def __call__(self, outputs: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs by name and labels [N, H, W] int64 -> the total, and every term as `<loss>/<output>`, unweighted.

        Raises:
            KeyError: an output that has a weight is not there.
        """
        terms: dict[str, Tensor] = {}
        weighted = []
        for output, weight in self.weights.items():
            of_output = self._on(outputs[output], labels)
            terms.update({f"{name}/{output}": value for name, value in zip(self.terms, of_output)})
            weighted += [weight * value for value in of_output]
        return paddle.add_n(weighted), terms

    def of_one(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum of all losses, unweighted, on one output: logits [N, K, H, W], labels [N, H, W] int64 -> scalar."""
        return paddle.add_n(self._on(logits, labels))

    def _on(self, logits: Tensor, labels: Tensor) -> list[Tensor]:
        return values(list(self.terms.values()), logits, labels)
