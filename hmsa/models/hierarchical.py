# SPDX-License-Identifier: Apache-2.0
"""Hierarchical multi-scale attention (Tao, Sapra, Catanzaro, arXiv 2005.10821).

One network looks at the picture at several scales. Beside its logits it predicts an attention map that says, pixel
by pixel, how much of this scale's answer to take; the rest comes from the next larger scale's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from paddle import Tensor, nn

from hmsa.models.layers import conv1x1, conv3x3, image_size, resize, run, scaled_size
from hmsa.models.ocr import OCRHead

OUTPUTS = ("joint", "joint_aux", "low", "high")
"""What the network returns in training, and what loss weights are named by."""


class ScaleAttention(nn.Layer):
    """OCR features [N, C, h, w] -> attention in (0, 1) [N, 1, h, w]."""

    def __init__(self, *, in_channels: int, mid_channels: int = 256) -> None:
        super().__init__()
        self.conv0 = conv3x3(in_channels, mid_channels)
        self.bn0 = nn.BatchNorm2D(mid_channels)
        self.conv1 = conv3x3(mid_channels, mid_channels)
        self.bn1 = nn.BatchNorm2D(mid_channels)
        self.conv2 = conv1x1(mid_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = nn.functional.relu(self.bn0(self.conv0(features)))
        x = nn.functional.relu(self.bn1(self.conv1(x)))
        return nn.functional.sigmoid(self.conv2(x))


class ScaleAnswer(NamedTuple):
    """What one scale says, at the scaled picture's size; parts that were not asked for are None."""

    logits: Tensor
    aux_logits: Any  # Tensor or None
    attention: Any  # Tensor or None


class MscaleOCRNet(nn.Layer):
    """Backbone, OCR head and scale attention, run at several scales and fused.

    Args:
        num_classes: K.
        backbone: [N, 3, H, W] -> list of feature maps, their channels in `backbone.feat_channels`.
        backbone_indices: which maps to use: one for everything, or two (first guess, pixels).
        scales: scales of evaluation, 1.0 among them. Training always uses 0.5 and 1.
        ocr_mid_channels, ocr_key_channels: see `OCRHead`.
        attention_mid_channels: channels inside the scale attention.
        dropout: see `OCRHead`.
        align_corners: how every bilinear resize places the corners, in training and in evaluation.
        recompute: in training, compute the heads again for the gradient instead of keeping activations.

    Raises:
        ValueError: `scales` without 1.0, or not positive.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: nn.Layer,
        backbone_indices: Sequence[int] = (0,),
        scales: Sequence[float] = (0.5, 1.0, 2.0),
        ocr_mid_channels: int = 512,
        ocr_key_channels: int = 256,
        attention_mid_channels: int = 256,
        dropout: float = 0.05,
        align_corners: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if 1.0 not in scales or min(scales) <= 0:
            raise ValueError(f"scales must be positive and contain 1.0, found {list(scales)}")
        self.num_classes = num_classes
        self.scales = tuple(sorted(scales, reverse=True))
        self.align_corners = align_corners
        self.recompute = recompute
        self.backbone = backbone
        self.backbone_indices = (backbone_indices[0], backbone_indices[-1])
        aux_channels, in_channels = (backbone.feat_channels[i] for i in self.backbone_indices)
        self.ocr = OCRHead(
            in_channels=in_channels,
            aux_channels=aux_channels,
            num_classes=num_classes,
            mid_channels=ocr_mid_channels,
            key_channels=ocr_key_channels,
            dropout=dropout,
        )
        self.scale_attn = ScaleAttention(in_channels=ocr_mid_channels, mid_channels=attention_mid_channels)

    def forward(self, x: Tensor, return_attention: bool = False) -> dict[str, Tensor]:
        """Normalised pictures [N, 3, H, W] -> logits by name.

        Training: `joint`, `joint_aux`, `low`, `high`, each [N, K, H, W]. Evaluation: `joint` [N, K, H, W], and with
        `return_attention` also `attention_<scale>` [N, 1, floor(H * scale), floor(W * scale)] for every scale.
        """
        return self._training_pair(x) if self.training else self._fuse_scales(x, return_attention)

    def _answer(self, x: Tensor, *, aux: bool, attention: bool) -> ScaleAnswer:
        """Run the network on `x` [N, 3, h, w]; everything comes back at the size of `x`."""
        features = self.backbone(x)
        aux_features, pixel_features = (features[i] for i in self.backbone_indices)
        logits, aux_logits, ocr_features = run(self.ocr, aux_features, pixel_features, recompute=self.recompute)
        weight = run(self.scale_attn, ocr_features, recompute=self.recompute) if attention else None
        size = image_size(x)
        return ScaleAnswer(
            self._resize(logits, size),
            self._resize(aux_logits, size) if aux else None,
            self._resize(weight, size) if weight is not None else None,
        )

    def _resize(self, x: Tensor, size: object) -> Tensor:
        return resize(x, size, align_corners=self.align_corners)

    def _training_pair(self, x: Tensor) -> dict[str, Tensor]:
        """The two scales 0.5 and 1, fused, and each on its own (equation 2 of the paper)."""
        size = image_size(x)
        low = self._answer(self._resize(x, scaled_size(x, 0.5)), aux=True, attention=True)
        high = self._answer(x, aux=True, attention=False)
        rest = 1 - self._resize(low.attention, size)
        return {
            "joint": self._resize(low.attention * low.logits, size) + rest * high.logits,
            "joint_aux": self._resize(low.attention * low.aux_logits, size) + rest * high.aux_logits,
            "low": self._resize(low.logits, size),
            "high": high.logits,
        }

    def _fuse_scales(self, x: Tensor, return_attention: bool) -> dict[str, Tensor]:
        """From the largest scale down, each scale's attention decides between its answer and the one so far."""
        attentions: dict[str, Tensor] = {}
        joint: Optional[Tensor] = None
        for scale in self.scales:
            scaled = x if scale == 1.0 else self._resize(x, scaled_size(x, scale))
            answer = self._answer(scaled, aux=False, attention=return_attention or joint is not None)
            if return_attention:
                attentions[f"attention_{scale:g}"] = answer.attention
            if joint is None:
                joint = answer.logits
            elif scale >= 1.0:
                previous = self._resize(joint, image_size(scaled))
                joint = answer.attention * answer.logits + (1 - answer.attention) * previous
            else:
                size = image_size(joint)
                weighted = self._resize(answer.attention * answer.logits, size)
                joint = weighted + (1 - self._resize(answer.attention, size)) * joint
        assert joint is not None
        return {"joint": joint, **attentions}
