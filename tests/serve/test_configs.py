# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import json

import pytest
import yaml
from serving import DEPLOYMENT

from hmsa.errors import UsageError
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
    config = text_format.Parse(written[-1].read_text(), described.ModelConfig())
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


def test_openvino_model_server_keeps_other_models(export, tmp_path):
    models = tmp_path / "models"
    write_config("ovms", export, models, name="one", precision="fp16", limits=Limits())
    write_config("ovms", export, models, name="two", limits=Limits())
    written = write_config("ovms", export, models, name="two", limits=Limits())
    assert [path.relative_to(models).as_posix() for path in written] == ["two/1/model.onnx", "config.json"]
    assert sorted(path.name for path in (models / "one/1").iterdir()) == ["model.bin", "model.xml"]
    configs = [entry["config"] for entry in json.loads(written[-1].read_text())["model_config_list"]]
    assert [(config["name"], config["base_path"]) for config in configs] == [
        ("one", "/models/one"),
        ("two", "/models/two"),
    ]


def test_what_is_not_there(export, tmp_path):
    with pytest.raises(UsageError, match="expected onnx in fp16, which triton reads, found paddle fp32, onnx fp32"):
        write_config("triton", export, tmp_path, name="street", precision="fp16", limits=Limits())
