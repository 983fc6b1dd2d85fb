# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import paddle
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from hmsa.inference.averaging import InferenceOptions, best_classes, class_scores, class_softmax
from hmsa.inference.insight import look_into
from hmsa.inference.network import FusedNetwork, open_network
from hmsa.models.hierarchical import decided_shares, fuse_scales

SCALES = (0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def model(make_tiny_network):
    model = make_tiny_network(scales=SCALES)
    model.eval()
    return model


@pytest.fixture(scope="module")
def network(model):
    return FusedNetwork(model.at_scale, scales=SCALES, align_corners=False)


@pytest.fixture(scope="module")
def image():
    paddle.seed(3)
    return paddle.randn([1, 3, 48, 80])


def test_it_is_what_the_network_answers_with(model, network, image):
    found = look_into(network, image, InferenceOptions(), alone=True)
    with paddle.no_grad():
        right = model(image, return_attention=True)
    assert_array_equal(found.scores.numpy(), class_scores(network, image, InferenceOptions()).numpy())
    assert_array_equal(found.attention[1.0], right["attention_1"][0, 0].numpy())
    assert list(found.attention) == list(found.decided) == list(found.scales) == [*SCALES]
    for maps in (found.attention, found.decided, found.scales):
        assert {values.shape for values in maps.values()} == {(48, 80)}
    assert_allclose(sum(found.decided.values()), 1, atol=1e-6)
    below, at = found.attention[0.5], found.attention[1.0]
    for scale, share in {0.5: below, 1.0: (1 - below) * at, 2.0: (1 - below) * (1 - at)}.items():
        assert_allclose(found.decided[scale], share, atol=1e-6)
    assert look_into(network, image, InferenceOptions()).scales == {}


@pytest.mark.parametrize(("scales", "tolerance"), [(SCALES, 1e-6), ((0.5, 1.0, 1.5, 2.0), 0.05)])
def test_shares_are_what_the_fusion_makes_of_the_scales(model, image, scales, tolerance):
    """Fused in the place of logits, a map of 1 for one scale and 0 for all others shows where that scale decides."""
    for chosen in range(len(scales)):
        left = [*range(len(scales))]  # scales are run from the largest down

        def one_hot(x, attention, left=left, chosen=chosen):
            logits, weight = model.at_scale(x, True)
            return paddle.full_like(logits[:, :1], left.pop() == chosen), weight

        with paddle.no_grad():
            expected = fuse_scales(one_hot, image, scales, align_corners=False)["joint"]
        network = FusedNetwork(model.at_scale, scales=scales, align_corners=False)
        found = look_into(network, image, InferenceOptions()).decided[scales[chosen]]
        assert_allclose(found, expected[0, 0].numpy(), atol=tolerance)


def test_a_scale_alone_says_what_a_network_of_it_alone_does(model, network, image):
    found = look_into(network, image, InferenceOptions(), alone=True)
    alone = FusedNetwork(model.at_scale, scales=[1.0], align_corners=False)
    assert_array_equal(found.scales[1.0], best_classes(class_scores(alone, image, InferenceOptions())))
    assert len({labels.tobytes() for labels in found.scales.values()}) == 3


@pytest.mark.parametrize("average", ["logits", "softmax"])
def test_it_is_averaged_like_the_answer(network, image, average):
    options = InferenceOptions(scales=(1.0, 0.75), flip_horizontal=True, average=average)
    found = look_into(network, image, options, alone=True)
    assert_allclose(found.scores.numpy(), class_scores(network, image, options).numpy(), atol=1e-6)
    assert_allclose(sum(found.decided.values()), 1, atol=1e-6)

    flip = InferenceOptions(flip_horizontal=True, average=average)
    mirrored = look_into(network, paddle.flip(image, [3]), InferenceOptions())
    plain = look_into(network, image, InferenceOptions())
    both = look_into(network, image, flip)
    for word in ("attention", "decided"):
        one, other, mean = (getattr(part, word)[0.5] for part in (plain, mirrored, both))
        assert_allclose(mean, (one + other[:, ::-1]) / 2, atol=1e-6)


def test_alone_probabilities_are_averaged_too(network, image):
    """Of each scale by itself, not over all that comes out of the network at once."""
    options = InferenceOptions(flip_horizontal=True, average="softmax")
    found = look_into(network, image, options, alone=True)
    total = 0
    for flipped in (False, True):
        given = paddle.flip(image, [3]) if flipped else image
        logits = network.inside(given, alone=True)[:, 5:10]  # of scale 0.5, of five classes
        total += class_softmax(paddle.flip(logits, [3]) if flipped else logits)
    assert_array_equal(found.scales[0.5], best_classes(total))


def test_tiles_and_sizes_are_undone(network, image):
    options = InferenceOptions(tile=(48, 48), stride=(32, 32))
    found = look_into(network, image, options, alone=True, trans_info=[("padding", (40, 70))], size=(40, 70))
    assert found.scores.shape == [1, 5, 40, 70]
    for maps in (found.attention, found.decided, found.scales):
        assert {values.shape for values in maps.values()} == {(40, 70)}
    assert_allclose(sum(found.decided.values()), 1, atol=1e-6)


def test_a_backend_says_the_same(make_tiny_network, model, network, image):
    options = {"identity": "insight", "scales": SCALES, "align_corners": False, "backend": "inference"}
    found = look_into(open_network(lambda: model, **options), image, InferenceOptions(), alone=True)
    right = look_into(network, image, InferenceOptions(), alone=True)
    for scale in SCALES:
        assert_allclose(found.attention[scale], right.attention[scale], atol=1e-4)
        assert_allclose(found.decided[scale], right.decided[scale], atol=1e-4)
        assert (found.scales[scale] == right.scales[scale]).mean() > 0.99


def test_one_scale_decides_everything(model, image):
    network = FusedNetwork(model.at_scale, scales=[1.0], align_corners=False)
    found = look_into(network, image, InferenceOptions(), alone=True)
    assert (found.decided[1.0] == 1).all()
    assert_array_equal(found.scales[1.0], best_classes(found.scores))


def test_nothing_more_is_run_than_asked_for(network, image):
    """Once at each scale; the plain answer asks for no attention of the largest."""
    asked = []
    inner = network._at_scale
    noting = FusedNetwork(
        lambda x, attention: asked.append((x.shape[2], attention)) or inner(x, attention),
        scales=SCALES,
        align_corners=False,
    )
    noting(image)
    assert asked == [(96, False), (48, True), (24, True)]
    asked.clear()
    look_into(noting, image, InferenceOptions(), alone=True)
    assert asked == [(96, True), (48, True), (24, True)]


def test_shares_are_the_weights_of_constant_answers():
    """Fused by hand: 8 at 0.5, 4 at 1, 10 at 1.5 and 1 at 2 give the sum of share times answer."""
    attention = paddle.to_tensor([0.25, 0.5, 0.1, 0.9]).reshape([1, 4, 1, 1])
    shares = decided_shares(attention).numpy().ravel()
    assert_allclose(shares, [0.25, 0.75 * 0.5, 0.75 * 0.5 * 0.1, 0.75 * 0.5 * 0.9])
    fused = 0.25 * 8 + 0.75 * (0.5 * 4 + 0.5 * (0.1 * 10 + 0.9 * 1))
    assert np.dot(shares, [8, 4, 10, 1]) == pytest.approx(fused)
