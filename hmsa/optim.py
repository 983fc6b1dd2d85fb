# SPDX-License-Identifier: Apache-2.0
"""Optimizers under their names in recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import hmsa.system.prepared  # noqa: F401

import paddle
from paddle.optimizer import lr


def sgd(
    *,
    learning_rate: lr.LRScheduler,
    parameters: Sequence[paddle.Tensor],
    momentum: float,
    weight_decay: float,
    clip_grad_norm: Optional[float],
) -> paddle.optimizer.Optimizer:
    """Gradient descent with (heavy-ball) momentum; the decay is added to the gradient of every parameter."""
    options = _common_options(learning_rate, parameters, weight_decay or None, clip_grad_norm)
    if momentum > 0:
        return paddle.optimizer.Momentum(momentum=momentum, **options)
    return paddle.optimizer.SGD(**options)


def adamw(
    *,
    learning_rate: lr.LRScheduler,
    parameters: Sequence[paddle.Tensor],
    beta1: float,
    beta2: float,
    weight_decay: float,
    clip_grad_norm: Optional[float],
) -> paddle.optimizer.Optimizer:
    """Adam with decoupled decay, of every parameter."""
    options = _common_options(learning_rate, parameters, weight_decay, clip_grad_norm)
    return paddle.optimizer.AdamW(beta1=beta1, beta2=beta2, **options)


def _common_options(
    learning_rate: Any, parameters: Any, weight_decay: Optional[float], clip_norm: Optional[float]
) -> Any:
    return {
        "learning_rate": learning_rate,
        "parameters": parameters,
        "weight_decay": weight_decay,
        "grad_clip": paddle.nn.ClipGradByGlobalNorm(clip_norm) if clip_norm else None,
    }
