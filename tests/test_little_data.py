# SPDX-License-Identifier: Apache-2.0
"""train.py with what little data asks for: weights from the labels, an early end, a start from other classes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa.engine.loggers import CURVES_FILE
from hmsa.errors import UsageError
from hmsa.report.console import number
from hmsa.weights.files import read_weights

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import train  # noqa: E402

pytestmark = pytest.mark.slow

CROP = "{type: RandomPaddingCrop, crop_size: [64, 64]}, {type: Normalize}"

# Nothing of this network changes but its last layer, and that by nothing: every evaluation finds the same.
STILL = [
    "freeze=[backbone, ocr.conv3x3_ocr, ocr.ocr_distri_head, ocr.aux_head, scale_attn]",
    "lr_scheduler={type: PolynomialDecay, learning_rate: 1.0e-12, end_lr: 0.0}",
]


@pytest.fixture
def shapes(tmp_path):
    """Options for eight images of squares: of class 2 on 0, in one image a line of class 1, nowhere class 3."""
    rng = np.random.default_rng(0)
    lines = []
    for index in range(8):
        label = np.zeros((64, 72 + index), np.uint8)
        x, y = rng.integers(0, 40, 2)
        label[y : y + 20, x : x + 20] = 2
        label[0, : 10 * (index == 0)] = 1
        cv2.imwrite(str(tmp_path / f"{index}.png"), label)
        cv2.imwrite(str(tmp_path / f"{index}.jpg"), 90 * label + rng.integers(0, 60, label.shape, np.uint8))
        lines.append(f"{index}.jpg {index}.png\n")
    (tmp_path / "train.txt").write_text("".join(lines))
    (tmp_path / "val.txt").write_text("".join(lines[:2]))
    dataset = f"type: Dataset, dataset_root: {tmp_path}, separator: ' '"
    return [
        "model.num_classes=4",
        "classes=[{name: ground}, {name: line}, {name: square}, {name: cloud}]",
        f"train_dataset={{{dataset}, train_path: train.txt, transforms: [{CROP}]}}",
        f"val_dataset={{{dataset}, val_path: val.txt, transforms: [{{type: Normalize}}]}}",
    ]


@pytest.fixture
def start(tiny_recipe, shapes, capsys):
    """Runs train.py on the shapes, in this process -> the lines that it printed, without the time of day."""

    def run(save_dir, *options, resume=False, do_eval=True, shapes=shapes):
        arguments = ["--config", tiny_recipe, "--save_dir", save_dir, "--save_interval", 1, "--use_vdl"]
        arguments += ["--do_eval"] * do_eval + ["--resume_model", "auto"] * resume + ["--opts", *shapes, *options]
        train.main(train.make_parser().parse_args([str(argument) for argument in arguments]))
        return [line[20:] for line in capsys.readouterr().out.splitlines()]

    return run


def state(folder):
    return json.loads((folder / "state.json").read_text())


def test_a_run_with_weights_from_its_labels_goes_on_as_if_never_stopped(start, tmp_path):
    said = start(tmp_path / "whole", "class_weights=auto", "iters=2")
    (line,) = [line for line in said if line.startswith("class weights")]
    assert line.startswith("class weights (auto, from all 8 labels; in none of them: cloud): ground 0.")
    assert [part.split()[0] for part in line.partition("): ")[2].split(", ")] == ["ground", "square", "cloud", "line"]
    weights = state(tmp_path / "whole/iter_2")["class_weights"]
    assert weights[0] < weights[2] < weights[3] == 1 < weights[1]

    shutil.copytree(tmp_path / "whole/iter_1", tmp_path / "parts/iter_1")
    said = start(tmp_path / "parts", "class_weights=auto", "iters=2", resume=True)
    assert any(line.startswith("class weights (auto, as counted when the run began): ground 0.") for line in said)
    whole, parts = (read_weights(tmp_path / name / "iter_2/model.pdparams") for name in ("whole", "parts"))
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, err_msg=name)

    # Nothing is counted again, and what was counted is what the losses take.
    shutil.copytree(tmp_path / "whole/iter_1", tmp_path / "other/iter_1")
    path = tmp_path / "other/iter_1/state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "class_weights": [0.5, 1.5, 1.0, 1.0]}))
    said = start(tmp_path / "other", "class_weights=auto", "iters=2", resume=True)
    assert any(line.endswith("ground 0.5, cloud 1, square 1, line 1.5") for line in said)
    assert state(tmp_path / "other/iter_2")["class_weights"] == [0.5, 1.5, 1.0, 1.0]
    other = read_weights(tmp_path / "other/iter_2/model.pdparams")
    assert any((other[name] != value).any() for name, value in whole.items())


def test_weights_of_the_recipe_count_on_resuming_and_none_are_none(start, tmp_path):
    start(tmp_path / "run", "class_weights=auto", "iters=1", do_eval=False)
    start(tmp_path / "run", "class_weights=[1, 2, 3, 4]", "iters=2", resume=True, do_eval=False)
    assert state(tmp_path / "run/iter_2")["class_weights"] == [1, 2, 3, 4]
    said = start(tmp_path / "run", "iters=3", resume=True, do_eval=False)
    assert state(tmp_path / "run/iter_3")["class_weights"] is None
    assert not [line for line in said if line.startswith("class weights")]


def test_the_loss_of_evaluations_is_in_log_curves_and_state(start, tmp_path):
    (line,) = [line for line in start(tmp_path / "run", "iters=1") if line.startswith("[SCORES]")]
    assert f"loss {number(state(tmp_path / 'run/iter_1')['loss'])}, boundary IoU" in line
    assert b"eval/loss" in (tmp_path / "run" / CURVES_FILE).read_bytes()


def test_early_stopping_ends_a_run_and_is_kept_through_resuming(start, tmp_path):
    options = [*STILL, "early_stopping={patience: 2, metric: loss}"]
    why = "loss has not fallen below 2."
    start(tmp_path / "run", *options, "iters=1")
    start(tmp_path / "run", *options, "iters=2", resume=True)
    said = start(tmp_path / "run", *options, "iters=9", resume=True)
    assert said[-5].startswith("done: iteration 3 of 9 in 00:")
    assert f", ended early as {why}" in said[-5]
    assert "which it was at iteration 1, in 2 evaluations in a row (early_stopping.patience is 2)" in said[-5]

    (line,) = start(tmp_path / "run", *options, "iters=9", resume=True)
    assert line.startswith(f"already finished: in {tmp_path / 'run/iter_3'}, {why}")
    said = start(tmp_path / "run", *STILL, "early_stopping={patience: 3, metric: loss}", "iters=9", resume=True)
    assert said[-5].startswith("done: iteration 4 of 9")
    said = start(tmp_path / "run", *STILL, "iters=5", resume=True)
    assert said[-5].startswith("done: iteration 5 of 5 in 00:")


def test_early_stopping_that_could_not_work_is_refused(start, tmp_path):
    with pytest.raises(UsageError, match=r"early_stopping: expected --do_eval, as it looks at evaluations"):
        start(tmp_path / "run", "early_stopping.patience=2", do_eval=False)
    with pytest.raises(UsageError) as e:
        start(tmp_path / "run", "early_stopping={patience: 2, metric: mean_iuo}")
    assert str(e.value) == (
        "--opts: early_stopping.metric: expected a score that evaluations give, found 'mean_iuo': "
        "did you mean mean_iou?"
    )
    assert not list((tmp_path / "run").glob("*"))


def test_a_network_that_answers_one_class_everywhere_is_told_so(start, tmp_path):
    said = start(tmp_path / "run", *STILL, "iters=2")
    said += start(tmp_path / "run", *STILL, "iters=5", resume=True)
    (index,) = [index for index, line in enumerate(said) if "the network answers" in line]
    assert sum(line.startswith("[EVAL]") for line in said[:index]) == 3
    assert "everywhere, in 3 evaluations in a row or more" in said[index]
    assert "class_weights: auto" in said[index]


def test_a_run_is_told_in_six_lines_at_its_beginning_and_its_end(start, tmp_path):
    said = start(tmp_path / "run", "iters=2", "freeze=backbone")
    first = next(index for index, line in enumerate(said) if line.startswith("device: "))
    begin, end = said[first : first + 6], said[-5:]
    assert [line.split(":")[0] for line in begin] == ["device", "images", "classes", "parameters", "memory", "folder"]
    assert begin[1] == "images: 8 an epoch, 2 an iteration, 2 iterations (0.5 epochs); 2 to evaluate every 1 iterations"
    assert begin[2] == "classes: 4 (ground, line, square, cloud)"
    assert begin[3].endswith(" million of them trained, the others frozen")
    assert said[first + 6].startswith("[TRAIN]")
    best = tmp_path / "run/best_model"
    assert [line.split(":")[0] for line in end] == ["done", "best", "memory", "next", "next"]
    assert end[1].endswith(f", in {best}")
    assert end[3] == f"next: python val.py --config {best}/config.yml --model_path {best}"

    said = start(tmp_path / "other", "iters=1", do_eval=False)
    assert f"weights: not evaluated, in {tmp_path / 'other/iter_1'}" in said


def test_weights_of_other_classes_start_a_run_with_what_fits(start, shapes, tmp_path):
    start(tmp_path / "first", "iters=1", do_eval=False)
    other = ["model.num_classes=5", f"model.pretrained={tmp_path / 'first/iter_1'}", *STILL[1:]]
    said = start(tmp_path / "second", *other, "iters=1", do_eval=False, shapes=shapes[2:])
    (line,) = [line for line in said if "tensors" in line]
    assert ": loaded 413 of 417 tensors; not fitting: ocr.cls_head.weight: [4, 16, 1, 1] instead of [5, 16, " in line
    assert line.endswith("; what is not loaded starts anew")
    first, second = (read_weights(tmp_path / f"{name}/iter_1/model.pdparams") for name in ("first", "second"))
    np.testing.assert_allclose(second["backbone.conv1.weight"], first["backbone.conv1.weight"], atol=1e-9)
