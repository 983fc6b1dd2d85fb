# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from hmsa.datasets.classes import Classes
from hmsa.inference.averaging import InferenceOptions, best_classes, confidences
from hmsa.report import notes as module
from hmsa.report.notes import Answer, Notes, mean_loss

CLASSES = Classes.numbered(4)
PLAIN = InferenceOptions()


def answer(index: int, label: np.ndarray, options: InferenceOptions = PLAIN, decided=None) -> Answer:
    rng = np.random.default_rng(index)
    scores = paddle.to_tensor(rng.normal(0, 2, (1, len(CLASSES), *label.shape)).astype(np.float32))
    if options.averages_probabilities:
        scores = F.softmax(scores, axis=1)
    confidence = confidences(scores, options)
    return Answer(index, f"{index}.png", label, best_classes(scores), scores, options, confidence, decided or {})


def random_label(seed: int = 1, shape=(40, 60)) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 1, 2, 255], shape).astype(np.uint8)


@pytest.mark.parametrize(
    "options",
    [InferenceOptions(), InferenceOptions(flip_horizontal=True, average="softmax")],
    ids=["logits", "softmax"],
)
def test_the_loss_is_the_mean_cross_entropy_of_the_labelled_pixels(options):
    given = answer(0, random_label(), options)
    logits = paddle.log(given.scores) if options.averages_probabilities else given.scores
    right = F.cross_entropy(logits, paddle.to_tensor(given.label[None].astype(np.int64)), ignore_index=255, axis=1)
    assert mean_loss(given, logits[0].numpy(), 255) == pytest.approx(float(right), rel=1e-5)
    ignored = replace(given, label=np.full_like(given.label, 255))
    assert mean_loss(ignored, logits[0].numpy(), 255) == 0


def test_the_images_with_most_pixels_of_a_pair_are_remembered(tmp_path):
    found = Notes(CLASSES, 6, (1.0,), tmp_path)
    given = [answer(index, random_label(index)) for index in range(6)]
    for one in given:
        found(one)
    counts = [int(((one.label == 0) & (one.prediction == 3)).sum()) for one in given]
    best = sorted(zip(counts, range(6)), key=lambda pair: -pair[0])[: module.KEPT]
    assert found.best_of_pair[0, 3].tolist() == [list(pair) for pair in best]
    assert not found.best_of_pair[np.arange(4), np.arange(4)].any()
    for one in given:
        valid = one.label != 255
        assert found.accuracy[one.index] == pytest.approx((one.label == one.prediction)[valid].mean(), abs=1e-5)
    assert found.seen.tolist() == [*range(6)]


def test_shares_are_means_over_the_pixels_of_a_class_and_a_size(tmp_path):
    label = np.full((200, 200), 255, np.uint8)
    label[:20, :20] = 1  # small: 400 px
    label[100:150, 100:150] = 1  # medium: 2,500 px
    label[22:30, 20:100] = 2  # small: 640 px
    label[160:, :] = 2  # medium: 8,000 px
    small = np.zeros((200, 200), np.float32)
    small[:20, :20], small[22:30, 20:100] = 0.25, 1
    found = Notes(CLASSES, 2, (0.5, 1.0), tmp_path)
    found(answer(0, label, decided={0.5: small, 1.0: 1 - small}))
    found(answer(1, np.full_like(label, 255)))  # nothing to say of it

    shares = found.shares()
    assert list(shares) == ["all classes", "class 1", "class 2"]
    assert shares["class 1"]["small"] == pytest.approx({"0.5": 0.25, "1": 0.75})
    assert shares["class 1"]["medium"] == {"0.5": 0, "1": 1}
    assert shares["class 2"]["small"] == {"0.5": 1, "1": 0}
    assert shares["all classes"]["small"]["0.5"] == pytest.approx((400 * 0.25 + 640) / 1040)
    assert shares["all classes"]["all"]["0.5"] == pytest.approx((400 * 0.25 + 640) / (400 + 2500 + 640 + 8000))
    assert "large" not in shares["class 1"]
    assert found.objects[1].tolist() == [1, 1, 0] and found.pixels[2].tolist() == [640, 8000, 0]
    assert (found.looked_into, found.seen.tolist()) == (1, [0])


def test_of_many_images_a_bounded_number_is_looked_into(tmp_path):
    assert Notes(CLASSES, 7, (1.0,), tmp_path).sample() == frozenset(range(7))
    sample = sorted(Notes(CLASSES, 500, (1.0,), tmp_path).sample())
    assert len(sample) == module.LOOKED_INTO and (sample[0], sample[-1]) == (0, 499)


def test_a_label_that_the_network_is_sure_is_wrong_is_found(tmp_path):
    pytest.importorskip("cleanlab")
    found = Notes(CLASSES, 4, (1.0,), tmp_path)
    rng = np.random.default_rng(0)
    for index in range(4):
        truth = np.zeros((128, 256), np.uint8)
        truth[:, 128:], truth[:40, :60], truth[90:, 200:] = 1, 2, 3
        label = truth.copy()
        if index == 2:
            label[60:90, 150:190] = 3  # which is 1 in truth
        logits = 6.0 * np.eye(4, dtype=np.float32)[truth].transpose(2, 0, 1) + rng.normal(0, 0.3, (4, *truth.shape))
        scores = paddle.to_tensor(logits[None].astype(np.float32))
        given = Answer(index, "", label, best_classes(scores), scores, InferenceOptions())
        found(given)

    worst, *_ = found.suspects.regions(5)
    assert (worst.index, worst.labelled, worst.suggested) == (2, 3, 1)
    assert np.round(np.array(worst.box) * [128, 256, 128, 256]).tolist() == pytest.approx([60, 150, 90, 190], abs=4)
    assert worst.confidence > 0.9
