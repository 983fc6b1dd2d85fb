# SPDX-License-Identifier: Apache-2.0
"""From a network to the files of a program: what inference needs of it, in either of Paddle's two forms."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import paddle
from paddle import Tensor, _C_ops, nn
from paddle.base.framework import convert_np_dtype_to_dtype_
from paddle.base.layer_helper import LayerHelper
from paddle.nn.functional import conv
from paddle.version import full_version as PADDLE_VERSION

from hmsa.deploy.fold import fold_batch_norm
from hmsa.models import MscaleOCRNet
from hmsa.models.layers import ConvOverParts

DYNAMIC_SHAPE = (None, 3, None, None)

INPUT_NAME = "x"
"""Of a program's input; PaddleSeg's exports have the same, and its programs for TensorRT ask for it."""

_Layer = TypeVar("_Layer", bound=nn.Layer)


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Let Paddle compute on the CPU, for comparisons: GPUs round what goes into convolutions and products to TF32."""
    device = paddle.device.get_device()
    paddle.device.set_device("cpu")
    try:
        yield
    finally:
        paddle.device.set_device(device)


def copy_on_cpu(network: _Layer) -> _Layer:
    """A copy of the network in evaluation mode, on the CPU, where normalisation cannot be synchronised and is not."""
    twin = copy.deepcopy(network).to(device="cpu")
    replace_sync_batch_norm(twin)
    twin.eval()
    return twin


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


class AtScale(nn.Layer):
    """[N, 3, h, w] -> logits [N, K, h', w'], or these and the attention [N, 1, h', w']."""

    def __init__(self, model: MscaleOCRNet, attention: bool) -> None:
        super().__init__()
        self.model = model
        self.attention = attention

    def forward(self, image: Tensor) -> Any:
        logits, weight = self.model.at_scale(image, self.attention)
        return (logits, weight) if self.attention else logits


def simplified(model: MscaleOCRNet) -> MscaleOCRNet:
    """The network itself, changed for inference: its normalisation is folded, once for all starts of an engine."""
    replace_sync_batch_norm(model)
    model.eval()
    whole = AtScale(model, attention=True)
    whole.eval()
    fold_batch_norm(whole, paddle.zeros([1, 3, 64, 64]))
    for layer in model.sublayers():
        if isinstance(layer, ConvOverParts):
            layer.separate()
    return model


def writes_json() -> bool:
    """Whether this is Paddle 3 or later, whose own form is .json, which can be converted to ONNX, and not .pdmodel."""
    return int(PADDLE_VERSION.split(".")[0]) >= 3


def write_program(
    network: nn.Layer, path: Path, *, input_shape: tuple[Optional[int], ...] = DYNAMIC_SHAPE, old_form: bool = False
) -> Path:
    """Write a network in evaluation mode as `path`.json or `path`.pdmodel, with its tensors in `path`.pdiparams.

    Args:
        input_shape: N, C, H, W; None is any size.
        old_form: whether Paddle 3, too, writes .pdmodel.

    Returns:
        The program.

    Raises:
        Exception: whatever Paddle raises where it cannot trace the network.
    """
    spec = paddle.static.InputSpec(list(input_shape), "float32", INPUT_NAME)
    with _form(old_form):
        paddle.jit.save(paddle.jit.to_static(network, input_spec=[spec], full_graph=True), str(path))
    path.with_suffix(".pdiparams.info").unlink(missing_ok=True)
    return next(p for suffix in (".json", ".pdmodel") if (p := path.with_suffix(suffix)).is_file())


_OLD_OPERATORS = {"bmm": ("bmm", "X", "Y"), "sigmoid": ("sigmoid", "X"), "argmax": ("arg_max", "X")}
"""Functions that Paddle 3 no longer puts into programs of the old form by itself, which still has their operators: the
operator's name and its inputs' names."""


def _form(old: bool) -> AbstractContextManager[Any]:
    """The form in which Paddle writes programs; FLAGS_enable_pir_api may have left Paddle 3 with the old one."""
    return _old_form() if old or not writes_json() else paddle.pir_utils.DygraphPirGuard()


@contextlib.contextmanager
def _old_form() -> Iterator[None]:
    """Let Paddle trace networks into programs of the old form, put so that they are opened in seconds.

    Paddle Inference looks for what it can fuse by trying all convolutions of a program with each other, and that twice
    over where an addition has one on its left. For its search to be short, a bias is added to the channels (it does not
    know the reshaped one that Paddle writes today), and a convolution is never the left one of two terms.
    """
    Variable: Any = paddle.static.Variable
    convolve, add = conv._conv_nd, Variable.__add__
    convolved: set[str] = set()  # names of variables

    def convolve_then_add_bias(x: Any, weight: Any, bias: Any = None, *rest: Any, **options: Any) -> Any:
        if "NHWC" in (*rest, *options.values()):
            return convolve(x, weight, bias, *rest, **options)
        output = convolve(x, weight, None, *rest, **options)
        if bias is not None:
            output = _append("elementwise_add", {"X": output, "Y": bias}, {"axis": 1}, dtype=x.dtype)
        convolved.add(output.name)
        return output

    def add_in_order(left: Any, right: Any) -> Any:
        if not (isinstance(right, Variable) and left.name in convolved and left.shape == right.shape):
            return add(left, right)
        if right.name in convolved:
            return _append("sum", {"X": [left, right]}, {}, dtype=left.dtype)
        return add(right, left)

    with contextlib.ExitStack() as stack:
        if writes_json():
            stack.enter_context(paddle.pir_utils.DygraphOldIrGuard())
            for name, (operator, *slots) in _OLD_OPERATORS.items():
                stack.enter_context(_replaced(_C_ops, name, _traceable(getattr(_C_ops, name), operator, slots)))
        stack.enter_context(_replaced(conv, "_conv_nd", convolve_then_add_bias))
        stack.enter_context(_replaced(Variable, "__add__", add_in_order))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, function: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _traceable(function: Callable[..., Any], operator: str, slots: list[str]) -> Callable[..., Any]:
    """`function`, which adds an operator to the program that is being written where it is given a variable of one."""

    def call(*inputs: Any, **attributes: Any) -> Any:
        if not any(isinstance(given, paddle.static.Variable) for given in (*inputs, *attributes.values())):
            return function(*inputs, **attributes)
        inputs = tuple(given for given in inputs if given is not None)  # A name that is not given may be last.
        attributes.pop("name", None)
        if len(inputs) != len(slots) or not attributes.keys() <= {"axis", "dtype"}:
            raise TypeError(f"{operator} with these arguments cannot be put into a program of the old form")
        if "dtype" in attributes:
            attributes["dtype"] = convert_np_dtype_to_dtype_(attributes["dtype"])
        dtype = attributes.get("dtype", inputs[0].dtype)
        return _append(operator, dict(zip(slots, inputs)), attributes, dtype=dtype)

    return call


def _append(operator: str, inputs: dict[str, Any], attributes: dict[str, Any], *, dtype: Any) -> Any:
    """The output of an operator of the old form, which is added to the program that is being written."""
    helper = LayerHelper(operator)
    output = helper.create_variable_for_type_inference(dtype)
    helper.append_op(type=operator, inputs=inputs, outputs={"Out": output}, attrs=attributes)
    return output
