# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from paddle.version import full_version as PADDLE_VERSION
from PIL import Image

from hmsa.deploy import quantize
from hmsa.deploy.engines import open_export
from hmsa.deploy.export import ExportOptions, export
from hmsa.deploy.formats import rows_of
from hmsa.errors import DataError, UsageError
from hmsa.toy.street import street

if PADDLE_VERSION.startswith("2"):
    pytest.skip("Paddle 2 writes nothing that can be converted to ONNX", allow_module_level=True)
onnx = pytest.importorskip("onnx", reason="pip install .[int8]")
pytest.importorskip("onnxruntime", reason="pip install .[int8]")
from hmsa.deploy.quantize import gathering, make_signed  # noqa: E402

NORMALIZE = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
FLOAT, UINT8, INT8, HALF = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "UINT8", "INT8", "FLOAT16"))


def graph_of(nodes, constants=(), shape=(1, 2, 4)):
    value = [onnx.helper.make_tensor_value_info(name, FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "graph", value[:1], value[1:], list(constants))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


def test_the_softmax_over_pixels_is_told_from_that_over_classes():
    node = onnx.helper.make_node
    model = graph_of(
        [
            node("Softmax", ["x"], ["weights"], "over pixels"),
            node("Transpose", ["x"], ["turned"], "turn", perm=[0, 2, 1]),
            node("MatMul", ["weights", "turned"], ["classes"], "gather"),
            node("MatMul", ["classes", "x"], ["scores"], "compare"),
            node("Mul", ["scores", "scores"], ["scaled"], "scale"),
            node("Softmax", ["scaled"], ["shares"], "over classes"),
            node("MatMul", ["shares", "turned"], ["y"], "spread"),
        ]
    )
    assert gathering(model) == ["over pixels", "gather"]
    assert gathering(graph_of([node("MatMul", ["x", "x"], ["y"], "product")])) == []


def test_unsigned_numbers_become_signed_ones_of_twice_the_step():
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor
    constants = [tensor("step", FLOAT, [], [0.5]), tensor("zero", UINT8, [], [0])]
    nodes = [
        node("QuantizeLinear", ["x", "step", "zero"], ["small"], "q"),
        node("DequantizeLinear", ["small", "step", "zero"], ["y"], "dq"),
    ]
    model = graph_of(nodes, constants)
    make_signed(model)
    onnx.checker.check_model(model, full_check=True)
    step, zero = map(onnx.numpy_helper.to_array, model.graph.initializer)
    assert step == pytest.approx(0.5 * 255 / 127)
    assert (zero.dtype, zero) == (np.int8, 0)


def test_int8_without_images_is_refused():
    with pytest.raises(UsageError, match="expected a folder of images like those to come") as error:
        ExportOptions(output_op="argmax", transforms=[NORMALIZE], formats=rows_of(["onnx"], ["fp32", "int8"]))
    assert error.value.settings == ["calibration"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index in range(6):
        _, image = street(np.random.default_rng(index), 96, 144)
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def exported(make_tiny_network, images, tmp_path_factory):
    pytest.importorskip("nncf", reason="pip install .[int8]")
    pytest.importorskip("openvino", reason="pip install .[int8]")
    folder = tmp_path_factory.mktemp("export")
    rows = rows_of(["onnx", "openvino"], ["fp32", "fp16", "int8"])
    options = ExportOptions(output_op="argmax", transforms=[NORMALIZE], formats=rows, calibration=images)
    return folder, export(make_tiny_network(), folder, options)


def types_of(path):
    model = onnx.load(path)
    return model, {tensor.data_type for tensor in model.graph.initializer}


def work_of(shape, min_size=1):
    entry = {
        "input_layout": "NCHW",
        "input_shape": shape,
        "input_dtype": "float32",
        "transforms": [],
        "min_size": min_size,
    }
    return SimpleNamespace(entry=entry)


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ([None, 3, None, None], (1, 3, 512, 512)),
        ([None, 3, 600, None], (1, 3, 600, 512)),
        ([2, 3, None, 640], (2, 3, 512, 640)),
        ([1, 3, 100, 60], (1, 3, 100, 60)),
    ],
)
def test_sides_that_the_export_fixes_are_not_cut(tmp_path, shape, found):
    Image.new("RGB", (900, 700)).save(tmp_path / "large.png")
    assert quantize._input(tmp_path / "large.png", work_of(shape)).shape == found


