# SPDX-License-Identifier: Apache-2.0
"""The page of deploy/web in headless Chromium: its labels are ONNX Runtime's, and it works as its README says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from hmsa.datasets.images import read_image
from hmsa.deploy.engines import open_export
from hmsa.deploy.export import ExportOptions, export
from hmsa.deploy.formats import can_write_onnx, rows_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZE = {"type": "Normalize", "mean": list(MEAN), "std": list(STD)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_write_onnx(), reason="the page reads ONNX: pip install .[onnx], with Paddle 3"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Of odd size; grey; partly transparent, with colours under it."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    for name, (height, width), mode in (
        ("odd", (97, 161), "RGB"),
        ("grey", (64, 96), "L"),
        ("clear", (75, 129), "RGBA"),
    ):
        patches = rng.integers(0, 256, (height // 8, width // 8, 4), np.uint8)
        image = Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST)
        (image if mode == "RGBA" else image.convert("RGB").convert(mode)).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in ("odd", "grey", "clear")]


def drive(what, site, chromium, output, images):
    command = ["node", "test/browser.mjs", what, sys.executable, chromium, "dist", output, *images]
    done = subprocess.run([*map(str, command)], cwd=site, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def put_model(site, network, **options):
    """Export into the built page."""
    target = site / "dist/model"
    shutil.rmtree(target, ignore_errors=True)
    options = {"output_op": "argmax", "transforms": [NORMALIZE], **options}
    export(network, target, ExportOptions(formats=rows_of(["onnx"], ["fp32"]), **options))
    return open_export(target, "onnxruntime")


def equal_share(session, image, found):
    """How much of a label PNG is what ONNX Runtime says of its image."""
    pixels = read_image(image)
    if session.deployment.input_dtype == "uint8":
        x = pixels[np.newaxis]
    else:
        x = np.float32((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)[np.newaxis]
    answer = next(iter(session(x).values()))
    label = answer[0] if session.deployment.output_op == "argmax" else answer[0].argmax(axis=0)
    found = Image.open(found)
    assert found.mode == "P"
    return (np.asarray(found) == label).mean()


@pytest.mark.parametrize("options", [{"preprocess": True}, {"output_op": "softmax"}], ids=["preprocess", "softmax"])
def test_other_exports_give_the_labels_of_onnx_runtime(site, chromium, images, make_tiny_network, tmp_path, options):
    session = put_model(site, make_tiny_network(), **options)
    found = drive("labels", site, chromium, tmp_path, images)
    assert found["errors"] == []
    for image in images:
        assert equal_share(session, image, tmp_path / image.name) >= 0.9999, image


def test_the_page(site, chromium, images, make_tiny_network, tmp_path):
    session = put_model(site, make_tiny_network(), with_attention=True, with_confidence=True)
    assert drive("labels", site, chromium, tmp_path, images)["errors"] == []
    for image in images:
        assert equal_share(session, image, tmp_path / image.name) >= 0.9999, image

    found = drive("page", site, chromium, tmp_path, images)
    assert found["errors"] == []
    origins = {urlsplit(url).hostname for url in found["requested"] if not url.startswith(("blob:", "data:"))}
    assert origins == {"localhost"}
    assert found["serious"] == {"empty": [], "light": [], "dark": []}
    assert "WebAssembly" in found["facts"]

    # Every step of Tab is seen, and reaches the picture and the sliders.
    steps = found["keyboard"]["order"]
    assert {"picture", "opacity"} <= {step["id"] for step in steps}
    assert all(
        step["outline"] == "solid" and step["width"] >= 2 for step in steps if step["id"] in ("picture", "opacity")
    )
    assert found["keyboard"]["view"] == "attention"
    assert found["keyboard"]["scale"] == "scale 1"
    assert found["keyboard"]["isRepainted"]
    assert found["keyboard"]["live"] == "polite"
    assert "class " in found["keyboard"]["readout"] and found["keyboard"]["readout"] != found["keyboard"]["moved"]

    everything, without_first, confidence, nothing = found["legend"]
    assert everything == 97 * 161 and 0 < without_first < everything and nothing == 0
    assert confidence == without_first

    # The camera is on where the page says so, and nowhere else; the network has one image at a time, as WebGPU needs.
    assert found["camera"].pop("mostRunning") == 1
    assert found["camera"] == {"live": [False, True], "after": [False, False], "afterError": [False, False, False]}

    # Wrong turns.
    assert "not an image" in found["wrongFile"]
    assert "There is no model here" in found["noModel"]
    assert "damaged" in found["damaged"]

    assert found["others"] == [["one", "one"], ["two", "two"]]
    assert found["offline"] is True
    assert equal_share(session, images[0], tmp_path / f"offline_{images[0].name}") >= 0.9999
    assert found["narrow"] <= 390
    assert found["plain"] == {"isolated": True, "errors": []}
