# SPDX-License-Identifier: Apache-2.0
import pytest
from visualdl import LogReader

from hmsa.log import CURVES_FILE, ConsoleLog, SilentLog, duration, open_log


def test_lines_carry_the_time(capsys):
    ConsoleLog().line("hello")
    assert capsys.readouterr().out.endswith(" hello\n")


def test_curves_of_a_resumed_run_continue(tmp_path):
    for steps in ((1, 2), (3, 4)):
        log = ConsoleLog(tmp_path)
        for step in steps:
            log.scalars(step, {"train/loss": step / 10})
        log.close()
    points = LogReader(file_path=str(tmp_path / CURVES_FILE)).get_data("scalar", "train/loss")
    assert [point.id for point in points] == [1, 2, 3, 4]
    assert [point.value for point in points] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_other_ranks_are_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    log = open_log(tmp_path)
    assert type(log) is SilentLog
    log.line("hello")
    log.scalars(1, {"a": 1.0})
    log.close()
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (90000, "25:00:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
