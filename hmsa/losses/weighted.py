# SPDX-License-Identifier: Apache-2.0
"""The training loss: every loss on every named output, weighted by the output's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import paddle
from paddle import Tensor

from hmsa.losses.softmax import softmax_losses


class WeightedLoss:
    """Sum over outputs and losses of weight[output] * loss(outputs[output], labels).

    Args:
        terms: losses by name; each takes (logits [N, K, H, W], labels [N, H, W]). Those that work on the softmax
            (they have a `term`) share one softmax an output.
        weights: weight of each output that takes part.
    """

    def __init__(self, *, terms: Mapping[str, Callable[..., Any]], weights: Mapping[str, float]) -> None:
        self.terms = dict(terms)
        self.weights = dict(weights)
        self._shared = [name for name, loss in self.terms.items() if hasattr(loss, "term")]

    def __call__(self, outputs: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs by name and labels [N, H, W] int64 -> the total, and every term as `<loss>/<output>`, unweighted.

        Raises:
            KeyError: an output that has a weight is not there.
        """
        values: dict[str, Tensor] = {}
        weighted = []
        for output, weight in self.weights.items():
            logits = outputs[output]
            of_output = {}
            if self._shared:
                losses: list[Any] = [self.terms[name] for name in self._shared]
                of_output.update(zip(self._shared, softmax_losses(logits, labels, losses)))
            for name, loss in self.terms.items():
                if name not in of_output:
                    of_output[name] = loss(logits, labels.clone())  # a foreign loss may write to its labels
                values[f"{name}/{output}"] = of_output[name]
                weighted.append(weight * of_output[name])
        return paddle.add_n(weighted), values
