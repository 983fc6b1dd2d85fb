# SPDX-License-Identifier: Apache-2.0
"""HRNet, the high-resolution backbone (Wang et al., arXiv 1908.07919), as the HMSA authors use it.

Parts have the names HRNet's authors gave them, which are also those of the original's checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Callable, cast

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from hmsa.models.layers import conv1x1, conv3x3, image_size, init_weights, resize, run


def _conv_bn(in_channels: int, out_channels: int, *behind: nn.Layer, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, its normalisation, and what is `behind` them."""
    return nn.Sequential(conv3x3(in_channels, out_channels, stride=stride), nn.BatchNorm2D(out_channels), *behind)


class BasicBlock(nn.Layer):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels)
        self.bn1 = nn.BatchNorm2D(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2D(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


class Bottleneck(nn.Layer):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the output has four times `channels`."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = conv1x1(in_channels, channels)
        self.bn1 = nn.BatchNorm2D(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2D(channels)
        self.conv3 = conv1x1(channels, out_channels)
        self.bn3 = nn.BatchNorm2D(out_channels)
        self.downsample = None
        if in_channels != out_channels:
            self.downsample = nn.Sequential(conv1x1(in_channels, out_channels), nn.BatchNorm2D(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


class HighResolutionModule(nn.Layer):
    """Parallel branches of basic blocks, then an exchange in which every branch hears all others."""

    def __init__(self, *, num_blocks: int, channels: Sequence[int], align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.branches = nn.LayerList([nn.Sequential(*[BasicBlock(c, c) for _ in range(num_blocks)]) for c in channels])
        every = range(len(channels))
        paths = [[self._path(channels, source, target) for source in every] for target in every]
        self.fuse_layers = nn.LayerList([nn.LayerList(to_target) for to_target in paths])

    @staticmethod
    def _path(channels: Sequence[int], source: int, target: int) -> nn.Layer:
        """From branch `source` to branch `target`: 1x1 towards larger maps, strided 3x3 towards smaller."""
        if source == target:
            return nn.Identity()
        if source > target:
            return nn.Sequential(conv1x1(channels[source], channels[target]), nn.BatchNorm2D(channels[target]))
        before = [_conv_bn(channels[source], channels[source], nn.ReLU(), stride=2) for _ in range(source, target - 1)]
        return nn.Sequential(*before, _conv_bn(channels[source], channels[target], stride=2))

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        branches = [branch(x) for branch, x in zip(self.branches, features)]
        outputs = []
        for target, paths in enumerate(cast(Any, self.fuse_layers)):
            total = branches[target]
            size = image_size(total)
            for source, (path, x) in enumerate(zip(paths, branches)):
                if source > target:
                    total = total + resize(path(x), size, align_corners=self.align_corners)
                elif source < target:
                    total = total + path(x)
            outputs.append(F.relu(total))
        return tuple(outputs)


class HRNet(nn.Layer):
    """HRNet with all four resolutions brought to the largest and concatenated.

    Args:
        layer1_blocks: bottleneck blocks of the first stage.
        layer1_channels: their inner channels.
        num_blocks: basic blocks of a branch in a module, the same in all stages.
        num_modules: modules of stages 2, 3 and 4.
        width: channels of the highest resolution; each lower one has twice as many.
        align_corners: how bilinear resizes place the corners.
        recompute: in training, keep only the inputs of each module and compute it again for the gradient.

    Input [N, 3, H, W]; output a list of one map [N, 15 * width, ceil(H / 4), ceil(W / 4)].
    """

    def __init__(
        self,
        *,
        layer1_blocks: int = 4,
        layer1_channels: int = 64,
        num_blocks: int = 4,
        num_modules: Sequence[int] = (1, 4, 3),
        width: int,
        align_corners: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.recompute = recompute
        channels = [width, 2 * width, 4 * width, 8 * width]
        self.feat_channels = [sum(channels)]

        self.conv1 = conv3x3(3, 64, stride=2)
        self.bn1 = nn.BatchNorm2D(64)
        self.conv2 = conv3x3(64, 64, stride=2)
        self.bn2 = nn.BatchNorm2D(64)
        blocks = [Bottleneck(64, layer1_channels)]
        out_channels = layer1_channels * Bottleneck.expansion
        blocks += [Bottleneck(out_channels, layer1_channels) for _ in range(layer1_blocks - 1)]
        self.layer1 = nn.Sequential(*blocks)

        make_module = partial(HighResolutionModule, num_blocks=num_blocks, align_corners=align_corners)
        self.transition1 = self._transition([out_channels], channels[:2])
        self.stage2 = nn.LayerList([make_module(channels=channels[:2]) for _ in range(num_modules[0])])
        self.transition2 = self._transition(channels[:2], channels[:3])
        self.stage3 = nn.LayerList([make_module(channels=channels[:3]) for _ in range(num_modules[1])])
        self.transition3 = self._transition(channels[:3], channels)
        self.stage4 = nn.LayerList([make_module(channels=channels) for _ in range(num_modules[2])])
        init_weights(self)

    @staticmethod
    def _transition(inputs: Sequence[int], outputs: Sequence[int]) -> nn.LayerList:
        """One path a branch: unchanged, a 3x3 to other channels, or a strided 3x3 that starts a new branch."""
        paths = nn.LayerList()
        for branch, out_channels in enumerate(outputs):
            if branch >= len(inputs):
                paths.append(nn.Sequential(_conv_bn(inputs[-1], out_channels, nn.ReLU(), stride=2)))
            elif inputs[branch] != out_channels:
                paths.append(_conv_bn(inputs[branch], out_channels, nn.ReLU()))
            else:
                paths.append(nn.Identity())
        return paths

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        features = (run(self.layer1, x, recompute=self.recompute),)
        for transition, stage in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            known = len(features)
            features = tuple(path(features[min(branch, known - 1)]) for branch, path in enumerate(transition))
            for module in stage:
                features = run(module, *features, recompute=self.recompute)

        first, *others = features
        size = image_size(first)
        return [paddle.concat([first, *(resize(f, size, align_corners=self.align_corners) for f in others)], axis=1)]


_SMALL_V1 = {"layer1_blocks": 1, "layer1_channels": 32, "num_blocks": 2, "num_modules": (1, 1, 1), "width": 16}
_SMALL_V2 = {"layer1_blocks": 2, "num_blocks": 2, "num_modules": (1, 3, 2), "width": 18}

BACKBONES: dict[str, Callable[..., HRNet]] = {
    "HRNet_W18_NV_Small_V1": partial(HRNet, **_SMALL_V1),
    "HRNet_W18_NV_Small_V2": partial(HRNet, **_SMALL_V2),
    **{f"HRNet_W{width}_NV": partial(HRNet, width=width) for width in (18, 30, 32, 40, 44, 48, 60, 64)},
}
