# SPDX-License-Identifier: Apache-2.0
"""Programs in Paddle Inference, under options with which it answers as the network does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import hmsa.system.prepared  # noqa: F401

import numpy as np
import paddle
from packaging.version import Version
from paddle.version import full_version as PADDLE_VERSION

from hmsa.system import environment

Program = Callable[[np.ndarray], list[np.ndarray]]
"""An input, float32 or, where the program takes that, uint8 -> all outputs."""


def open_predictor(model: Path, params: Path, threads: Optional[int] = None) -> Any:
    """Load a program with one input into Paddle Inference, on the GPU if Paddle has one, else with oneDNN.

    The predictor, Paddle's own object, knows the names of input and outputs. Threads are as many as this process may
    use, unless they are given.
    """
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
    else:
        config.disable_gpu()
        config.enable_mkldnn()
        config.set_cpu_math_library_num_threads(threads or environment.threads())  # the default is 1
        if Version(PADDLE_VERSION).release[:2] == (3, 3):
            # In 3.3 this pass makes every bilinear resize fail (Paddle issues 77340 and 79749).
            config.delete_pass("onednn_placement_pass")
    return paddle.inference.create_predictor(config)


def program_of(predictor: Any) -> Program:
    """The program that is open in a predictor.

    The function that comes back keeps one set of buffers: call it from one thread at a time.
    """
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    results = [predictor.get_output_handle(name) for name in predictor.get_output_names()]

    def run(given: np.ndarray) -> list[np.ndarray]:
        source.reshape(given.shape)
        source.copy_from_cpu(np.ascontiguousarray(given, np.uint8 if given.dtype == np.uint8 else np.float32))
        predictor.run()
        answers = [result.copy_to_cpu() for result in results]
        predictor.clear_intermediate_tensor()
        return answers

    return run
