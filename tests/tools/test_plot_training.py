# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.engine.log import open_log
from hmsa.engine.loggers import CURVES_FILE

TOOL = Path(__file__).resolve().parents[2] / "tools/plot_training.py"


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.fixture
def curves(tmp_path):
    log = open_log(tmp_path)
    for step in range(1, 5):
        log.scalars(step, {"train/loss": 1 / step})
    log.scalars(4, {"eval/mIoU_present": 0.5})
    log.flush()


@pytest.mark.usefixtures("curves")
def test_curves_become_a_picture(tmp_path):
    result = run("--log_dir", tmp_path, "--output", tmp_path / "a/curves.png")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"written to {tmp_path / 'a/curves.png'}\n"
    picture = np.asarray(Image.open(tmp_path / "a/curves.png").convert("RGB")).reshape(-1, 3)
    blue, orange = ((picture == color).all(axis=1).sum() for color in ((31, 119, 180), (255, 127, 14)))
    assert blue > 100
    assert orange > 10


@pytest.mark.usefixtures("curves")
@pytest.mark.parametrize(
    ("output", "said"),
    [
        (".", "expected a file to write, found a folder"),
        ("curves", "curves: expected a name that ends in .jpg, .pdf, .png, .svg"),
        ("curves.xyz", "curves.xyz: expected a name that ends in .jpg, .pdf, .png, .svg"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path, output, said):
    result = run("--log_dir", tmp_path, "--output", tmp_path / output)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [CURVES_FILE]


@pytest.mark.usefixtures("curves")
def test_a_picture_that_is_drawn_again_is_said_to_be(tmp_path):
    (tmp_path / "curves.pdf").write_text("earlier")
    result = run("--log_dir", tmp_path, "--output", tmp_path / "curves.pdf")
    assert result.stdout == f"written to {tmp_path / 'curves.pdf'}, in place of an earlier file\n"
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_no_curves_is_said(tmp_path):
    result = run("--log_dir", tmp_path, "--output", tmp_path / "curves.png")
    assert result.returncode == 1
    assert "--use_vdl" in result.stderr
    assert "Traceback" not in result.stderr
