# SPDX-License-Identifier: Apache-2.0
"""deploy/tensorrt/build.py, with a stand-in for TensorRT, which needs a GPU: which calls it makes, with what."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml

SCRIPT = Path(__file__).parents[2] / "deploy/tensorrt/build.py"


@pytest.fixture
def build():
    spec = importlib.util.spec_from_file_location("build", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    entry = {"input_name": "x", "input_layout": "NCHW", "input_shape": [None, 3, None, None]}
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": entry}))
    (tmp_path / "model_fp16.onnx").write_bytes(b"network")
    return tmp_path


@pytest.fixture
def tensorrt(monkeypatch):
    module = MagicMock(__version__="11.4.0")
    module.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1
    builder = module.Builder.return_value
    builder.build_serialized_network.return_value = b"engine"
    config = builder.create_builder_config.return_value
    config.get_timing_cache.return_value.serialize.return_value = b"timings"
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def run(build, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["build.py", *map(str, words)])
    build.main()


def test_a_typed_network_is_built_for_a_range_of_shapes(build, folder, tensorrt, monkeypatch):
    cache = folder / "timings"
    cache.write_bytes(b"earlier")
    sizes = ("--min", "1x64x96", "--opt", "2x128x192", "--max", "4x256x384")
    run(build, monkeypatch, folder, *sizes, "--workspace", 512, "--timing_cache", cache)

    builder = tensorrt.Builder.return_value
    config = builder.create_builder_config.return_value
    builder.create_network.assert_called_once_with(1 << 1)
    tensorrt.OnnxParser.return_value.parse_from_file.assert_called_once_with(str(folder / "model_fp16.onnx"))
    config.set_memory_pool_limit.assert_called_once_with(tensorrt.MemoryPoolType.WORKSPACE, 512 * 2**20)
    profile = builder.create_optimization_profile.return_value
    profile.set_shape.assert_called_once_with("x", (1, 3, 64, 96), (2, 3, 128, 192), (4, 3, 256, 384))
    config.add_optimization_profile.assert_called_once_with(profile)
    config.create_timing_cache.assert_called_once_with(b"earlier")
    assert (folder / "model_fp16.plan").read_bytes() == b"engine"
    assert cache.read_bytes() == b"timings"


def test_what_tensorrt_cannot_read_or_build_is_a_sentence(build, folder, tensorrt, monkeypatch):
    parser = tensorrt.OnnxParser.return_value
    parser.parse_from_file.return_value, parser.num_errors = False, 1
    parser.get_error.return_value = "no such operator"
    with pytest.raises(SystemExit, match="cannot read it: no such operator"):
        run(build, monkeypatch, folder)
    parser.parse_from_file.return_value = True
    tensorrt.Builder.return_value.build_serialized_network.return_value = None
    with pytest.raises(SystemExit, match="cannot build it"):
        run(build, monkeypatch, folder)
    assert not (folder / "model_fp16.plan").exists()


def test_the_command_of_trtexec_needs_no_tensorrt(build, folder, monkeypatch, capsys):
    run(build, monkeypatch, folder, "--trtexec", "--max", "1x512x1024", "--output", "engine.plan")
    words = shlex.split(capsys.readouterr().out)
    assert words == [
        "trtexec",
        f"--onnx={folder}/model_fp16.onnx",
        "--saveEngine=engine.plan",
        "--minShapes=x:1x3x256x512",
        "--optShapes=x:1x3x512x1024",
        "--maxShapes=x:1x3x512x1024",
        "--memPoolSize=workspace:4096",
        "--stronglyTyped",
        "--skipInference",
    ]


def test_a_precision_that_was_not_exported_is_a_sentence(build, folder, monkeypatch):
    with pytest.raises(SystemExit, match=r"model_int8\.onnx: expected the network in ONNX, found none: export\.py"):
        run(build, monkeypatch, folder, "--precision", "int8")
    with pytest.raises(SystemExit, match=r"expected a folder that export\.py wrote"):
        run(build, monkeypatch, folder / "nowhere")


def test_images_that_the_network_normalises_have_their_channels_last(build):
    assert build.input_shape((2, 64, 96), "NHWC", 3) == (2, 64, 96, 3)
