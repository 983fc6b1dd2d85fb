# SPDX-License-Identifier: Apache-2.0
"""The backends, in one table: what can run a network in evaluation and prediction, and what each of them needs.

Reading the table loads neither Paddle nor a backend, as command lines list its names in their help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, cast

from hmsa.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from hmsa.inference.paddle_inference import Program


@dataclass(frozen=True)
class Backend:
    """A row of the table.

    Attributes:
        precisions: device, "cpu" or "gpu" -> what it computes in there. One without "gpu" runs on the CPU also where
            Paddle runs on a GPU.
        open: (file of a program, precision, and if need be threads) -> the program. None: the network itself runs,
            eagerly.
        forms: of the programs that it reads ("paddle" or "onnx"), the best first.
        packages: that it needs besides Paddle and `CONVERTERS`; they are imported by the names they are installed by.
        extra: the one of pyproject.toml that installs all it needs.
    """

    precisions: Mapping[str, tuple[str, ...]]
    open: Optional[Callable[..., Program]] = None
    forms: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    extra: str = ""


CONVERTERS = {"paddle": (), "onnx": ("paddle2onnx", "onnx", "polygraphy")}
"""Form of a program -> the packages by which it is made of what Paddle writes."""

_RUNS_BEFORE_SHRINKING = 8  # in a row, each of at most a quarter of the largest input

AUTO = {"cpu": "inference", "gpu": "eager"}
"""Device -> the backend that "auto" is there."""


def form_of(backend: str) -> Optional[str]:
    """The form of the programs that are written for a backend; None if this Paddle cannot write one that it reads."""
    from hmsa.inference.tracing import writes_json

    return next((form for form in BACKENDS[backend].forms if form == "paddle" or writes_json()), None)


def packages_of(backend: str) -> tuple[str, ...]:
    """What must be installed for a backend, besides Paddle."""
    return *BACKENDS[backend].packages, *CONVERTERS.get(form_of(backend) or "", ())


def precisions() -> tuple[str, ...]:
    """All that some backend computes in."""
    known = (names for backend in BACKENDS.values() for names in backend.precisions.values())
    return tuple(dict.fromkeys(chain.from_iterable(known)))


def need(what: str, packages: Iterable[str], extra: str, *, settings: Sequence[str] = ()) -> None:
    """UsageError unless all packages are installed, by the names they are imported by.

    Args:
        what: needs them.
        extra: the one of pyproject.toml that installs them.
    """
    for package in packages:
        if find_spec(package) is None:
            raise UsageError(
                f"{what} needs the package {package}, which is not installed: pip install .[{extra}]",
                settings=settings,
            )


def choose(name: str, precision: str = "fp32") -> str:
    """The backend of this name, or the one that "auto" is on this device.

    Raises:
        UsageError: a package is missing, this Paddle cannot write its programs, or it lacks the precision here.
    """
    from hmsa.system.device import check_precision, on_gpu

    device = "gpu" if on_gpu() else "cpu"
    chosen = AUTO[device] if name == "auto" else name
    backend = BACKENDS[chosen]
    if backend.forms and not form_of(chosen):
        raise UsageError(
            f"the backend {chosen} needs Paddle 3: what Paddle 2 writes cannot be converted to ONNX",
            settings=["backend"],
        )

    need(f"the backend {chosen}", packages_of(chosen), backend.extra, settings=["backend"])
    runs_on = device if device in backend.precisions else "cpu"
    if precision not in backend.precisions[runs_on]:
        able = " or ".join(
            f"{name} on a {device.upper()}"
            for name, row in BACKENDS.items()
            for device, known in row.precisions.items()
            if precision in known
        )
        raise UsageError(
            f"precision {precision} needs the backend {able}, but the backend is {chosen} on a {runs_on.upper()}: "
            "choose another, or fp32",
            settings=["backend", "precision"],
        )
    if backend.open is None:
        check_precision(precision)
    return chosen


# --- How each opens a program. ---


def _open_inference(path: Path, precision: str, threads: Optional[int] = None) -> Program:
    from hmsa.inference.paddle_inference import open_predictor, program_of

    return program_of(open_predictor(path, path.with_suffix(".pdiparams"), threads))


def _open_openvino(path: Path, precision: str, threads: Optional[int] = None) -> Program:
    import openvino

    from hmsa.system import environment

    # On processors with bf16 it would compute in it without being asked.
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    hints = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads or environment.threads()}
    request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()

    def run(given: np.ndarray) -> list[np.ndarray]:
        return [output.copy() for output in request.infer([given], share_inputs=True).to_tuple()]

    return run


def _open_onnxruntime(path: Path, precision: str, threads: Optional[int] = None) -> Program:
    import onnxruntime

    from hmsa.system import environment

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or environment.threads()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name

    # It keeps the memory that the largest input needed. Giving it back after each run would make all runs slower.
    shrinking = onnxruntime.RunOptions()
    shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    largest = much_smaller = 0

    def run(given: np.ndarray) -> list[np.ndarray]:
        nonlocal largest, much_smaller
        much_smaller = much_smaller + 1 if 4 * given.size <= largest else 0
        largest = max(largest, given.size)
        if much_smaller < _RUNS_BEFORE_SHRINKING:
            return cast(Any, session.run(None, {source: given}))
        largest = much_smaller = 0
        return cast(Any, session.run(None, {source: given}, shrinking))

    return run


BACKENDS: dict[str, Backend] = {
    "eager": Backend({"cpu": ("fp32",), "gpu": ("fp32", "bf16")}),
    "inference": Backend({"cpu": ("fp32",), "gpu": ("fp32",)}, _open_inference, ("paddle",)),
    "openvino": Backend({"cpu": ("fp32", "bf16")}, _open_openvino, ("onnx", "paddle"), ("openvino",), "openvino"),
    "onnxruntime": Backend({"cpu": ("fp32",)}, _open_onnxruntime, ("onnx",), ("onnxruntime",), "onnx"),
}
"""Name -> what it is. A new backend is a row here, and a function above or a file beside that opens its programs."""
