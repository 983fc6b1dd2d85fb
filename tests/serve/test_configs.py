# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from serving import DEPLOYMENT

from hmsa.commands.serve import main, make_parser
from hmsa.deploy import engines
from hmsa.deploy.runtime import Deployment
from hmsa.errors import DataError, UsageError
from hmsa.serve.app import Limits
from hmsa.serve.configs import write_config

FORMATS = [
    {"format": "paddle", "precision": "fp32", "files": ["model.pdmodel", "model.pdiparams"]},
    {"format": "onnx", "precision": "fp32", "files": ["model.onnx"]},
    {"format": "openvino", "precision": "fp16", "files": ["model_fp16.xml", "model_fp16.bin"]},
]


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    attention = {"name": "attention", "dtype": "float32", "layout": "NSHW", "scales": [0.5, 1.0]}
    described = {**DEPLOYMENT, "formats": FORMATS, "outputs": [*DEPLOYMENT["outputs"], attention]}
    (folder / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": described}))
    for entry in FORMATS:
        for name in entry["files"]:
            (folder / name).write_text(name)
    return folder


def change(export, **changes):
    """Say something else in deploy.yaml."""
    described = yaml.safe_load((export / "deploy.yaml").read_text())
    described["Deploy"].update(changes)
    (export / "deploy.yaml").write_text(yaml.safe_dump(described))


def model_config():
    """Triton's own description of its files; by its path, as its package wants gRPC."""
    pytest.importorskip("google.protobuf", reason="pip install protobuf reads Triton's configuration")
    package = importlib.util.find_spec("tritonclient")
    if package is None:
        pytest.skip("pip install tritonclient gives Triton's description of its configuration")
    place = f"{next(iter(package.submodule_search_locations))}/grpc/model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_triton(export, tmp_path):
    described = model_config()
    from google.protobuf import text_format

    limits = Limits(max_batch=4, max_wait_ms=3, max_queue=7, timeout=2)
    written = write_config("triton", export, tmp_path / "models", name="street", limits=limits)
    assert (tmp_path / "models/street/1/model.onnx").read_text() == "model.onnx"
    config = text_format.Parse(list(written)[-1].read_text(), described.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("street", "onnxruntime", 4)
    (given,) = config.input
    assert (given.name, given.data_type, list(given.dims)) == ("x", described.TYPE_FP32, [3, -1, -1])
    assert [(output.name, output.data_type, list(output.dims)) for output in config.output] == [
        ("label", described.TYPE_INT32, [-1, -1]),
        ("confidence", described.TYPE_FP32, [-1, -1]),
        ("attention", described.TYPE_FP32, [2, -1, -1]),
    ]
    batching = config.dynamic_batching
    assert batching.max_queue_delay_microseconds == 3000
    assert batching.default_queue_policy.max_queue_size == 7
    assert batching.default_queue_policy.default_timeout_microseconds == 2_000_000


@pytest.mark.parametrize("count", [1, 4])
def test_triton_makes_no_batches_of_a_fixed_number_of_images(count, export, tmp_path):
    described = model_config()
    from google.protobuf import text_format

    change(export, input_shape=[count, 3, None, 96])
    written = write_config("triton", export, tmp_path / "models", name="street", limits=Limits())
    config = text_format.Parse(list(written)[-1].read_text(), described.ModelConfig())
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [count, 3, -1, 96]
    assert [list(output.dims) for output in config.output] == [
        [count, -1, 96],
        [count, -1, 96],
        [count, 2, -1, 96],
    ]


def test_openvino_model_server_keeps_other_models(export, tmp_path):
    models = tmp_path / "models"
    write_config("ovms", export, models, name="one", precision="fp16", limits=Limits())
    write_config("ovms", export, models, name="two", limits=Limits())
    config = models / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "monitoring": {}}))
    written = write_config("ovms", export, models, name="two", limits=Limits())
    assert written == {models / "two/1/model.onnx": "replaced", config: "replaced"}
    assert sorted(path.name for path in (models / "one/1").iterdir()) == ["model.bin", "model.xml"]
    whole = json.loads(config.read_text())
    configs = [entry["config"] for entry in whole["model_config_list"]]
    assert [(config["name"], config["base_path"]) for config in configs] == [
        ("one", "/models/one"),
        ("two", "/models/two"),
    ]
    assert whole["monitoring"] == {}


def test_files_of_an_earlier_format_go(export, tmp_path):
    version = tmp_path / "street/1"
    write_config("ovms", export, tmp_path, name="street", limits=Limits())
    assert [path.name for path in version.iterdir()] == ["model.onnx"]
    written = write_config("ovms", export, tmp_path, name="street", precision="fp16", limits=Limits())
    assert written == {
        version / "model.onnx": "removed",
        version / "model.xml": "written",
        version / "model.bin": "written",
        tmp_path / "config.json": "replaced",
    }
    assert sorted(path.name for path in version.iterdir()) == ["model.bin", "model.xml"]
    assert (version / "model.xml").read_text() == "model_fp16.xml"


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"model_config_list": [{"name": "one"}]}', '{"model_config_list": 3}']
)
def test_a_foreign_configuration_is_left_as_it_is(text, export, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match="expected a configuration of OpenVINO Model Server"):
        write_config("ovms", export, tmp_path, name="street", limits=Limits())
    assert (tmp_path / "config.json").read_text() == text
    assert not (tmp_path / "street").exists()


def test_what_is_not_there(export, tmp_path):
    with pytest.raises(
        UsageError, match=r"expected onnx in fp16, which triton reads, found paddle fp32 \(model.pdmodel\)"
    ):
        write_config("triton", export, tmp_path, name="street", precision="fp16", limits=Limits())
    with pytest.raises(UsageError, match="found tritn: did you mean triton"):
        write_config("tritn", export, tmp_path, name="street", limits=Limits())
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", Path("/proc/models")):
        with pytest.raises(DataError, match="cannot be written"):
            write_config("triton", export, target, name="street", limits=Limits())
    for name in ('a"b', "a b", ""):
        with pytest.raises(UsageError, match="rename it"):
            write_config("triton", export, tmp_path, name=name, limits=Limits())
    change(export, formats=[{"format": "paddle", "precision": "fp32", "files": ["model.json", "model.pdiparams"]}])
    with pytest.raises(UsageError, match=r"found paddle fp32 \(model.json\)"):
        write_config("ovms", export, tmp_path, name="street", limits=Limits())


def test_flags_without_effect():
    with pytest.raises(UsageError, match="without --engine and --workers"):
        main(make_parser().parse_args(["a", "--write_config", "ovms", "b", "--engine", "paddle", "--workers", "2"]))


def test_the_fastest_engine_is_preferred(monkeypatch):
    installed = {"openvino", "onnxruntime", "paddle"}
    monkeypatch.setattr(engines, "is_installed", lambda name: name in installed)
    deployment = Deployment.model_validate({**DEPLOYMENT, "formats": FORMATS})
    assert engines.preferred(deployment) == "openvino"
    assert engines.preferred(deployment, "fp16") == "openvino"
    installed.remove("openvino")
    assert engines.preferred(deployment) == "onnxruntime"
    monkeypatch.setattr("hmsa.system.device.on_gpu", lambda: True)
    assert engines.preferred(deployment) == "paddle"
