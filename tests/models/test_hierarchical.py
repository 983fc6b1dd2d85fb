# SPDX-License-Identifier: Apache-2.0
import numpy as np
import paddle
import pytest
from paddle import nn

from hmsa.errors import DataError
from hmsa.models import BACKBONES, MscaleOCRNet
from hmsa.models.layers import ConvOverParts, resize, resize_through, scaled_size

SMALL = {"ocr_mid_channels": 16, "ocr_key_channels": 8, "attention_mid_channels": 8}


def small_network(**options):
    paddle.seed(1)
    recompute = options.get("recompute", False)
    return MscaleOCRNet(
        num_classes=5, backbone=BACKBONES["HRNet_W18_NV_Small_V1"](recompute=recompute), **SMALL, **options
    )


@pytest.mark.parametrize("scales", [(0.5, 2.0), (1.0, -1.0)])
def test_scales_are_checked(scales):
    with pytest.raises(AssertionError):
        small_network(scales=scales)


class Scripted(MscaleOCRNet):
    """Constant logits and attention for each scale, so that the fusion can be computed by hand."""

    def __init__(self, answers, **options):
        super().__init__(
            num_classes=1, backbone=BACKBONES["HRNet_W18_NV_Small_V1"](), scales=tuple(answers), **SMALL, **options
        )
        self.answers = answers

    def trunk(self, x):
        logit, self.weight = self.answers[x.shape[2] / 64]
        full = [x.shape[0], 1, *x.shape[2:]]
        features = paddle.zeros([x.shape[0], SMALL["ocr_mid_channels"], *x.shape[2:]])
        return paddle.full(full, logit), paddle.full(full, -logit), features

    def attention(self, ocr_features):
        return paddle.full_like(ocr_features[:, :1], self.weight)


@pytest.mark.parametrize("align_corners", [False, True])
def test_fusion_by_hand(align_corners):
    # (logit, attention) by scale: 2.0 starts, 1.5 and 1.0 take their share from above, 0.5 is added from below.
    answers = {0.5: (8.0, 0.25), 1.0: (4.0, 0.5), 1.5: (10.0, 0.1), 2.0: (1.0, 0.9)}
    model = Scripted(answers, align_corners=align_corners)
    model.eval()
    at_15 = 0.1 * 10 + 0.9 * 1
    at_1 = 0.5 * 4 + 0.5 * at_15
    expected = 0.25 * 8 + 0.75 * at_1
    np.testing.assert_allclose(model(paddle.zeros([1, 3, 64, 64]))["joint"].numpy(), expected, rtol=1e-6)


def test_training_pair_by_hand():
    model = Scripted({0.5: (8.0, 0.25), 1.0: (4.0, 0.5)})
    outputs = model(paddle.zeros([1, 3, 64, 64]))
    expected = {"joint": 0.25 * 8 + 0.75 * 4, "joint_aux": -(0.25 * 8 + 0.75 * 4), "low": 8.0, "high": 4.0}
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name].numpy(), value, rtol=1e-6)


def test_align_corners_is_the_same_in_both_modes():
    """A ramp survives a resize unchanged at its corners only where the corners are aligned."""
    ramp = paddle.arange(4, dtype="float32").reshape([1, 1, 1, 4]).expand([1, 1, 4, 4])
    aligned = resize(ramp, [8, 8], align_corners=True).numpy()[0, 0, 0]
    np.testing.assert_allclose(aligned, np.linspace(0, 3, 8), rtol=1e-6)
    centred = resize(ramp, [8, 8], align_corners=False).numpy()[0, 0, 0]
    np.testing.assert_allclose(centred, np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3), rtol=1e-6)
    x = paddle.randn([1, 3, 64, 64])
    for mode in ("train", "eval"):
        outputs = []
        for align_corners in (False, True):
            model = small_network(align_corners=align_corners, dropout=0.0)
            nn.initializer.Normal(std=0.5)(model.ocr.cls_head.weight)
            getattr(model, mode)()
            outputs.append(model(x)["joint"].numpy())
        difference = np.abs(outputs[0] - outputs[1]).max()
        assert difference > 1e-3 * np.abs(outputs[0]).max(), mode


