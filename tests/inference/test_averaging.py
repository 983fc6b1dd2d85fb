# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from paddle.nn import functional as F

from hmsa.config.schema import InferenceSpec
from hmsa.errors import DataError
from hmsa.inference.averaging import (
    InferenceOptions,
    best_classes,
    class_scores,
    confidences,
    tile_starts,
    undo_transforms,
)
from hmsa.models.hierarchical import joint_logits


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> paddle.Tensor:
    values = np.random.default_rng(seed).normal(size=(1, channels, height, width))
    return paddle.to_tensor(values.astype(np.float32))


@pytest.fixture
def convolution() -> paddle.nn.Layer:
    """A network that sees its surroundings, so that flips, scales and tile borders all change its answer."""
    paddle.seed(1)
    return paddle.nn.Conv2D(3, 4, 5, padding=2)


def brighten(image: paddle.Tensor) -> paddle.Tensor:
    """A network that looks at single pixels only: flips and tiles must not change its answer."""
    return paddle.concat([2 * image, image + 1], axis=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scales": (0.5, 1.0, 1.25)},
        {"flip_horizontal": True},
        {"flip_horizontal": True, "flip_vertical": True, "scales": (0.75, 1.0)},
        {"tile": (16, 12), "stride": (10, 7)},
        {"tile": (16, 12), "stride": (16, 12), "flip_vertical": True, "scales": (0.3, 2.0)},
    ],
)
def test_class_scores_agree_with_paddleseg(convolution, options):
    from paddleseg.core import infer

    def listed(image: paddle.Tensor) -> list[paddle.Tensor]:
        return [convolution(image)]

    theirs = {key: options[key] for key in ("flip_horizontal", "flip_vertical") if key in options}
    if "tile" in options:
        theirs |= {"is_slide": True, "crop_size": options["tile"][::-1], "stride": options["stride"][::-1]}
    image = picture(37, 53)
    with paddle.no_grad():
        _, expected = infer.aug_inference(listed, image, [], scales=list(options.get("scales", (1.0,))), **theirs)
    result = class_scores(convolution, image, InferenceOptions(**options))
    assert result.dtype == paddle.float32
    assert_allclose(result.numpy(), expected.astype("float32").numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"flip_horizontal": True},
        {"scales": (0.5, 1.0, 1.5), "flip_vertical": True},
        {"flip_horizontal": True, "tile": (16, 12), "stride": (10, 7)},
    ],
)
def test_probabilities_are_averaged_as_in_paddleseg_2_0(convolution, options):
    """The softmax of every answer at the image's size, turned back; tiles are merged before it."""
    image = 3 * picture(37, 53)
    plain = {key: options[key] for key in ("tile", "stride") if key in options}
    total, count = 0, 0
    for scale in options.get("scales", (1.0,)):
        scaled = F.interpolate(image, [int(37 * scale + 0.5), int(53 * scale + 0.5)], mode="bilinear")
        for axis in [[], [3] if "flip_horizontal" in options else [2]]:
            logits = class_scores(convolution, paddle.flip(scaled, axis), InferenceOptions(**plain))
            logits = F.interpolate(paddle.flip(logits, axis), [37, 53], mode="bilinear").numpy()
            exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
            total, count = total + exponential / exponential.sum(axis=1, keepdims=True), count + 1
    result = class_scores(convolution, image, InferenceOptions(**options, average="softmax")).numpy()
    assert_allclose(result, total / count, rtol=1e-4, atol=1e-6)
    logits = class_scores(convolution, image, InferenceOptions(**options)).numpy()
    assert (result.argmax(1) != logits.argmax(1)).any()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.floats(0, 1000))
def test_of_a_single_answer_both_averages_have_the_same_labels(seed, spread):
    image = picture(11, 9, seed=seed) * spread
    for options in ({}, {"tile": (8, 8), "stride": (4, 4)}):
        labels = [
            best_classes(
                undo_transforms(
                    class_scores(brighten, image, InferenceOptions(**options, average=average)), [("resize", (30, 20))]
                )
            )
            for average in ("logits", "softmax")
        ]
        assert_array_equal(*labels)


def test_plain_inference_is_the_network_itself(convolution):
    image = picture(9, 7)
    assert_array_equal(class_scores(convolution, image, InferenceOptions()).numpy(), convolution(image).numpy())


def test_both_flips_are_four_pictures():
    seen = []

    def network(image: paddle.Tensor) -> paddle.Tensor:
        seen.append(image[0, 0].numpy())
        return image

    image = paddle.arange(6, dtype="float32").reshape([1, 1, 2, 3])
    result = class_scores(network, image, InferenceOptions(flip_horizontal=True, flip_vertical=True))
    corners = [int(array[0, 0]) for array in seen]
    assert sorted(corners) == [0, 2, 3, 5]
    assert_array_equal(result.numpy(), image.numpy())


