# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
from visualdl import LogReader

from hmsa.engine.log import SilentLog, open_log
from hmsa.engine.loggers import CURVES_FILE
from hmsa.errors import UsageError


def test_lines_carry_the_time(capsys):
    open_log().line("hello")
    assert capsys.readouterr().out.endswith(" hello\n")


def record(folder, steps, iteration=None, scale=1.0, **options):
    log = open_log(folder, iteration, **options)
    for step in steps:
        log.scalars(step, {"train/loss": scale * step})
    log.flush()


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
    assert [path.name for path in tmp_path.iterdir()] == [CURVES_FILE]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("evaluated", "points"), [(True, [(2, 0.5), (4, 0.25)]), (False, [(2, 0.5)])])
def test_points_of_an_evaluation_that_will_be_done_again_are_dropped(tmp_path, evaluated, points):
    """Killed after them, and before or after the checkpoint said that they are there."""
    record(tmp_path, (1, 2, 3, 4))
    log = open_log(tmp_path, 4)
    for iteration, value in [(2, 0.5), (4, 0.25)]:
        log.scalars(iteration, {"eval/mIoU": value})
    log.flush()
    record(tmp_path, (), iteration=4, evaluated=evaluated)
    assert curve(tmp_path / CURVES_FILE, "eval/mIoU") == points
    assert curve(tmp_path / CURVES_FILE) == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_new_run_leaves_earlier_curves_aside(tmp_path, capsys):
    record(tmp_path, (1, 2, 3))
    record(tmp_path, (1,), scale=5.0)
    assert curve(tmp_path / CURVES_FILE) == [(1, 5)]
    (earlier,) = tmp_path.glob("earlier_curves.*.log")
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
        open_log(tmp_path)


def test_a_flushed_point_is_in_the_file(tmp_path):
    log = open_log(tmp_path)
    log.scalars(1, {"train/loss": 1.0})
    log.flush()
    assert curve(tmp_path / CURVES_FILE) == [(1, 1)]


def test_other_ranks_are_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    log = open_log(tmp_path)
    assert type(log) is SilentLog
    log.line("hello")
    log.scalars(1, {"a": 1.0})
    log.flush()
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
