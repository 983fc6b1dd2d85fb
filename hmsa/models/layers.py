# SPDX-License-Identifier: Apache-2.0
"""Small parts shared by the backbone, the OCR head and the scale attention."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Callable

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer
from paddle.nn.layer.norm import _BatchNormBase  # BatchNorm2D and SyncBatchNorm

from hmsa.errors import DataError


def between_parts() -> None:
    """Called between large parts of a network in training, in both directions. It does nothing: the training step puts
    here what gives memory back (`hmsa.engine.step`)."""


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2D:
    """A 3x3 convolution that keeps the size (stride 1) or halves it, rounding up (stride 2)."""
    return nn.Conv2D(in_channels, out_channels, 3, stride=stride, padding=1, bias_attr=False)


def conv1x1(in_channels: int, out_channels: int, *, bias: bool = False) -> nn.Conv2D:
    """A 1x1 convolution."""
    return nn.Conv2D(in_channels, out_channels, 1, bias_attr=None if bias else False)


def bn_relu(channels: int) -> nn.Sequential:
    """Batch normalisation and ReLU, named as in the original's checkpoints (`0` is the normalisation)."""
    return nn.Sequential(nn.BatchNorm2D(channels), nn.ReLU())


def init_weights(layer: nn.Layer) -> None:
    """Normal(0, 0.001) for every convolution below `layer`.

    Paddle's defaults do for the rest: biases are 0, normalisations have weight 1.
    """
    normal = nn.initializer.Normal(std=0.001)
    for part in layer.sublayers():
        if isinstance(part, nn.Conv2D):
            normal(part.weight)


def image_size(x: Tensor) -> Any:
    """(height, width) of `x` [N, C, H, W]: numbers when running eagerly, a tensor while exporting."""
    return x.shape[2:] if paddle.in_dynamic_mode() else paddle.shape(x)[2:]


def scaled_size(x: Tensor, scale: float) -> Any:
    """(floor(H * scale), floor(W * scale)), computed in whole numbers so that every backend agrees.

    Raises:
        DataError: no pixel would be left.
    """
    ratio = Fraction(scale).limit_denominator(1000)
    size = image_size(x)
    if paddle.in_dynamic_mode():
        scaled = [side * ratio.numerator // ratio.denominator for side in size]
        if min(scaled) < 1:
            raise DataError(
                f"expected an image of which scale {scale:g} leaves a pixel, found one of {size[1]}x{size[0]} pixels: "
                "enlarge or remove it"
            )
        return scaled
    return size * ratio.numerator // ratio.denominator


def resize(x: Tensor, size: Any, *, align_corners: bool) -> Tensor:
    """Bilinear resize of `x` [N, C, H, W] to `size` (height, width); the ratio comes from the two sizes."""
    if paddle.in_dynamic_mode() and list(x.shape[2:]) == list(size):
        return x
    if paddle.in_dynamic_mode() and x.place.is_cpu_place() and paddle.is_grad_enabled() and not x.stop_gradient:
        return _Resize.apply(x, size, align_corners)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


class _Resize(PyLayer):
    """The same resize with a gradient that is several times faster than Paddle's on a CPU, and keeps nothing of `x`.

    A bilinear resize multiplies the rows by one matrix and the columns by another, y = R x C^T, so its gradient is
    R^T g C.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
        ctx.axes = [(side, [int(target)]) for side, target in zip(x.shape[2:], size)]
        ctx.align_corners = align_corners
        return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rows, columns = (_axis_matrix(*axis, align_corners=ctx.align_corners) for axis in ctx.axes)
        return paddle.matmul(paddle.matmul(rows, gradient, transpose_x=True), columns)


def resize_through(x: Tensor, sizes: Sequence[Any], *, align_corners: bool) -> Tensor:
    """`x` [N, C, H, W] resized bilinearly to each of `sizes` (height, width) in turn; none of them leaves `x` alone.

    A bilinear resize is linear and works on rows and columns apart, and so does a series of them: it is one matrix for
    the rows and one for the columns, and nothing of the sizes between is ever made. On a GPU the resizes are done one
    after the other: products there may keep 10 bits of a float32's fraction (TF32).
    """
    if len(sizes) < 2 or not paddle.in_dynamic_mode() or not x.place.is_cpu_place():
        for size in sizes:
            x = resize(x, size, align_corners=align_corners)
        return x
    rows, columns = (
        _axis_matrix(side, [size[axis] for size in sizes], align_corners=align_corners)
        for axis, side in enumerate(x.shape[2:])
    )
    return paddle.matmul(rows, paddle.matmul(x, columns, transpose_y=True))


def _axis_matrix(side: int, sides: Sequence[int], *, align_corners: bool) -> Tensor:
    """The series of resizes along one axis, side -> sides[0] -> ... -> sides[-1], as a matrix [sides[-1], side]."""
    matrix = paddle.eye(side).reshape([1, 1, side, side])
    for target in sides:
        matrix = resize(matrix, [target, side], align_corners=align_corners)
    return matrix.reshape([sides[-1], side])


class ConvOverParts(nn.Conv2D):
    """A convolution over the channels of its inputs side by side, as the sum of one over each.

    The inputs' concatenation, which can be the largest tensor of a network, is never made.

    Args:
        parts: channels C_i of each input.
        arguments: those of Conv2D after `in_channels`.
    """

    def __init__(self, parts: Sequence[int], *arguments: Any, **options: Any) -> None:
        super().__init__(sum(parts), *arguments, **options)
        self.parts = list(parts)
        self.separate_weights = nn.ParameterList()

    def separate(self) -> None:
        """For inference: make the weights of each part a parameter of its own, as backends fuse only those."""
        for weight in paddle.split(self.weight.detach(), self.parts, axis=1):
            parameter = self.create_parameter(weight.shape)
            parameter.set_value(weight)
            self.separate_weights.append(parameter)

    def forward(self, *parts: Tensor) -> Tensor:
        """Maps [N, C_i, H, W] -> [N, out_channels, H', W']."""
        return _sum_of_convolutions(
            self, parts, [*self.separate_weights] or paddle.split(self.weight, self.parts, axis=1)
        )


class LeanConv2D(nn.Conv2D):
    """A convolution that needs little memory to train on a CPU, for many input channels.

    There, Paddle writes out every pixel's neighbourhood (9 times the input for a 3x3 kernel), for the input and for its
    gradient. Over a quarter of the channels at a time these are a quarter as large.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and x.place.is_cpu_place()):
            return nn.Conv2D.forward(self, x)  # Paddle 2.6 cannot export a super() without arguments.
        sizes = [len(part) for part in np.array_split(range(self._in_channels), min(4, self._in_channels))]
        return _sum_of_convolutions(self, paddle.split(x, sizes, axis=1), paddle.split(self.weight, sizes, axis=1))


