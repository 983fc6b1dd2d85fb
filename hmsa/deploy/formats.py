# SPDX-License-Identifier: Apache-2.0
"""The formats of an export, in one table: their files, what writes them, what they need, and which engines read them.

Reading the table loads neither Paddle nor an engine, as command lines list its names in their help.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from hmsa.deploy.engines import ENGINES, is_installed
from hmsa.errors import DataError, UsageError, suggest
from hmsa.inference.backends import CONVERTERS, need

if TYPE_CHECKING:
    from hmsa.deploy.quantize import Calibration

OPSET = 17
"""Of ONNX: what TensorRT, OpenVINO, onnx2tf and browsers all read."""

TFLITE_PYTHON = Path(".venv-tflite") / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
"""Of the environment that `make test-tflite` makes: TensorFlow, 2.6 GB, is not for this one."""


@dataclass(frozen=True)
class Work:
    """What the writers of formats get.

    Attributes:
        folder: where their files go.
        scratch: for files that are not kept.
        program: Paddle's own, in `folder`, with its .pdiparams beside it.
        entry: what `deploy.yaml` says so far, without what stands below `formats`.
        write_json: writes the network in Paddle 3's form, which converters want, at a path -> the program.
        calibration: images like those that the network will see, for int8.
        tflite_python: the interpreter of an environment with TensorFlow.
    """

    folder: Path
    scratch: Path
    program: Path
    entry: dict[str, Any]
    write_json: Callable[[Path], Path]
    calibration: Optional[Calibration] = None
    tflite_python: Optional[Path] = None

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in their order."""
        return [output["name"] for output in self.entry["outputs"]]

    @cached_property
    def onnx(self) -> Path:
        """The network in ONNX, fp32, written when it is first wanted: a file of `scratch`, from which others are made.

        Raises:
            DataError: the converter does not know all of its operators.
        """
        from hmsa.inference.tracing import convert_to_onnx

        stem = self.scratch / "model"
        self.write_json(stem)
        convert_to_onnx(stem, advice="leave the formats out that are made of it", settings=["format"])
        path = stem.with_suffix(".onnx")
        _name_onnx(path, self.entry)
        return path


@dataclass(frozen=True)
class FileSet:
    """A row of the table: a format in a precision.

    Attributes:
        files: that it consists of.
        write: puts the files into `Work.folder`, and returns what `deploy.yaml` says of them besides. None: they are
            there before all others, being Paddle's own.
        needs_onnx: whether it is made of the network in ONNX, which `CONVERTERS` and Paddle 3 write.
        packages: that it needs besides; they are imported by the names they are installed by.
        extra: the one of pyproject.toml that installs what it needs.
    """

    format: str
    precision: str
    files: tuple[str, ...]
    write: Optional[Callable[[Work], dict[str, Any]]] = None
    needs_onnx: bool = False
    packages: tuple[str, ...] = ()
    extra: str = ""

    @property
    def engines(self) -> list[str]:
        """Those that read it, by which it is verified where they are installed; the first has to be, or another."""
        return [name for name, engine in ENGINES.items() if self.precision in engine.reads.get(self.format, ())]


# --- Who writes them. ---


def _onnx(work: Work) -> dict[str, Any]:
    shutil.copyfile(work.onnx, work.folder / "model.onnx")
    return {"opset": OPSET}


def _openvino(work: Work) -> dict[str, Any]:
    return _write_openvino(work, "model.xml", half=False)


def _openvino_fp16(work: Work) -> dict[str, Any]:
    return _write_openvino(work, "model_fp16.xml", half=True)


def _write_openvino(work: Work, name: str, *, half: bool) -> dict[str, Any]:
    """OpenVINO's own form, of the network in ONNX or, where no converter to that is installed, of Paddle's program."""
    import openvino

    source = work.onnx if can_write_onnx() else work.program
    try:
        model = openvino.Core().read_model(source)
        model.inputs[0].get_tensor().set_names({work.entry["input_name"]})
        for output, output_name in zip(model.outputs, work.output_names):
            output.get_tensor().set_names({output_name})
        openvino.save_model(model, work.folder / name, compress_to_fp16=half)
    # OpenVINO raises RuntimeError, of many kinds.
    except RuntimeError as error:
        raise DataError(
            f"expected a network that OpenVINO can read, but: {_last_line(error)}; leave the format openvino out",
            settings=["format"],
        ) from error
    return {}


def _onnx_fp16(work: Work) -> dict[str, Any]:
    from hmsa.deploy import quantize

    return {"opset": OPSET, **quantize.write_onnx_fp16(work)}


def _onnx_int8(work: Work) -> dict[str, Any]:
    from hmsa.deploy import quantize

    return {"opset": OPSET, **quantize.write_onnx_int8(work)}


def _openvino_int8(work: Work) -> dict[str, Any]:
    from hmsa.deploy import quantize

    return quantize.write_openvino_int8(work)


def _tflite(work: Work) -> dict[str, Any]:
    from hmsa.deploy import tflite

    assert work.tflite_python is not None
    return tflite.convert(work.onnx, work.folder / "model.tflite", work.tflite_python, work.entry)


_OPENVINO: dict[str, Any] = {"packages": ("openvino",), "extra": "openvino"}
_FP16: dict[str, Any] = {"needs_onnx": True, "packages": ("onnxruntime",), "extra": "onnx"}
_INT8: dict[str, Any] = {"needs_onnx": True, "packages": ("nncf", "onnxruntime"), "extra": "int8"}

