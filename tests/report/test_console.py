# SPDX-License-Identifier: Apache-2.0
"""What a training shows: in files and pipes, and on a terminal."""

import os
import pty
import re
import subprocess
import sys

import pytest

from hmsa.report.console import WIDTH, Lines, detail_lines, evaluation_lines, folded, number, training_line, watched
from hmsa.report.records import of_training

TERMS = {f"{loss}/{output}": 1.25 for loss in ("DiceLoss", "BootstrappedCrossEntropyLoss")
         for output in ("joint", "joint_aux", "low", "high")}  # fmt: skip


def training(iteration, loss=1.5, seconds=1.0):
    return of_training(iteration, 3.25, 0.01, {"loss": loss, "grad_norm": 2.0, **TERMS}, (0.25, seconds), 3 * 2**30)


def evaluation(iteration, score=0.5):
    names = ("mean_iou", "mean_iou_present", "accuracy", "loss", "mean_boundary_iou", "calibration_error")
    rest = {"images": 500, "seconds": 1234.56, "best": {"mean_iou": 0.75, "iteration": 120}}
    return {"iteration": iteration, "kind": "eval", **dict.fromkeys(names, score), **rest}


def test_lines_say_what_a_run_is_at():
    line = training_line(training(100), 3700)
    assert line == "[TRAIN] iter 100/3700, loss 1.5000, lr 0.010000, step 1.000 s, ETA 1:00:00"
    assert list(detail_lines(training(100))) == [
        "[TERMS] epoch 3.25, grad norm 2.0000, data 0.250 s, memory 3.00 GiB",
        "[TERMS] DiceLoss: joint 1.2500, joint_aux 1.2500, low 1.2500, high 1.2500",
        "[TERMS] BootstrappedCrossEntropyLoss: joint 1.2500, joint_aux 1.2500, low 1.2500, high 1.2500",
    ]
    assert list(evaluation_lines(evaluation(150))) == [
        "[EVAL] iter 150, mIoU 0.5000, over classes present 0.5000, best mIoU 0.7500 at iter 120",
        "[SCORES] accuracy 0.5000, loss 0.5000, boundary IoU 0.5000, ECE 0.5000, 500 images, 1234.6 s",
    ]


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (float("nan"), "-"), (0.12345, "0.1235"), (1271.6763, "1271.7"), (1e9, "1e+09")]
)
def test_numbers_stay_short(value, shown):
    assert number(value) == shown


def test_a_line_is_folded_between_its_parts():
    assert folded("a 1, b 2, c 3", 99) == ["a 1, b 2, c 3"]
    assert folded("a 1, b 2, c 3", 9) == ["a 1, b 2,", "  c 3"]
    assert folded("a_long_part 1, b", 5) == ["a_long_part 1,", "  b"]


def test_lines_in_a_file_are_short_and_plain_and_tell_terms_every_tenth_time(capsys):
    console = Lines(iterations=10**7)
    for iteration in range(10**7 - 20, 10**7):
        record = training(iteration, loss=12345.678, seconds=1e5)
        console.show({**record, "skipped": 1000})
    console.show(evaluation(10**7, 1234567.0))
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said)) <= WIDTH
    assert sum("[TERMS] DiceLoss" in line for line in said) == 2
    assert sum("[TRAIN]" in line for line in said) == 20
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in said)
    assert "\033" not in "".join(said)


def test_a_long_evaluation_in_a_file_says_how_far_it_is(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr("hmsa.report.console.time.monotonic", lambda: now)
    another = Lines().counting(10)
    for _ in range(10):
        another()
        now += 50
    said = [line[20:] for line in capsys.readouterr().out.splitlines()]
    assert said[0] == "evaluated 2 of 10 images, ETA 06:40"
    assert len(said) == 4


@pytest.mark.parametrize(("total", "first"), [(10, "2 of 10 images, ETA 06:40"), (None, "2 images")])
def test_work_without_a_terminal_says_how_far_it_is(capsys, monkeypatch, total, first):
    now = 0.0
    monkeypatch.setattr("hmsa.report.console.time.monotonic", lambda: now)
    for done in watched(range(10), "image", total):
        now = 50 * (done + 1)
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == first and len(said.err.splitlines()) == 4
    assert said.out == ""
    assert list(watched("abc", "letter", shown=False)) == [*"abc"] and capsys.readouterr().err == ""


SHOWN = """
import sys, time; sys.path.insert(0, {tests!r})
from test_console import evaluation, training
from hmsa.report.console import Live, is_live
assert is_live()
live = Live(40)
for iteration in range(1, 13):
    live.iteration(iteration)
    live.show(training(iteration))
time.sleep(0.4)  # it is drawn four times a second
another = live.counting(3)
for _ in range(3):
    another()
time.sleep(0.4)
live.show(evaluation(12))
live.line("a line of a user")
live.close()
live.line("done")
"""


def test_a_terminal_has_one_line_that_changes(tmp_path):
    """In a terminal of 80 columns: few lines stay, and the cursor is there again in the end."""
    main, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SHOWN.format(tests=os.path.dirname(__file__))],  # noqa: PTH120
        stdout=terminal, stderr=terminal, env=environment,
    )  # fmt: skip
    os.close(terminal)
    said = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        said += part
    os.close(main)
    assert process.wait(60) == 0, said
    text = said.decode()
    assert text.index("\033[?25l") < text.rindex("\033[?25h")
    for part in ("iter 12/40", "loss 1.5000", "ETA ", "evaluating 3/3", "best mIoU 0.7500"):
        assert part in text
    lines = [re.sub(r"\033\[[0-9;?]*[A-Za-z]", "", line).rpartition("\r")[2] for line in text.split("\r\n")]
    stayed = [line for line in lines if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert sum("[TRAIN]" in line for line in stayed) == 2, "of twelve"
    assert max(map(len, stayed)) <= 80
    assert stayed[-2:] == [line for line in stayed if "user" in line or "done" in line]
