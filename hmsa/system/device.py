# SPDX-License-Identifier: Apache-2.0
"""The device that Paddle computes on, and how arrays come there."""

from __future__ import annotations

import hmsa.system.prepared  # noqa: F401

import numpy as np
import paddle
from paddle import Tensor


def on_gpu() -> bool:
    """Whether Paddle computes on a GPU."""
    return paddle.device.get_device().startswith("gpu")


def as_tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor, on the device in use. Paddle 3 loses half a kilobyte with every call of its to_tensor."""
    tensor = paddle.empty(array.shape, str(array.dtype))
    tensor.set_value(array)
    return tensor
