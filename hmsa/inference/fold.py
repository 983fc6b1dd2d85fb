# SPDX-License-Identifier: Apache-2.0
"""A network made simpler for inference: batch normalisation becomes a part of the convolutions before it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar, cast

import hmsa.system.prepared  # noqa: F401

import paddle
from paddle import Tensor, nn
from paddle.nn.layer.norm import _BatchNormBase  # BatchNorm2D and SyncBatchNorm

from hmsa.models import MscaleOCRNet
from hmsa.models.layers import ConvOverParts

_Layer = TypeVar("_Layer", bound=nn.Layer)


def copy_on_cpu(network: _Layer) -> _Layer:
    """A copy of the network in evaluation mode, on the CPU, where normalisation cannot be synchronised and is not."""
    twin = copy.deepcopy(network).to(device="cpu")
    replace_sync_batch_norm(twin)
    twin.eval()
    return twin


def simplified(model: MscaleOCRNet) -> MscaleOCRNet:
    """What `copy_on_cpu` made, itself changed for inference, once for all starts: its normalisation is folded."""
    fold_batch_norm(model, lambda: model.at_scale(paddle.zeros([1, 3, 64, 64]), True))
    for layer in model.sublayers():
        if isinstance(layer, ConvOverParts):
            layer.separate()
    return model


def fold_batch_norm(network: nn.Layer, run: Callable[[], Any]) -> None:
    """Replace every batch normalisation that directly follows a convolution by other weights of that convolution.

    With running mean m and variance v, gamma * (Wx + b - m) / sqrt(v + eps) + beta is a convolution with the weights
    s * W and the bias s * (b - m) + beta, where s = gamma / sqrt(v + eps); computed in float64. Which normalisation
    follows which convolution is seen by running the network once.

    Args:
        network: changed in place; must be in evaluation mode.
        run: runs the network on a small image.
    """
    followed = _followers(network, run)
    parents = {id(child): (layer, name) for layer in network.sublayers(True) for name, child in layer.named_children()}
    for conv, norm in followed:
        _fold(conv, norm)
        parent, name = parents[id(norm)]
        parent.add_sublayer(name, nn.Identity())


def _followers(network: nn.Layer, run: Callable[[], Any]) -> list[tuple[Any, Any]]:
    """Every convolution whose output goes to a normalisation and to no other layer, each of the two used once, with
    that normalisation. What a `forward` computes from the output without a layer is not seen.
    """
    outputs: dict[int, tuple[Any, Tensor]] = {}  # by id; the tensor is kept so that no other gets its id
    pairs: list[tuple[Any, Any]] = []
    calls: Counter[int] = Counter()
    uses: Counter[int] = Counter()

    def note_output(conv: Any, _: Any, output: Tensor) -> None:
        outputs[id(output)] = (conv, output)

    def look_up_inputs(layer: Any, inputs: Any) -> None:
        calls[id(layer)] += 1
        for conv in (outputs[id(given)][0] for given in inputs if id(given) in outputs):
            uses[id(conv)] += 1
            if isinstance(layer, _BatchNormBase):
                pairs.append((conv, layer))

    hooks: list[Any] = []
    for layer in network.sublayers():
        is_conv = isinstance(layer, nn.Conv2D)
        if is_conv:
            hooks.append(layer.register_forward_post_hook(cast(Any, note_output)))
        if is_conv or not layer.sublayers():  # A container's input is that of a layer in it.
            hooks.append(layer.register_forward_pre_hook(cast(Any, look_up_inputs)))
    try:
        with paddle.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return [(conv, norm) for conv, norm in pairs if calls[id(conv)] == calls[id(norm)] == uses[id(conv)] == 1]


def _fold(conv: Any, norm: Any) -> None:
    """Put s * W and s * (b - m) + beta into the convolution, see `fold_batch_norm`."""
    weight = conv.weight.numpy().astype("float64")
    mean, variance = (x.numpy().astype("float64") for x in (norm._mean, norm._variance))
    scale = 1 / (variance + norm._epsilon) ** 0.5
    if norm.weight is not None:
        scale = scale * norm.weight.numpy()

    bias = scale * (-mean if conv.bias is None else conv.bias.numpy() - mean)
    if norm.bias is not None:
        bias = bias + norm.bias.numpy()

    conv.weight.set_value((weight * scale[:, None, None, None]).astype("float32"))
    if conv.bias is None:
        conv.bias = conv.create_parameter([len(bias)], is_bias=True)
    conv.bias.set_value(bias.astype("float32"))


def replace_sync_batch_norm(layer: nn.Layer) -> None:
    """Put BatchNorm2D with the same tensors in the place of every SyncBatchNorm below `layer`."""
    for parent in layer.sublayers(include_self=True):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.SyncBatchNorm):
                options: Any = {name: getattr(child, f"_{name}") for name in ("momentum", "epsilon", "data_format")}
                plain = nn.BatchNorm2D(child._mean.shape[0], **options)
                plain.set_state_dict(child.state_dict())
                plain.training = child.training
                parent.add_sublayer(name, plain)
