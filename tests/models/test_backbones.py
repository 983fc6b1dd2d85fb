# SPDX-License-Identifier: Apache-2.0
"""What a network does whatever the width of its backbone, in one tester that all of them go through."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from awaken import awaken
from numpy.testing import assert_array_equal
from paddle import nn

import hmsa
from hmsa.inference.fold import copy_on_cpu, simplified
from hmsa.inference.programs import write_checked_programs
from hmsa.models import BACKBONES, OUTPUTS, MscaleOCRNet

SMALLEST, *WIDER = BACKBONES
K = 5


@pytest.fixture(
    scope="module",
    params=[name if name == SMALLEST else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES],
)
def width(request):
    return request.param


def build(width, seed=0, **options):
    sizes = {"ocr_mid_channels": 16, "ocr_key_channels": 8, "attention_mid_channels": 8}
    paddle.seed(seed)
    return MscaleOCRNet(num_classes=K, backbone=BACKBONES[width](), **sizes, **options)


@pytest.fixture(scope="module")
def network(width):
    """In evaluation mode, with weights as different as trained ones."""
    return awaken(build(width, scales=(0.5, 1.0, 1.5)), gain=1.1 if width == SMALLEST else 0.76)


def image(*size, count=1):
    return paddle.to_tensor(np.random.default_rng(1).normal(size=(count, 3, *size)).astype(np.float32))


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 47), (2, 2)], ids=str)
def test_any_resolution(network, size):
    """From the smallest image that has a pixel left at half its size."""
    with paddle.no_grad():
        outputs = network(image(*size, count=2), return_attention=True)
    assert list(outputs) == ["joint", "attention_1.5", "attention_1", "attention_0.5"]
    assert outputs["joint"].shape == [2, K, *size]
    for scale in (0.5, 1.0, 1.5):
        attention = outputs[f"attention_{scale:g}"]
        assert attention.shape == [2, 1, int(size[0] * scale), int(size[1] * scale)]
        assert -1e-6 <= float(attention.min()) <= float(attention.max()) <= 1 + 1e-6


def test_channels(width, network):
    channels = {SMALLEST: 16}.get(width) or int(width.split("_")[1][1:])
    assert network.backbone.feat_channels == [15 * channels]
    branches = network.backbone.stage4[0].branches
    assert [layer[0].conv1.weight.shape[0] for layer in branches] == [channels * factor for factor in (1, 2, 4, 8)]


def test_training_gives_four_outputs_and_a_gradient_to_every_parameter(width):
    network = build(width)
    outputs = network(image(33, 47, count=2))
    assert tuple(outputs) == OUTPUTS
    assert all(output.shape == [2, K, 33, 47] for output in outputs.values())

    sum((output**2).sum() for output in outputs.values()).backward()
    trained = {name: p for name, p in network.named_parameters() if not name.endswith(("_mean", "_variance"))}
    assert len(trained) > 200
    assert [name for name, p in trained.items() if p.grad is None or not np.isfinite(p.grad.numpy()).all()] == []


def test_weights_survive_a_file(width, network, tmp_path):
    paddle.save(network.state_dict(), str(tmp_path / "model.pdparams"))
    other = build(width, seed=1)
    hmsa.load_weights(other, tmp_path / "model.pdparams")
    found, expected = other.state_dict(), network.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert_array_equal(found[name].numpy(), tensor.numpy(), err_msg=name)


@pytest.mark.slow
def test_everything_folds_and_the_programs_are_the_network(network, tmp_path):
    assert not any(isinstance(layer, nn.BatchNorm2D) for layer in simplified(copy_on_cpu(network)).sublayers())
    programs = write_checked_programs(network, tmp_path, "inference")
    with paddle.no_grad():
        expected = network.at_scale(image(33, 47), True)
    for found, right in zip(programs(image(33, 47), True), expected):
        assert float((found - right).abs().max()) <= 1e-4 * float(right.abs().max())
