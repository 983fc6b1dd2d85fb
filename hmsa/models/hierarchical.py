# SPDX-License-Identifier: Apache-2.0
"""Hierarchical multi-scale attention (Tao, Sapra, Catanzaro, arXiv 2005.10821).

One network looks at the image at several scales. Beside its logits it predicts an attention map that says, pixel
by pixel, how much of this scale's answer to take; the rest comes from the next larger scale's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Callable, Optional, cast

import paddle
from paddle import Tensor, nn

from hmsa.models.layers import LeanConv2D, conv1x1, image_size, release_around, resize, resize_through, run, scaled_size
from hmsa.models.ocr import OCRHead

OUTPUTS = ("joint", "joint_aux", "low", "high")
"""What the network returns in training, and what loss weights are named by."""

FLOAT32_OPS = ("softmax", "bmm", "softmax_with_cross_entropy", "sigmoid", "bilinear_interp_v2", "bilinear_interp")
"""What stays in float32 under bf16 and fp16: the object attention (a pixel's share of a region is below what fp16 can
hold), the losses, the scale attention, the fusion."""


class ScaleAttention(nn.Layer):
    """OCR features [N, C, h, w] -> attention in (0, 1) [N, 1, h, w]."""

    def __init__(self, *, in_channels: int, mid_channels: int = 256) -> None:
        super().__init__()
        self.conv0 = LeanConv2D(in_channels, mid_channels, 3, padding=1, bias_attr=False)
        self.bn0 = nn.BatchNorm2D(mid_channels)
        self.conv1 = LeanConv2D(mid_channels, mid_channels, 3, padding=1, bias_attr=False)
        self.bn1 = nn.BatchNorm2D(mid_channels)
        self.conv2 = conv1x1(mid_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = nn.functional.relu(self._normalised(features))
        return nn.functional.sigmoid(self.conv2(x))

    @paddle.no_grad()
    def gather_statistics(self, features: Tensor) -> None:
        """In training: let the running statistics of the normalisations learn from these features, and nothing else."""
        self._normalised(features)

    def _normalised(self, features: Tensor) -> Tensor:
        x = nn.functional.relu(self.bn0(self.conv0(features)))
        return self.bn1(self.conv1(x))


ScaleNetwork = Callable[[Tensor, bool], tuple[Tensor, Optional[Tensor]]]
"""Images at one scale [N, C, h, w] -> logits [N, K, h', w'] at the network's own resolution and, where the second
argument asks for it, attention [N, 1, h', w']."""


def fuse_scales(
    network: ScaleNetwork,
    x: Tensor,
    scales: Sequence[float],
    *,
    align_corners: bool,
    return_attention: bool = False,
    return_scales: bool = False,
) -> dict[str, Tensor]:
    """Run the network at every scale, from the largest down; each scale's attention decides between its answer and
    the one so far (section 3.1 of the paper).

    The largest scale's answer keeps the network's own resolution until it meets the next: it is never made at the
    size of the enlarged image.

    Args:
        network: the network at one scale; asked for the attention of the largest scale only to return it.
        x: normalised images [N, C, H, W].
        scales: 1.0 among them.
        align_corners: how every bilinear resize places the corners.

    Returns:
        `joint` [N, K, H, W]; with `return_attention` also `attention_<scale>` [N, 1, floor(H * s), floor(W * s)]; with
        `return_scales` also `scale_<scale>` [N, K, H, W], the logits of that scale alone.
    """
    to = partial(resize_through, align_corners=align_corners)
    extras: dict[str, Tensor] = {}
    joint: Any = None
    pending: list[Any] = []  # sizes that `joint` is still to be brought to, one after the other
    for scale in sorted(scales, reverse=True):
        scaled = x if scale == 1.0 else to(x, [scaled_size(x, scale)])
        size = image_size(scaled)
        is_asked = return_attention or joint is not None
        logits, attention = cast(Any, network)(scaled, is_asked)
        del scaled
        if is_asked:
            attention = to(attention, [size])
        if return_attention:
            extras[f"attention_{scale:g}"] = attention
        if return_scales:
            extras[f"scale_{scale:g}"] = to(logits, [size] if scale == 1.0 else [size, image_size(x)])
        if joint is None:
            joint, pending = logits, [size]
            continue

        joint, pending = to(joint, pending + [size] * (scale >= 1.0)), []
        weighted = attention * to(logits, [size])
        if scale < 1.0:
            weighted, attention = (to(part, [image_size(joint)]) for part in (weighted, attention))
        joint = weighted + (1 - attention) * joint
        del logits, attention, weighted
    return {"joint": to(joint, pending), **extras}


def decided_shares(attention: Tensor) -> Tensor:
    """What share of the fused answer each scale decides: [N, S, H, W], which sum to 1 over the scales.

    Of logits z_1 ... z_S, the smallest scale first, `fuse_scales` makes from the largest down

        f_S = z_S,   f_s = a_s z_s + (1 - a_s) f_{s+1}

    so that the answer f_1 is a sum of w_s z_s with

        w_s = a_s (1 - a_1) (1 - a_2) ... (1 - a_{s-1}),   a_S taken as 1.

    A scale's attention alone says little: where a_1 is 1, nobody looks at the others, whatever theirs is.

    Where several scales are above 1, the fusion multiplies theirs at the larger size, before it resizes, and here they
    are multiplied after; for 0.5, 1, 1.5, 2, 2.5 and a trained network, shares differed by 0.006 at most.

    Args:
        attention: a_1 ... a_S at the image's size, [N, S, H, W], from 0 to 1.
    """
    shares, rest = [], paddle.ones_like(attention[:, :1])  # what smaller scales leave
    for index in range(attention.shape[1] - 1):
        taken = attention[:, index : index + 1]
        shares.append(rest * taken)
        rest = rest * (1 - taken)
    return paddle.concat([*shares, rest], axis=1)


class MscaleOCRNet(nn.Layer):
    """Backbone, OCR head and scale attention, run at several scales and fused.

    Args:
        num_classes: K.
        backbone: [N, C, H, W] -> list of feature maps, their channels in `backbone.feat_channels`.
        backbone_indices: which maps to use: one for everything, or two (first guess, pixels).
        scales: scales of evaluation, 1.0 among them. Training always uses 0.5 and 1.
        ocr_mid_channels, ocr_key_channels: see `OCRHead`.
        attention_mid_channels: channels inside the scale attention.
        dropout: see `OCRHead`.
        align_corners: how every bilinear resize places the corners, in training and in evaluation.
        recompute: in training, compute the heads again for the gradient instead of keeping activations.
        in_channels: C of the images, which the backbone takes.
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
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        assert 1.0 in scales and min(scales) > 0
        self.num_classes = num_classes
        self.scales = tuple(sorted(scales, reverse=True))
        self.align_corners = align_corners
        self.recompute = recompute
        self.in_channels = in_channels
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
        """Normalised images [N, C, H, W] -> logits by name.

        Training: `joint`, `joint_aux`, `low`, `high`, each [N, K, H, W]. Evaluation: `joint` [N, K, H, W], and with
        `return_attention` also `attention_<scale>` [N, 1, floor(H * scale), floor(W * scale)] for every scale.
        """
        if self.training:
            return self._training_pair(x)
        return fuse_scales(
            self.at_scale, x, self.scales, align_corners=self.align_corners, return_attention=return_attention
        )

    def trunk(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, C, h, w] -> logits, auxiliary logits, OCR features, at the resolution of the backbone's maps."""
        features = self.backbone(x)
        return self.ocr(*(release_around(features[i]) for i in self.backbone_indices), recompute=self.recompute)

    def attention(self, ocr_features: Tensor) -> Tensor:
        """OCR features [N, C, h', w'] -> how much of this scale's answer to take, [N, 1, h', w']."""
        return run(self.scale_attn, ocr_features, recompute=self.recompute)

    def at_scale(self, x: Tensor, attention: bool) -> tuple[Tensor, Optional[Tensor]]:
        """The network at one scale: images [N, C, h, w] -> logits [N, K, h', w'], attention [N, 1, h', w']."""
        logits, _, ocr_features = self.trunk(x)
        return logits, self.attention(ocr_features) if attention else None

    def _resize(self, x: Tensor, size: object) -> Tensor:
        return resize(x, size, align_corners=self.align_corners)

    def _training_pair(self, x: Tensor) -> dict[str, Tensor]:
        """The two scales 0.5 and 1, fused, and each on its own (equation 2 of the paper)."""
        size, low_size = image_size(x), scaled_size(x, 0.5)
        *low_logits, ocr_features = self.trunk(self._resize(x, low_size))
        low, low_aux, attention = (self._resize(part, low_size) for part in (*low_logits, self.attention(ocr_features)))
        *high_logits, ocr_features = self.trunk(x)
        # The largest scale's attention decides nothing, but the normalisation inside it is used at every scale.
        self.scale_attn.gather_statistics(ocr_features)
        high, high_aux = (self._resize(part, size) for part in high_logits)
        rest = 1 - self._resize(attention, size)
        return {
            "joint": self._resize(attention * low, size) + rest * high,
            "joint_aux": self._resize(attention * low_aux, size) + rest * high_aux,
            "low": self._resize(low, size),
            "high": high,
        }


Network = Callable[[paddle.Tensor], paddle.Tensor]


def joint_logits(model: paddle.nn.Layer) -> Network:
    """The model as a network: its fused answer alone."""
    return lambda image: model(image)["joint"]
