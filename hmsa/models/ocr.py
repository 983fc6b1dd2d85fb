# SPDX-License-Identifier: Apache-2.0
"""Object-contextual representations (Yuan, Chen, Wang, arXiv 1909.11065).

A first guess (`aux_head`) groups the pixels into one region per class; every pixel then asks the regions for
context. Parts have the names of the original HMSA checkpoints. N images, C channels, K classes, D key channels.
"""

from __future__ import annotations

from typing import Any, cast

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from hmsa.models.layers import ConvOverParts, LeanConv2D, bn_relu, conv1x1, init_weights, release_around, run


def _projection(*channels: int) -> nn.Sequential:
    """1x1 convolutions from each number of channels to the next, all with normalisation and ReLU."""
    layers = [(conv1x1(before, after), bn_relu(after)) for before, after in zip(channels, channels[1:])]
    return nn.Sequential(*[layer for pair in layers for layer in pair])


class ObjectContextBlock(nn.Layer):
    """Attention from every pixel to the K region vectors."""

    def __init__(self, *, channels: int, key_channels: int) -> None:
        super().__init__()
        self.key_channels = key_channels
        self.f_pixel = _projection(channels, key_channels, key_channels)
        self.f_object = _projection(channels, key_channels, key_channels)
        self.f_down = _projection(channels, key_channels)
        self.f_up = _projection(key_channels, channels)

    def forward(self, pixels: Tensor, regions: Tensor) -> Tensor:
        """pixels [N, C, H, W], regions [N, C, K, 1] -> context [N, C, H, W]."""
        query = self.f_pixel(pixels).flatten(2)  # [N, D, HW]
        key = self.f_object(regions).flatten(2)  # [N, D, K]
        value = self.f_down(regions).flatten(2)  # [N, D, K]
        # bmm, not matmul: Paddle Inference has a pass that silently mangles matmul with a transpose here.
        similarity = paddle.bmm(key.transpose([0, 2, 1]), query)  # [N, K, HW]
        weights = F.softmax(similarity * self.key_channels**-0.5, axis=1)
        context = paddle.bmm(value, weights)  # [N, D, HW]
        # reshape_as would need static sizes: take height and width from the pixels when exporting.
        height, width = (
            pixels.shape[2:] if paddle.in_dynamic_mode() else (paddle.shape(pixels)[2], paddle.shape(pixels)[3])
        )
        return self.f_up(context.reshape([0, self.key_channels, height, width]))


class SpatialOCR(nn.Layer):
    """Joins pixels and their object context."""

    def __init__(self, *, channels: int, key_channels: int, dropout: float) -> None:
        super().__init__()
        self.object_context_block = ObjectContextBlock(channels=channels, key_channels=key_channels)
        self.conv_bn_dropout = nn.Sequential(
            ConvOverParts([channels, channels], channels, 1, bias_attr=False), bn_relu(channels), nn.Dropout2D(dropout)
        )

    def forward(self, pixels: Tensor, regions: Tensor) -> Tensor:
        """pixels [N, C, H, W], regions [N, C, K, 1] -> OCR features [N, C, H, W]."""
        conv, norm_relu, dropout = cast(Any, self.conv_bn_dropout)
        features = norm_relu(conv(self.object_context_block(pixels, regions), pixels))
        if not self.training:
            return features
        # Whole channels are dropped: a factor for each is enough, where dropping from the features copies them twice.
        return features * dropout(paddle.ones([*features.shape[:2], 1, 1]))


def gather_regions(pixels: Tensor, logits: Tensor) -> Tensor:
    """Mean of the pixel vectors of each class, weighted by the softmax of its logits over all positions.

    pixels [N, C, H, W], logits [N, K, H, W] -> [N, C, K, 1].
    """
    weights = F.softmax(logits.flatten(2), axis=2)  # [N, K, HW]
    regions = paddle.bmm(weights, pixels.flatten(2).transpose([0, 2, 1]))  # [N, K, C]
    return regions.transpose([0, 2, 1]).unsqueeze(-1)


class OCRHead(nn.Layer):
    """From backbone features to class logits by object context.

    Args:
        in_channels: channels of the features that become pixels.
        aux_channels: channels of the features the first guess is made from (the same map in HRNet).
        num_classes: K.
        mid_channels: channels of pixels and of the output features.
        key_channels: channels of the attention's keys.
        dropout: probability of dropping a channel of the output features.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        aux_channels: int,
        num_classes: int,
        mid_channels: int = 512,
        key_channels: int = 256,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.conv3x3_ocr = nn.Sequential(LeanConv2D(in_channels, mid_channels, 3, padding=1), bn_relu(mid_channels))
        self.ocr_distri_head = SpatialOCR(channels=mid_channels, key_channels=key_channels, dropout=dropout)
        self.cls_head = conv1x1(mid_channels, num_classes, bias=True)
        self.aux_head = nn.Sequential(
            conv1x1(aux_channels, aux_channels, bias=True),
            bn_relu(aux_channels),
            conv1x1(aux_channels, num_classes, bias=True),
        )
        init_weights(self)

    def forward(self, aux_features: Tensor, features: Tensor, recompute: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of stride 4 -> logits [N, K, h, w], auxiliary logits [N, K, h, w], OCR features [N, C, h, w].

        With `recompute`, each of its three parts is computed again for the gradient.
        """
        aux_logits = run(self.aux_head, aux_features, recompute=recompute)
        pixels = release_around(run(self.conv3x3_ocr, features, recompute=recompute))
        regions = gather_regions(pixels, aux_logits)
        ocr_features = run(self.ocr_distri_head, pixels, regions, recompute=recompute)
        return self.cls_head(ocr_features), aux_logits, ocr_features
