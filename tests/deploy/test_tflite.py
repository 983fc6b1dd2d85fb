# SPDX-License-Identifier: Apache-2.0
"""TFLite, written and verified by an environment of its own: `make test-tflite` makes it and runs these."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from hmsa.deploy.export import ExportOptions, export
from hmsa.deploy.formats import TFLITE_PYTHON, rows_of

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("HMSA_TFLITE_PYTHON", ROOT / TFLITE_PYTHON))
NORMALIZE = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.is_file(), reason="TFLite needs TensorFlow: run make test-tflite"),
]


@pytest.mark.parametrize(
    ("answer", "layouts"),
    [
        ({"output_op": "argmax"}, ["NHW"]),
        ({"output_op": "softmax", "with_confidence": True, "with_attention": True}, None),
        ({"output_op": "argmax", "preprocess": True}, ["NHW"]),
    ],
)
def test_tflite_answers_as_the_network_does(make_tiny_network, tmp_path, answer, layouts):
    """The export fails if it does not."""
    options = ExportOptions(
        transforms=[NORMALIZE],
        formats=rows_of(["tflite"], ["fp32"]),
        input_shape=(1, 3, 97, 161),
        tflite_python=PYTHON,
        **answer,
    )
    said = export(make_tiny_network(), tmp_path, options)
    assert "tflite  fp32       tflite  100" in said
    deploy = yaml.safe_load((tmp_path / "deploy.yaml").read_text())["Deploy"]
    entry = deploy["formats"][-1]
    assert (entry["format"], entry["files"], entry["input_layout"]) == ("tflite", ["model.tflite"], "NHWC")
    assert len(entry["output_layouts"]) == len(deploy["outputs"])
    assert layouts is None or entry["output_layouts"] == layouts
