# SPDX-License-Identifier: Apache-2.0
"""The losses against their definitions, written plainly in NumPy, and their gradients against finite differences."""

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa.losses import BootstrappedCrossEntropyLoss, DiceLoss, WeightedLoss
from hmsa.losses.dense import ArraySoftmax, TensorSoftmax
from hmsa.losses.softmax import softmax_losses

IGNORED = 255


def softmax(logits):
    e = np.exp(logits - logits.max(axis=0))
    return e / e.sum(axis=0)


def plain_dice(logits, labels, smooth=1.0):
    """logits [N, K, M], labels [N, M]."""
    n, k, _ = logits.shape
    total = 0.0
    for z, y in zip(logits.astype(np.float64), labels):
        valid = y != IGNORED
        if not valid.any():
            continue
        p = softmax(z)[:, valid]
        for c in range(k):
            t = y[valid] == c
            total += 1 - (2 * p[c][t].sum() + smooth) / (p[c].sum() + t.sum() + smooth)
    return total / (n * k)


def plain_bootstrapped(logits, labels, k, threshold):
    total = 0.0
    for z, y in zip(logits.astype(np.float64), labels):
        valid = y != IGNORED
        loss = -np.log(np.take_along_axis(softmax(z)[:, valid], y[valid][None], axis=0)[0])
        loss = np.sort(loss)[::-1]
        if len(loss) > k and loss[k] > threshold:
            total += loss[loss > threshold].mean()
        elif len(loss):
            total += loss[:k].mean()
    return total / len(logits)


def case(seed, n=2, k=4, height=5, width=6, ignored=0.2):
    rng = np.random.default_rng(seed)
    logits = (2 * rng.standard_normal((n, k, height, width))).astype(np.float32)
    labels = rng.integers(0, k, (n, height, width))
    labels[rng.random(labels.shape) < ignored] = IGNORED
    return logits, labels


def value_and_gradient(loss, logits, labels):
    z = paddle.to_tensor(logits, stop_gradient=False)
    value = loss(z, paddle.to_tensor(labels))
    value.backward()
    return float(value), z.grad.numpy()


def flat(logits, labels):
    return logits.reshape(*logits.shape[:2], -1), labels.reshape(len(labels), -1)


@given(seed=st.integers(0, 10**6), ignored=st.sampled_from([0.0, 0.3, 0.95]))
@settings(max_examples=20, deadline=None)
def test_dice_is_its_definition(seed, ignored):
    logits, labels = case(seed, ignored=ignored)
    value, _ = value_and_gradient(DiceLoss(), logits, labels)
    assert value == pytest.approx(plain_dice(*flat(logits, labels)), rel=1e-5, abs=1e-6)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 40), threshold=st.sampled_from([0.05, 0.7, 2.0, 9.0]))
@settings(max_examples=30, deadline=None)
def test_bootstrapped_is_its_definition(seed, k, threshold):
    logits, labels = case(seed, ignored=0.4)
    value, _ = value_and_gradient(BootstrappedCrossEntropyLoss(min_K=k, loss_th=threshold), logits, labels)
    assert value == pytest.approx(plain_bootstrapped(*flat(logits, labels), k, threshold), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("k", "threshold", "expected"),
    [
        (1, 0.5, (3 + 2 + 1) / 3),  # the 2nd hardest is above the threshold: all above count
        (3, 1.5, (3 + 2 + 1) / 3),  # the 4th hardest is not: the 3 hardest
        (2, 2.5, (3 + 2) / 2),
        (9, 0.5, (3 + 2 + 1 + 0.25) / 4),  # fewer than K valid pixels: their mean
    ],
)
def test_bootstrapped_by_hand(k, threshold, expected):
    losses = np.array([0.25, 3.0, 1.0, 2.0])
    # Two classes; the label's probability is exp(-loss), and one more pixel is ignored.
    logits = np.stack([-losses, np.log(1 - np.exp(-losses))])
    logits = np.append(logits, [[50.0], [-50.0]], axis=1).reshape(1, 2, 1, 5).astype(np.float32)
    labels = np.array([[[0, 0, 0, 0, IGNORED]]])
    value, _ = value_and_gradient(BootstrappedCrossEntropyLoss(min_K=k, loss_th=threshold), logits, labels)
    assert value == pytest.approx(expected, rel=1e-5)


def test_dice_by_hand():
    logits = np.log(np.array([[0.75, 0.5], [0.25, 0.5]], np.float32)).reshape(1, 2, 1, 2)
    value, _ = value_and_gradient(DiceLoss(), logits, np.array([[[0, 1]]]))
    expected = 1 - ((2 * 0.75 + 1) / (1.25 + 1 + 1) + (2 * 0.5 + 1) / (0.75 + 1 + 1)) / 2
    assert value == pytest.approx(expected, rel=1e-6)


