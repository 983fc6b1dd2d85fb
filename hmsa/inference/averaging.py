# SPDX-License-Identifier: Apache-2.0
"""From an image to class scores and a label map: outer scales, flips, overlapping tiles.

A network here is any function from images, float32 [N, C, H, W], to logits [N, K, H, W] of the same size.
Averages are over logits, as in PaddleSeg 2.8 (paddleseg/core/infer.py), so that results agree with its own; or, over
scales and flips, over probabilities, as in PaddleSeg 2.0, which the published figures of Cityscapes were made with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

import hmsa.system.prepared  # noqa: F401

import numpy as np
import paddle
import paddle.nn.functional as F

from hmsa.errors import DataError
from hmsa.models.hierarchical import Network
from hmsa.system.device import as_tensor, on_gpu

if TYPE_CHECKING:
    from hmsa.config.schema import InferenceSpec


@dataclass(frozen=True)
class InferenceOptions:
    """What is averaged over for one image. Sizes are (height, width) in pixels."""

    scales: tuple[float, ...] = (1.0,)
    flip_horizontal: bool = False
    flip_vertical: bool = False
    tile: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None  # None: tiles side by side
    average: Literal["logits", "softmax"] = "logits"  # of scales and flips; where tiles overlap it is of logits

    def __post_init__(self) -> None:
        assert self.scales and min(self.scales) > 0, self.scales
        assert all(0 < stride <= side for stride, side in zip(self.stride or (), self.tile or ())), self

    @property
    def averages_probabilities(self) -> bool:
        """Whether `class_scores` are probabilities: averages of them, as a single answer stays as it is."""
        answers = len(self.scales) * (1 + self.flip_horizontal) * (1 + self.flip_vertical)
        return self.average == "softmax" and answers > 1

    @classmethod
    def from_test_config(cls, spec: InferenceSpec) -> InferenceOptions:
        """Read PaddleSeg's `test_config`, whose sizes are (width, height).

        As there, scales and flips count only with `aug_eval`, and sizes only with `is_slide`.
        """
        crop, stride = (spec.crop_size, spec.stride) if spec.is_slide else (None, None)
        return cls(
            scales=tuple(spec.scales) if spec.aug_eval else (1.0,),
            flip_horizontal=spec.aug_eval and spec.flip_horizontal,
            flip_vertical=spec.aug_eval and spec.flip_vertical,
            tile=(crop[1], crop[0]) if crop else None,
            stride=(stride[1], stride[0]) if stride else None,
            average=spec.average,
        )


def class_softmax(logits: paddle.Tensor) -> paddle.Tensor:
    """Logits [N, K, H, W] -> the probabilities of the classes."""
    return F.softmax(logits, axis=1)


def class_scores(
    network: Network,
    image: paddle.Tensor,
    options: InferenceOptions,
    softmax: Callable[[paddle.Tensor], paddle.Tensor] = class_softmax,
) -> paddle.Tensor:
    """Average the network's answers over every scale and flip of an image: its logits, or their softmax over classes.

    A scaled image is int(H * scale + 0.5) x int(W * scale + 0.5). Both flips together mean four images. Of a single
    answer there is no average: its logits are returned as they are, whose best classes are those of their softmax.

    Args:
        image: float32 [N, C, H, W], normalised.
        softmax: what is averaged instead of an answer, where `options` average probabilities.

    Returns:
        float32 [N, K, H, W].
    """
    H, W = image.shape[-2:]
    vertical, horizontal = ([False, True] if on else [False] for on in (options.flip_vertical, options.flip_horizontal))
    flips = list(product(vertical, horizontal))
    count = len(options.scales) * len(flips)
    total = None
    with paddle.no_grad():
        for scale in options.scales:
            scaled = _resize(image, (int(H * scale + 0.5) or 1, int(W * scale + 0.5) or 1))
            for flip in flips:
                # An answer is bound to one name only, so that at most two of full size are alive while a network runs.
                logits = _flip(scaled, flip)
                logits = _in_tiles(network, logits, options)
                logits = _resize(_flip(logits, flip), (H, W)).astype("float32")
                if count == 1:
                    return logits
                # A copy, not in place: a network may hand out a tensor of its own.
                if options.averages_probabilities:
                    logits = softmax(logits)
                elif total is None:
                    logits = logits.clone()
                total = logits if total is None else total.add_(logits)
                del logits
        assert total is not None
        return total.scale_(1 / count)


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles start along one axis. All lie within the image: the last is moved back to end with it."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, stride), length - tile]


def undo_transforms(
    scores: paddle.Tensor, trans_info: Iterable[tuple[str, Sequence[int]]], size: Sequence[int] | None = None
) -> paddle.Tensor:
    """Undo padding and resizing of one image.

    Args:
        scores: [1, K, h, w].
        trans_info: ("resize" or "padding", (height, width) before it), in the order the transforms ran.
        size: the (height, width) that must come out; None if it is not known.

    Returns:
        [1, K, H, W], at the image's own size.

    Raises:
        DataError: a transform that cannot be undone, or another size.
    """
    with paddle.no_grad():
        for kind, (height, width) in reversed(list(trans_info)):
            if kind == "resize":
                scores = _resize(scores, (int(height), int(width)))
            elif kind == "padding":
                scores = scores[:, :, :height, :width]
            else:
                raise DataError(f"A transform recorded '{kind}'; only 'resize' and 'padding' can be undone")

    H, W = scores.shape[-2:]
    if size is not None and tuple(size) != (H, W):
        raise DataError(
            f"the prediction is {W}x{H}, the image {size[1]}x{size[0]}; the transforms of val_dataset may resize and "
            "pad, but not cut"
        )
    return scores


def best_classes(scores: paddle.Tensor) -> np.ndarray:
    """The label map of one image: scores [1, K, H, W] -> the best class of every pixel, uint8 [H, W].

    Raises:
        DataError: more than 256 classes.
    """
    K = scores.shape[1]
    if K > 256:
        raise DataError(f"expected at most 256 classes, which a label map of 8 bits can hold, found {K}")
    return paddle.argmax(scores[0], axis=0, dtype="int32").numpy().astype(np.uint8)


def logits_of(scores: paddle.Tensor, options: InferenceOptions) -> paddle.Tensor:
    """Logits whose softmax is that of what `class_scores` made with these `options`: [N, K, H, W]."""
    with paddle.no_grad():
        return paddle.log(scores.clip(min=1e-12)) if options.averages_probabilities else scores


def confidences(scores: paddle.Tensor, options: InferenceOptions) -> np.ndarray:
    """The probability of every pixel's best class, float32 [H, W], from what `class_scores` made with these `options`.

    Of logits z it is max(softmax(z)) = 1 / sum(exp(z - max(z))), of probabilities their maximum.

    Args:
        scores: [1, K, H, W].
    """
    if options.averages_probabilities:
        return paddle.max(scores, axis=1)[0].numpy()
    if on_gpu():
        return paddle.max(F.softmax(scores, axis=1), axis=1)[0].numpy()

    # Paddle's softmax over the second axis takes ten times as long on a CPU. A few rows at a time stay in its cache.
    logits = scores.numpy()[0]
    best = np.empty(logits.shape[1:], np.float32)
    with np.errstate(invalid="ignore"):
        for top in range(0, len(best), 16):
            rows = logits[:, top : top + 16]
            best[top : top + 16] = 1 / np.exp(rows - rows.max(axis=0)).sum(axis=0)
    return best


def probabilities(scores: paddle.Tensor, options: InferenceOptions) -> np.ndarray:
    """The probability of every class, float32 [K, H, W], from what `class_scores` made with these `options`.

    Args:
        scores: [1, K, H, W].
    """
    if options.averages_probabilities:
        return scores[0].numpy()
    if on_gpu():
        return F.softmax(scores, axis=1)[0].numpy()

    powers = scores[0].numpy()  # turned into probabilities in place, a few rows at a time, as in `confidences`
    with np.errstate(invalid="ignore"):
        for top in range(0, powers.shape[1], 16):
            rows = powers[:, top : top + 16]
            np.exp(rows - rows.max(axis=0), out=rows)
            rows /= rows.sum(axis=0)
    return powers


def _in_tiles(network: Network, image: paddle.Tensor, options: InferenceOptions) -> paddle.Tensor:
    """Run the network tile by tile and average where tiles overlap. An image within a tile runs whole."""
    if options.tile is None:
        return network(image)
    H, W = image.shape[-2:]
    (tile_h, tile_w), (stride_h, stride_w) = options.tile, options.stride or options.tile
    tops, lefts = tile_starts(H, tile_h, stride_h), tile_starts(W, tile_w, stride_w)
    # Summed in numpy, in place: writing to a slice of a Paddle tensor copies the whole.
    total, cover = np.empty(0), np.zeros((H, W), np.float32)
    for top, left in product(tops, lefts):
        place = np.s_[..., top : top + tile_h, left : left + tile_w]
        part = network(image[place]).astype("float32").numpy()
        if not total.size:
            total = np.zeros((*part.shape[:2], H, W), np.float32)  # [N, K, H, W]
        total[place] += part
        cover[place] += 1
    return as_tensor(np.divide(total, cover, out=total))


def _flip(x: paddle.Tensor, flip: tuple[bool, bool]) -> paddle.Tensor:
    """Mirror [N, C, H, W] (top to bottom, left to right)."""
    axes = [axis for axis, on in zip((2, 3), flip) if on]
    return paddle.flip(x, axes) if axes else x


def _resize(x: paddle.Tensor, size: tuple[int, int]) -> paddle.Tensor:
    """Resize [N, C, H, W] bilinearly to (height, width)."""
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, list(size), mode="bilinear")
