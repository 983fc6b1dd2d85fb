# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.commands.plot import names_of
from hmsa.engine.log import open_log
from hmsa.engine.loggers import CURVES_FILE
from hmsa.report.curves import COLORS, Run, draw
from hmsa.report.records import RECORDS_FILE, of_training, read

TOOL = Path(__file__).resolve().parents[2] / "tools/plot_training.py"


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60)


NAMES = ["road", "a class with a name that is much longer than others", "sky"]


def write_run(folder, scale=1.0, loggers=()):
    """Four reports and two evaluations."""
    log = open_log(folder, loggers=loggers)
    for step in range(1, 5):
        terms = {"loss": scale / step, "grad_norm": 1.0, "Dice/joint": 0.5 / step, "Dice/low": 0.4}
        log.record(of_training(step, step / 4, 0.01 / step, terms, (0.1, 0.2), 2**30))
        if step % 2 == 0:
            iou = dict(zip(NAMES, (0.1 * step, 0.2, None)))
            log.record({
                "iteration": step, "kind": "eval", "mean_iou": 0.1 * step, "mean_iou_present": 0.1, "loss": 1.0,
                "accuracy": 0.5, "mean_boundary_iou": 0.05 * step, "calibration_error": 0.1, "iou": iou, "images": 3,
                "attention": {"1": dict(zip(NAMES, (0.25, 0.25, None))), "2": dict.fromkeys(NAMES, 0.75)},
                "best": {"mean_iou": 0.1 * step, "iteration": step}, "seconds": 1.0,
                "confusion_matrix": [[4, 1, 0], [0, 5, 0], [0, 0, 0]],
            })  # fmt: skip
    log.close()


def colors_in(path):
    """Colour -> pixels."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return dict(zip(*(part.tolist() for part in np.unique(pixels @ [65536, 256, 1], return_counts=True))))


@pytest.fixture
def curves(tmp_path):
    write_run(tmp_path, loggers=["visualdl"])


@pytest.mark.usefixtures("curves")
def test_curves_become_a_picture(tmp_path):
    result = run("--log_dir", tmp_path, "--output", tmp_path / "a/curves.png")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"written to {tmp_path / 'a/curves.png'}\n"
    assert result.stderr == ""
    found = colors_in(tmp_path / "a/curves.png")
    for color in COLORS[:2]:
        assert found[int(color[1:], 16)] > 100
    assert max(found, key=found.get) == 0xFFFFFF


def test_runs_are_compared_by_old_files_too(tmp_path):
    write_run(tmp_path / "now/run")
    write_run(tmp_path / "before/run", scale=2.0, loggers=["visualdl"])
    (tmp_path / "before/run" / RECORDS_FILE).unlink()
    folders = [tmp_path / "now/run", tmp_path / "before/run"]
    assert names_of(folders) == ["now/run", "before/run"]
    result = run("--log_dir", *folders, "--output", tmp_path / "both.png")
    assert result.returncode == 0, result.stderr
    found = colors_in(tmp_path / "both.png")
    assert all(found[int(color[1:], 16)] > 100 for color in COLORS[:2])


def test_texts_of_a_sheet_do_not_overlap(tmp_path):
    write_run(tmp_path)
    figure = draw([Run("run", read(tmp_path / RECORDS_FILE))])
    figure.draw_without_rendering()
    for axes in figure.axes:
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent() for label in ticks if label.get_text() and label.get_visible()]
            for before, after in zip(boxes, boxes[1:]):
                assert not before.overlaps(after)
    titles = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in titles)


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
    assert {path.name for path in tmp_path.iterdir()} == {CURVES_FILE, RECORDS_FILE}


@pytest.mark.usefixtures("curves")
def test_a_picture_that_is_drawn_again_is_said_to_be(tmp_path):
    (tmp_path / "curves.pdf").write_text("earlier")
    result = run("--log_dir", tmp_path, "--output", tmp_path / "curves.pdf")
    assert result.stdout == f"written to {tmp_path / 'curves.pdf'}, in place of an earlier file\n"
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_no_curves_is_said(tmp_path):
    result = run("--log_dir", tmp_path, "--output", tmp_path / "curves.png")
    assert result.returncode == 1
    assert f"{tmp_path / 'metrics.jsonl'}: expected the records of a run, found none" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "train", "iteration": 5, "loss": "q"}',
        '{"kind": "eval", "iteration": 5, "iou": {"road": "b"}, "confusion_matrix": [[1]]}',
        '{"kind": "train", "iteration": true}',
        "no JSON",
    ],
)
def test_lines_that_are_no_records_are_left_out_and_told(tmp_path, line):
    write_run(tmp_path / "a")
    path = tmp_path / "a" / RECORDS_FILE
    path.write_text(f"{line}\n{path.read_text()}")
    made = run("--log_dir", tmp_path / "a", "--output", tmp_path / "sheet.png")
    assert made.returncode == 0 and f"{path}: 1 of 7 lines are no records, and are left out" in made.stdout


def test_a_run_named_twice_is_refused(tmp_path):
    write_run(tmp_path / "a")
    made = run("--log_dir", tmp_path / "a", tmp_path / "a", "--output", tmp_path / "sheet.png")
    assert made.returncode == 2 and "found one twice" in made.stderr and not (tmp_path / "sheet.png").exists()
