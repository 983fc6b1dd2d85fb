# SPDX-License-Identifier: Apache-2.0
"""A network made simpler for inference: batch normalisation becomes a part of the convolutions before it."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, TypeVar, cast

import hmsa.system.prepared  # noqa: F401

import paddle
from paddle import nn
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
    calls: list[Any] = []  # (layer, inputs, output); kept so that no other tensor gets their ids
    note = cast(Any, lambda *call: calls.append(call))

    # A container's input is that of a layer in it.
    layers = [layer for layer in network.sublayers() if isinstance(layer, nn.Conv2D) or not layer.sublayers()]
    hooks = [layer.register_forward_post_hook(note) for layer in layers]
    try:
        with paddle.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()

    times = Counter(id(layer) for layer, _, _ in calls)
    users: defaultdict[int, list[Any]] = defaultdict(list)  # of a tensor, by its id
    for layer, inputs, _ in calls:
        for given in inputs:
            users[id(given)].append(layer)
    pairs = [(conv, *users[id(output)]) for conv, _, output in calls if isinstance(conv, nn.Conv2D)]
    return [
        (pair[0], pair[1])
        for pair in pairs
        if len(pair) == 2 and isinstance(pair[1], _BatchNormBase) and all(times[id(layer)] == 1 for layer in pair)
    ]


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


def replace_sync_batch_norm(network: nn.Layer) -> None:
    """Make a BatchNorm2D of every SyncBatchNorm in `network`, which differs in its methods only."""
    for layer in network.sublayers():
        if isinstance(layer, nn.SyncBatchNorm):
            cast(Any, layer).__class__ = nn.BatchNorm2D
