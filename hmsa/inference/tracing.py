# SPDX-License-Identifier: Apache-2.0
"""From a network to the file of a program: Paddle's tracing, in both of its forms, and the conversion to ONNX."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Optional

import hmsa.system.prepared  # noqa: F401

import paddle
from paddle import _C_ops, nn
from paddle.base.framework import convert_np_dtype_to_dtype_
from paddle.base.layer_helper import LayerHelper
from paddle.jit.dy2static.program_translator import ProgramTranslator
from paddle.nn.functional import conv
from paddle.version import full_version as PADDLE_VERSION

from hmsa.errors import DataError
from hmsa.system.files import check_whole
from hmsa.system.processes import run_python

DYNAMIC_SHAPE = (None, 3, None, None)
"""N, C, H, W of an input of any size, of three channels."""

INPUT_NAME = "x"
"""Of a program's input; PaddleSeg's exports have the same, and its programs for TensorRT ask for it."""


def writes_json() -> bool:
    """Whether this is Paddle 3 or later, whose own form is .json, which can be converted to ONNX, and not .pdmodel."""
    return int(PADDLE_VERSION.split(".")[0]) >= 3


def program_file(path: Path) -> Path:
    """The file of the program that was written at `path`, which has no ending: Paddle 3 writes .json, 2 .pdmodel."""
    return next(file for ending in (".onnx", ".json", ".pdmodel") if (file := path.with_suffix(ending)).is_file())


def write_program(
    network: nn.Layer,
    path: Path,
    *,
    input_shape: tuple[Optional[int], ...] = DYNAMIC_SHAPE,
    old_form: bool = False,
    input_name: str = INPUT_NAME,
    dtype: str = "float32",
) -> Path:
    """Write a network in evaluation mode as `path`.json or `path`.pdmodel, with its tensors in `path`.pdiparams.

    Args:
        input_shape: N, C, H, W, or in the order that the network takes; None is any size.
        old_form: whether Paddle 3, too, writes .pdmodel.
        input_name, dtype: of the input.

    Returns:
        The program.

    Raises:
        OSError: the disk is full, or the file larger than it may be.
        Exception: whatever Paddle raises where it cannot trace the network.
    """
    _forget_failed_traces()
    spec = paddle.static.InputSpec(list(input_shape), dtype, input_name)  # pyright: ignore[reportArgumentType]
    # FLAGS_enable_pir_api may have left Paddle 3 with the old form.
    form = _old_form() if old_form or not writes_json() else paddle.pir_utils.DygraphPirGuard()
    with form, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"The Attr\(force_cpu\)")  # of Paddle's own operators
        paddle.jit.save(paddle.jit.to_static(network, input_spec=[spec], full_graph=True), str(path))
    path.with_suffix(".pdiparams.info").unlink(missing_ok=True)
    program = program_file(path)
    for file in (program, path.with_suffix(".pdiparams")):
        check_whole(file)
    return program


def _forget_failed_traces() -> None:
    """Paddle keeps the tensors of a program that it traces by the program's address. Where that failed they stay, and
    another program that gets the address would have them as its own."""
    translator = ProgramTranslator.get_instance()
    kept = [translator._params_recorder, translator._inplace_map]
    for folder in ("dy2static", "pir_dy2static"):  # of Paddle 3.3, of those before
        with contextlib.suppress(ImportError):
            module = import_module(f"paddle.jit.{folder}.parameter_recorder")
            kept += [module._global_parameter_recorder, module._global_inplace_map]
    for recorder in kept:
        recorder.params_dict.clear()


_CONVERTER = """\
import sys, paddle2onnx
for stem, program in zip(sys.argv[1::2], sys.argv[2::2]):
    paddle2onnx.export(
        program, stem + ".pdiparams", stem + ".onnx", opset_version=17, verbose=False, optimize_tool="None"
    )
"""


def convert_to_onnx(
    *paths: Path, advice: str = "use the backend inference", settings: Sequence[str] = ("backend",)
) -> None:
    """Put `path`.onnx, which holds its tensors, in the place of each program that Paddle wrote at `path`.

    The converter runs in a process and a folder of its own: it leaves files where it runs, may end its process, and a
    package that it uses would install others.

    Args:
        advice, settings: what to do, and what to set otherwise, where it fails.

    Raises:
        DataError: the converter does not know all of a program's operators.
        OSError: the disk is full, or a file larger than it may be.
    """
    programs = {path.resolve(): program_file(path.resolve()) for path in paths}
    words = [word for pair in programs.items() for word in map(str, pair)]
    environment = {**os.environ, "POLYGRAPHY_AUTOINSTALL_DEPS": "0"}
    with tempfile.TemporaryDirectory(prefix="hmsa-") as folder:
        status, said = run_python(sys.executable, _CONVERTER, *words, folder=folder, environment=environment)

    if status or not all(path.with_suffix(".onnx").is_file() for path in programs):
        ended = [f"it was ended by signal {-status}"] if status < 0 else []
        # It says what went wrong in one line, and then trips over what it does not have.
        telling = [line for line in said if "[ERROR]" in line or "Failed to convert" in line]
        reason = (telling or ended or said[::-1] or ["it says nothing"])[0]
        raise DataError(f"the network could not be converted to ONNX: {reason:.300}; {advice}", settings=settings)

    for path, program in programs.items():
        check_whole(path.with_suffix(".onnx"))
        program.unlink()
        path.with_suffix(".pdiparams").unlink()


OLD_OPERATORS = {"bmm": ("bmm", "X", "Y"), "sigmoid": ("sigmoid", "X"), "argmax": ("arg_max", "X")}
"""Functions that Paddle 3 no longer puts into programs of the old form by itself, which still has their operators: the
operator's name and its inputs' names."""


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
            for name, (operator, *slots) in OLD_OPERATORS.items():
                stack.enter_context(replaced(_C_ops, name, _traceable(getattr(_C_ops, name), operator, slots)))
        stack.enter_context(replaced(conv, "_conv_nd", convolve_then_add_bias))
        stack.enter_context(replaced(Variable, "__add__", add_in_order))
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, function: Any) -> Iterator[None]:
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
