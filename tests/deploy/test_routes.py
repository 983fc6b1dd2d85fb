# SPDX-License-Identifier: Apache-2.0
"""The table of routes in docs/deployment.md, printed anew for the demo's network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hmsa.deploy.formats import TFLITE_PYTHON

ROOT = Path(__file__).parents[2]


def rows_of(page):
    """route -> what the table says of its labels."""
    (table,) = re.findall(r"<!-- begin: routes of demo -->(.*?)<!-- end -->", page, re.DOTALL)
    return dict(re.findall(r"^\| (.+?) \| \d* ?\| (.+) \|$", table, re.MULTILINE))


@pytest.mark.slow
def test_every_route_gives_the_labels_of_predictions(demo, program, site, tmp_path):
    """The script fails where one does not. What is missing is a row: here TFLite outside `make test-tflite`, and in C++
    Paddle, whose archive no package registry has, and ONNX Runtime without its headers."""
    page = tmp_path / "page.md"
    page.write_text("<!-- begin: routes of demo --><!-- end -->\n")
    weights = ["--config", demo / "toy.yml", "--model_path", demo / "demo/model/best_model"]
    built = ["--images", demo / "data/leftImg8bit", "--cpp", program.path, "--web", site, "--page", page]
    done = subprocess.run(
        list(map(str, [sys.executable, ROOT / "benchmarks/routes.py", *weights, *built])),
        env={**os.environ, **program.environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found, written = rows_of(page.read_text()), rows_of((ROOT / "docs/deployment.md").read_text(encoding="utf-8"))
    assert [name for name in found if "TFLite" not in name] == [name for name in written if "TFLite" not in name]
    expected = {"`deploy/cpp`, Paddle Inference"}
    if "onnxruntime" not in program.engines:
        expected.add("`deploy/cpp`, ONNX Runtime")
    if not ((ROOT / TFLITE_PYTHON).is_file() and find_spec("ai_edge_litert")):
        expected.add("TFLite, at one size")
    assert {name for name, labels in found.items() if "%" not in labels} == expected
