# SPDX-License-Identifier: Apache-2.0
"""Two processes through the real launcher."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hmsa.weight_files import read_weights

ROOT = Path(__file__).parents[1]


def launch(processes, script, *args, log_dir):
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    command += ["--log_dir", str(log_dir), script, *map(str, args)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    logs = "\n".join(path.read_text() for path in sorted(Path(log_dir).glob("workerlog.*")))
    assert run.returncode == 0, run.stdout + run.stderr + logs
    return logs


def run(script, *args):
    return subprocess.run(
        [sys.executable, script, *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )


@pytest.mark.slow
def test_two_processes_train_evaluate_and_save(tiny_recipe, tmp_path):
    log = launch(
        2, "train.py", "--config", tiny_recipe, "--iters", 5, "--save_interval", 3, "--do_eval",
        "--save_dir", tmp_path / "run", "--log_iters", 1, log_dir=tmp_path / "logs",
    )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best_model", "iter_3", "iter_5"]
    assert log.count("[TRAIN]") == 5, "rank 0 alone reports"
    assert all(np.isfinite(array).all() for array in read_weights(tmp_path / "run/iter_5/model.pdparams").values())

    # Three pictures do not divide by two ranks: the sum must still be that of one process.
    for processes in (1, 2, 4):
        arguments = ["--config", tiny_recipe, "--model_path", tmp_path / "run/iter_5"]
        arguments += ["--output", tmp_path / f"{processes}.json"]
        if processes == 1:
            run("val.py", *arguments)
        else:
            launch(processes, "val.py", *arguments, log_dir=tmp_path / f"logs{processes}")
    results = [json.loads((tmp_path / f"{processes}.json").read_text()) for processes in (1, 2, 4)]
    assert results[0]["pictures"] == 3
    for result in results[1:]:
        assert result["confusion_matrix"] == results[0]["confusion_matrix"]
        assert result["pictures"] == 3
    assert np.sum(results[0]["confusion_matrix"]) > 0


@pytest.mark.slow
def test_two_processes_see_what_one_sees(tiny_recipe, tmp_path):
    """The first step's loss is the mean over both halves of the batch."""
    options = ["--config", tiny_recipe, "--iters", 1, "--log_iters", 1]
    options += ["--opts", "model.dropout=0", "lr_scheduler.learning_rate=1e-9"]
    two = launch(2, "train.py", *options, "batch_size=2", "--save_dir", tmp_path / "two", log_dir=tmp_path / "logs")
    one = run("train.py", *options, "batch_size=4", "--save_dir", tmp_path / "one").stdout

    def mean(text, count):
        found = [float(line.split("loss ")[1].split(",")[0]) for line in text.splitlines() if "[TRAIN]" in line]
        assert len(found) == count
        return found[0]

    # Batch normalisation sees halves, so the losses agree only roughly at initialisation.
    assert mean(two, 1) == pytest.approx(mean(one, 1), rel=0.05)


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_equals_an_uninterrupted_one(tiny_recipe, tmp_path):
    common = ["train.py", "--config", tiny_recipe, "--save_interval", 2]
    launch(2, *common, "--iters", 4, "--save_dir", tmp_path / "whole", log_dir=tmp_path / "l1")
    launch(
        2, *common, "--iters", 4, "--save_dir", tmp_path / "parts",
        "--resume_model", tmp_path / "whole/iter_2", log_dir=tmp_path / "l2",
    )  # fmt: skip
    whole, parts = (read_weights(tmp_path / name / "iter_4/model.pdparams") for name in ("whole", "parts"))
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, err_msg=name)
