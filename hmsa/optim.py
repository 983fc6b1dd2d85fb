# SPDX-License-Identifier: Apache-2.0
"""Optimizers under their names in recipes, and the moving average of the weights."""

from __future__ import annotations

import copy
from typing import Any, Optional

import hmsa.system.prepared  # noqa: F401

import paddle
from paddle import nn


def sgd(
    *, momentum: float, weight_decay: float, clip_grad_norm: Optional[float], **common: Any
) -> paddle.optimizer.Optimizer:
    """Gradient descent with (heavy-ball) momentum; the decay is added to the gradient of every parameter.

    Args:
        common: `learning_rate`, a scheduler, and `parameters`.
    """
    common = {"weight_decay": weight_decay or None, "grad_clip": _clip(clip_grad_norm), **common}
    if momentum > 0:
        return paddle.optimizer.Momentum(momentum=momentum, **common)
    return paddle.optimizer.SGD(**common)


def adamw(
    *, beta1: float, beta2: float, weight_decay: float, clip_grad_norm: Optional[float], **common: Any
) -> paddle.optimizer.Optimizer:
    """Adam with decoupled decay, of every parameter.

    Args:
        common: as for `sgd`.
    """
    common = {"weight_decay": weight_decay, "grad_clip": _clip(clip_grad_norm), **common}
    return paddle.optimizer.AdamW(beta1=beta1, beta2=beta2, **common)


def _clip(norm: Optional[float]) -> Optional[nn.ClipGradByGlobalNorm]:
    return nn.ClipGradByGlobalNorm(norm) if norm else None


class EMA:
    """An exponential moving average of a model's weights: `model`, a copy of the network in evaluation mode.

    At each update, average <- d * average + (1 - d) * weight, with d = min(decay, (1 + n) / (10 + n)) after n updates
    as in TensorFlow's ExponentialMovingAverage: as long as the first weights would weigh much, the average is over
    about the last ninth of all updates.

    Running statistics of normalisation are averaged like parameters, as in timm's ModelEmaV3: those of the newest
    weights would not fit the averaged ones.

    Args:
        model: the network in training; all of its tensors are float32.
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Layer, decay: float) -> None:
        assert 0 < decay < 1
        self.model = copy.deepcopy(model)
        self.model.eval()
        for parameter in self.model.parameters():
            parameter.stop_gradient = True
        self.decay = decay
        self.updates = 0
        self._pairs = list(zip(self.model.state_dict().values(), model.state_dict().values()))

    @paddle.no_grad()
    def update(self) -> None:
        """Take in the weights as an optimizer's update has left them; in place, tensor by tensor."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for average, weight in self._pairs:
            average.add_((weight - average).scale_(1 - decay))  # exactly the weight where both are equal
        self.updates += 1
