# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import paddle
import pytest
from awaken import awaken
from paddle import nn
from PIL import Image

from hmsa.models import MscaleOCRNet


class TinyBackbone(nn.Layer):
    """[N, 3, H, W] -> one map of 16 channels at a quarter of the size."""

    feat_channels = (16,)

    def __init__(self):
        super().__init__()
        layers = []
        for channels in (3, 16):
            layers += [nn.Conv2D(channels, 16, 3, stride=2, padding=1, bias_attr=False), nn.BatchNorm2D(16), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, image):
        return [self.layers(image)]


@pytest.fixture(scope="session")
def make_tiny_network():
    """seed -> a network with every part of the real one that is written and opened in a second; None: new weights."""

    def make(seed=19):  # whose answers have four classes
        sizes = {"ocr_mid_channels": 16, "ocr_key_channels": 8, "attention_mid_channels": 8}
        network = MscaleOCRNet(num_classes=5, backbone=TinyBackbone(), **sizes)
        return network if seed is None else awaken(network, seed)

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of three images: of even size, of odd size, upright."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for height, width in ((64, 96), (75, 129), (128, 72)):
        patches = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
        patches.resize((width, height), Image.Resampling.BILINEAR).save(folder / f"{width}x{height}.png")
    return folder


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Paddle says that it computes on gpu:0, and rounds what goes into convolutions and products to TF32 as long as it
    does; on cpu it computes as ever. Every device that was set, in order."""
    devices = ["gpu:0"]
    monkeypatch.setattr(paddle.device, "get_device", lambda: devices[-1])
    monkeypatch.setattr(paddle.device, "set_device", devices.append)

    def rounded(x):
        if devices[-1] == "cpu" or not paddle.in_dynamic_mode():
            return x
        bits = x.numpy().view(np.uint32)
        return paddle.to_tensor(((bits + 0x1000) & ~np.uint32(0x1FFF)).view(np.float32))

    for module, name in ((nn.functional, "conv2d"), (nn.functional.conv, "_conv_nd"), (paddle, "bmm")):
        function = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda x, y, *rest, f=function, **options: f(rounded(x), rounded(y), *rest, **options)
        )
    return devices
