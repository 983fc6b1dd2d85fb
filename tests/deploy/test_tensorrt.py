# SPDX-License-Identifier: Apache-2.0
"""deploy/tensorrt/build.py, with a stand-in for TensorRT, which needs a GPU: which calls it makes, with what."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

SCRIPT = Path(__file__).parents[2] / "deploy/tensorrt/build.py"
WHERE = {"input_name": "x", "input_layout": "NCHW", "input_shape": [None, 3, None, None]}


class Cache:
    def __init__(self, known):
        self.known = known

    def serialize(self):
        return self.known + b" and more"


class Profile:
    def set_shape(self, input, min, opt, max):
        self.shapes = {input: (min, opt, max)}


class BuilderConfig:
    def __init__(self):
        self.flags, self.profiles, self.cache = {"TF32"}, [], None

    def set_memory_pool_limit(self, pool, pool_size):
        self.limit = (pool, pool_size)

    def clear_flag(self, flag):
        self.flags.remove(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)

    def create_timing_cache(self, serialized_timing_cache):
        return Cache(serialized_timing_cache)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache

    def get_timing_cache(self):
        return self.cache


class Builder:
    engine = b"engine"

    def __init__(self, logger):
        Builder.last = self

    def create_network(self, flags=0):
        self.network_flags = flags
        return SimpleNamespace()

    def create_builder_config(self):
        self.config = BuilderConfig()
        return self.config

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        assert config is self.config
        return self.engine


class OnnxParser:
    errors = ()

    def __init__(self, network, logger):
        self.num_errors = len(self.errors)

    def parse_from_file(self, model):
        Builder.last.model = model
        return not self.errors

    def get_error(self, index):
        return self.errors[index]


@pytest.fixture
def build():
    spec = importlib.util.spec_from_file_location("build", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    return export(tmp_path)


def export(folder, **changes):
    (folder / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": {**WHERE, **changes}}))
    for name in ("model.onnx", "model_fp16.onnx"):
        (folder / name).write_bytes(b"network")
    return folder


@pytest.fixture
def tensorrt(monkeypatch):
    """The names that build.py uses, with the methods and the arguments of TensorRT 11.4's bindings and no others."""

    class Logger:
        WARNING = 2

        def __init__(self, min_severity):
            assert min_severity == self.WARNING

    module = SimpleNamespace(
        __version__="11.4.0",
        Logger=Logger,
        Builder=type("Builder", (Builder,), {}),
        OnnxParser=type("OnnxParser", (OnnxParser,), {}),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        BuilderFlag=SimpleNamespace(TF32="TF32"),
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def run(build, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["build.py", *map(str, words)])
    build.main()


def command(build, monkeypatch, capsys, *words):
    """What --trtexec prints, as words."""
    run(build, monkeypatch, *words, "--trtexec")
    return shlex.split(capsys.readouterr().out)


def test_a_typed_network_is_built_for_a_range_of_shapes(build, folder, tensorrt, monkeypatch):
    cache = folder / "timings"
    cache.write_bytes(b"earlier")
    sizes = ("--min", "1x64x96", "--opt", "2x128x192", "--max", "4x256x384")
    run(build, monkeypatch, folder, *sizes, "--workspace", 512, "--timing_cache", cache)

    builder = Builder.last
    (profile,) = builder.config.profiles
    assert builder.network_flags == 1 << 1
    assert builder.model == str(folder / "model_fp16.onnx")
    assert builder.config.limit == ("workspace", 512 * 2**20)
    assert builder.config.flags == {"TF32"}
    assert profile.shapes == {"x": ((1, 3, 64, 96), (2, 3, 128, 192), (4, 3, 256, 384))}
    assert (folder / "model_fp16.plan").read_bytes() == b"engine"
    assert cache.read_bytes() == b"earlier and more"


def test_fp32_is_not_rounded_to_tf32(build, folder, tensorrt, monkeypatch, capsys):
    run(build, monkeypatch, folder, "--precision", "fp32")
    assert Builder.last.config.flags == set()
    assert "--noTF32" in command(build, monkeypatch, capsys, folder, "--precision", "fp32")
    assert "--noTF32" not in command(build, monkeypatch, capsys, folder)


def test_what_tensorrt_cannot_read_or_build_is_a_sentence(build, folder, tensorrt, monkeypatch):
    tensorrt.OnnxParser.errors = ["no such operator"]
    with pytest.raises(SystemExit, match="cannot read it: no such operator"):
        run(build, monkeypatch, folder)
    tensorrt.OnnxParser.errors = []
    tensorrt.Builder.engine = None
    with pytest.raises(SystemExit, match="cannot build it"):
        run(build, monkeypatch, folder)
    assert not (folder / "model_fp16.plan").exists()


def test_the_command_of_trtexec_needs_no_tensorrt(build, folder, monkeypatch, capsys):
    words = command(build, monkeypatch, capsys, folder, "--max", "1x512x1024", "--output", "engine.plan")
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


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({"input_layout": "NHWC", "input_shape": [None, None, None, 3]}, ("1x256x512x3", "4x1024x2048x3")),
        ({"input_shape": [1, 3, 128, 256]}, ("1x3x128x256", "1x3x128x256")),
        ({"input_shape": [None, 4, 320, None]}, ("1x4x320x512", "4x4x320x2048")),
    ],
)
def test_layout_and_fixed_sides_are_those_of_the_export(build, tmp_path, monkeypatch, capsys, changes, shapes):
    words = command(build, monkeypatch, capsys, export(tmp_path, **changes))
    assert [f"--minShapes=x:{shapes[0]}", f"--maxShapes=x:{shapes[1]}"] == [words[3], words[5]]


def test_ranges_that_cannot_be_are_a_sentence(build, tmp_path, monkeypatch):
    export(tmp_path, input_shape=[1, 3, 128, 256])
    with pytest.raises(SystemExit, match=r"--opt: this export takes H = 128 alone, found 64: correct it"):
        run(build, monkeypatch, tmp_path, "--opt", "1x64x256", "--trtexec")
    export(tmp_path)
    with pytest.raises(SystemExit, match="expected --min, --opt and --max to grow in each dimension"):
        run(build, monkeypatch, tmp_path, "--max", "1x64x64", "--trtexec")


def test_a_precision_that_was_not_exported_is_a_sentence(build, folder, monkeypatch):
    with pytest.raises(SystemExit, match=r"model_int8\.onnx: expected the network in ONNX, found none: export\.py"):
        run(build, monkeypatch, folder, "--precision", "int8")
    with pytest.raises(SystemExit, match=r"expected a folder that export\.py wrote"):
        run(build, monkeypatch, folder / "nowhere")