def test_the_sizes_a_network_sees():
    sizes = []

    def network(image: paddle.Tensor) -> paddle.Tensor:
        sizes.append(tuple(image.shape[-2:]))
        return image

    class_scores(network, picture(97, 161), InferenceOptions(scales=(0.5, 1.0, 1.5)))
    assert sizes == [(49, 81), (97, 161), (146, 242)]
    class_scores(network, picture(1, 161), InferenceOptions(scales=(0.25,)))
    assert sizes[-1] == (1, 40)


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    tile=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    steps=st.tuples(st.integers(1, 24), st.integers(1, 24)),
)
def test_tiles_do_not_change_an_answer_by_single_pixels(size, tile, steps):
    image = picture(*size)
    stride = (min(steps[0], tile[0]), min(steps[1], tile[1]))
    largest = [0, 0]

    def network(part: paddle.Tensor) -> paddle.Tensor:
        largest[:] = np.maximum(largest, part.shape[-2:])
        return brighten(part)

    result = class_scores(network, image, InferenceOptions(tile=tile, stride=stride))
    assert_allclose(result.numpy(), brighten(image).numpy(), rtol=1e-5, atol=1e-5)
    assert largest == [min(size[0], tile[0]), min(size[1], tile[1])]


def test_overlapping_tiles_are_averaged():
    calls = []

    def network(part: paddle.Tensor) -> paddle.Tensor:
        calls.append(None)
        return paddle.full_like(part, len(calls))

    result = class_scores(network, picture(1, 5), InferenceOptions(tile=(1, 3), stride=(1, 2)))
    assert_array_equal(result[0, 0].numpy(), [[1, 1, 1.5, 2, 2]])


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 100), st.data())
def test_tiles_cover_the_axis_and_stay_inside(length, tile, data):
    stride = data.draw(st.integers(1, tile))
    starts = tile_starts(length, tile, stride)
    covered = {position for start in starts for position in range(start, min(start + tile, length))}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))
    assert all(start + tile <= length for start in starts) or starts == [0]


@pytest.mark.parametrize("average", ["logits", "softmax"])
def test_the_network_keeps_its_tensors(average):
    own = picture(4, 4)
    before = own.numpy().copy()
    class_scores(lambda image: own, picture(4, 4), InferenceOptions(flip_horizontal=True, average=average))
    assert_array_equal(own.numpy(), before)


def test_no_gradient_is_kept(convolution):
    assert class_scores(convolution, picture(4, 4), InferenceOptions(scales=(1.0, 2.0))).stop_gradient


def test_joint_logits_takes_the_fused_answer():
    class Model(paddle.nn.Layer):
        def forward(self, image):
            return {"other": image, "joint": image + 1}

    assert joint_logits(Model())(paddle.zeros([1, 3, 2, 2])).numpy().min() == 1


def test_restore_undoes_the_last_transform_first():
    logits = picture(8, 12, channels=5)
    # A 3x4 image was resized to 6x9, then padded to 8x12.
    result = undo_transforms(logits, [("resize", (3, 4)), ("padding", (6, 9))])
    expected = F.interpolate(logits[:, :, :6, :9], [3, 4], mode="bilinear").numpy()
    assert_array_equal(result.numpy(), expected)


def test_the_best_class_of_every_pixel():
    logits = picture(3, 4, channels=200)
    assert_array_equal(best_classes(logits), logits.numpy()[0].argmax(0))
    assert best_classes(logits).dtype == np.uint8


def test_classes_never_wrap():
    assert best_classes(F.one_hot(paddle.to_tensor([[[255]]]), 256).transpose([0, 3, 1, 2])).tolist() == [[255]]
    with pytest.raises(DataError, match=r"expected at most 256 classes, .* found 257"):
        best_classes(paddle.zeros([1, 257, 1, 1]))


@pytest.mark.parametrize("size", [(1, 1), (16, 5), (37, 53)])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("average", ["logits", "softmax"])
def test_confidence_is_the_probability_of_the_best_class(convolution, size, flip, average):
    """Of averaged logits, of averaged probabilities, and of a single answer, whichever average was asked for."""
    options = InferenceOptions(flip_horizontal=flip, average=average)
    scores = class_scores(convolution, 50 * picture(*size), options)
    probabilities = scores if average == "softmax" and flip else F.softmax(scores, axis=1)
    result = confidences(scores, options)
    assert_allclose(result, probabilities.numpy()[0].max(axis=0), rtol=1e-5)
    assert result.dtype == np.float32 and result.shape == size
    assert result.max() <= 1 + 1e-6


def test_confidence_on_a_gpu_is_the_same(monkeypatch):
    scores = 9 * picture(20, 30, channels=7)
    expected = confidences(scores, InferenceOptions())
    monkeypatch.setattr("hmsa.inference.averaging.on_gpu", lambda: True)
    assert_allclose(confidences(scores, InferenceOptions()), expected, rtol=1e-5)


def test_restore_names_what_it_cannot_undo():
    with pytest.raises(DataError, match="'crop'"):
        undo_transforms(picture(3, 4), [("crop", (9, 9))])


def test_options_from_paddleseg_sizes_are_width_height():
    spec = InferenceSpec(
        aug_eval=True,
        scales=[0.5, 1],
        flip_horizontal=True,
        is_slide=True,
        crop_size=[128, 64],
        stride=[8, 4],
        average="softmax",
    )
    options = InferenceOptions.from_test_config(spec)
    sizes = {"tile": (64, 128), "stride": (4, 8)}
    assert options == InferenceOptions(scales=(0.5, 1), flip_horizontal=True, average="softmax", **sizes)


def test_options_count_only_when_switched_on():
    spec = InferenceSpec(scales=[0.5], flip_vertical=True, crop_size=[128, 64], stride=[8, 4])
    assert InferenceOptions.from_test_config(spec) == InferenceOptions()
