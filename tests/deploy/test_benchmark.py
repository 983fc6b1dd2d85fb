# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import paddle
import pytest
from awaken import awaken

from hmsa import cli
from hmsa.commands.benchmark import size
from hmsa.deploy import benchmark
from hmsa.deploy.benchmark import Case, Measured, Result
from hmsa.deploy.export import ExportOptions, export
from hmsa.deploy.runtime import FileEntry, read_deployment
from hmsa.errors import DataError, UsageError

CASE = Case("paddle", "paddle", "fp32", width=40, height=24, batch=2)


class Small(paddle.nn.Layer):
    """A model that exports in no time."""

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 4, 3, padding=1)

    def forward(self, image):
        return {"joint": self.conv(image)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export(awaken(Small()), folder, ExportOptions(output_op="argmax", transforms=[]))
    return folder


def test_an_export_has_a_case_for_each_size_engine_and_precision(folder):
    cases = benchmark.cases(folder, [(40, 24), (64, 32)], batch=2, engines=["paddle", "onnxruntime"])
    assert cases == [CASE, Case("paddle", "paddle", "fp32", width=64, height=32, batch=2)]


def test_every_file_that_an_engine_reads_is_a_case(folder, monkeypatch):
    deployment = read_deployment(folder)
    for form, name in (("onnx", "model.onnx"), ("openvino", "model.xml"), ("onnx", "model_fp16.onnx")):
        precision = "fp16" if "fp16" in name else "fp32"
        deployment.formats.append(FileEntry(format=form, precision=precision, files=[name]))
    monkeypatch.setattr(benchmark, "read_deployment", lambda folder: deployment)
    monkeypatch.setattr(benchmark, "has_bf16", lambda: True)
    cases = benchmark.cases(folder, [(40, 24)], batch=1, engines=["onnxruntime", "openvino"])
    assert [(case.engine, case.format, case.precision) for case in cases] == [
        ("onnxruntime", "onnx", "fp32"),
        ("onnxruntime", "onnx", "fp16"),
        ("openvino", "openvino", "fp32"),
        ("openvino", "onnx", "fp32"),
        ("openvino", "paddle", "fp32"),
        ("openvino", "openvino", "bf16"),
    ]


def test_an_engine_that_reads_nothing_of_an_export_is_a_sentence(folder):
    command = [*cli.command("benchmark"), str(folder), "--engines", "tflite"]
    done = subprocess.run(command, env=cli.environment_of_commands(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].endswith(
        "expected a format that tflite reads, found none: choose other --engines"
    )


def test_what_is_measured(folder):
    measured = benchmark.measure(folder, CASE, repeat=5, seconds=60, threads=1)
    assert len(measured.runs) == 5
    assert min(measured.runs) > 0
    assert measured.opening > 0
    assert measured.memory_bytes >= measured.memory_before_bytes > 0


def test_no_run_is_begun_when_time_is_up_but_for_three(folder):
    assert len(benchmark.measure(folder, CASE, repeat=50, seconds=0, threads=1).runs) == 3
    assert len(benchmark.measure(folder, CASE, repeat=2, seconds=0, threads=1).runs) == 2


def test_images_too_large_for_a_fixed_size_are_a_sentence(tmp_path):
    export(awaken(Small()), tmp_path, ExportOptions(output_op="argmax", transforms=[], input_shape=(1, 3, 24, 40)))
    with pytest.raises(DataError, match="expected images of the shape 1 3 24 40"):
        benchmark.measure(tmp_path, CASE, repeat=1, seconds=1, threads=1)


def test_the_table_and_the_json_say_the_same():
    runs = tuple(np.linspace(0.1, 0.2, 101))
    done = Result(CASE, Measured(opening=1.5, runs=runs, memory_bytes=300_000_000, memory_before_bytes=100_000_000))
    failed = Result(CASE, reason="a | b")
    found = benchmark.machine(threads=2)
    lines = benchmark.table([done, failed], found).splitlines()
    assert lines[2] == "| paddle | paddle | fp32 | 40x24 | 2 | 13.3 | 150.0 | 199.0 | 101 | 200 MB | 1.50 s |"
    assert lines[3] == "| paddle | paddle | fp32 | 40x24 | 2 | not run | - | - | - | - | - |"
    assert all(line.count("|") == lines[0].count("|") for line in lines[:4])
    assert "2 threads" in lines[-2]
    assert lines[-1] == "paddle, paddle fp32, 2 x 40x24 was not run: a | b"
    entry = done.to_json()
    assert entry["images_a_second"] == pytest.approx(2 / 0.15)
    assert (entry["p50_ms"], entry["p99_ms"]) == pytest.approx((150, 199))
    assert failed.to_json()["reason"] == "a | b"
    json.dumps([entry, found])


def test_sizes_are_width_and_height():
    assert size("512x256") == (512, 256)
    for wrong in ("512", "512x", "0x256", "512x256x3", "-5x5"):
        with pytest.raises(UsageError, match="expected width and height such as 512x256"):
            size(wrong)


@pytest.mark.slow
def test_the_command(folder, tmp_path):
    words = ["--sizes", "40x24", "--repeat", "3", "--output", tmp_path / "figures.json"]
    command = [*cli.command("benchmark"), str(folder), *map(str, words)]
    done = subprocess.run(command, env=cli.environment_of_commands(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1/" in done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| paddle |")]
    assert len(rows) == 1
    assert "not run" not in rows[0]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["cores"] >= 1
    assert figures["results"][0]["runs"] == 3


@pytest.mark.slow
def test_what_cannot_be_run_is_said(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.pdiparams").write_bytes(b"")
    command = [*cli.command("benchmark"), str(tmp_path), "--sizes", "40x24", "--engines", "paddle"]
    done = subprocess.run(command, env=cli.environment_of_commands(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "was not run: " in done.stdout
    assert "expected the file that export.py wrote" in done.stdout
    assert "Traceback" not in done.stderr
    assert sys.executable not in done.stdout