def _sum_of_convolutions(conv: Any, parts: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Each part of the input channels with its weights, under the options of `conv`, and its bias once."""
    first, *others = (
        F.conv2d(part, weight, None if index else conv.bias, conv._stride, conv._padding)
        for index, (part, weight) in enumerate(zip(parts, weights))
    )
    return sum(others, start=first)


def release_around(x: Tensor) -> Tensor:
    """`x`, between two large parts of a network in training: memory that the part before no longer uses goes back now,
    and that of the part after when the gradient comes back through here (`between_parts`)."""
    if paddle.in_dynamic_mode() and not x.stop_gradient:
        between_parts()
        x.register_hook(lambda gradient: between_parts())
    return x


def run(part: Callable[..., Any], *inputs: Tensor, recompute: bool) -> Any:
    """Call `part`; with `recompute`, keep no activations but its inputs and compute it again for the gradient.

    The second run leaves the running statistics of batch normalisation alone, so that a recomputed step
    equals a plain one bit for bit. A part that is frozen, as all before it, keeps nothing in any case.
    """
    if not (recompute and paddle.is_grad_enabled() and isinstance(part, nn.Layer) and part.training):
        return part(*inputs)
    if all(x.stop_gradient for x in inputs):
        if all(parameter.stop_gradient for parameter in part.parameters()):
            return part(*inputs)
        # Paddle computes again only where an input needs a gradient.
        first = inputs[0].detach()
        first.stop_gradient = False
        inputs = (first, *inputs[1:])
    from paddle.distributed.fleet.utils import recompute as checkpointed

    statistics = [
        buffer
        for layer in part.sublayers(include_self=True)
        if isinstance(layer, _BatchNormBase)
        for buffer in (layer._mean, layer._variance)
    ]

    def forward(*again: Tensor) -> Any:
        second_run = paddle.is_grad_enabled()
        if second_run:
            between_parts()
        before = [buffer.clone() for buffer in statistics] if second_run else []
        outputs = part(*again)
        for buffer, value in zip(statistics, before):
            buffer.set_value(value)
        return tuple(outputs) if isinstance(outputs, Sequence) else outputs

    return checkpointed(forward, *inputs)
