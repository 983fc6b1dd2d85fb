# SPDX-License-Identifier: Apache-2.0
"""Ranks as plain processes: what they share comes from a file instead of a collective operation."""

import socket
import subprocess
import sys
import time

import pytest

PROGRAM = """
import os, sys, time
import numpy as np
from pathlib import Path
from hmsa.lifeline import Lifeline

rank, world_size, folder, then = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]

def share(values):
    path = folder / "shared.npy"
    if rank == 0:
        np.save(folder / "new.npy", values)
        (folder / "new.npy").rename(path)
        return values
    while not path.exists():
        time.sleep(0.01)
    return np.load(path)

lifeline = Lifeline(rank=rank, world_size=world_size, host="127.0.0.1", share=share)
(folder / f"{rank}.ready").touch()
while len(list(folder.glob("*.ready"))) < world_size:
    time.sleep(0.01)
exec(then)
"""
WORK = "time.sleep(60)"
FAIL = "lifeline.fail('picture.png is empty', certain=True); sys.exit(1)"
FOLLOWS = "lifeline.fail('connection reset', certain=False); sys.exit(1)"
DIE = "os.kill(os.getpid(), 9)"
DONE = "lifeline.done()"


def run(folder, *deeds):
    """Status and stderr of each rank."""
    command = [sys.executable, "-c", PROGRAM]
    processes = [
        subprocess.Popen([*command, str(rank), str(len(deeds)), str(folder), deed], stderr=subprocess.PIPE, text=True)
        for rank, deed in enumerate(deeds)
    ]
    start = time.monotonic()
    ends = [process.communicate(timeout=30)[1] for process in processes]
    assert time.monotonic() - start < 20
    return [process.returncode for process in processes], ends


@pytest.mark.parametrize("others", [WORK, FOLLOWS])
def test_a_failing_rank_ends_all_with_its_reason(tmp_path, others):
    status, said = run(tmp_path, others, others, FAIL)
    assert status == [1, 1, 1]
    reason = f"error: rank 2 on {socket.gethostname()}: picture.png is empty\n"
    assert said[:2] == [reason, reason]


def test_a_killed_rank_ends_all(tmp_path):
    status, said = run(tmp_path, WORK, DIE, FOLLOWS)
    assert status == [1, -9, 1]
    for text in (said[0], said[2]):
        assert text.startswith(f"error: rank 1 on {socket.gethostname()} ended without a word")


@pytest.mark.parametrize(
    ("deed", "said"), [(FAIL, "rank 0: picture.png is empty"), (DIE, "rank 0 ended without a word")]
)
def test_the_main_rank_ends_all(tmp_path, deed, said):
    status, errors = run(tmp_path, deed, WORK, WORK)
    assert status[1:] == [1, 1]
    assert all(error.startswith(f"error: {said}") for error in errors[1:])


def test_a_rank_that_is_done_leaves_the_others_alone(tmp_path):
    status, said = run(tmp_path, "time.sleep(1);" + DONE, DONE, "time.sleep(2);" + DONE)
    assert status == [0, 0, 0]
    assert said == ["", "", ""]


STRANGER = """
import socket, threading
from_file = share

def share(values):
    stranger = socket.create_connection(("127.0.0.1", int(values[0])))
    stranger.sendall(bytes(76) + b"stop")
    return from_file(values)

lifeline = """


def test_a_stranger_is_not_listened_to(tmp_path):
    program = PROGRAM.replace("lifeline = ", STRANGER, 1)
    arguments = ["2", str(tmp_path), DONE]
    main = subprocess.Popen([sys.executable, "-c", program, "0", *arguments], stderr=subprocess.PIPE, text=True)
    other = subprocess.run([sys.executable, "-c", PROGRAM, "1", *arguments], timeout=30, check=False)
    assert main.communicate(timeout=30)[1] == ""
    assert main.returncode == other.returncode == 0