FORMATS: list[FileSet] = [
    FileSet("paddle", "fp32", ("model.pdmodel", "model.pdiparams")),
    FileSet("onnx", "fp32", ("model.onnx",), _onnx, needs_onnx=True, extra="onnx"),
    FileSet("onnx", "fp16", ("model_fp16.onnx",), _onnx_fp16, **_FP16),
    FileSet("onnx", "int8", ("model_int8.onnx",), _onnx_int8, **_INT8),
    FileSet("openvino", "fp32", ("model.xml", "model.bin"), _openvino, **_OPENVINO),
    FileSet("openvino", "fp16", ("model_fp16.xml", "model_fp16.bin"), _openvino_fp16, **_OPENVINO),
    FileSet("openvino", "int8", ("model_int8.xml", "model_int8.bin"), _openvino_int8, **_INT8),
    FileSet("tflite", "fp32", ("model.tflite",), _tflite, needs_onnx=True, extra="onnx"),
]
"""Every format in every precision, in the order in which they are written. A new one is a row here, and its writer
above or in a file beside."""


# --- Choosing. ---


def format_names() -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.format for row in FORMATS))


def precision_names() -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.precision for row in FORMATS))


def rows_of(formats: Sequence[str], precisions: Sequence[str]) -> list[FileSet]:
    """The rows of these formats in these precisions; Paddle's own program is always the first.

    Raises:
        UsageError: an unknown name, or a format or a precision of which there is no row.
    """
    for name in formats:
        if name not in format_names():
            found = suggest(name, format_names())
            raise UsageError(f"expected a format, found {name!r}: {found}", settings=["format"])
    for name in precisions:
        if name not in precision_names():
            found = suggest(name, precision_names())
            raise UsageError(f"expected a precision, found {name!r}: {found}", settings=["precision"])

    rows = [row for row in FORMATS if row.format in formats and row.precision in precisions]
    for name in formats:
        if name != "paddle" and name not in {row.format for row in rows}:
            able = ", ".join(row.precision for row in FORMATS if row.format == name)
            raise UsageError(
                f"expected a precision in which {name} is written ({able}), found {', '.join(precisions)}: add one of "
                "them, or leave the format out",
                settings=["format", "precision"],
            )
    for name in precisions:
        if name != "fp32" and name not in {row.precision for row in rows}:
            able = ", ".join(row.format for row in FORMATS if row.precision == name)
            raise UsageError(
                f"expected a format that is written in {name} ({able}), found {', '.join(formats)}: add one of them, "
                "or leave the precision out",
                settings=["format", "precision"],
            )
    return [FORMATS[0], *(row for row in rows if row is not FORMATS[0])]


def can_write_onnx() -> bool:
    """Whether the converter to ONNX is installed, and this Paddle writes what it reads."""
    from hmsa.inference.tracing import writes_json

    return writes_json() and all(map(find_spec, CONVERTERS["onnx"]))


def check_installed(rows: Sequence[FileSet], *, tflite_python: Optional[Path] = None) -> None:
    """UsageError unless all that writes and verifies these rows is there."""
    from hmsa.inference.tracing import writes_json

    for row in rows:
        if row.needs_onnx and not writes_json():
            raise UsageError(
                f"the format {row.format} needs Paddle 3: what Paddle 2 writes cannot be converted to ONNX; leave it "
                "out, or export with Paddle 3 (OpenVINO reads what Paddle 2 writes)",
                settings=["format"],
            )
        needed = [*row.packages, *(CONVERTERS["onnx"] if row.needs_onnx else ())]
        if row.format != "tflite" and not any(map(is_installed, row.engines)):
            needed += ENGINES[row.engines[0]].packages
        need(f"the format {row.format}", needed, row.extra, settings=["format"])
        if row.format == "tflite" and not (tflite_python and tflite_python.is_file()):
            raise UsageError(
                f"the format tflite needs TensorFlow, in an environment of its own, found none at {tflite_python}: "
                "make test-tflite makes .venv-tflite, or name the Python of another",
                settings=["tflite_python"],
            )


# --- ONNX. ---


def _name_onnx(path: Path, entry: dict[str, Any]) -> None:
    """Give the input, the outputs and their axes the names of `deploy.yaml`, and the file what it takes to use it."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    _keep_tensors_as_initializers(graph)
    outputs = entry["outputs"]
    renamed = {graph.input[0].name: entry["input_name"]}
    renamed.update({old.name: new["name"] for old, new in zip(graph.output, outputs)})
    # A tensor inside may have the name already.
    inner = {name for node in graph.node for name in (*node.input, *node.output)} - set(renamed)
    renamed.update({name: f"{name}_inside" for name in inner & set(renamed.values())})
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    del graph.value_info[:]

    for value, layout in ((graph.input[0], entry["input_layout"]), *zip(graph.output, (o["layout"] for o in outputs))):
        value.name = renamed[value.name]
        shape = value.type.tensor_type.shape
        for axis, dim in zip(layout, shape.dim):
            if axis in "NHW" and dim.dim_value <= 0:
                dim.dim_param = axis
    model.metadata_props.add(key="hmsa", value=json.dumps(_metadata(entry)))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _keep_tensors_as_initializers(graph: Any) -> None:
    """The converter writes weights as nodes, which some readers (onnx2tf, tools that quantise) take for something that
    is computed."""
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _metadata(entry: dict[str, Any]) -> dict[str, Any]:
    """What a program that has the ONNX file alone needs to know."""
    normalize = next((step for step in entry["transforms"] if step["type"] == "Normalize"), {})
    keys = ("class_names", "class_colors", "pixel_divisor", "channel_order", "output_op", "outputs")
    return {
        **{key: entry[key] for key in keys},
        **{key: normalize.get(key) for key in ("mean", "std")},
        "input_dtype": entry["input_dtype"],
        "input_layout": entry["input_layout"],
    }


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[-1].strip():.200}"
