# SPDX-License-Identifier: Apache-2.0
import sys

import numpy as np
import pytest
from visualdl import LogReader

from hmsa.engine.log import SilentLog, open_log
from hmsa.engine.loggers import CURVES_FILE, check_loggers
from hmsa.errors import UsageError
from hmsa.report.records import RECORDS_FILE, cut, of_training, read


def test_lines_carry_the_time(capsys):
    open_log().line("hello")
    assert capsys.readouterr().out.endswith(" hello\n")


def training(step, loss):
    return of_training(step, 0.5, 0.01, {"loss": loss, "Dice/joint": 2.0}, (0.1, 0.2), 2**30)


def evaluation(step, score):
    """As an old run's curves tell it, and what a console needs."""
    scores = ("mean_iou", "mean_iou_present", "accuracy", "loss", "mean_boundary_iou", "calibration_error")
    rest = {"images": 3, "seconds": 1.0, "best": {"mean_iou": score, "iteration": step}}
    return {"iteration": step, "kind": "eval", **dict.fromkeys(scores, score), "iou": {"road": score}, **rest}


def record(folder, steps, iteration=None, scale=1.0, loggers=("visualdl",), **options):
    log = open_log(folder, iteration, loggers=loggers, **options)
    for step in steps:
        log.record(training(step, scale * step))
    log.flush()
    return log


def curve(path, tag="train/loss"):
    return [(point.id, point.value) for point in LogReader(file_path=str(path)).get_data("scalar", tag)]


@pytest.mark.parametrize("torn", [0, 1, 9, 30])
def test_curves_of_a_resumed_run_continue(tmp_path, capsys, torn):
    """Killed at iteration 4, perhaps while it wrote a point, and resumed from 2: 3 and 4 are there once."""
    record(tmp_path, (1, 2, 3, 4))
    path = tmp_path / CURVES_FILE
    path.write_bytes(path.read_bytes()[: -torn or None])
    record(tmp_path, (3, 4, 5), iteration=2, scale=2.0)
    assert curve(path) == [(1, 1), (2, 2), (3, 6), (4, 8), (5, 10)]
    assert {path.name for path in tmp_path.iterdir()} == {CURVES_FILE, RECORDS_FILE}
    assert "earlier" not in capsys.readouterr().out
    assert [(record["iteration"], record["loss"]) for record in read(tmp_path / RECORDS_FILE)] == [
        (1, 1), (2, 2), (3, 6), (4, 8), (5, 10)
    ]  # fmt: skip


@pytest.mark.parametrize(("evaluated", "points"), [(True, [(2, 0.5), (4, 0.25)]), (False, [(2, 0.5)])])
def test_points_of_an_evaluation_that_will_be_done_again_are_dropped(tmp_path, evaluated, points):
    """Killed after them, and before or after the checkpoint said that they are there."""
    log = record(tmp_path, (1, 2, 3, 4))
    for iteration, value in [(2, 0.5), (4, 0.25)]:
        log.record(evaluation(iteration, value))
    log.flush()
    record(tmp_path, (), iteration=4, evaluated=evaluated)
    assert curve(tmp_path / CURVES_FILE, "eval/mIoU") == points
    assert curve(tmp_path / CURVES_FILE) == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_new_run_leaves_earlier_curves_aside(tmp_path, capsys):
    record(tmp_path, (1, 2, 3))
    record(tmp_path, (1,), scale=5.0)
    assert curve(tmp_path / CURVES_FILE) == [(1, 5)]
    (earlier,) = tmp_path.glob("earlier_curves.*.log")
    (records,) = tmp_path.glob("earlier_curves.*.jsonl")
    assert len(read(records)) == 3
    assert curve(earlier) == [(1, 1), (2, 2), (3, 3)]
    assert f"the curves of an earlier run are kept as {earlier}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        ("raise ImportError('numpy.core.multiarray failed to import')", "ImportError: numpy.core.multiarray failed to"),
        ("raise TypeError('Descriptors cannot be created.\\nIf ...')", r"TypeError: Descriptors cannot be created\.\)"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_why_visualdl_cannot_be_imported_is_said(tmp_path, monkeypatch, failure, cause):
    for name in [name for name in sys.modules if name.partition(".")[0] == "visualdl"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "visualdl").mkdir()
    (tmp_path / "visualdl/__init__.py").write_text(failure)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=rf"recording curves needs VisualDL, which cannot be imported \({cause}"):
        open_log(tmp_path, loggers=["visualdl"])


