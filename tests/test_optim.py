# SPDX-License-Identifier: Apache-2.0
import numpy as np
import paddle
import pytest
from paddle import nn

from hmsa.optim import EMA


def values(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("decay", [0.3, 0.9998])
def test_the_average_is_that_of_parameters_and_statistics(decay):
    """decay 0.3 takes over from (1 + n) / (10 + n) after three updates."""
    model = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4))
    ema, rng = EMA(model, decay), np.random.default_rng(0)
    expected = {name: value.astype(np.float64) for name, value in values(model).items()}
    assert set(expected) == {"0.weight", "0.bias", "1.weight", "1.bias", "1._mean", "1._variance"}
    for n in range(8):
        for name, tensor in model.state_dict().items():
            tensor.set_value(rng.normal(size=tensor.shape).astype(np.float32))
            share = min(decay, (1 + n) / (10 + n))
            expected[name] = share * expected[name] + (1 - share) * tensor.numpy()
        before = values(model)
        ema.update()
        for name, value in values(model).items():
            np.testing.assert_array_equal(value, before[name], err_msg="the model itself stays as it is")
    assert ema.updates == 8
    for name, value in values(ema.model).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_averaged_network_is_one_for_evaluation():
    model = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.Dropout(0.5))
    model.train()
    ema = EMA(model, 0.9)
    assert model.training
    assert not any(layer.training for layer in ema.model.sublayers(include_self=True))
    assert ema.model(paddle.ones([1, 3, 8, 8])).stop_gradient
