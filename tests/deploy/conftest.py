# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from built import build, build_site, onnxruntime_archive
from PIL import Image


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of three images: of even size, of odd size, upright."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for height, width in ((64, 96), (75, 129), (128, 72)):
        patches = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
        patches.resize((width, height), Image.Resampling.BILINEAR).save(folder / f"{width}x{height}.png")
    return folder


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """deploy/cpp with OpenVINO, ONNX Runtime if it is there, and sanitizers, whose findings are errors on stderr."""
    openvino = pytest.importorskip("openvino", reason="deploy/cpp needs OpenVINO: pip install .[openvino]")
    if not all(map(shutil.which, ("cmake", "c++"))):
        pytest.skip("deploy/cpp needs cmake and g++: make system-packages")
    settings = [f"-DOpenVINO_DIR={Path(openvino.__file__).parent / 'cmake'}", "-DHMSA_SANITIZE=ON"]
    settings += [f"-DONNXRUNTIME_DIR={onnxruntime_archive(tmp_path_factory.mktemp('archive') / 'onnxruntime')}"]
    # OpenVINO's TBB loads its libraries in a way that sanitizers allow.
    return build(tmp_path_factory.mktemp("build"), *settings, environment=os.environ | {"TBB_ENABLE_SANITIZERS": "1"})


@pytest.fixture(scope="session")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None or shutil.which("npm") is None:
        pytest.skip("needs chromium and npm: make system-packages")
    return found


@pytest.fixture(scope="session")
def site(chromium, tmp_path_factory):
    """The folder of deploy/web, built."""
    return build_site(tmp_path_factory.mktemp("web") / "site")
