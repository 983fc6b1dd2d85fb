# SPDX-License-Identifier: Apache-2.0
"""TFLite: written by onnx2tf in an environment of its own, as that needs TensorFlow (2.6 GB), and run.

onnx2tf turns images and what has their axes into NHWC; a `Program` here takes and gives what `deploy.yaml` says.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from hmsa.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from hmsa.deploy.runtime import Deployment, FileEntry
    from hmsa.inference.paddle_inference import Program

_CONVERTER = """\
import sys, onnx2tf
onnx2tf.convert(
    input_onnx_file_path=sys.argv[1],
    output_folder_path=sys.argv[2],
    copy_onnx_input_output_names_to_tflite=True,
    non_verbose=True,
)
"""

_RUNNER = """\
import sys, numpy, tensorflow
interpreter = tensorflow.lite.Interpreter(sys.argv[1], num_threads=int(sys.argv[4]))
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], numpy.load(sys.argv[2]))
interpreter.invoke()
outputs = {detail["name"]: interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()}
numpy.savez(sys.argv[3], **outputs)
"""


def convert(onnx: Path, target: Path, python: Path) -> None:
    """Write `target` from a network in ONNX, fp32, by the onnx2tf of another environment.

    Raises:
        DataError: it cannot.
    """
    with tempfile.TemporaryDirectory(prefix="hmsa-") as folder:
        _run(python, folder, _CONVERTER, onnx.resolve(), folder)
        written = sorted(Path(folder).glob("*_float32.tflite"))
        if not written:
            raise DataError(
                "expected onnx2tf to write a program of float32, found none: leave the format tflite out",
                settings=["format"],
            )
        target.write_bytes(written[0].read_bytes())


def open_program(path: Path, threads: Optional[int], entry: FileEntry, deployment: Deployment) -> Program:
    """The program, run by LiteRT in this process."""
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    from hmsa.system import environment

    interpreter = Interpreter(str(path), num_threads=threads or environment.threads())
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    results = {detail["name"]: detail["index"] for detail in interpreter.get_output_details()}

    def run(given: np.ndarray) -> dict[str, np.ndarray]:
        interpreter.set_tensor(source, given)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in results.items()}

    return _in_layout(run, entry, deployment)


def open_elsewhere(path: Path, python: Path, entry: FileEntry, deployment: Deployment) -> Program:
    """The program, run by the TensorFlow of another environment, which is started anew for every call."""
    from hmsa.system import environment

    def run(given: np.ndarray) -> dict[str, np.ndarray]:
        import numpy as np

        with tempfile.TemporaryDirectory(prefix="hmsa-") as folder:
            source, result = Path(folder, "in.npy"), Path(folder, "out.npz")
            np.save(source, given)
            _run(python, folder, _RUNNER, path.resolve(), source, result, environment.threads())
            with np.load(result) as outputs:
                return dict(outputs)

    return _in_layout(run, entry, deployment)


def _in_layout(run: Callable[[np.ndarray], dict[str, np.ndarray]], entry: FileEntry, deployment: Deployment) -> Program:
    turned = entry.input_layout == "NHWC"

    def program(given: np.ndarray) -> list[np.ndarray]:
        import numpy as np

        turn = turned and deployment.input_layout == "NCHW"
        found = run(np.ascontiguousarray(given.transpose(0, 2, 3, 1)) if turn else given)
        answers = [found[output.name] for output in deployment.outputs]
        return [x.transpose(0, 3, 1, 2) if turned and x.ndim == 4 else x for x in answers]

    return program


def _run(python: Path, folder: str, program: str, *words: Any) -> None:
    """Run a program in another environment. DataError if it fails."""
    done = subprocess.run(
        [python.absolute(), "-c", program, *map(str, words)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        said = [line.strip() for line in done.stdout.splitlines() if line.strip()] or ["it says nothing"]
        raise DataError(
            f"expected {python} to convert and run TFLite, but: {said[-1]:.300}; make test-tflite makes an environment "
            "that does",
            settings=["tflite_python"],
        )