LOSSES = {
    "dice": DiceLoss(),
    "all above the threshold": BootstrappedCrossEntropyLoss(min_K=2, loss_th=0.3),
    "the K hardest": BootstrappedCrossEntropyLoss(min_K=5, loss_th=50.0),
    "fewer than K": BootstrappedCrossEntropyLoss(min_K=1000, loss_th=0.3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_slope(name):
    logits, labels = case(3)
    loss = LOSSES[name]
    _, gradient = value_and_gradient(loss, logits, labels)
    direction = np.random.default_rng(0).standard_normal(logits.shape).astype(np.float32)
    step = 2e-2
    plain = {
        "dice": lambda z: plain_dice(*flat(z, labels)),
    }.get(name, lambda z: plain_bootstrapped(*flat(z, labels), getattr(loss, "min_K", 0), getattr(loss, "loss_th", 0)))
    z = logits.astype(np.float64)
    slope = (plain(z + step / 100 * direction) - plain(z - step / 100 * direction)) / (2 * step / 100)
    assert (gradient * direction).sum() == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_change_nothing(name):
    logits, labels = case(7)
    ignored = np.broadcast_to((labels == IGNORED)[:, None], logits.shape)
    value, gradient = value_and_gradient(LOSSES[name], logits, labels)
    for extreme in (1e4, -1e4, 1e30):
        changed = np.where(ignored, np.float32(extreme) * np.sign(logits), logits)
        assert value_and_gradient(LOSSES[name], changed, labels)[0] == value
        np.testing.assert_array_equal(value_and_gradient(LOSSES[name], changed, labels)[1], gradient)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_picture_of_ignored_pixels_alone(name):
    logits, labels = case(8, n=1)
    labels[:] = IGNORED
    value, gradient = value_and_gradient(LOSSES[name], logits, labels)
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_labels_are_not_written(name):
    logits, labels = case(9)
    tensor = paddle.to_tensor(labels)
    LOSSES[name](paddle.to_tensor(logits), tensor)
    np.testing.assert_array_equal(tensor.numpy(), labels)


def test_extreme_logits_stay_finite():
    logits = np.array([[[[1e4, -1e4]], [[-1e4, 1e4]]]], np.float32)
    for loss in LOSSES.values():
        value, gradient = value_and_gradient(loss, logits, np.array([[[1, 1]]]))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@given(seed=st.integers(0, 10**6), width=st.integers(1, 3000))
@settings(max_examples=10, deadline=None)
def test_fast_path_equals_its_twin(seed, width):
    """NumPy in blocks and threads against Paddle's operators."""
    rng = np.random.default_rng(seed)
    n, k, m = 2, 5, 3 * width
    logits = paddle.to_tensor(rng.standard_normal((n, k, m)).astype(np.float32))
    labels = paddle.to_tensor(rng.integers(0, k, (n, m)))
    valid = paddle.to_tensor((rng.random((n, m)) < 0.8).astype(np.float32))
    before = logits.numpy()
    fast, slow = ArraySoftmax(logits, labels, valid), TensorSoftmax(logits, labels, valid)
    np.testing.assert_allclose(fast.cross_entropy.numpy(), slow.cross_entropy.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fast.totals.numpy(), slow.totals.numpy(), rtol=1e-5)
    every, own = (paddle.to_tensor(rng.standard_normal((n, m)).astype(np.float32)) for _ in range(2))
    for region in (None, paddle.to_tensor(rng.standard_normal((n, k)).astype(np.float32))):
        fast = ArraySoftmax(logits, labels, valid)
        np.testing.assert_allclose(
            fast.gradient(every, own, region).numpy(), slow.gradient(every, own, region).numpy(), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_array_equal(logits.numpy(), before)
    with pytest.raises(RuntimeError, match="once"):
        fast.gradient(every, own, None)


def test_weighted_sum_over_outputs():
    logits, labels = case(11)
    outputs = {"joint": paddle.to_tensor(logits), "low": paddle.to_tensor(-logits), "unused": None}
    loss = WeightedLoss(terms={"dice": DiceLoss()}, weights={"joint": 1.0, "low": 0.05})
    total, terms = loss(outputs, paddle.to_tensor(labels))
    assert set(terms) == {"dice/joint", "dice/low"}
    assert float(terms["dice/low"]) == pytest.approx(plain_dice(*flat(-logits, labels)), rel=1e-5)
    assert float(total) == pytest.approx(float(terms["dice/joint"]) + 0.05 * float(terms["dice/low"]), rel=1e-6)


def test_a_foreign_loss_gets_its_own_labels():
    logits, labels = case(12)

    def writes_to_its_labels(z, y):
        y[:] = 0
        return z.mean()

    loss = WeightedLoss(terms={"foreign": writes_to_its_labels, "dice": DiceLoss()}, weights={"joint": 1.0})
    tensor = paddle.to_tensor(labels)
    _, terms = loss({"joint": paddle.to_tensor(logits)}, tensor)
    np.testing.assert_array_equal(tensor.numpy(), labels)
    assert float(terms["dice/joint"]) == pytest.approx(plain_dice(*flat(logits, labels)), rel=1e-5)


def test_wrong_sizes_are_an_error():
    with pytest.raises(ValueError, match="labels"):
        softmax_losses(paddle.zeros([1, 2, 4, 4]), paddle.zeros([1, 4, 5], "int64"), [DiceLoss()])
    with pytest.raises(ValueError, match="ignore_index"):
        losses = [DiceLoss(), DiceLoss(ignore_index=0)]
        softmax_losses(paddle.zeros([1, 2, 4, 4]), paddle.zeros([1, 4, 4], "int64"), losses)
    with pytest.raises(ValueError, match="min_K"):
        BootstrappedCrossEntropyLoss(min_K=0, loss_th=0.1)