def test_images_that_are_too_small_to_calibrate_on_are_named(tmp_path):
    Image.new("RGB", (1, 9)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match=r"small\.png: expected at least 2 pixels each way, found 1x9: remove it"):
        quantize._input(tmp_path / "small.png", work_of([None, 3, None, None], min_size=2))


def test_a_hundred_are_taken_from_the_first_to_the_last(tmp_path):
    for number in range(150):
        (tmp_path / f"{number:03}.png").touch()
    calibrated, compared = quantize.calibration_of(tmp_path, 3)
    assert len(calibrated) == len({*calibrated}) == 100
    assert len(compared) == 8
    assert not {*calibrated} & {*compared}
    assert int(calibrated[-1].stem) > 140
    (tmp_path / "few").mkdir()
    with pytest.raises(DataError, match="found no image"):
        quantize.calibration_of(tmp_path / "few", 3)


@pytest.mark.slow
def test_fp16_is_typed_inside_and_float32_outside(exported):
    folder, _ = exported
    model, types = types_of(folder / "model_fp16.onnx")
    assert HALF in types
    assert model.graph.input[0].type.tensor_type.elem_type == FLOAT
    assert {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4} == {HALF}
    assert model.metadata_props[0].key == "hmsa"
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.slow
def test_int8_is_what_tensorrt_takes(exported):
    folder, said = exported
    model, types = types_of(folder / "model_int8.onnx")
    assert UINT8 not in types
    assert INT8 in types
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 20
    assert not any(constants[node.input[2]].any() for node in pairs)

    # The softmax over pixels and the product with it are given float32.
    dequantised = {output for node in pairs if node.op_type == "DequantizeLinear" for output in node.output}
    in_float = set(gathering(onnx.load(folder / "model.onnx")))
    assert in_float
    kept = [node for node in model.graph.node if node.name in set(gathering(model))]
    assert kept
    assert not any(name in dequantised for node in kept for name in node.input)

    entries = yaml.safe_load((folder / "deploy.yaml").read_text())["Deploy"]["formats"]
    agreements = {(entry["format"], entry["precision"]): entry.get("agreement") for entry in entries}
    for form in ("onnx", "openvino"):
        agreement = agreements[form, "int8"]
        assert float(agreement.split()[0]) > 90
        assert f"{form} int8, beside fp32: {agreement}" in said


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "precision"), [("onnxruntime", "int8"), ("openvino", "int8"), ("openvino", "bf16")])
def test_smaller_precisions_answer_almost_as_fp32_does(exported, images, engine, precision):
    folder, _ = exported
    pixels = np.asarray(Image.open(images / "0.png"), np.float32) / 255
    x = ((pixels - NORMALIZE["mean"]) / NORMALIZE["std"]).transpose(2, 0, 1)[np.newaxis].astype(np.float32)
    right, found = (open_export(folder, engine, name)(x)["label"] for name in ("fp32", precision))
    assert (right == found).mean() > 0.9


@pytest.mark.slow
def test_the_file_for_phones_answers_as_onnx_does(exported, tmp_path):
    """The command of docs/mobile.md."""
    import onnxruntime

    folder, _ = exported
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", "model.onnx"]
    command += ["--optimization_style", "Fixed", "--target_platform", "arm"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    sessions = [onnxruntime.InferenceSession(str(tmp_path / name)) for name in ("model.onnx", "model.ort")]
    for size in ((96, 144), (65, 97)):
        x = np.random.default_rng(0).normal(size=(1, 3, *size)).astype(np.float32)
        right, found = (session.run(None, {"x": x})[0] for session in sessions)
        assert (right == found).mean() >= 0.9999


def test_the_document_has_these_commands():
    text = (Path(__file__).parents[2] / "docs/mobile.md").read_text(encoding="utf-8")
    command = "python -m onnxruntime.tools.convert_onnx_models_to_ort"
    assert f"{command} model.onnx --optimization_style Fixed --target_platform arm" in text
