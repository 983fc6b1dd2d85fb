# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/serving.md, as they stand there but for the port."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_server import NORMALIZE, started

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_examples_run(make_tiny_network, tmp_path):
    from hmsa.deploy.export import ExportOptions, export
    from hmsa.deploy.formats import can_write_onnx, rows_of

    if not (can_write_onnx() and find_spec("tritonclient") and shutil.which("curl")):
        pytest.skip("the examples need curl, tritonclient and, with Paddle 3, pip install .[onnx]")
    folder = tmp_path / "output/inference_model"
    options = ExportOptions(output_op="argmax", transforms=[NORMALIZE], formats=rows_of(["onnx"], ["fp32"]))
    export(make_tiny_network(), folder, options)
    photo = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")

    def run(*command):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with started(folder, "--engine", "onnxruntime") as (_, address):
        place = address.removeprefix("http://")
        shell = [block.replace("127.0.0.1:8000", place) for block in blocks("shell") if "curl" in block]
        assert len(shell) == 2
        for block in shell:
            run("bash", "-ec", block)
        for name, mode in (("label.png", "L"), ("overlay.png", "RGB")):
            picture = Image.open(tmp_path / name)
            assert (picture.mode, picture.size) == (mode, (90, 70))

        python = [block.replace("127.0.0.1:8000", place) for block in blocks("python") if "not run here" not in block]
        said = [run(sys.executable, "-c", block) for block in python]
        assert said[0].startswith("(70, 90) ")
        assert said[1:] == ["(1, 64, 96)\n", "(1, 32, 32)\n"]

    for block in blocks("shell"):
        for line in block.splitlines():
            if "--write_config" in line:
                run(sys.executable, "-m", *line.split())
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("models_*/**/*") if path.is_file()}
    assert written == {
        "models_ovms/config.json", "models_ovms/inference_model/1/model.onnx",
        "models_triton/inference_model/config.pbtxt", "models_triton/inference_model/1/model.onnx",
    }  # fmt: skip
