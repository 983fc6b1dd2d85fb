# SPDX-License-Identifier: Apache-2.0
"""The table of backends, and all that is read from it."""

from __future__ import annotations

import importlib.util
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from packaging.requirements import Requirement
from paddle.version import full_version as PADDLE_VERSION

from hmsa import cli
from hmsa.errors import UsageError
from hmsa.inference import backends
from hmsa.inference.backends import BACKENDS, CONVERTERS, Backend, choose, form_of, packages_of
from hmsa.inference.network import open_network

ROOT = Path(__file__).parents[2]
on_paddle_3 = pytest.mark.skipif(PADDLE_VERSION.startswith("2"), reason="Paddle 2 cannot be converted to ONNX")


@pytest.mark.parametrize("device", ["cpu", "gpu:1"])
def test_what_auto_means(monkeypatch, device):
    monkeypatch.setattr(paddle.device, "get_device", lambda: device)
    assert choose("auto") == ("inference" if device == "cpu" else "eager")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_package_is_named(monkeypatch, backend):
    if backend == "onnxruntime" and PADDLE_VERSION.startswith("2"):
        pytest.skip("Paddle 2 cannot be converted to ONNX")
    for package in packages_of(backend):
        monkeypatch.setattr(backends, "find_spec", lambda name, p=package: None if name == p else find_spec("json"))
        extra = BACKENDS[backend].extra
        with pytest.raises(
            UsageError, match=rf"backend {backend} needs the package {package}, .* install \.\[{extra}\]"
        ):
            choose(backend)
    monkeypatch.setattr(backends, "find_spec", lambda name: find_spec("json"))
    assert choose(backend) == backend


@pytest.mark.skipif(not PADDLE_VERSION.startswith("2"), reason="Paddle 3 can")
def test_programs_that_this_paddle_cannot_write():
    with pytest.raises(UsageError, match="backend onnxruntime needs Paddle 3"):
        choose("onnxruntime")


@pytest.mark.parametrize("backend", ["auto", "eager", "inference", pytest.param("onnxruntime", marks=on_paddle_3)])
def test_bf16_is_refused_where_there_is_none(monkeypatch, backend):
    monkeypatch.setattr(backends, "find_spec", lambda name: find_spec("json"))
    monkeypatch.setattr(paddle.device, "get_device", lambda: "cpu")
    chosen = "inference" if backend == "auto" else backend
    able = "precision bf16 needs the backend eager on a GPU or openvino on a CPU"
    with pytest.raises(UsageError, match=f"{able}, but the backend is {chosen} on a CPU: choose another") as error:
        choose(backend, "bf16")
    assert error.value.settings == ["backend", "precision"]


def test_bf16_is_refused_on_a_gpu_that_stays_in_float32(monkeypatch):
    """As in training: Paddle warns, and computes in float32 all the same."""
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")
    with pytest.raises(UsageError, match="computes in bf16, found gpu:0, where it stays in float32"):
        choose("eager", "bf16")
    matmul = paddle.matmul
    monkeypatch.setattr(paddle, "matmul", lambda a, b: matmul(a, b).astype("bfloat16"))
    assert choose("eager", "bf16") == "eager"


def test_onnxruntime_gives_back_what_only_a_large_input_needed(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install .[onnx]")
    shrunk = []

    class Session:
        def get_inputs(self):
            return [SimpleNamespace(name="x")]

        def run(self, outputs, given, options=None):
            key = "memory.enable_memory_arena_shrinkage"
            shrunk.append(options is not None and options.get_run_config_entry(key) == "cpu:0")

    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Session())
    run = BACKENDS["onnxruntime"].open(Path("model.onnx"), "fp32", 1)
    for sizes, expected in (([400] * 20, False), ([400, 100] * 10, False), ([100] * 7, True), ([100, 99] * 10, False)):
        shrunk.clear()
        for size in sizes:
            run(np.zeros(size, np.float32))
        assert any(shrunk) == expected


def test_openvino_keeps_its_precisions_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: find_spec("json"))
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")
    assert choose("openvino", "bf16") == "openvino"


def test_extras_install_what_the_table_asks_for():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked_for = {
        row.extra: {*row.packages, *chain.from_iterable(CONVERTERS[form] for form in row.forms)}
        for row in BACKENDS.values()
        if row.extra
    }
    installed = {name: {Requirement(line).name for line in extras[name]} for name in asked_for}
    assert installed == asked_for
    assert all(row.extra for row in BACKENDS.values() if row.packages)


def load_doctor():
    spec = importlib.util.spec_from_file_location("doctor_of_backends", ROOT / "hmsa/commands/doctor.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(importlib.sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


def test_a_backend_is_added_by_a_row(monkeypatch, make_tiny_network, tmp_path):
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path))
    opened = []

    def open_slowly(path, precision):
        opened.append((path.stem, precision))
        return BACKENDS["inference"].open(path, precision)

    monkeypatch.setitem(BACKENDS, "mine", Backend({"cpu": ("fp32", "int8")}, open_slowly, ("paddle",), extra="mine"))

    parser = cli.Parser()
    cli.add_inference_flags(parser, "--aug_eval")
    args = parser.parse_args(["--engine", "mine", "--precision", "int8"])
    assert (args.engine, args.precision) == ("mine", "int8")
    assert choose("mine", "int8") == "mine"
    assert form_of("mine") == "paddle"

    doctor = load_doctor()
    assert doctor.CHECKS["mine"].advice == "pip install .[mine], or use another --engine"
    assert doctor.EXTRAS["mine"] == ()

    network = make_tiny_network()
    image = paddle.to_tensor(np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype(np.float32))
    with paddle.no_grad():
        expected = network(image)["joint"].numpy()
    options = {"scales": network.scales, "align_corners": False, "backend": "mine"}
    found = open_network(lambda: network, identity="mine", **options)(image).numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert ("attended", "fp32") in opened
