# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import paddle
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from paddle import nn

from hmsa.inference.fold import fold_batch_norm
from hmsa.models.layers import ConvOverParts


class Wired(nn.Layer):
    """Layers by name, and a function (layers, image) -> output that says how they are connected."""

    def __init__(self, wiring, **layers):
        super().__init__()
        self.wiring = wiring
        for name, layer in layers.items():
            self.add_sublayer(name, layer)
        rng = np.random.default_rng(0)
        for layer in self.sublayers():
            if isinstance(layer, nn.BatchNorm2D):
                layer._mean.set_value(rng.normal(size=layer._mean.shape).astype(np.float32))
                layer._variance.set_value(rng.uniform(0.2, 3, layer._variance.shape).astype(np.float32))
                for parameter in filter(lambda p: p is not None, (layer.weight, layer.bias)):
                    parameter.set_value(rng.normal(size=parameter.shape).astype(np.float32))
        self.eval()

    def forward(self, image):
        return self.wiring(self, image)


def norms_left(network):
    return sum(isinstance(layer, nn.BatchNorm2D) for layer in network.sublayers())


def check(network, left):
    """Folding leaves so many normalisations, and the answer to another image as it was."""
    image = paddle.to_tensor(np.random.default_rng(1).normal(size=(2, 3, 11, 14)).astype(np.float32))
    with paddle.no_grad():
        before = network(image).numpy()
        fold_batch_norm(network, lambda: network(paddle.zeros([1, 3, 8, 8])))
        after = network(image).numpy()
    assert norms_left(network) == left
    assert_allclose(after, before, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("options", [{}, {"epsilon": 0.1}, {"weight_attr": False}, {"bias_attr": False}])
def test_a_normalisation_becomes_part_of_the_convolution_before_it(biased, options):
    conv = nn.Conv2D(3, 4, 3, padding=1, bias_attr=None if biased else False)
    if biased:
        conv.bias.set_value(paddle.randn([4]))
    check(Wired(lambda net, x: net.bn(net.conv(x)), conv=conv, bn=nn.BatchNorm2D(4, **options)), left=0)


def test_strides_and_groups_fold_too():
    conv = nn.Conv2D(3, 6, 3, stride=2, groups=3)
    check(Wired(lambda net, x: net.bn(net.conv(x)), conv=conv, bn=nn.BatchNorm2D(6)), left=0)


def test_a_convolution_over_parts_folds_before_it_is_separated():
    network = Wired(lambda net, x: net.bn(net.conv(x, 2 * x)), conv=ConvOverParts([3, 3], 4, 1), bn=nn.BatchNorm2D(4))
    check(network, left=0)
    with paddle.no_grad():
        image = paddle.randn([1, 3, 5, 5])
        before = network(image).numpy()
        network.conv.separate()
        assert_allclose(network(image).numpy(), before, atol=1e-5 * np.abs(before).max())


def test_a_chain_folds_pair_by_pair():
    parts = nn.Sequential(nn.Conv2D(3, 4, 1), nn.BatchNorm2D(4), nn.ReLU(), nn.Conv2D(4, 4, 1), nn.BatchNorm2D(4))
    check(Wired(lambda net, x: net.parts(x), parts=parts), left=0)


UNTOUCHED = {
    "no convolution before it": lambda net, x: net.conv(net.bn(x)),
    "an activation between": lambda net, x: net.bn(nn.functional.relu(net.conv(x))),
    "a layer between": lambda net, x: net.bn(net.relu(net.conv(x))),
    "the convolution runs twice": lambda net, x: net.bn(net.conv(x)) + net.conv(2 * x),
    "the normalisation runs twice": lambda net, x: net.bn(net.conv(x)) + net.bn(x),
    "both run twice": lambda net, x: net.bn(net.conv(x)) + net.bn(net.conv(2 * x)),
    "another layer uses the output too": lambda net, x: (lambda y: net.bn(y) + net.relu(y))(net.conv(x)),
}


@pytest.mark.parametrize("wiring", UNTOUCHED.values(), ids=UNTOUCHED)
def test_a_normalisation_that_is_not_all_that_follows_stays(wiring):
    network = Wired(wiring, conv=nn.Conv2D(3, 3, 1), bn=nn.BatchNorm2D(3), relu=nn.ReLU())
    weight = network.conv.weight.numpy()
    check(network, left=1)
    assert_array_equal(network.conv.weight.numpy(), weight)


def test_two_normalisations_of_one_output_stay():
    def wiring(net, x):
        y = net.conv(x)
        return net.bn(y) + net.other(y)

    check(Wired(wiring, conv=nn.Conv2D(3, 4, 1), bn=nn.BatchNorm2D(4), other=nn.BatchNorm2D(4)), left=2)
