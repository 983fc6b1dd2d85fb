# SPDX-License-Identifier: Apache-2.0
"""What can run a network in evaluation and prediction, and how each opens a program."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import paddle
from packaging.version import Version
from paddle.version import full_version as PADDLE_VERSION

from hmsa.errors import UsageError
from hmsa.system.device import on_gpu
from hmsa.system.environment import threads


def choose_engine(engine: str, precision: str = "fp32") -> str:
    """The engine itself where `engine` is "auto". UsageError if it is not installed or lacks the precision."""
    chosen = ("eager" if on_gpu() else "inference") if engine == "auto" else engine
    needed = [chosen] if chosen in ("openvino", "onnxruntime") else []
    if _form(chosen) == "onnx":
        needed.append("paddle2onnx")
    for package in needed:
        if find_spec(package) is None:
            extra = "openvino" if package == "openvino" else "onnx"
            raise UsageError(
                f"--engine {chosen} needs the package {package}, which is not installed: pip install .[{extra}]"
            )
    if chosen == "onnxruntime" and not writes_json():
        raise UsageError("--engine onnxruntime needs Paddle 3: what Paddle 2 writes cannot be converted to ONNX")
    if precision == "bf16" and not (chosen == "openvino" or (chosen == "eager" and on_gpu())):
        raise UsageError(
            f"--precision bf16 needs --engine openvino on a CPU or --engine eager on a GPU, but the engine is {chosen}"
        )
    return chosen


def _form(engine: str) -> str:
    """What the engine reads. OpenVINO reads what Paddle 2 writes as it is."""
    return "onnx" if engine == "onnxruntime" or (engine == "openvino" and writes_json()) else "paddle"


def _paddle_program(path: Path) -> Path:
    """Paddle 3 writes .json, Paddle 2 .pdmodel."""
    return next(p for suffix in (".json", ".pdmodel") if (p := path.with_suffix(suffix)).is_file())


def _open_inference(path: Path, precision: str) -> Program:
    return open_program(_paddle_program(path), path.with_suffix(".pdiparams"))


def _open_onnxruntime(path: Path, precision: str) -> Program:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path.with_suffix(".onnx"), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    return lambda given: cast(Any, session.run(None, {source: given}))


def _open_openvino(path: Path, precision: str) -> Program:
    import openvino

    onnx = path.with_suffix(".onnx")
    # On processors with bf16 it would compute in it without being asked.
    hints = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision], "INFERENCE_NUM_THREADS": threads()}
    compiled = openvino.Core().compile_model(onnx if onnx.is_file() else _paddle_program(path), "CPU", hints)
    request = compiled.create_infer_request()

    def run(given: np.ndarray) -> list[np.ndarray]:
        return [output.copy() for output in request.infer([given], share_inputs=True).to_tuple()]

    return run


_OPEN: dict[str, Callable[[Path, str], Program]] = {
    "inference": _open_inference,
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
}


def writes_json() -> bool:
    """Whether this is Paddle 3 or later, whose own form is .json, which can be converted to ONNX, and not .pdmodel."""
    return int(PADDLE_VERSION.split(".")[0]) >= 3


Program = Callable[[np.ndarray], list[np.ndarray]]
"""An input, float32 -> all outputs."""


def open_program(model: Path, params: Path) -> Program:
    """Load a program with one input into Paddle Inference, on the GPU if Paddle has one, else with oneDNN.

    The function that comes back keeps one set of buffers: call it from one thread at a time.
    """
    return program_of(open_predictor(model, params))


def open_predictor(model: Path, params: Path) -> Any:
    """Load a program into Paddle Inference, as `open_program` does: its own object, which knows the names."""
    return paddle.inference.create_predictor(_config(model, params))


def program_of(predictor: Any) -> Program:
    """What `open_program` returns, of a program that is open."""
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    results = [predictor.get_output_handle(name) for name in predictor.get_output_names()]

    def run(given: np.ndarray) -> list[np.ndarray]:
        source.reshape(given.shape)
        source.copy_from_cpu(np.ascontiguousarray(given, np.float32))
        predictor.run()
        answers = [result.copy_to_cpu() for result in results]
        predictor.clear_intermediate_tensor()
        return answers

    return run


def _config(model: Path, params: Path) -> Any:
    """Options under which Paddle Inference answers as the network does."""
    config = paddle.inference.Config(str(model), str(params))
    config.disable_glog_info()
    if Version(PADDLE_VERSION).major >= 3:
        # Without the first, enable_memory_optim ends in an error about memory_optimize_pass. With the second, programs
        # of the old form are opened like the others, for which Paddle has quicker passes.
        config.enable_new_executor(True)
        config.enable_new_ir(True)
    config.enable_memory_optim()
    # These mangle an OCR head written with matmul (the first .json, the second .pdmodel): wrong numbers, no warning.
    config.delete_pass("reshape_transpose_matmul_fuse_pass")
    config.delete_pass("reshape_transpose_matmul_onednn_fuse_pass")
    # What it looks for is folded already, and looking for it in an old program takes half of the time of opening it.
    config.delete_pass("conv_eltwiseadd_bn_fuse_pass")
    device = paddle.device.get_device()
    if device.startswith("gpu"):
        config.enable_use_gpu(256, int(device.partition(":")[2] or 0))
        return config
    config.disable_gpu()
    config.enable_mkldnn()
    config.set_cpu_math_library_num_threads(threads())  # the default is 1
    if Version(PADDLE_VERSION).release[:2] == (3, 3):
        # In 3.3 this pass makes every bilinear resize fail (Paddle issues 77340 and 79749).
        config.delete_pass("onednn_placement_pass")
    return config
