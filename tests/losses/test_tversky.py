# SPDX-License-Identifier: Apache-2.0
"""The Tversky loss against its definition in plain Paddle, by hand, and beside dice."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from with_defaults import DiceLoss, TverskyLoss

CLASSES = 4


def case(seed: int, ignored: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (2, 6, 7))
    labels[rng.random(labels.shape) < ignored] = 255
    return (2 * rng.standard_normal((2, CLASSES, 6, 7))).astype(np.float32), labels


def measured(loss, logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    z = paddle.to_tensor(logits, stop_gradient=False)
    value = loss(z, paddle.to_tensor(labels))
    value.backward()
    return float(value), z.grad.numpy()


def plain(alpha: float, beta: float, smooth: float, weight):
    def loss(z, y):
        valid = (y != 255).astype("float32").unsqueeze(1)
        t = F.one_hot(paddle.where(y != 255, y, paddle.zeros_like(y)), CLASSES).transpose([0, 3, 1, 2]) * valid
        p = F.softmax(z, axis=1) * valid
        true, taken, missed = ((a * b).sum(axis=[2, 3]) for a, b in ((p, t), (p, valid - t), (valid - p, t)))
        share = (true + smooth) / (true + alpha * taken + beta * missed + smooth + 1e-8)
        return (paddle.to_tensor(np.float32(weight or [1] * CLASSES)) * (1 - share)).mean()

    return loss


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 2),
    st.floats(0, 2),
    st.floats(0.125, 4),
    st.none() | st.lists(st.floats(0.125, 8, width=32), min_size=CLASSES, max_size=CLASSES),
)
def test_value_and_gradient_are_those_of_the_definition(seed, alpha, beta, smooth, weight) -> None:
    logits, labels = case(seed)
    value, gradient = measured(TverskyLoss(alpha=alpha, beta=beta, smooth=smooth, weight=weight), logits, labels)
    expected, slope = measured(plain(alpha, beta, smooth, weight), logits, labels)
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-4 * abs(slope).max() + 1e-8)


def test_by_hand() -> None:
    """Two pixels of two classes, both with p = 0.5, labelled 0 and 1: TP = FP = FN = 0.5 for each class."""
    value = TverskyLoss(alpha=0.2, beta=0.6, smooth=0)(paddle.zeros([1, 2, 1, 2]), paddle.to_tensor([[[0, 1]]]))
    assert float(value) == pytest.approx(1 - 0.5 / (0.5 + 0.2 * 0.5 + 0.6 * 0.5))


def test_even_prices_are_dice() -> None:
    logits, labels = case(3)
    value, gradient = measured(TverskyLoss(alpha=0.5, beta=0.5, smooth=1.0), logits, labels)
    of_dice, slope = measured(DiceLoss(smooth=2.0), logits, labels)
    assert value == pytest.approx(of_dice, rel=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-8)


def test_ignored_pixels_alone() -> None:
    logits, labels = case(4, ignored=1.0)
    value, gradient = measured(TverskyLoss(), logits, labels)
    assert value == 0 and not gradient.any()
