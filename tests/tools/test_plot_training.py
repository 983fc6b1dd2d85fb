# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hmsa.log import ConsoleLog

TOOL = Path(__file__).resolve().parents[2] / "tools/plot_training.py"


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_curves_become_a_picture(tmp_path):
    log = ConsoleLog(tmp_path)
    for step in range(1, 5):
        log.scalars(step, {"train/loss": 1 / step})
    log.scalars(4, {"eval/mIoU_present": 0.5})
    log.close()
    result = run("--log_dir", tmp_path, "--output", tmp_path / "a/curves.png")
    assert result.returncode == 0, result.stderr
    picture = np.asarray(Image.open(tmp_path / "a/curves.png").convert("RGB")).reshape(-1, 3)
    blue, orange = ((picture == color).all(axis=1).sum() for color in ((31, 119, 180), (255, 127, 14)))
    assert blue > 100
    assert orange > 10


def test_no_curves_is_said(tmp_path):
    result = run("--log_dir", tmp_path, "--output", tmp_path / "curves.png")
    assert result.returncode == 1
    assert "--use_vdl" in result.stderr
    assert "Traceback" not in result.stderr
