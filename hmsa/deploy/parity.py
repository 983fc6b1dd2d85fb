# SPDX-License-Identifier: Apache-2.0
"""Whether an exported model still answers as the network that it was made from."""

from __future__ import annotations

from collections.abc import Sequence

import hmsa.system.prepared  # noqa: F401

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.version import full_version as PADDLE_VERSION

from hmsa.deploy.runtime import Predictor
from hmsa.errors import DataError
from hmsa.models.hierarchical import Network

CHECKED_SHAPES = ((1, 3, 128, 192), (1, 3, 97, 161), (2, 3, 72, 104))
"""Where a network of any input size is compared: even and odd sizes, one image and two."""

MAX_DIFFERENCE = {"argmax": 1e-3, "softmax": 1e-3, "none": 1e-4}
"""Of the answer, as a share of the range of what is compared (see `check_parity`)."""

NOISE = 1e-5
"""What float32 itself may change, as a share of the largest value: it counts where a network's answers are alike."""


def check_parity(network: Network, exported: Predictor, output_op: str, shapes: Sequence[Sequence[int]]) -> str:
    """Run an exported model and the network it was made from on the same images.

    Logits are compared as logits and probabilities as probabilities. A class may be another than the network's best
    where the network has two about equally good.

    Returns:
        What was measured, in a line.

    Raises:
        DataError: they differ by more than `MAX_DIFFERENCE` and `NOISE`.
    """
    largest, pixels, ties = 0.0, 0, 0
    for shape in shapes:
        image = _image_like(shape)
        with paddle.no_grad():
            logits = network(paddle.to_tensor(image)).numpy()  # [N, K, H, W]
        label, difference = _compare(logits, exported(image), output_op, _written(shape))
        largest = max(largest, float(difference.max()))
        pixels += label.size
        ties += int((label != logits.argmax(axis=1)).sum())

    measured = "" if output_op == "argmax" else f"{_COMPARED[output_op]} differ by {largest:.2g} at most, "
    at = ", ".join(map(_written, shapes))
    return f"equal to the network at {at}: {measured}{ties} of {pixels} pixels near a tie have another class"


_COMPARED = {"argmax": "classes", "softmax": "probabilities", "none": "logits"}


def _compare(logits: np.ndarray, answer: np.ndarray, output_op: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """An answer to one image and the network's logits [N, K, H, W] -> its classes, and how far it is off, [N, H, W].

    DataError if that is too far.
    """
    expected_shape = logits[:, 0].shape if output_op == "argmax" else logits.shape
    if answer.shape != expected_shape:
        raise DataError(f"the exported model answers {answer.shape} instead of {expected_shape} at {where}")

    right = logits
    if output_op == "softmax":
        right = F.softmax(paddle.to_tensor(logits, "float64"), axis=1).numpy()

    if output_op == "argmax":
        label = answer
        is_chosen = label[:, np.newaxis] == np.arange(right.shape[1])[:, np.newaxis, np.newaxis]
        chosen = np.fmax.reduce(np.where(is_chosen, right, np.nan), axis=1)  # NaN where it is no class
        difference = right.max(axis=1) - chosen  # 0 where both choose the same class
    else:
        label = answer.argmax(axis=1)
        difference = np.abs(answer - right).max(axis=1)

    allowed = MAX_DIFFERENCE[output_op] * np.ptp(right) + NOISE * np.abs(right).max()
    wrong = int((~(difference <= allowed)).sum())  # written so that NaN fails
    if wrong:
        raise DataError(
            f"the exported model does not answer as the network does, at {where}: {_COMPARED[output_op]} of {wrong} of "
            f"{label.size} pixels are wrong, by up to {difference.max() / np.ptp(right):.2g} of the range of "
            f"{'logits' if output_op == 'argmax' else _COMPARED[output_op]}; nothing was written, as Paddle "
            f"{PADDLE_VERSION} cannot run this model faithfully"
        )
    return label, difference


def _written(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _image_like(shape: Sequence[int]) -> np.ndarray:
    """Float32 [N, 3, H, W] with patches and noise, so that an answer has several classes."""
    N, C, H, W = shape
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(N * C, H // 16 + 1, W // 16 + 1))
    smooth = np.stack([cv2.resize(patch, (W, H)) for patch in patches]).reshape(N, C, H, W)
    return (smooth + rng.normal(scale=0.2, size=(N, C, H, W))).astype(np.float32)
