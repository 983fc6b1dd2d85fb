# SPDX-License-Identifier: Apache-2.0
"""The network as it is exported: with what comes before and after it, and what is averaged over, in one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, product
from typing import Any

import hmsa.system.prepared  # noqa: F401

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from hmsa.deploy.runtime import ANSWERS, LOGITS
from hmsa.inference.averaging import InferenceOptions
from hmsa.models import MscaleOCRNet
from hmsa.models.layers import image_size, resize

PLAIN = InferenceOptions()
"""Averaging over nothing."""


@dataclass(frozen=True)
class Answer:
    """What an exported network takes and gives.

    Attributes:
        output_op: "argmax", "softmax" or "none".
        confidence: whether the probability of each pixel's class is given, too.
        attention: whether the attention of each of the model's scales is given, too.
        normalize: (mean, std) if the program takes uint8 [N, H, W, 3], RGB, and normalises them itself.
        averaging: scales and flips that are averaged over inside the program.
    """

    output_op: str
    confidence: bool = False
    attention: bool = False
    normalize: tuple[Sequence[float], Sequence[float]] | None = None
    averaging: InferenceOptions = PLAIN

    @property
    def input_name(self) -> str:
        return "image" if self.normalize else "x"

    @property
    def input_dtype(self) -> str:
        return "uint8" if self.normalize else "float32"

    @property
    def input_layout(self) -> str:
        return "NHWC" if self.normalize else "NCHW"

    def outputs(self, model: nn.Layer) -> list[dict[str, Any]]:
        """The outputs in their order, as `deploy.yaml` describes them."""
        keys = ("name", "dtype", "layout")
        found: list[dict[str, Any]] = [dict(zip(keys, ANSWERS.get(self.output_op, LOGITS)))]
        if self.confidence:
            found.append(dict(zip(keys, ("confidence", "float32", "NHW"))))
        if self.attention and isinstance(model, MscaleOCRNet):
            scales = sorted(map(float, model.scales))
            found.append({**dict(zip(keys, ("attention", "float32", "NSHW"))), "scales": scales})
        return found


class ExportedNetwork(nn.Layer):
    """The model's fused answer: images [N, C, H, W], float32, or [N, H, W, 3], uint8 -> the outputs of `answer`.

    The first is of classes int32 [N, H, W], or probabilities or logits float32 [N, K, H, W]; then confidence [N, H, W]
    and attention [N, S, H, W], the smallest scale first, where they are asked for.
    """

    def __init__(self, model: nn.Layer, answer: Answer) -> None:
        super().__init__()
        self.model = model
        self.answer = answer
        self.scales, self.align_corners = sorted(getattr(model, "scales", ())), getattr(model, "align_corners", False)
        if answer.normalize:
            mean, std = (paddle.to_tensor(values, "float64").reshape([1, 3, 1, 1]) for values in answer.normalize)
            # (pixel / 255 - mean) / std, as `Normalize` computes it.
            self.register_buffer("factor", (1 / (255 * std)).astype("float32"))
            self.register_buffer("offset", (-mean / std).astype("float32"))

    def forward(self, image: Tensor) -> Any:
        answer = self.answer
        if answer.normalize:
            image = image.astype("float32").transpose([0, 3, 1, 2]) * self.factor + self.offset
        scores, *attention = _averaged(self._at_size, image, answer.averaging)  # [N, K, H, W], [N, S, H, W]

        is_probability = answer.averaging.averages_probabilities
        if answer.output_op == "argmax":
            outputs = [paddle.argmax(scores, axis=1, dtype="int32")]
        elif answer.output_op == "softmax":
            outputs = [scores if is_probability else F.softmax(scores, axis=1)]
        else:
            outputs = [paddle.log(paddle.clip(scores, min=1e-12)) if is_probability else scores]
        if answer.confidence:
            probabilities = scores if is_probability else F.softmax(scores, axis=1)
            outputs.append(paddle.max(probabilities, axis=1))
        outputs += attention
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def _at_size(self, image: Tensor) -> list[Tensor]:
        """Images [N, C, h, w] -> logits [N, K, h, w] and, if it is asked for, attention [N, S, h, w]."""
        if not self.answer.attention:
            return [self.model(image)["joint"]]
        found = self.model(image, return_attention=True)
        size = image_size(image)
        maps = [found[f"attention_{scale:g}"] for scale in self.scales]
        resized = [resize(x, size, align_corners=self.align_corners) for x in maps]
        return [found["joint"], paddle.concat(resized, axis=1)]


def _averaged(network: Callable[[Tensor], list[Tensor]], image: Tensor, options: InferenceOptions) -> list[Tensor]:
    """What `hmsa.inference.averaging.class_scores` computes of a network with several outputs, the first of them
    logits, in operators that are put into a program."""
    runs = list(
        product(
            options.scales, [False, True][: 1 + options.flip_vertical], [False, True][: 1 + options.flip_horizontal]
        )
    )
    size = image_size(image)
    totals: list[Tensor] = []
    for scale, vertical, horizontal in runs:
        axes = [2] * vertical + [3] * horizontal
        given = image if scale == 1 else resize(image, _rounded_size(image, scale), align_corners=False)
        answers = network(_flipped(given, axes))
        answers = [_flipped(x, axes) for x in answers]
        if scale != 1:
            answers = [resize(x, size, align_corners=False) for x in answers]
        if options.averages_probabilities:
            answers[0] = F.softmax(answers[0], axis=1)
        totals = [total + x for total, x in zip(totals, answers)] if totals else answers
    return [total * (1 / len(runs)) for total in totals] if len(runs) > 1 else totals


def _flipped(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Mirror [N, C, H, W] along axes, in operators that are converted to ONNX where sides are of any length."""
    for axis in axes:
        side = paddle.shape(x)[axis]
        x = paddle.gather(x, side - 1 - paddle.arange(side), axis=axis)
    return x


def _rounded_size(image: Tensor, scale: float) -> Any:
    """(int(H * scale + 0.5), int(W * scale + 0.5)), in whole numbers."""
    ratio = Fraction(scale).limit_denominator(1000)
    size = image_size(image)
    twice = 2 * ratio.denominator
    if paddle.in_dynamic_mode():
        return [max(1, (side * 2 * ratio.numerator + ratio.denominator) // twice) for side in size]
    return (size * (2 * ratio.numerator) + ratio.denominator) // twice


def smallest_side(model: nn.Layer, averaging: InferenceOptions) -> int:
    """The smallest height and width of an image of which every scale leaves a pixel."""
    inner = [Fraction(scale).limit_denominator(1000) for scale in getattr(model, "scales", (1.0,))]
    return next(
        side
        for side in count(1)
        if all(int(side * outer + 0.5) * scale >= 1 for outer in averaging.scales for scale in inner)
    )
