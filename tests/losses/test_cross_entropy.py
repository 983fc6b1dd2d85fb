# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy and OHEM against plain formulas in Paddle's operators, on crops larger than `min_kept`."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from with_defaults import CrossEntropyLoss, OhemCrossEntropyLoss

CLASSES = 4


def plain(logits, labels):
    """Loss and label of every valid pixel of the batch: [P]."""
    z, y = logits.transpose([0, 2, 3, 1]).reshape([-1, CLASSES]), labels.flatten()
    valid = paddle.nonzero(y != 255).flatten()
    z, y = paddle.gather(z, valid), paddle.gather(y, valid)
    return F.cross_entropy(z, y, reduction="none").flatten(), y


def plain_cross_entropy(weight, part):
    def loss(logits, labels):
        losses, y = plain(logits, labels)
        weights = paddle.ones_like(losses) if weight is None else paddle.gather(paddle.to_tensor(weight), y)
        count = min(max(1, int(part * labels.size)), losses.shape[0])
        losses, chosen = paddle.topk(weights * losses, count)
        return losses.sum() / paddle.gather(weights, chosen).sum()

    return loss


def plain_ohem(threshold, min_kept, weight=None):
    def loss(logits, labels):
        losses, y = plain(logits, labels)
        hard = int((paddle.exp(-losses) < threshold).astype("int64").sum())
        losses, chosen = paddle.topk(losses, min(max(hard, min_kept), losses.shape[0]))
        if weight is None:
            return losses.mean()
        weights = paddle.gather(paddle.gather(paddle.to_tensor(weight), y), chosen)
        return (weights * losses).sum() / weights.sum()

    return loss


def agree(loss, formula, seed, ignored):
    """Value and gradient, at a crop of 80x96 with more than 10000 pixels in the batch."""
    rng = np.random.default_rng(seed)
    logits = (2 * rng.standard_normal((2, CLASSES, 80, 96))).astype(np.float32)
    labels = rng.integers(0, CLASSES, (2, 80, 96))
    labels[rng.random(labels.shape) < ignored] = 255
    results = []
    for function in (loss, formula):
        z = paddle.to_tensor(logits, stop_gradient=False)
        value = function(z, paddle.to_tensor(labels))
        value.backward()
        results.append((float(value), z.grad.numpy()))
    (value, gradient), (expected, slope) = results
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-5 * abs(slope).max())


weights = st.none() | st.lists(st.floats(0.125, 8, width=32), min_size=CLASSES, max_size=CLASSES)
ignored_parts = st.sampled_from([0.0, 0.3, 0.99])


@given(seed=st.integers(0, 10**6), weight=weights, part=st.sampled_from([1.0, 0.5, 0.01]), ignored=ignored_parts)
@settings(max_examples=15, deadline=None)
def test_cross_entropy_is_the_plain_formula(seed, weight, part, ignored):
    loss = CrossEntropyLoss(weight=weight, top_k_percent_pixels=part)
    agree(loss, plain_cross_entropy(weight, part), seed, ignored)


@given(seed=st.integers(0, 10**6), weight=weights, ignored=ignored_parts)
@settings(max_examples=10, deadline=None)
def test_cross_entropy_over_all_pixels_is_paddles_own(seed, weight, ignored):
    def paddles(logits, labels):
        return F.cross_entropy(logits, labels, None if weight is None else paddle.to_tensor(weight), 255, axis=1)

    agree(CrossEntropyLoss(weight=weight), paddles, seed, ignored)


@given(
    seed=st.integers(0, 10**6),
    threshold=st.sampled_from([0.02, 0.7, 1.0]),
    min_kept=st.sampled_from([1, 500, 10000, 10**6]),
    weight=weights,
    ignored=ignored_parts,
)
@settings(max_examples=15, deadline=None)
def test_ohem_is_the_plain_formula(seed, threshold, min_kept, weight, ignored):
    loss = OhemCrossEntropyLoss(thresh=threshold, min_kept=min_kept, weight=weight)
    agree(loss, plain_ohem(threshold, min_kept, weight), seed, ignored)


def test_equal_losses_share_what_is_left():
    logits, labels = paddle.zeros([1, 2, 1, 4]), paddle.to_tensor([[[0, 1, 1, 255]]])
    logits[0, 1, 0, 0] = 1.0  # The first pixel is the hardest, and the next two are as hard as one another.
    logits.stop_gradient = False
    OhemCrossEntropyLoss(thresh=0.1, min_kept=2)(logits, labels).backward()
    first = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(logits.grad.numpy()[0, 1, 0], [first / 2, -1 / 8, -1 / 8, 0], rtol=1e-6)


def test_weights_of_one_are_no_weights():
    rng = np.random.default_rng(0)
    logits = paddle.to_tensor(rng.standard_normal((1, CLASSES, 8, 8)).astype(np.float32))
    labels = paddle.to_tensor(np.where(rng.random((1, 8, 8)) < 0.3, 255, rng.integers(0, CLASSES, (1, 8, 8))))
    for avg_non_ignore in (True, False):
        plain, weighted = (
            CrossEntropyLoss(weight=weight, avg_non_ignore=avg_non_ignore)(logits, labels)
            for weight in (None, [1.0] * CLASSES)
        )
        assert float(weighted) == pytest.approx(float(plain), rel=1e-6)
