# SPDX-License-Identifier: Apache-2.0
import numpy as np
import paddle
import pytest
from paddle import nn

from hmsa.models import BACKBONES, HRNet


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 70)])
def test_output_is_a_quarter_of_the_input(height, width):
    backbone = HRNet(width=8, layer1_blocks=1, num_blocks=1, num_modules=(1, 1, 1))
    (features,) = backbone(paddle.zeros([1, 3, height, width]))
    assert features.shape == [1, 120, -(-height // 4), -(-width // 4)]


def test_initialisation():
    paddle.seed(0)
    backbone = BACKBONES["HRNet_W18_NV_Small_V1"]()
    weights = np.concatenate([p.weight.numpy().ravel() for p in backbone.sublayers() if isinstance(p, nn.Conv2D)])
    assert abs(weights.std() - 0.001) < 1e-5
    assert abs(weights.mean()) < 1e-5
    for layer in backbone.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            assert (layer.weight.numpy() == 1).all()
            assert (layer.bias.numpy() == 0).all()
