# SPDX-License-Identifier: Apache-2.0
"""The loss of evaluations: that of training on each image, in little memory, the same for every number of ranks."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from with_defaults import CrossEntropyLoss, DiceLoss

from hmsa.losses import WeightedLoss
from hmsa.metrics import loss as loss_module
from hmsa.metrics.loss import MeanLoss

K = 4


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    sizes = [(20, 30), (7, 50), (33, 5)]
    return [
        (rng.normal(size=(1, K, h, w)).astype(np.float32), rng.choice([*range(K), 255], (h, w)).astype(np.uint8))
        for h, w in sizes
    ]


def cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels, ignore_index=255, axis=1)


def measured(images, loss=cross_entropy):
    metric = MeanLoss(K, 255, loss)
    for logits, label in images:
        metric.update_logits(paddle.to_tensor(logits), label)
        metric.update(label, label)
    return metric


def plain(logits, label, loss=cross_entropy):
    return float(loss(paddle.to_tensor(logits), paddle.to_tensor(label[None].astype(np.int64))))


def test_it_is_the_mean_over_images(images):
    expected = np.mean([plain(*image) for image in images])
    assert measured(images).scores()["loss"] == pytest.approx(expected, rel=1e-6)


def test_images_without_a_labelled_pixel_do_not_count(images):
    nothing = (images[0][0], np.full_like(images[0][1], 255))
    assert measured([*images, nothing]).scores() == measured(images).scores()
    assert np.isnan(measured([nothing]).scores()["loss"])


def test_ranks_add_up_to_the_same_bits(images):
    parts = [measured(images[:1]), measured(images[1:])]
    np.testing.assert_array_equal(sum(part.state for part in parts), measured(images).state)


@pytest.mark.parametrize("numbers", [1, K * 5 * 7, K * 30 * 6])
def test_a_large_image_is_taken_in_bands_and_means_the_same_for_a_loss_of_pixels(images, monkeypatch, numbers):
    expected = measured(images).scores()["loss"]
    monkeypatch.setattr(loss_module, "MAX_NUMBERS", numbers)
    asked = []

    def noting(logits, labels):
        asked.append(logits.size)
        return cross_entropy(logits, labels)

    assert measured(images, noting).scores()["loss"] == pytest.approx(expected, rel=1e-6)
    assert max(asked) <= max(numbers, K * 50)  # a row at least


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_is_no_number_counts_as_the_largest(images, value):
    metric = measured(images, lambda logits, labels: paddle.to_tensor(value))
    assert metric.scores()["loss"] == 1e6


def test_that_of_a_recipe_is_the_sum_of_its_losses_without_gradient(images):
    loss = WeightedLoss(terms={"a": CrossEntropyLoss(), "b": DiceLoss()}, weights={"joint": 0.5, "low": 3.0})
    expected = np.mean([plain(*image, CrossEntropyLoss()) + plain(*image, DiceLoss()) for image in images])
    logits = paddle.to_tensor(images[0][0], stop_gradient=False)
    metric = MeanLoss(K, 255, loss.of_one)
    metric.update_logits(logits, images[0][1])
    assert logits.grad is None
    assert measured(images, loss.of_one).scores()["loss"] == pytest.approx(expected, rel=1e-6)