@pytest.mark.parametrize(("size", "scale", "expected"), [(10, 0.7, 7), (101, 0.5, 50), (100, 0.29, 29), (33, 1.5, 49)])
def test_scaled_size_is_the_exact_floor(size, scale, expected):
    assert scaled_size(paddle.zeros([1, 3, size, size]), scale) == [expected, expected]


@pytest.mark.parametrize("size", [(1, 1), (300, 1), (1, 300)])
def test_an_image_of_which_no_pixel_is_left(size):
    with pytest.raises(DataError, match=rf"of which scale 0.5 leaves a pixel, found one of {size[1]}x{size[0]} pixels"):
        scaled_size(paddle.zeros([1, 3, *size]), 0.5)


def test_recomputation_changes_nothing_but_rounding():
    x = paddle.randn([2, 3, 64, 64])
    runs = {}
    for recompute in (False, True):
        model = small_network(recompute=recompute, dropout=0.2)
        paddle.seed(3)
        outputs = model(x)
        sum(output.sum() for output in outputs.values()).backward()
        statistics = {n: p.numpy() for n, p in model.named_parameters() if n.endswith(("_mean", "_variance"))}
        gradients = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
        runs[recompute] = outputs["joint"].numpy(), statistics, gradients
    np.testing.assert_array_equal(runs[False][0], runs[True][0])
    for name, value in runs[False][1].items():
        np.testing.assert_array_equal(runs[True][1][name], value, err_msg=name)
    assert set(runs[False][2]) == set(runs[True][2])
    for name, value in runs[False][2].items():
        np.testing.assert_allclose(runs[True][2][name], value, rtol=1e-3, atol=1e-4 * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", [[], [(40, 60)], [(44, 60), (20, 31)], [(26, 34), (13, 17), (30, 11)]])
def test_a_series_of_resizes_is_one_matrix_an_axis(sizes, align_corners):
    x = paddle.randn([2, 3, 11, 15])
    slow = x
    for size in sizes:
        slow = resize(slow, size, align_corners=align_corners)
    fast = resize_through(x, sizes, align_corners=align_corners)
    np.testing.assert_allclose(fast.numpy(), slow.numpy(), atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(40, 60), (22, 30), (5, 9), (11, 31), (1, 1)])
def test_the_gradient_of_a_resize_is_paddles(size, align_corners):
    x, weight = paddle.randn([2, 3, 11, 15]), paddle.randn([2, 3, *size])
    results = []
    for function in (resize, nn.functional.interpolate):
        x.stop_gradient = False
        options = {"mode": "bilinear"} if function is nn.functional.interpolate else {}
        out = function(x, size=size, align_corners=align_corners, **options)
        (out * weight).sum().backward()
        results.append((out.numpy(), x.grad.numpy()))
        x.clear_grad()
    (out, gradient), (paddles, its_gradient) = results
    np.testing.assert_array_equal(out, paddles)
    np.testing.assert_allclose(gradient, its_gradient, atol=2e-5)


def test_convolution_over_parts_is_the_one_over_their_concatenation():
    layer = ConvOverParts([2, 3], 4, 3, padding=1)
    parts = [paddle.randn([2, 2, 6, 7]), paddle.randn([2, 3, 6, 7])]
    slow = nn.functional.conv2d(paddle.concat(parts, axis=1), layer.weight, layer.bias, padding=1)
    np.testing.assert_allclose(layer(*parts).numpy(), slow.numpy(), atol=1e-6)
    layer.separate()
    np.testing.assert_allclose(layer(*parts).numpy(), slow.numpy(), atol=1e-6)


def test_the_attention_at_full_size_only_feeds_statistics():
    """Its normalisations see both scales, but what is trained hangs on the small scale's attention alone."""
    model = small_network()
    seen = []
    model.scale_attn.bn1.register_forward_post_hook(
        lambda _, given, out: seen.append((given[0].shape, out.stop_gradient))
    )
    model(paddle.randn([1, 3, 64, 96]))
    assert seen == [([1, 8, 8, 12], False), ([1, 8, 16, 24], True)]
