# SPDX-License-Identifier: Apache-2.0
"""From a network to the files of a program: what inference needs of it, in either of Paddle's two forms."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Optional, TypeVar, cast

import numpy as np
import paddle
from paddle import Tensor, _C_ops, nn
from paddle.base.framework import convert_np_dtype_to_dtype_
from paddle.base.layer_helper import LayerHelper
from paddle.nn.functional import conv
from paddle.version import full_version as PADDLE_VERSION

from hmsa.errors import DataError, HmsaError
from hmsa.inference.backends import _OPEN, Program, _paddle_program, writes_json
from hmsa.inference.fold import fold_batch_norm, replace_sync_batch_norm
from hmsa.models import MscaleOCRNet
from hmsa.models.hierarchical import ScaleNetwork
from hmsa.models.layers import ConvOverParts
from hmsa.system.device import as_tensor, on_gpu

CHECKED_SHAPES = ((1, 3, 128, 192), (1, 3, 97, 161))
"""Where new programs are compared with the network they were made from: an even and an odd size."""

MAX_DIFFERENCE = 1e-4
"""Of logits and attention, relative to the largest."""


class Programs:
    """The network at one scale, run by an engine from the programs in a folder; see `ScaleNetwork`.

    A program is loaded when it is first wanted.
    """

    def __init__(self, folder: Path, engine: str, precision: str = "fp32") -> None:
        self._open = lambda name: _OPEN[engine](folder / name, precision)
        self._programs: dict[str, Program] = {}

    def __call__(self, x: Tensor, attention: bool) -> tuple[Tensor, Optional[Tensor]]:
        name = "attended" if attention else "logits"
        if name not in self._programs:
            self._programs[name] = self._open(name)
        logits, *weight = map(as_tensor, self._programs[name](x.numpy()))
        return logits, weight[0] if weight else None


def write_programs(model: MscaleOCRNet, folder: Path, form: str) -> None:
    """Write the two programs of a simplified network to `folder`.

    Args:
        form: "paddle" or "onnx".
    """
    for name, attention in (("logits", False), ("attended", True)):
        part = AtScale(model, attention)
        part.eval()
        write_program(part, folder / name)
        if form == "onnx":
            _convert_to_onnx(folder, name)


def write_checked_programs(
    model: MscaleOCRNet, folder: Path, engine: str, write: Callable[[MscaleOCRNet, Path], None]
) -> Programs:
    """Have `write` write the programs of a network that is simplified, and make sure that they answer as it did.

    They are written and compared on the CPU, whatever device runs them later; the network itself is left as it is.

    Raises:
        DataError: they do not, or the network cannot be exported.
    """
    with on_cpu():
        twin = copy_on_cpu(model)
        images = [paddle.randn(shape) for shape in CHECKED_SHAPES]
        with paddle.no_grad():
            expected = [twin.at_scale(image, True) for image in images]
        try:
            write(simplified(twin), folder)
            programs = Programs(folder, engine)
            check_programs(programs, images, expected)
        except HmsaError:
            raise
        # Paddle and the converter raise whatever comes first, among others where a source file was edited meanwhile.
        except Exception as error:
            raise DataError(f"expected a network that --engine {engine} can run, but: {error}") from error
    return Programs(folder, engine) if on_gpu() else programs


def check_programs(programs: ScaleNetwork, images: Sequence[Tensor], expected: Sequence[Any]) -> None:
    """DataError if an engine's logits or attention differ from the network's own by more than `MAX_DIFFERENCE`."""
    for image, answers in zip(images, expected):
        found = [programs(image, False)[0], *programs(image, True)]
        for ours, right in zip(cast(Any, found), [answers[0], *answers]):
            # In NumPy, as Paddle 2.6's maximum leaves out NaN.
            difference = float(np.abs((ours - right).numpy()).max() / np.abs(right.numpy()).max())
            if not difference <= MAX_DIFFERENCE:
                raise DataError(
                    f"the inference engine should answer as the network does, but at {image.shape} it differs by "
                    f"{difference:.2g} of the largest value: use --engine eager with Paddle {PADDLE_VERSION}"
                )


def _convert_to_onnx(folder: Path, name: str) -> None:
    program, target = _paddle_program(folder / name), folder / f"{name}.onnx"
    import paddle2onnx

    before = Path.cwd()
    os.chdir(folder)  # The converter leaves files where it runs.
    try:
        paddle2onnx.export(
            program.name, f"{name}.pdiparams", target.name, opset_version=17, verbose=False, optimize_tool="None"
        )
    except (Exception, SystemExit) as error:
        raise DataError(f"the network could not be converted to ONNX: {error}; use --engine inference") from error
    finally:
        os.chdir(before)
    program.unlink()
    (folder / f"{name}.pdiparams").unlink()


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
