# SPDX-License-Identifier: Apache-2.0
"""The losses against their definitions, written plainly in NumPy, and their gradients against finite differences."""

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from with_defaults import BootstrappedCrossEntropyLoss, CrossEntropyLoss, DiceLoss, MixedLoss, OhemCrossEntropyLoss

from hmsa.losses import WeightedLoss, hardest, softmax
from hmsa.losses.dense import ArraySoftmax, TensorSoftmax
from hmsa.losses.foreign import ForeignLoss
from hmsa.losses.softmax import softmax_losses

IGNORED = 255


def probabilities(logits):
    e = np.exp(logits - logits.max(axis=0))
    return e / e.sum(axis=0)


def plain_dice(logits, labels, smooth=1.0, weight=None):
    """logits [N, K, M], labels [N, M]."""
    n, k, _ = logits.shape
    weight = np.ones(k) if weight is None else weight
    total = 0.0
    for z, y in zip(logits.astype(np.float64), labels):
        valid = y != IGNORED
        if not valid.any():
            continue
        p = probabilities(z)[:, valid]
        for c in range(k):
            t = y[valid] == c
            total += weight[c] * (1 - (2 * p[c][t].sum() + smooth) / (p[c].sum() + t.sum() + smooth))
    return total / (n * k)


def plain_bootstrapped(logits, labels, k, threshold, weight=None):
    weight = np.ones(logits.shape[1]) if weight is None else np.array(weight)
    total = 0.0
    for z, y in zip(logits.astype(np.float64), labels):
        valid = y != IGNORED
        loss = -np.log(np.take_along_axis(probabilities(z)[:, valid], y[valid][None], axis=0)[0])
        loss = np.sort(weight[y[valid]] * loss)[::-1]
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


def pixels(logits, labels):
    """Losses and labels of the batch's valid pixels: [P]."""
    loss = [-np.log(np.take_along_axis(probabilities(z), (y % 255)[None], axis=0)[0]) for z, y in zip(logits, labels)]
    return np.array(loss)[labels != IGNORED], labels[labels != IGNORED]


def plain_cross_entropy(logits, labels, weight=None, part=1.0, avg_non_ignore=True):
    weight = np.ones(logits.shape[1]) if weight is None else np.array(weight)
    count = max(1, int(part * labels.size))
    loss, y = pixels(logits.astype(np.float64), labels)
    order = np.argsort(-weight[y] * loss)[:count]
    loss, weights = loss[order], weight[y][order]
    total = weights.sum() + (0 if avg_non_ignore else count - len(loss))  # ignored ones among the count
    return (weights * loss).sum() / total if total else 0.0


def plain_ohem(logits, labels, threshold, min_kept):
    loss, _ = pixels(logits.astype(np.float64), labels)
    probability = np.sort(np.exp(-loss))
    kept = max((probability < threshold).sum(), min(min_kept, len(loss)))
    return -np.log(probability[:kept]).mean() if kept else 0.0


WEIGHT = [0.5, 2.0, 0.0, 3.0]
CASES = {  # a loss, and its definition on [N, K, M], [N, M]
    "dice": (DiceLoss(), plain_dice),
    "dice, weighted": (DiceLoss(weight=WEIGHT), lambda z, y: plain_dice(z, y, weight=WEIGHT)),
    "all above the threshold": (
        BootstrappedCrossEntropyLoss(min_K=2, loss_th=0.3),
        lambda z, y: plain_bootstrapped(z, y, 2, 0.3),
    ),
    "the K hardest": (
        BootstrappedCrossEntropyLoss(min_K=5, loss_th=50.0),
        lambda z, y: plain_bootstrapped(z, y, 5, 50.0),
    ),
    "fewer than K": (
        BootstrappedCrossEntropyLoss(min_K=1000, loss_th=0.3),
        lambda z, y: plain_bootstrapped(z, y, 1000, 0.3),
    ),
    "bootstrapped, weighted": (
        BootstrappedCrossEntropyLoss(min_K=5, loss_th=50.0, weight=WEIGHT),
        lambda z, y: plain_bootstrapped(z, y, 5, 50.0, WEIGHT),
    ),
    "cross-entropy": (CrossEntropyLoss(), plain_cross_entropy),
    "cross-entropy, weighted": (CrossEntropyLoss(weight=WEIGHT), lambda z, y: plain_cross_entropy(z, y, WEIGHT)),
    "cross-entropy over all": (
        CrossEntropyLoss(weight=WEIGHT, avg_non_ignore=False),
        lambda z, y: plain_cross_entropy(z, y, WEIGHT, avg_non_ignore=False),
    ),
    "cross-entropy, hardest": (
        CrossEntropyLoss(weight=WEIGHT, top_k_percent_pixels=0.2),
        lambda z, y: plain_cross_entropy(z, y, WEIGHT, 0.2),
    ),
    "cross-entropy, hardest of all": (
        CrossEntropyLoss(top_k_percent_pixels=0.2, avg_non_ignore=False),
        lambda z, y: plain_cross_entropy(z, y, part=0.2, avg_non_ignore=False),
    ),
    "cross-entropy, more than are valid": (
        CrossEntropyLoss(top_k_percent_pixels=0.97, avg_non_ignore=False),
        lambda z, y: plain_cross_entropy(z, y, part=0.97, avg_non_ignore=False),
    ),
    "OHEM, below the threshold": (
        OhemCrossEntropyLoss(thresh=0.5, min_kept=3),
        lambda z, y: plain_ohem(z, y, 0.5, 3),
    ),
    "OHEM, no least number": (
        OhemCrossEntropyLoss(thresh=0.5, min_kept=0),
        lambda z, y: plain_ohem(z, y, 0.5, 0),
    ),
    "OHEM, the hardest": (OhemCrossEntropyLoss(thresh=1e-3, min_kept=7), lambda z, y: plain_ohem(z, y, 1e-3, 7)),
    "OHEM, fewer than min_kept": (
        OhemCrossEntropyLoss(thresh=1e-3, min_kept=1000),
        lambda z, y: plain_ohem(z, y, 1e-3, 1000),
    ),
}
LOSSES = {name: loss for name, (loss, _) in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_slope(name):
    logits, labels = case(3)
    loss, plain = CASES[name]
    value, gradient = value_and_gradient(loss, logits, labels)
    assert value == pytest.approx(plain(*flat(logits, labels)), rel=1e-5)

    direction = np.random.default_rng(0).standard_normal(logits.shape).astype(np.float32)
    step = 2e-4
    z = logits.astype(np.float64)
    above, below = (plain(*flat(z + sign * step * direction, labels)) for sign in (1, -1))
    assert (gradient * direction).sum() == pytest.approx((above - below) / (2 * step), rel=2e-3)


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
    logits = np.full((1, 4, 1, 2), -1e4, np.float32)
    logits[0, [0, 1], 0, [0, 1]] = 1e4
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


@pytest.mark.parametrize("name", LOSSES)
def test_a_gpu_computes_the_same_and_without_products_of_matrices(name, monkeypatch, capsys):
    """Products would be computed in TF32 there, with 10 bits."""
    logits, labels = case(15)
    expected, slope = value_and_gradient(LOSSES[name], logits, labels)
    monkeypatch.setattr(softmax, "dense_softmax", TensorSoftmax)
    monkeypatch.setattr(hardest, "kth_by_partition", hardest.kth_by_topk)
    with paddle.amp.debugging.collect_operator_stats():
        value, gradient = value_and_gradient(LOSSES[name], logits, labels)
    assert value == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-7)
    operators = {line.split("|")[0].strip() for line in capsys.readouterr().out.splitlines() if "|" in line}
    assert "log_softmax" in operators
    assert not [op for op in operators if any(product in op for product in ("mm", "matmul", "mul_", "dot", "conv"))]


