# SPDX-License-Identifier: Apache-2.0
import numpy as np
import paddle
from paddle import nn

from hmsa.models.ocr import OCRHead, gather_regions


def test_gather_regions_by_hand():
    pixels = paddle.to_tensor([[[[1.0, 3.0]], [[10.0, 30.0]]]])  # [1, C=2, 1, 2]
    logits = paddle.to_tensor([[[[0.0, 0.0]], [[0.0, float(np.log(3))]]]])  # softmax over positions: 1/2 1/2, 1/4 3/4
    regions = gather_regions(pixels, logits)
    assert regions.shape == [1, 2, 2, 1]
    np.testing.assert_allclose(regions.numpy()[0, :, :, 0], [[2.0, 2.5], [20.0, 25.0]], rtol=1e-6)


def test_shapes_and_initialisation():
    head = OCRHead(in_channels=6, aux_channels=4, num_classes=3, mid_channels=8, key_channels=5)
    head.eval()
    logits, aux_logits, features = head(paddle.randn([2, 4, 9, 7]), paddle.randn([2, 6, 9, 7]))
    assert logits.shape == aux_logits.shape == [2, 3, 9, 7]
    assert features.shape == [2, 8, 9, 7]
    for layer in head.sublayers():
        if isinstance(layer, nn.Conv2D):
            assert float(layer.weight.abs().max()) < 0.01
            assert layer.bias is None or float(layer.bias.abs().max()) == 0
