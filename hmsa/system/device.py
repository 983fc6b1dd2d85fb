# SPDX-License-Identifier: Apache-2.0
"""The device that Paddle computes on, and how arrays come there."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import hmsa.system.prepared  # noqa: F401

import numpy as np
import paddle
from paddle import Tensor

from hmsa.errors import UsageError


def on_gpu() -> bool:
    """Whether Paddle computes on a GPU."""
    return paddle.device.get_device().startswith("gpu")


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Let Paddle compute on the CPU, for comparisons: GPUs round what goes into convolutions and products to TF32."""
    device = paddle.device.get_device()
    paddle.device.set_device("cpu")
    try:
        yield
    finally:
        paddle.device.set_device(device)


def check_precision(precision: str) -> None:
    """UsageError unless this device really computes in "bf16" or "fp16"; Paddle itself would go on in float32."""
    if precision == "fp32":
        return
    one = paddle.ones([1, 1])
    dtype: Any = {"bf16": "bfloat16", "fp16": "float16"}[precision]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where it computes in float32, it warns
        with paddle.amp.auto_cast(dtype=dtype):
            found = paddle.matmul(one, one).dtype
    if found == paddle.float32:
        raise UsageError(
            f"expected a device on which Paddle computes in {precision}, found {paddle.device.get_device()}, where it "
            "stays in float32 all the same: use the precision fp32, or a GPU (bf16 from Ampere on, fp16 from Volta on)",
            settings=["precision"],
        )


def as_tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor, on the device in use. Paddle 3 loses half a kilobyte with every call of its to_tensor."""
    tensor = paddle.empty(array.shape, str(array.dtype))
    tensor.set_value(array)
    return tensor
