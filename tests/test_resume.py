# SPDX-License-Identifier: Apache-2.0
"""train.py where a run has been before: what goes on, what starts anew, what is refused; nothing is lost silently."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hmsa.engine.loggers import CURVES_FILE
from hmsa.errors import DataError, UsageError
from hmsa.report.records import RECORDS_FILE, read

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import train  # noqa: E402

NO_DATA = ["--opts", "train_dataset.dataset_root=nowhere", "val_dataset.dataset_root=nowhere"]


@pytest.fixture
def start(tiny_recipe, capsys):
    """Runs train.py on the tiny recipe in this process -> what it printed."""

    def run(save_dir, *arguments):
        arguments = ["--config", tiny_recipe, "--save_dir", save_dir, *arguments]
        train.main(train.make_parser().parse_args([str(argument) for argument in arguments]))
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def trained(tiny_recipe, tmp_path_factory):
    """A run of two iterations, each with a checkpoint; it has an evaluation of the last one only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = ["--config", str(tiny_recipe), "--save_dir", str(folder), "--save_interval", "1"]
    parser = train.make_parser()
    train.main(parser.parse_args([*arguments, "--iters", "1", "--use_vdl"]))
    train.main(parser.parse_args([*arguments, "--iters", "2", "--use_vdl", "--do_eval", "--resume_model", "auto"]))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def files(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def change_state(folder, **keys):
    path = folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def refused(start, save_dir, *arguments, error=UsageError):
    """The sentence with which a run ends before data is looked for, and before anything is written."""
    before = files(save_dir)
    with pytest.raises(error) as caught:
        start(save_dir, *arguments, *NO_DATA)
    assert files(save_dir) == before
    return str(caught.value)


def what_does_not_depend_on_the_clock(folder):
    kept = []
    for record in read(folder / RECORDS_FILE):
        kept.append({name: value for name, value in record.items() if not name.endswith(("seconds", "memory_bytes"))})
    return kept


@pytest.mark.parametrize("to_evaluate", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_records_of_a_resumed_run_are_those_of_one_that_was_never_stopped(start, tmp_path, to_evaluate):
    """Killed after iteration 3, in the middle of a line; the evaluation of 2 noted as done, or not yet."""
    flags = ["--iters", 4, "--save_interval", 2, "--log_iters", 1, "--do_eval"]
    start(tmp_path / "whole", *flags)
    whole = what_does_not_depend_on_the_clock(tmp_path / "whole")
    assert [(record["kind"], record["iteration"]) for record in whole] == [
        ("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("train", 4), ("eval", 4)
    ]  # fmt: skip
    of_evaluation = {"mean_iou", "iou", "boundary_iou", "calibration_error", "accuracy", "loss", "attention", "best"}
    assert of_evaluation <= set(whole[2])
    assert set(whole[0]) >= {"loss", "losses", "learning_rate", "gradient_norm", "epoch"}
    shares = whole[2]["attention"]
    assert list(shares) == ["0.5", "1", "2"]
    assert sum(of_class["road"] for of_class in shares.values()) == pytest.approx(1, abs=1e-5)

    folder = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole", folder)
    for left in ("iter_4", "best_model"):
        shutil.rmtree(folder / left)
    change_state(folder / "iter_2", to_evaluate=to_evaluate)
    lines = (folder / RECORDS_FILE).read_bytes().splitlines(keepends=True)
    (folder / RECORDS_FILE).write_bytes(b"".join(lines[:4]) + lines[4][:99])
    start(folder, *flags, "--resume_model", "auto")
    assert what_does_not_depend_on_the_clock(folder) == whole


def test_a_second_run_in_a_folder_is_refused(start, run):
    score = json.loads((run / "best_model/state.json").read_text())["best_score"]
    assert refused(start, run, "--do_eval", "--use_vdl") == (
        f"{run}: expected no earlier run where a new one starts, found iter_2 and best_model (mIoU {score:.4f}), which "
        "this run would replace: give --resume_model auto to go on from iter_2, or another --save_dir"
    )


@pytest.fixture
def other_run():
    """A process that has a folder for itself, as a run does, until it is killed."""
    script = "import sys, time, pathlib; from hmsa.system.files import FolderLock; lock = FolderLock(pathlib.Path(sys."
    script += "argv[1])); print(lock.take(), flush=True); time.sleep(600)"
    processes = []

    def begin(folder):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", script, str(folder)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        assert processes[-1].stdout.readline() == "True\n"
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_a_second_run_beside_one_that_goes_on_is_refused(start, run, other_run, tmp_path):
    for folder in (run, tmp_path / "new"):
        other = other_run(folder)
        for flags in ([], ["--resume_model", "auto"]):
            assert refused(start, folder, *flags) == (
                f"{folder}: expected no other run that writes here, found one that is going on: stop it, or give "
                "another --save_dir"
            )
        other.kill()
        other.wait()
    assert "done: iteration 3 of 3" in start(run, "--resume_model", "auto", "--iters", "3")
    assert "done: iteration 1 of 1" in start(tmp_path / "new", "--iters", "1")
    assert not (tmp_path / "new/.run.lock").exists()


def test_where_files_cannot_be_locked_a_run_says_so(start, tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(DataError):
        start(tmp_path / "run", *NO_DATA)
    assert "run: a second run would not be noticed ([Errno 37] No locks available)" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["best_model/model.pdparams", "iter_9/state.json", ".iter_9.old/model.pdparams"])
def test_half_a_run_in_a_folder_is_refused(start, tmp_path, left):
    (tmp_path / left).parent.mkdir()
    (tmp_path / left).write_text("{}")
    name = left.split("/")[0]
    assert refused(start, tmp_path) == (
        f"{tmp_path}: expected no earlier run where a new one starts, found {name}, which this run would replace: give "
        "another --save_dir"
    )
    said = refused(start, tmp_path, "--resume_model", "auto")
    assert f"expected a checkpoint to go on from, found none that can be read: {tmp_path / name}" in said


def test_another_run_does_not_go_on_in_a_folder(start, run, tmp_path):
    shutil.copytree(run / "iter_2", tmp_path / "elsewhere/iter_2")
    said = refused(start, run, "--resume_model", tmp_path / "elsewhere/iter_2")
    assert f"expected no other run where that of {tmp_path / 'elsewhere/iter_2'} goes on, found iter_2 and best" in said
    assert "give --resume_model auto to go on from iter_2, or another --save_dir" in said


def test_from_an_older_checkpoint_a_run_does_not_go_on_in_its_own_folder(start, run):
    change_state(run / "best_model", serial=1, iteration=1)  # as if iter_1 were the best
    for older in ("iter_1", "best_model"):
        said = refused(start, run, "--resume_model", run / older)
        assert f"expected {older} to be the checkpoint written last where it goes on, found iter_2 and best" in said


def test_what_is_no_checkpoint_is_said_before_what_is_in_the_folder(start, run):
    said = refused(start, run, "--resume_model", run / "iter_3", error=DataError)
    assert said.startswith(f"{run / 'iter_3'}: expected a checkpoint")


def test_from_an_older_checkpoint_a_run_goes_on_elsewhere(start, run, tmp_path):
    before = files(run)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/evaluation.json").write_text("{}")  # no run
    said = start(tmp_path / "elsewhere", "--resume_model", run / "iter_1", "--iters", 2, "--seed", 7)
    assert f"resumed from {run / 'iter_1'} at iteration 1" in said
    assert files(run) == before
    assert (tmp_path / "elsewhere/iter_2/state.json").exists()


@pytest.mark.parametrize("given", ["auto", "iter_2", "best_model", "link"])
def test_the_newest_checkpoint_goes_on_with_what_has_changed_said(start, run, given):
    (run.parent / "link").symlink_to(run / "iter_2")
    model = {"auto": "auto", "link": run.parent / "link"}.get(given, run / given)
    change_state(run / "iter_2", of_a_later_version=1)
    (run / "iter_9").mkdir()
    (run / "iter_9/state.json").write_text("damaged")
    said = start(run, "--resume_model", model, "--iters", 3, "--learning_rate", 0.125, "--batch_size", 1)
    assert "at iteration 2" in said
    assert "3 keys" in said
    assert "  iters: 2 -> 3" in said
    assert "  batch_size: 2 -> 1" in said
    assert "  lr_scheduler.learning_rate: " in said
    assert ("was written by a later version: of_a_later_version in its state.json" in said) == (given != "best_model")
    iterations = {"iter_1", "iter_2", "iter_3", "iter_9"}
    assert {path.name for path in run.iterdir()} == {*iterations, "best_model", CURVES_FILE, RECORDS_FILE}


def test_a_finished_run_says_so_and_touches_nothing(start, run):
    before = files(run), {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for iters in (1, 2):
        flags = ["--iters", iters, "--do_eval", "--use_vdl", "--resume_model", "auto"]
        said = start(run, *flags, *NO_DATA)
        assert said.split(" ", 2)[2] == (
            f"already finished: {run / 'iter_2'} is at iteration 2 of {iters}; a larger --iters goes on\n"
        )
    assert (files(run), {path: path.stat().st_mtime_ns for path in run.rglob("*")}) == before


def test_an_evaluation_that_is_still_to_be_done_is_done(start, run):
    change_state(run / "iter_2", to_evaluate=True)
    assert "already finished" in start(run, "--iters", 2, "--resume_model", "auto")
    assert "[EVAL] iter 2" in start(run, "--iters", 2, "--resume_model", "auto", "--do_eval")
    assert not json.loads((run / "iter_2/state.json").read_text())["to_evaluate"]
    assert "already finished" in start(run, "--iters", 2, "--resume_model", "auto", "--do_eval")


def test_without_a_checkpoint_auto_starts_anew_and_keeps_earlier_curves(start, run):
    shutil.rmtree(run / "best_model")
    for name in ("iter_1", "iter_2"):
        shutil.rmtree(run / name)
    curves = (run / CURVES_FILE).read_bytes()
    said = start(run, "--resume_model", "auto", "--iters", 1, "--use_vdl")
    assert f"no checkpoint in {run}: a new run starts" in said
    (earlier,) = run.glob("earlier_curves.*.log")
    assert earlier.read_bytes() == curves
    assert f"the curves of an earlier run are kept as {earlier}" in said


@pytest.mark.parametrize("more", [[], ["--resume_model", "auto"]])
def test_planning_memory_writes_nothing_where_a_run_is(start, run, more):
    (run / ".iter_5.partial").mkdir()
    before = files(run)
    assert "a training step with batch_size 1:" in start(run, "--plan-memory", "--use_vdl", "--batch_size", 1, *more)
    assert files(run) == before


def test_a_visualdl_that_cannot_be_imported_is_said_before_training(tiny_recipe, tmp_path):
    (tmp_path / "broken/visualdl").mkdir(parents=True)
    (tmp_path / "broken/visualdl/__init__.py").write_text("raise ImportError('of NumPy')")
    command = [sys.executable, ROOT / "train.py", "--config", tiny_recipe, "--save_dir", tmp_path / "run", "--use_vdl"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "broken"), str(ROOT)])}
    ended = subprocess.run([*command, *NO_DATA], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --use_vdl needs VisualDL, which cannot be imported (ImportError: of NumPy): ")
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_samples_that_were_skipped_stay_listed(start, tiny_recipe, tmp_path):
    shutil.copytree(tiny_recipe.parent, tmp_path / "data")
    bad = min((tmp_path / "data/leftImg8bit/train").rglob("*.png"))
    bad.write_bytes(b"no image")
    data = ["on_bad_sample=skip", "train_dataset.coarse_multiple=0", f"train_dataset.dataset_root={tmp_path / 'data'}"]
    for iters in (3, 4):  # an epoch, and one more, with images that can all be read
        start(tmp_path / "run", "--iters", iters, "--batch_size", 2, "--resume_model", "auto", "--opts", *data)
        (line,) = (tmp_path / "run/skipped_samples.txt").read_text().splitlines()
        assert line.startswith(f"{bad}: ")
        shutil.copy(max(bad.parent.rglob("*.png")), bad)


def test_a_recipe_names_loggers_and_what_is_missing_is_said_first(start, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    said = refused(start, tmp_path, "--opts", "loggers=[visualdl,tensorboard]")
    assert said.startswith("loggers: tensorboard needs tensorboardX, which cannot be imported (")
    with pytest.raises(UsageError, match=r"loggers.*tensorboad"):
        start(tmp_path, "--opts", "loggers=[tensorboad]")
    with pytest.raises(UsageError, match="loggers to be a list that names each once"):
        start(tmp_path, "--opts", "loggers=[visualdl,visualdl]")
    assert list(tmp_path.iterdir()) == []
