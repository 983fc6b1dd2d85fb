# SPDX-License-Identifier: Apache-2.0
"""One export in several formats: what is written, what is refused, and what its engines answer."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from awaken import awaken
from numpy.testing import assert_allclose, assert_array_equal
from packaging.requirements import Requirement
from paddle.version import full_version as PADDLE_VERSION

from hmsa.deploy import formats
from hmsa.deploy.engines import ENGINES, open_export
from hmsa.deploy.export import ExportOptions, export
from hmsa.deploy.formats import FORMATS, check_installed, rows_of
from hmsa.deploy.network import Answer, ExportedNetwork
from hmsa.deploy.parity import Case, compare, make_cases, streets
from hmsa.deploy.runtime import load_predictor
from hmsa.errors import DataError, UsageError
from hmsa.inference import backends, tracing
from hmsa.inference.averaging import InferenceOptions, class_scores
from hmsa.models.hierarchical import joint_logits
from hmsa.system import processes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NORMALIZE = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
IS_PADDLE_2 = PADDLE_VERSION.startswith("2")
PACKAGES = ("openvino",) if IS_PADDLE_2 else ("openvino", "onnxruntime", "paddle2onnx", "onnx", "polygraphy")
FORMAT_NAMES = ["openvino"] if IS_PADDLE_2 else ["onnx", "openvino"]
SLOW_NAMES = [pytest.param(name, marks=pytest.mark.slow) for name in FORMAT_NAMES[1:]]
READERS = [
    ("paddle", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "fp16"),
    *[("onnxruntime", "fp32")] * (not IS_PADDLE_2),
]

needs_packages = pytest.mark.skipif(
    not all(map(find_spec, PACKAGES)), reason="formats need packages: pip install .[onnx,openvino]"
)
on_paddle_3 = pytest.mark.skipif(IS_PADDLE_2, reason="Paddle 2 cannot be converted to ONNX")


class Small(paddle.nn.Layer):
    """A model that exports in no time."""

    num_classes = 5

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 5, 3, padding=1)

    def forward(self, image):
        return {"joint": self.conv(image)}


def installed():
    """All distributions that are installed, and their versions."""
    return sorted((found.name, found.version) for found in importlib.metadata.distributions())


@pytest.fixture(scope="module")
def exported(make_tiny_network, tmp_path_factory):
    """All that one program can give, in all formats: (network, folder, what was said, distributions before)."""
    if not all(map(find_spec, PACKAGES)):
        pytest.skip("formats need packages: pip install .[onnx,openvino]")
    network, folder, before = make_tiny_network(), tmp_path_factory.mktemp("formats") / "model", installed()
    options = ExportOptions(
        output_op="softmax",
        transforms=[NORMALIZE],
        formats=rows_of(FORMAT_NAMES, ["fp32", "fp16"]),
        with_confidence=True,
        with_attention=True,
        preprocess=True,
    )
    return network, folder, export(network, folder, options), before


def test_the_converter_installs_nothing(exported):
    assert installed() == exported[3]


@on_paddle_3
def test_the_converter_runs_alone_and_is_told_to_install_nothing(tmp_path, monkeypatch):
    called = []

    def run(words, **options):
        called.append((Path(options["cwd"]), options["env"]))
        return subprocess.CompletedProcess(words, 1, stdout="[ERROR] it knows no flip\nTraceback\nUnboundLocalError")

    monkeypatch.setattr(processes.subprocess, "run", run)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(DataError, match=r"converted to ONNX: \[ERROR\] it knows no flip; use the backend inference"):
        tracing.convert_to_onnx(tmp_path / "model")
    ((cwd, environment),) = called
    assert environment["POLYGRAPHY_AUTOINSTALL_DEPS"] == "0"
    assert os.environ.get("POLYGRAPHY_AUTOINSTALL_DEPS") != "0"
    assert not cwd.exists() and cwd != tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


def test_the_description_names_formats_and_outputs(exported):
    _, folder, said, _ = exported
    entry = yaml.safe_load((folder / "deploy.yaml").read_text())["Deploy"]
    assert (entry["input_name"], entry["input_dtype"], entry["input_layout"]) == ("image", "uint8", "NHWC")
    assert (entry["transforms"], entry["input_shape"], entry["min_size"]) == ([], [None, None, None, 3], 2)
    assert entry["outputs"] == [
        {"name": "probabilities", "dtype": "float32", "layout": "NCHW"},
        {"name": "confidence", "dtype": "float32", "layout": "NHW"},
        {"name": "attention", "dtype": "float32", "layout": "NSHW", "scales": [0.5, 1.0, 2.0]},
    ]
    files = [name for found in entry["formats"] for name in found["files"]]
    assert sorted(entry["sha256"]) == sorted(files) == sorted(path.name for path in folder.glob("model*"))
    assert {
        (found["format"], found["precision"], engine) for found in entry["formats"] for engine in found["engines"]
    } == {
        (row.format, row.precision, engine) for row in rows_of(FORMAT_NAMES, ["fp32", "fp16"]) for engine in row.engines
    }
    lines = [line.split() for line in said.splitlines()]
    assert ["format", "precision", "engine", "labels", "equal", "largest", "difference", "MB"] in lines
    assert {"paddle", "openvino"} <= {line[0] for line in lines}


@pytest.mark.parametrize(("engine", "precision"), READERS)
def test_every_engine_answers_as_the_network_does(exported, engine, precision):
    network, folder, _, _ = exported
    session = open_export(folder, engine, precision, threads=1)
    answer = Answer("softmax", confidence=True, attention=True, normalize=(NORMALIZE["mean"], NORMALIZE["std"]))
    (case,) = make_cases(network, answer, [(2, 3, 75, 57)], normalize=answer.normalize)
    assert len(np.unique(case.answers["probabilities"].argmax(axis=1))) > 1
    found = session(case.images)
    assert list(found) == [output.name for output in session.deployment.outputs] == list(case.answers)
    for name, expected in case.answers.items():
        assert found[name].dtype == np.float32
        assert_allclose(found[name], expected, atol=1e-4 if precision == "fp32" else 0.05, err_msg=name)
    assert_allclose(found["confidence"], found["probabilities"].max(axis=1), atol=1e-6)


@pytest.mark.parametrize("engine", ["paddle", "openvino"])
def test_images_that_would_end_the_process_are_refused(exported, engine):
    session = open_export(exported[1], engine)
    with pytest.raises(DataError, match=r"at least 2 pixels each way, .* found 1x1: enlarge"):
        session(np.zeros((1, 1, 1, 3), np.uint8))
    with pytest.raises(DataError, match=r"expected images of the shape N H W 3 \(NHWC\), found 1 3 20 20"):
        session(np.zeros((1, 3, 20, 20), np.uint8))
    with pytest.raises(DataError, match="at least 2 pixels each way"):
        load_predictor(exported[1])(np.zeros((1, 1, 40, 3), np.uint8))
    assert session(np.zeros((1, 2, 3, 3), np.uint8))["confidence"].shape == (1, 2, 3)


@on_paddle_3
def test_what_stands_in_the_onnx_file(exported):
    import onnx

    model = onnx.load(exported[1] / "model.onnx")
    assert [opset.version for opset in model.opset_import] == [17]
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes == {
        "image": ["N", "H", "W", 3],
        "probabilities": ["N", 5, "H", "W"],
        "confidence": ["N", "H", "W"],
        "attention": ["N", 3, "H", "W"],
    }
    told = json.loads({prop.key: prop.value for prop in model.metadata_props}["hmsa"])
    assert told["class_names"][0] == "class 0" and len(told["class_colors"]) == 5
    assert (told["output_op"], told["channel_order"], told["input_dtype"]) == ("softmax", "RGB", "uint8")
    assert told["mean"] is None and [output["name"] for output in told["outputs"]] == list(axes)[1:]


@needs_packages
@pytest.mark.parametrize(("output_op", "average"), [("argmax", "logits"), ("none", "softmax")])
def test_averages_inside_the_program(make_tiny_network, tmp_path, output_op, average):
    averaging = InferenceOptions(scales=(0.75,), flip_horizontal=True, average=average)
    options = ExportOptions(
        output_op=output_op,
        transforms=[NORMALIZE],
        formats=rows_of(FORMAT_NAMES, ["fp32"]),
        averaging=averaging,
        with_confidence=True,
        with_attention=True,
    )
    network = make_tiny_network()
    export(network, tmp_path, options)
    image = np.random.default_rng(5).normal(size=(1, 3, 65, 91)).astype(np.float32)
    scores = class_scores(joint_logits(network), paddle.to_tensor(image), averaging).numpy()
    for engine, precision in READERS:
        if precision == "fp32":
            first = next(iter(open_export(tmp_path, engine)(image).values()))
            label = first if output_op == "argmax" else first.argmax(axis=1)
            assert (label == scores.argmax(axis=1)).mean() > 0.999


def test_averages_are_those_of_an_evaluation(make_tiny_network):
    """Run eagerly, without any program."""
    network, image = (
        make_tiny_network(),
        paddle.to_tensor(np.float32(streets((1, 3, 45, 61)).transpose(0, 3, 1, 2) / 255)),
    )
    for options in (
        {"scales": (0.5, 1.0, 1.75)},
        {"flip_horizontal": True},
        {"scales": (0.75,), "flip_horizontal": True, "flip_vertical": True},
        {"scales": (0.75, 1.25), "average": "softmax"},
    ):
        averaging = InferenceOptions(**options)
        exported = ExportedNetwork(network, Answer("none", averaging=averaging))
        exported.eval()
        with paddle.no_grad():
            found, scores = exported(image).numpy(), class_scores(joint_logits(network), image, averaging)
        expected = paddle.log(scores).numpy() if averaging.averages_probabilities else scores.numpy()
        assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), err_msg=str(options))


def test_normalising_inside_is_what_the_transform_does(make_tiny_network):
    answer = Answer("none", normalize=(NORMALIZE["mean"], NORMALIZE["std"]))
    network = make_tiny_network()
    exported = ExportedNetwork(network, answer)
    exported.eval()
    (case,) = make_cases(network, answer, [(2, 3, 40, 60)], normalize=answer.normalize)
    assert case.images.dtype == np.uint8
    with paddle.no_grad():
        found = exported(paddle.to_tensor(case.images)).numpy()
    assert_allclose(found, case.answers["logits"], atol=1e-5 * np.ptp(case.answers["logits"]))


# --- A format that answers wrongly. ---


@needs_packages
@pytest.mark.parametrize(
    "format", [FORMAT_NAMES[0], *(pytest.param(x, marks=pytest.mark.slow) for x in FORMAT_NAMES[1:])]
)
def test_swapped_channels_in_a_format_are_noticed_and_the_earlier_export_stays(tmp_path, monkeypatch, format):
    network = awaken(Small())
    options = ExportOptions(output_op="argmax", transforms=[NORMALIZE])
    export(network, tmp_path, options)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    weight = network.conv.weight.numpy()
    rows = rows_of([format], ["fp32"])

    def write(work):
        """From a network whose input is blue, green, red."""
        swapped = Small()
        swapped.set_state_dict(network.state_dict())
        swapped.conv.weight.set_value(weight[:, ::-1].copy())
        swapped.eval()
        layer = ExportedNetwork(swapped, options.answer)
        layer.eval()
        write_json = lambda path: tracing.write_program(layer, path)  # noqa: E731
        program = tracing.write_program(layer, work.scratch / "swapped", old_form=True)
        return rows[1].write(replace(work, write_json=write_json, program=program))

    wrong = replace(rows[1], write=write)
    with pytest.raises(DataError, match=rf"labels of \d+ of \d+ pixels are wrong, .* \({format} fp32\) cannot"):
        export(network, tmp_path, ExportOptions(output_op="argmax", transforms=[NORMALIZE], formats=[rows[0], wrong]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_rounding_is_told_apart_from_an_error(precision):
    logits = np.random.default_rng(0).normal(size=(1, 5, 20, 30))
    label = logits.argmax(axis=1)
    case = Case(np.zeros((1, 3, 20, 30)), logits, {"label": label})
    few = np.where(np.arange(30) == 3, (label + 1) % 5, label)
    found = compare([case], lambda images: {"label": few}, reader="it", precision=precision)
    assert str(found) == "96.6667 % of labels equal"
    with pytest.raises(DataError, match="does not answer as the network does"):
        compare([case], lambda images: {"label": (label + 1) % 5}, reader="it", precision=precision)


# --- Refused before work begins. ---


def test_unknown_words_get_the_nearest_one():
    with pytest.raises(UsageError, match=r"expected a format, found 'onx': did you mean onnx\?"):
        rows_of(["paddle", "onx"], ["fp32"])
    with pytest.raises(UsageError, match=r"expected a precision, found 'fp61': did you mean fp16\?") as error:
        rows_of(["openvino"], ["fp61"])
    assert error.value.settings == ["precision"]


def test_a_format_has_to_have_a_row_in_a_precision():
    assert [(row.format, row.precision) for row in rows_of(["openvino"], ["fp16"])] == [
        ("paddle", "fp32"),
        ("openvino", "fp16"),
    ]
    with pytest.raises(UsageError, match=r"in which tflite is written \(fp32\), found fp16"):
        rows_of(["openvino", "tflite"], ["fp16"])
    with pytest.raises(UsageError, match=r"a format that is written in fp16 \(.*openvino.*\), found paddle"):
        rows_of(["paddle"], ["fp16"])


@pytest.mark.parametrize(
    ("format", "package", "extra"), [("onnx", "paddle2onnx", "onnx"), ("openvino", "openvino", "openvino")]
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch, format, package, extra):
    if IS_PADDLE_2 and format == "onnx":
        pytest.skip("Paddle 2 cannot be converted to ONNX")
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == package else find_spec("json"))
    monkeypatch.setattr(formats, "is_installed", lambda engine: engine != package)
    with pytest.raises(
        UsageError, match=rf"format {format} needs the package {package}, .*: pip install \.\[{extra}\]"
    ):
        check_installed(rows_of([format], ["fp32"]))


@on_paddle_3
def test_onnx_needs_one_engine_that_can_verify_it(monkeypatch):
    missing = ("onnxruntime", "openvino")
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name in missing else find_spec("json"))
    monkeypatch.setattr(formats, "is_installed", lambda engine: False)
    with pytest.raises(UsageError, match=r"format onnx needs the package onnxruntime, .*: pip install \.\[onnx\]"):
        check_installed(rows_of(["onnx"], ["fp32"]))


@pytest.mark.skipif(not IS_PADDLE_2, reason="Paddle 3 can")
def test_paddle_2_refuses_onnx_in_a_sentence():
    with pytest.raises(UsageError, match="format onnx needs Paddle 3: what Paddle 2 writes cannot be converted"):
        check_installed(rows_of(["onnx"], ["fp32"]))


@on_paddle_3
def test_tflite_needs_an_environment_of_its_own_and_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: find_spec("json"))
    rows = rows_of(["tflite"], ["fp32"])
    with pytest.raises(
        UsageError, match=r"TensorFlow, in an environment of its own, found none at .*: make test-tflite"
    ):
        check_installed(rows, tflite_python=tmp_path / "python")
    with pytest.raises(UsageError, match="one input shape for tflite, whose programs have a fixed size"):
        ExportOptions(output_op="argmax", transforms=[], formats=rows)


@pytest.mark.parametrize(
    ("transforms", "in_channels"),
    [([], 3), ([{"type": "Resize", "target_size": [64, 64]}, NORMALIZE], 3), ([NORMALIZE], 4)],
)
def test_what_cannot_be_put_into_the_program(transforms, in_channels):
    with pytest.raises(
        UsageError, match="transforms that do nothing but Normalize, to put them into the program"
    ) as error:
        ExportOptions(
            output_op="argmax",
            transforms=transforms,
            in_channels=in_channels,
            input_shape=(None, in_channels, None, None),
            preprocess=True,
        )
    assert error.value.settings == ["preprocess"]


def test_a_network_without_attention(tmp_path):
    with pytest.raises(UsageError, match="expected a network with attention, found Small"):
        export(Small(), tmp_path, ExportOptions(output_op="argmax", transforms=[], with_attention=True))


# --- Opening. ---


def test_what_an_export_does_not_hold(tmp_path):
    export(awaken(Small()), tmp_path, ExportOptions(output_op="argmax", transforms=[]))
    with pytest.raises(UsageError, match="expected an engine, found 'onnxrun': did you mean onnxruntime"):
        open_export(tmp_path, "onnxrun")
    if find_spec("onnxruntime"):
        with pytest.raises(
            UsageError,
            match=r"expected onnx in fp32, which onnxruntime reads, found paddle fp32 \(model\.\w+\): choose",
        ):
            open_export(tmp_path, "onnxruntime")
    with pytest.raises(UsageError, match="expected paddle in int8, which paddle reads"):
        open_export(tmp_path, precision="int8")


def test_an_export_of_before_is_opened(tmp_path):
    export(awaken(Small()), tmp_path, ExportOptions(output_op="argmax", transforms=[]))
    content = yaml.safe_load((tmp_path / "deploy.yaml").read_text())
    for key in ("outputs", "formats", "min_size", "input_dtype", "input_layout"):
        del content["Deploy"][key]
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump(content))
    image = np.zeros((1, 3, 7, 9), np.float32)
    found = open_export(tmp_path)(image)
    assert_array_equal(found["label"], load_predictor(tmp_path)(image))


def test_a_damaged_file_is_noticed(exported, tmp_path):
    for path in exported[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"model\.bin: expected the file that export\.py wrote"):
        open_export(tmp_path, "openvino")


def test_extras_install_what_the_tables_ask_for():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for row in (*FORMATS, *ENGINES.values()):
        if row.extra:
            names = {Requirement(line).name.replace("-", "_") for line in extras[row.extra]}
            assert set(row.packages) <= names, row
    for row in FORMATS:
        assert set(row.engines) <= set(ENGINES)
        assert row.engines