def test_weighted_sum_over_outputs():
    logits, labels = case(11)
    outputs = {"joint": paddle.to_tensor(logits), "low": paddle.to_tensor(-logits), "unused": None}
    loss = WeightedLoss(terms={"dice": DiceLoss()}, weights={"joint": 1.0, "low": 0.05})
    total, terms = loss(outputs, paddle.to_tensor(labels))
    assert set(terms) == {"dice/joint", "dice/low"}
    assert float(terms["dice/low"]) == pytest.approx(plain_dice(*flat(-logits, labels)), rel=1e-5)
    assert float(total) == pytest.approx(float(terms["dice/joint"]) + 0.05 * float(terms["dice/low"]), rel=1e-6)


def test_a_mixture_is_a_weighted_sum():
    logits, labels = (paddle.to_tensor(part) for part in case(13))
    parts = [DiceLoss(), ForeignLoss(lambda z, y: [z.mean(), (z * z).mean()]), CrossEntropyLoss()]
    total = MixedLoss(losses=parts, coef=[1.0, 10.0, 100.0])(logits, labels)
    assert float(total) == pytest.approx(
        sum(c * float(p(logits, labels)) for c, p in zip((1, 10, 100), parts)), rel=1e-5
    )


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_computed_in_float32(name):
    logits, labels = case(14)
    rounded = paddle.to_tensor(logits).astype("bfloat16")
    value, gradient = value_and_gradient(LOSSES[name], rounded.astype("float32").numpy(), labels)
    rounded.stop_gradient = False
    half = LOSSES[name](rounded, paddle.to_tensor(labels))
    assert half.dtype == paddle.float32
    assert float(half) == pytest.approx(value, rel=1e-6)
    half.backward()
    assert rounded.grad.dtype == paddle.bfloat16
    np.testing.assert_allclose(rounded.grad.astype("float32").numpy(), gradient, rtol=1e-2, atol=1e-7)


def test_a_foreign_loss_gets_its_own_labels():
    logits, labels = case(12)

    def writes_to_its_labels(z, y):
        y[:] = 0
        return z.mean()

    terms = {"foreign": ForeignLoss(writes_to_its_labels), "dice": DiceLoss()}
    loss = WeightedLoss(terms=terms, weights={"joint": 1.0})
    tensor = paddle.to_tensor(labels)
    _, terms = loss({"joint": paddle.to_tensor(logits)}, tensor)
    np.testing.assert_array_equal(tensor.numpy(), labels)
    assert float(terms["dice/joint"]) == pytest.approx(plain_dice(*flat(logits, labels)), rel=1e-5)


def test_what_the_recipe_would_have_refused_is_not_computed():
    logits, labels = paddle.zeros([1, 2, 4, 4]), paddle.zeros([1, 4, 4], "int64")
    for losses, y in (
        ([DiceLoss()], labels[:, :3]),
        ([DiceLoss(), DiceLoss(ignore_index=0)], labels),
        ([DiceLoss(weight=[1, 2, 3])], labels),
    ):
        with pytest.raises(AssertionError):
            softmax_losses(logits, y, losses)
