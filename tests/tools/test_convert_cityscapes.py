# SPDX-License-Identifier: Apache-2.0
"""The two conversion tools as they are called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hmsa.toy.cityscapes import write_toy_cityscapes
from hmsa.visualize import palette

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def save(path: Path, values: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)


def test_fine_labels(tmp_path):
    folder = tmp_path / "gtFine" / "train" / "ulm"
    save(folder / "a_gtFine_labelIds.png", [[7, 0], [26, 33]])
    road = {"label": "road", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}
    (folder / "b_gtFine_polygons.json").write_text(json.dumps({"imgHeight": 2, "imgWidth": 3, "objects": [road]}))

    result = run("convert_cityscapes.py", "--cityscapes_path", tmp_path, "--num_workers", 2)
    assert (result.returncode, result.stdout) == (0, "2 written, 0 there before\n")
    assert np.asarray(Image.open(folder / "a_gtFine_labelTrainIds.png")).tolist() == [[0, 255], [13, 18]]
    assert np.asarray(Image.open(folder / "b_gtFine_labelTrainIds.png")).tolist() == [[0, 0, 255]] * 2

    assert run("convert_cityscapes.py", "--cityscapes_path", tmp_path).stdout == "0 written, 2 there before\n"


def test_auto_labels(tmp_path):
    folder = tmp_path / "refinement_final" / "train_extra"
    save(folder / "ulm" / "a_leftImg8bit.png", [[7, 0], [26, 33]])
    save(folder / "ulm" / "b_leftImg8bit.png", [[77, 0]])
    save(folder / "tmp" / "a_leftImg8bit.png", [[7]])

    result = run("convert_cityscapes_autolabeling.py", "--dataset_root", tmp_path)
    assert result.returncode == 1
    assert "error: 1 written, 0 there before, 1 failed: " in result.stderr and "it holds 77" in result.stderr
    assert "Traceback" not in result.stderr
    written = [path.relative_to(tmp_path) for path in (tmp_path / "convert_autolabelled").rglob("*.*")]
    assert written == [Path("convert_autolabelled/ulm/a_leftImg8bit.png")]
    picture = Image.open(tmp_path / written[0])
    assert np.asarray(picture).tolist() == [[0, 255], [13, 18]]
    assert picture.mode == "P" and picture.getpalette() == palette(256)


def test_a_wrong_folder(tmp_path):
    result = run("convert_cityscapes_autolabeling.py", "--dataset_root", tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "refinement_final" in result.stderr


def test_both_routes_agree_on_every_file(tmp_path):
    """Train ids from label-id images and from polygons, on drawn streets with every class."""
    write_toy_cityscapes(tmp_path, size=(64, 128), train=12, coarse=0, val=3, test=1)
    run("convert_cityscapes.py", "--cityscapes_path", tmp_path)
    targets = sorted(tmp_path.glob("gtFine/*/*/*_labelTrainIds.png"))
    from_pictures = [np.asarray(Image.open(path)) for path in targets]
    for path in [*targets, *tmp_path.glob("gtFine/*/*/*_labelIds.png")]:
        path.unlink()
    run("convert_cityscapes.py", "--cityscapes_path", tmp_path)
    assert len(targets) == 16
    for path, expected in zip(targets, from_pictures):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
