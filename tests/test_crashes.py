# SPDX-License-Identifier: Apache-2.0
"""Training runs that are killed, asked to end, or cannot write: nothing is lost, and the end is the same to the bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from visualdl import LogReader

from hmsa.engine.loggers import CURVES_FILE
from hmsa.report.records import RECORDS_FILE, read
from hmsa.report.records import curves as curves_of
from hmsa.weights.files import read_weights

ROOT = Path(__file__).parents[1]
KILLS = 50
ITERATIONS = 12


class Trainer:
    """train.py on the tiny recipe, in processes of their own."""

    def __init__(self, recipe, console):
        self.console = console
        self.common = [
            "--config", str(recipe), "--iters", str(ITERATIONS), "--save_interval", "2", "--do_eval",
            "--engine", "eager", "--log_iters", "1", "--use_vdl", "--num_workers", "2",
        ]  # fmt: skip
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(ROOT / "tests/training_server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def start(self, save_dir, *arguments):
        """Process id of a run."""
        self.console.unlink(missing_ok=True)
        arguments = [*self.common, "--save_dir", str(save_dir), *arguments]
        self.server.stdin.write(json.dumps([arguments, [str(self.console)]]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def status(self):
        """How the run ended."""
        return int(self.server.stdout.readline())

    def said(self):
        return self.console.read_text() if self.console.exists() else ""

    def wait_until(self, condition, pid):
        """Until the condition holds or the run has ended."""
        while not condition():
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.0005)

    def kill(self, pid, number):
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(pid, number)


@pytest.fixture(scope="module")
def trainer(tiny_recipe, tmp_path_factory):
    trainer = Trainer(tiny_recipe, tmp_path_factory.mktemp("console") / "out.txt")
    yield trainer
    trainer.server.kill()
    trainer.server.wait()


@pytest.fixture(scope="module")
def uninterrupted(trainer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer.start(folder)
    assert trainer.status() == 0, trainer.said()
    return folder


def curves(folder):
    """Every point of every curve that does not depend on the clock, in order."""
    reader = LogReader(file_path=str(folder / CURVES_FILE))
    points = {}
    for name in reader.tags():
        tag = name.rpartition("/")[2].replace("%", "/")
        if tag.startswith(("train/", "eval/")) and not tag.endswith(("_seconds", "memory_bytes")):
            points[tag] = [(point.id, point.value) for point in reader.get_data("scalar", tag)]
    return points


def records(folder):
    """The same by metrics.jsonl."""
    points = {}
    for record in read(folder / RECORDS_FILE):
        for tag, value in curves_of(record).items():
            if not tag.endswith(("_seconds", "memory_bytes")):
                points.setdefault(tag, []).append((record["iteration"], value))
    return points


def assert_same_run(folder, expected):
    for name in (f"iter_{ITERATIONS}", "best_model"):
        for file in ("model.pdparams", "model.pdopt"):
            found, whole = (read_weights(path / name / file) for path in (folder, expected))
            assert set(found) == set(whole)
            for tensor, value in whole.items():
                np.testing.assert_array_equal(found[tensor], value, err_msg=f"{name}/{file}: {tensor}")
        found, whole = (json.loads((path / name / "state.json").read_text()) for path in (folder, expected))
        assert {**found, "serial": 0} == {**whole, "serial": 0}
    for made in (curves, records):
        found, whole = made(folder), made(expected)
        assert whole["train/loss"]
        assert whole["eval/mIoU"]
        assert found == whole


def newest(folder):
    """The newest whole checkpoint, found without the code under test: all files there and readable."""
    iterations = []
    for path in folder.glob("iter_*"):
        assert read_weights(path / "model.pdparams")
        assert read_weights(path / "model.pdopt")
        iterations.append(json.loads((path / "state.json").read_text())["iteration"])
    return max(iterations, default=0)


@pytest.mark.slow
def test_killed_fifty_times_the_run_ends_as_if_never_stopped(trainer, uninterrupted, tmp_path):
    """The kills come by turns at any time, while a checkpoint is written, right after an iteration (while the next is
    computed, or its evaluation), and while an evaluation's scores are written."""
    rng = random.Random(4)
    kills = {"any time": 0, "saving": 0, "iteration": 0, "scored": 0}
    runs = 0
    while sum(kills.values()) < KILLS:
        folder = tmp_path / str(runs)
        folder.mkdir()
        while True:
            standing = newest(folder)
            moment = list(kills)[sum(kills.values()) % len(kills)]
            pid = trainer.start(folder, "--resume_model", "auto")
            if sum(kills.values()) < KILLS:
                if moment == "any time":
                    time.sleep(rng.uniform(0, 6))
                elif moment == "saving":
                    trainer.wait_until(lambda f=folder: any(f.glob(".*.partial")), pid)
                    time.sleep(rng.uniform(0, 0.1))
                elif moment == "scored":
                    trainer.wait_until(lambda n=standing // 2 * 2 + 2: f"[EVAL] iter {n}," in trainer.said(), pid)
                    time.sleep(rng.uniform(0, 0.03))
                else:
                    last = rng.randint(min(standing + 1, ITERATIONS), ITERATIONS)
                    trainer.wait_until(lambda n=last: f"iter {n}/" in trainer.said(), pid)
                    time.sleep(rng.uniform(0, 0.5))
                trainer.kill(pid, signal.SIGKILL)
            status = trainer.status()
            if status == 0:
                break
            assert status == -signal.SIGKILL, trainer.said()
            kills[moment] += 1
            resumed = re.search(r"resumed from \S+ at iteration (\d+)", trainer.said())
            if "[TRAIN]" in trainer.said():
                assert (int(resumed[1]) if resumed else 0) == standing
        assert_same_run(folder, uninterrupted)
        runs += 1
    print(f"{sum(kills.values())} kills ({kills}) in {runs} runs")


@pytest.mark.slow
def test_killed_between_the_points_of_an_evaluation_and_its_checkpoint(trainer, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    state = folder / f"iter_{ITERATIONS}/state.json"
    after = json.loads(state.read_text())
    before = {"to_evaluate": True, "same_answers": max(0, after["same_answers"] - 1)}
    state.write_text(json.dumps({**after, **before}))
    trainer.start(folder, "--resume_model", "auto")
    assert trainer.status() == 0, trainer.said()
    assert f"[EVAL] iter {ITERATIONS}," in trainer.said()
    assert_same_run(folder, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_saves_and_goes_on_later(trainer, uninterrupted, tmp_path, number):
    """In an iteration between two checkpoints, and in an evaluation."""
    pid = trainer.start(tmp_path)
    trainer.wait_until(lambda: "iter 3/" in trainer.said(), pid)
    trainer.kill(pid, number)
    assert trainer.status() == 128 + number
    done = int(re.search(r"ended by SIG\w+ after iteration (\d+), saved in \S+; resume", trainer.said())[1])
    assert newest(tmp_path) == done
    pid = trainer.start(tmp_path, "--resume_model", "auto")
    trainer.wait_until(lambda: (tmp_path / "iter_8/state.json").exists(), pid)
    trainer.kill(pid, number)
    assert trainer.status() == 128 + number
    trainer.start(tmp_path, "--resume_model", "auto")
    assert trainer.status() == 0, trainer.said()
    assert_same_run(tmp_path, uninterrupted)


def in_a_small_disk_of_its_own(tmp_path, megabytes, script):
    """Run a shell script with a file system of that size mounted at $DISK; its output, and a copy of the disk."""
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    mount = f"set -e; mount -t tmpfs -o size={megabytes}m tmpfs {disk}; "
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*command, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system does not let its users mount a file system of their own (unshare)")
    end = f"\nset -e; cp -r {disk} {copy}"
    environment = {**os.environ, "DISK": str(disk), "PYTHON": sys.executable}
    run = subprocess.run(
        [*command, mount + "set +e\n" + script + end],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr, copy


TRAIN = "$PYTHON -W ignore train.py --config {recipe} --iters 50 --save_interval 1 --use_vdl --log_iters 1"


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_sentence_and_leaves_earlier_checkpoints(tiny_recipe, tmp_path):
    script = f"{TRAIN.format(recipe=tiny_recipe)} --save_dir $DISK; echo status $?"
    said, disk = in_a_small_disk_of_its_own(tmp_path, 64, script)
    assert "status 1\n" in said
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(r"/iter_\d+: cannot be written \(No space left on device\); earlier checkpoints", errors[0])
    assert newest(disk) >= 1
    assert not list(disk.glob(".*"))


@pytest.mark.slow
def test_a_disk_that_turns_read_only_leaves_earlier_checkpoints(tiny_recipe, tmp_path):
    script = (
        f"{TRAIN.format(recipe=tiny_recipe)} --save_dir $DISK & process=$!\n"
        "until [ -e $DISK/iter_2/state.json ]; do sleep 0.01; done\n"
        "until mount -o remount,ro $DISK; do sleep 0.01; done 2> /dev/null\n"
        "wait $process; echo status $?"
    )
    said, disk = in_a_small_disk_of_its_own(tmp_path, 512, script)
    assert "status 1\n" in said
    assert "Traceback" not in said
    assert re.search(r"error: \S+/(iter_\d+|metrics.jsonl): cannot be written \(Read-only file system\)", said)
    assert newest(disk) >= 2
