# SPDX-License-Identifier: Apache-2.0
"""Smaller precisions of an export: ONNX in fp16, ONNX and OpenVINO in int8, calibrated on a folder of images.

Both are made of the network in ONNX. What decides which pixels a class's features are gathered from (`gathering`)
stays in float32: a share of a thousandth of the pixels is no number of eight bits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hmsa.system.prepared  # noqa: F401

import cv2
import numpy as np

from hmsa.components import KINDS, imported
from hmsa.datasets.bands import read_bands, suffixes_of
from hmsa.datasets.find import find_images
from hmsa.errors import DataError, UsageError, printable
from hmsa.inference.backends import BACKENDS

if TYPE_CHECKING:
    from onnx import ModelProto

    from hmsa.deploy.formats import Work

MAX_IMAGES = 100
"""That are calibrated on: the ranges of more change little, and each takes seconds."""

FEW = 20
"""With fewer, what is calibrated depends on which they are."""

COMPARED = 8
"""Images that are kept back from calibration, to compare int8 with fp32 on."""

MAX_SIDE = 512
"""Of what is cut out of a larger image: all tensors inside the network are looked at, and kept meanwhile."""


def write_onnx_fp16(work: Work) -> dict[str, Any]:
    """model_fp16.onnx: strongly typed, float32 in and out, float16 inside but for `gathering`."""
    import onnx
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = prepared_onnx(work)
    half = float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=gathering(model))
    OnnxModel(half).topological_sort()  # of the casts, which come last
    onnx.checker.check_model(half)
    onnx.save(half, work.folder / "model_fp16.onnx")
    return {}


def write_onnx_int8(work: Work) -> dict[str, Any]:
    """model_int8.onnx, with pairs of QuantizeLinear and DequantizeLinear, signed and symmetric as TensorRT wants them
    -> how it agrees with fp32."""
    import onnx

    source, name = prepared_onnx(work), work.entry["input_name"]
    assert work.calibration is not None
    calibrated, compared = work.calibration
    model = _quantized(source, calibrated, lambda path: {name: _input(path, work)}, gathering(source))
    make_signed(model)
    target = work.folder / "model_int8.onnx"
    onnx.save(model, target)
    return {"agreement": _agreement(work, "onnxruntime", work.onnx, target, compared)}


def write_openvino_int8(work: Work) -> dict[str, Any]:
    """model_int8.xml and .bin -> how they agree with fp32."""
    import onnx
    import openvino

    source = prepared_onnx(work)
    path = work.scratch / "prepared.onnx"
    onnx.save(source, path)
    assert work.calibration is not None
    calibrated, compared = work.calibration
    read = openvino.Core().read_model(path)
    model = _quantized(read, calibrated, lambda path: _input(path, work), gathering(source))
    target = work.folder / "model_int8.xml"
    openvino.save_model(model, target, compress_to_fp16=False)
    return {"agreement": _agreement(work, "openvino", work.onnx, target, compared)}


# --- The network in ONNX. ---


def prepared_onnx(work: Work) -> ModelProto:
    """The network in ONNX, its constants folded and its biases in the convolutions, by ONNX Runtime."""
    import onnx
    import onnxruntime

    target = work.scratch / "simplified.onnx"
    if not target.exists():
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        # Beyond the basic level, there are operators that only ONNX Runtime has.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(work.onnx, options, providers=["CPUExecutionProvider"])

    model = onnx.load(target)
    used = {node.domain for node in model.graph.node}
    for opset in [opset for opset in model.opset_import if opset.domain not in used]:
        model.opset_import.remove(opset)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(work.onnx, load_external_data=False).metadata_props)
    return model


def gathering(model: ModelProto) -> list[str]:
    """The names of the nodes that weigh all pixels of an image against each other: in an OCR head, the softmax over
    them, and the product with their features. The softmax over classes, which follows a product, is none of them."""
    maker = {output: node for node in model.graph.node for output in node.output}

    def behind(name: str, passed: Sequence[str]) -> Any:
        node = maker.get(name)
        while node is not None and node.op_type in passed:
            node = maker.get(node.input[0])
        return node

    moved = ("Cast", "Div", "Identity", "Mul", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
    names: dict[str, None] = {}
    for node in model.graph.node:
        if node.op_type != "MatMul":
            continue
        for name in node.input:
            softmax = behind(name, moved)
            if softmax is None or softmax.op_type != "Softmax":
                continue
            scored = behind(softmax.input[0], moved)
            if scored is None or scored.op_type != "MatMul":
                names.update(dict.fromkeys((softmax.name, node.name)))
    return list(names)


def make_signed(model: ModelProto) -> None:
    """Turn what is quantised to 0..255 into -128..127 with twice the step: TensorRT takes signed numbers alone, and
    zero has to be zero. Of what is never negative, a bit is lost."""
    import onnx
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    unsigned = {
        (scale, zero)
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for _, scale, zero in [node.input]
        if constants[zero].data_type == onnx.TensorProto.UINT8
    }
    for name in {zero for _, zero in unsigned}:
        zero = numpy_helper.to_array(constants[name])
        assert not zero.any(), name  # the preset is symmetric
        constants[name].CopyFrom(numpy_helper.from_array(zero.astype(np.int8), name))
    for name in {scale for scale, _ in unsigned}:
        scale = numpy_helper.to_array(constants[name])
        constants[name].CopyFrom(numpy_helper.from_array((scale * (255 / 127)).astype(scale.dtype), name))
    del model.graph.value_info[:]  # which say what was unsigned


# --- Calibration. ---


def _quantized(model: Any, images: Sequence[Path], read: Callable[[Path], Any], in_float: Sequence[str]) -> Any:
    """The network of ONNX or OpenVINO in int8, by NNCF."""
    os.environ.setdefault("NNCF_CI", "1")  # else it would report its use to its makers
    import nncf

    nncf.set_log_level(logging.ERROR)
    # With the correction, fewer labels were those of fp32 (docs/quantisation.md): 97.8 % in place of 99.1 %.
    options = nncf.AdvancedQuantizationParameters(disable_bias_correction=True)
    with contextlib.redirect_stdout(sys.stderr):  # its progress
        return nncf.quantize(
            model,
            nncf.Dataset(images, read),
            preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=list(in_float), validate=False),
            advanced_parameters=options,
        )


class Calibration(NamedTuple):
    """Images that int8 is calibrated on, and others to compare it with fp32 on."""

    calibrated: list[Path]
    compared: list[Path]


def calibration_of(folder: Path, in_channels: int) -> Calibration:
    """The images of a folder. DataError if there are none."""
    found = [image.path for image in find_images(str(folder), suffixes=suffixes_of(in_channels))]
    kept_back = found[:: max(5, len(found) // COMPARED)][:COMPARED]
    calibrated = [path for path in found if path not in set(kept_back)] or found
    if len(calibrated) < FEW:
        images = f"{len(calibrated)} image{'s' * (len(calibrated) > 1)}"
        said = f"{folder}: int8 is calibrated on {images}; a hundred like those to come give steadier ranges"
        print(printable(f"warning: {said}"), file=sys.stderr)
    if len(calibrated) > MAX_IMAGES:  # from the first to the last
        calibrated = [calibrated[number * len(calibrated) // MAX_IMAGES] for number in range(MAX_IMAGES)]
    return Calibration(calibrated, kept_back)


def _input(path: Path, work: Work) -> np.ndarray:
    """An image as the network takes it, as large as it is or as the network wants it, at most `MAX_SIDE` each way."""
    entry = work.entry
    sample: dict[str, Any] = {"img": read_bands(path, _channels(work))[0], "trans_info": []}
    rng = np.random.default_rng(0)
    for step in entry["transforms"]:
        sample = _transform(step)(sample, rng)
    image = sample["img"]

    sides = dict(zip(entry["input_layout"], entry["input_shape"]))
    height, width = image.shape[:2]
    if min(sides["H"] or height, sides["W"] or width) < entry["min_size"]:
        least = entry["min_size"]
        raise DataError(f"{path}: expected at least {least} pixels each way, found {width}x{height}: remove it")
    H, W = sides["H"] or height, sides["W"] or width
    if (height, width) != (H, W):
        image = cv2.resize(image, (W, H)).reshape(H, W, -1)
    top, left = (
        0 if sides[axis] else rng.integers(0, max(1, side - MAX_SIDE + 1)) for axis, side in (("H", H), ("W", W))
    )
    image = image[top : top + (sides["H"] or MAX_SIDE), left : left + (sides["W"] or MAX_SIDE)]

    batch = np.repeat(image[np.newaxis], sides["N"] or 1, axis=0)
    if entry["input_layout"] == "NCHW":
        batch = batch.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(batch, entry["input_dtype"])


def _transform(step: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    known = KINDS["transform"]
    if step["type"] not in known:
        raise UsageError(
            f"expected transforms of this project ({', '.join(known)}) to calibrate int8 with, found {step['type']}: "
            "leave int8 out",
            settings=["precision"],
        )
    return imported(known[step["type"]][1])(**{key: value for key, value in step.items() if key != "type"})


def _channels(work: Work) -> int:
    return work.entry["input_shape"][work.entry["input_layout"].index("C")]


def _agreement(work: Work, engine: str, exact: Path, rounded: Path, images: Sequence[Path]) -> str:
    """The share of labels that are the same in two files, in words."""
    programs: list[Any] = []
    for path in (exact, rounded):
        opener = BACKENDS[engine].open
        assert opener is not None
        programs.append(opener(path, "fp32"))

    same = pixels = 0
    for path in images:
        given = _input(path, work)
        right, found = (_labels(run(given)[0]) for run in programs)
        same += int((right == found).sum())
        pixels += right.size
    which = f"{len(images)} image{'s' * (len(images) > 1)}"
    return f"{100 * same / pixels:.2f} % of labels equal on {which} of the calibration folder"


def _labels(answer: np.ndarray) -> np.ndarray:
    return answer if answer.ndim == 3 else answer.argmax(axis=1)
