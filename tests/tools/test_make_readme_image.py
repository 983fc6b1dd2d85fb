# SPDX-License-Identifier: Apache-2.0
"""README's first image, of a tiny network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import paddle
import pytest
from awaken import awaken
from PIL import Image

import hmsa

SCRIPT = Path(__file__).parents[2] / "tools/make_readme_image.py"


@pytest.mark.slow
def test_it_shows_every_scale(tiny_recipe, toy_root, tmp_path):
    config = hmsa.load_config(tiny_recipe, ["model.scales=[0.5, 1.0]"])
    (tmp_path / "config.yml").write_text(config.dump(), encoding="utf-8")
    paddle.save(awaken(hmsa.build_model(config)).state_dict(), str(tmp_path / "model.pdparams"))
    given = ["--model_path", tmp_path, "--image_path", toy_root / "leftImg8bit/val", "--output", tmp_path / "made.jpg"]
    done = subprocess.run([sys.executable, SCRIPT, *map(str, given)], capture_output=True, text=True, check=True)
    assert f"written to {tmp_path / 'made.jpg'}" in done.stdout
    with Image.open(tmp_path / "made.jpg") as picture:
        assert picture.width == 4 * 128 + 3 * 8 and picture.height > 3 * 64
