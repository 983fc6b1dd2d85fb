# SPDX-License-Identifier: Apache-2.0
"""TFLite: written by onnx2tf in an environment of its own, as that needs TensorFlow (2.6 GB), and run.

onnx2tf turns images and what has their axes into NHWC; a `Program` here takes and gives what `deploy.yaml` says.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from hmsa.errors import DataError
from hmsa.system.processes import run_python

if TYPE_CHECKING:
    import numpy as np

    from hmsa.deploy.runtime import Deployment, FileEntry
    from hmsa.inference.paddle_inference import Program

_CONVERTER = """\
import json, pathlib, sys, numpy, onnx2tf.onnx2tf, tensorflow
from onnx2tf.utils import common_functions

def images():
    return numpy.random.default_rng(0).random((20, 128, 128, 3), numpy.float32)

# It would fetch images from the network, to compare with and without.
common_functions.download_test_image_data = onnx2tf.onnx2tf.download_test_image_data = images
onnx2tf.convert(
    input_onnx_file_path=sys.argv[1],
    output_folder_path=sys.argv[2],
    keep_shape_absolutely_input_names=sys.argv[3:] or None,
    non_verbose=True,
)
(written,) = pathlib.Path(sys.argv[2]).glob("*_float32.tflite")
outputs = tensorflow.lite.Interpreter(str(written)).get_signature_runner().get_output_details()
shapes = {name: detail["shape"].tolist() for name, detail in outputs.items()}
written.rename("model.tflite")
pathlib.Path("shapes.json").write_text(json.dumps(shapes))
"""

_RUNNER = """\
import sys, numpy, tensorflow
run = tensorflow.lite.Interpreter(sys.argv[1], num_threads=int(sys.argv[4])).get_signature_runner()
(name,) = run.get_input_details()
numpy.savez(sys.argv[3], **run(**{name: numpy.load(sys.argv[2])}))
"""


def convert(onnx: Path, target: Path, python: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Write `target` from a network in ONNX, fp32, by the onnx2tf of another environment.

    Args:
        entry: what `deploy.yaml` says of the export, whose size is fixed.

    Returns:
        The layouts of the input and of the outputs; onnx2tf leaves some outputs as they are.

    Raises:
        DataError: it cannot.
    """
    with tempfile.TemporaryDirectory(prefix="hmsa-") as folder:
        kept = [entry["input_name"]] if entry["input_layout"] == "NHWC" else []
        _run(python, folder, _CONVERTER, onnx.resolve(), folder, *kept)
        shapes = json.loads(Path(folder, "shapes.json").read_text(encoding="utf-8"))
        shutil.copyfile(Path(folder, "model.tflite"), target)

    sides = dict(zip(entry["input_layout"], entry["input_shape"]))
    layouts = []
    for output in entry["outputs"]:
        N, first, *rest = output["layout"]
        is_turned = first not in "HW" and shapes[output["name"]][1:3] == [sides["H"], sides["W"]]
        layouts.append("".join([N, *rest, first]) if is_turned else output["layout"])
    return {"input_layout": "NHWC", "output_layouts": layouts}


def open_program(path: Path, threads: Optional[int], entry: FileEntry, deployment: Deployment) -> Program:
    """The program, run by LiteRT in this process."""
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    from hmsa.system import environment

    runner = Interpreter(str(path), num_threads=threads or environment.threads()).get_signature_runner()
    (name,) = runner.get_input_details()
    return _in_layout(lambda given: runner(**{name: given}), entry, deployment)


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
    def in_order(x: np.ndarray, layout: str, wanted: str) -> np.ndarray:
        return x.transpose([layout.index(axis) for axis in wanted])

    def program(given: np.ndarray) -> list[np.ndarray]:
        import numpy as np

        layout = deployment.input_layout
        found = run(np.ascontiguousarray(in_order(given, layout, entry.input_layout or layout)))
        layouts = entry.output_layouts or [output.layout for output in deployment.outputs]
        return [
            in_order(found[output.name], turned, output.layout) for output, turned in zip(deployment.outputs, layouts)
        ]

    return program


def _run(python: Path, folder: str, program: str, *words: Any) -> None:
    """Run a program in another environment. DataError if it fails."""
    python = python.absolute()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment["PATH"] = (
        f"{python.parent}{os.pathsep}{environment.get('PATH', '')}"  # onnx2tf runs onnxsim by its name
    )
    status, said = run_python(python, program, *words, folder=folder, environment=environment)
    if status:
        said = said or ["it says nothing"]
        raise DataError(
            f"expected {python} to convert and run TFLite, but: {said[-1]:.300}; make test-tflite makes an environment "
            "that does",
            settings=["tflite_python"],
        )