def test_a_flushed_point_is_in_the_file(tmp_path):
    record(tmp_path, (1,))
    assert curve(tmp_path / CURVES_FILE) == [(1, 1)]


def test_other_ranks_are_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    log = open_log(tmp_path, loggers=["visualdl"])
    assert type(log) is SilentLog
    log.line("hello")
    log.record(training(1, 1.0))
    log.flush()
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_from_before_there_were_records_goes_on_with_all_of_its_curves(tmp_path):
    log = record(tmp_path, (1, 2, 3))
    log.record(evaluation(2, 0.5))
    log.close()
    (tmp_path / RECORDS_FILE).unlink()
    record(tmp_path, (3, 4), iteration=2, scale=2.0)
    found = read(tmp_path / RECORDS_FILE)
    assert [(record["kind"], record["iteration"]) for record in found] == [
        ("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("train", 4)
    ]  # fmt: skip
    assert [found[1]["loss"], found[1]["losses"], found[2]["mean_iou"], found[2]["iou"]] == [
        2, {"Dice/joint": 2}, 0.5, {"road": 0.5}
    ]  # fmt: skip
    assert curve(tmp_path / CURVES_FILE) == [(1, 1), (2, 2), (3, 6), (4, 8)]


def test_curves_that_are_asked_for_later_begin_at_the_beginning(tmp_path):
    record(tmp_path, (1, 2, 3), loggers=())
    record(tmp_path, (3,), iteration=2)
    assert curve(tmp_path / CURVES_FILE) == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("torn", [0, 1, 40])
def test_a_torn_line_is_cut_and_no_number_is_not_json(tmp_path, torn):
    for step, loss in enumerate((1.0, float("nan"), 3.0), 1):
        record(tmp_path, (), iteration=step, loggers=()).record(training(step, loss))
    path = tmp_path / RECORDS_FILE
    assert b"NaN" not in path.read_bytes()
    path.write_bytes(path.read_bytes()[: -torn or None])
    cut(path, 3, evaluated=True)
    assert path.read_bytes().endswith(b"}\n")
    assert len(read(path)) == 3 - bool(torn)


def events(folder):
    """Points as TensorBoard shows them: tag -> [(step, value), ...]; what a start purges is gone."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found = {}
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        data, place = path.read_bytes(), 0
        while place + 12 <= len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + size])
            place += 16 + size
            if event.session_log.status == SessionLog.START and event.step:
                found = {tag: [point for point in points if point[0] < event.step] for tag, points in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


@pytest.mark.parametrize("evaluated", [True, False])
def test_curves_of_tensorboard_continue(tmp_path, evaluated):
    pytest.importorskip("tensorboardX", reason="pip install tensorboardX")
    log = record(tmp_path, (1, 2, 3, 4), loggers=["tensorboard"])
    log.record(evaluation(4, 0.25))
    log.record(training(5, 5.0))
    log.picture(4, "street", np.zeros((4, 6, 3), np.uint8))
    log.texts({"recipe": "iters: 5"})
    log.flush()  # and killed
    log = record(tmp_path, (5, 6), iteration=4, scale=2.0, evaluated=evaluated, loggers=["tensorboard"])
    log.texts({"recipe": "iters: 5"})
    log.close()
    found = events(tmp_path / "tensorboard")
    assert found["train/loss"] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 10), (6, 12)]
    assert found["eval/mIoU"] == found["eval/iou/road"] == ([(4, 0.25)] if evaluated else [])
    assert found["eval/image/street"] == ([(4, 0)] if evaluated else [])
    assert len(found["recipe/text_summary"]) == 1


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("mlflow", "mlflow")])
def test_a_package_that_is_missing_is_one_sentence(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"^loggers: {name} needs \w+, which cannot be imported .*: put it right"):
        check_loggers([name])


def test_curves_of_mlflow_continue(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record(tmp_path, (1, 2, 3), loggers=["mlflow"])
    record(tmp_path, (3, 4), iteration=2, loggers=["mlflow"]).close()
    client = mlflow.MlflowClient(tracking_uri=f"file:{tmp_path / 'mlruns'}")
    (run,) = client.search_runs(["0"])
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")] == [
        (1, 1), (2, 2), (3, 3), (4, 4)
    ]  # fmt: skip
