# SPDX-License-Identifier: Apache-2.0
"""Ranks as plain processes, without Paddle."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import os, sys, time
from hmsa import lifeline

lifeline.START_SECONDS, lifeline._LINGER_SECONDS = 4, 0
rank, world_size, port, then = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
line = lifeline.Lifeline(rank=rank, world_size=world_size, address=("127.0.0.1", port), job="job")
exec(then)
"""
MEET = "line.meet(); line.meet();"
WORK = "time.sleep(60)"
FAIL = "line.fail('picture.png is empty', certain=True); sys.exit(1)"
FOLLOWS = "line.fail('connection reset', certain=False); sys.exit(1)"
DIE = "os.kill(os.getpid(), 9)"
DONE = "line.done()"


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(rank, world_size, port, deed):
    command = [sys.executable, "-c", PROGRAM, str(rank), str(world_size), str(port), deed]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def run(*deeds):
    """Status and stderr of each rank; None stands for a rank that is never started."""
    port, begun = free_port(), time.monotonic()
    processes = [start(rank, len(deeds), port, deed) for rank, deed in enumerate(deeds) if deed is not None]
    ends = [process.communicate(timeout=30)[1] for process in processes]
    assert time.monotonic() - begun < 20
    return [process.returncode for process in processes], ends


@pytest.mark.parametrize("others", [WORK, FOLLOWS, MEET])
def test_a_failing_rank_ends_all_with_its_reason(others):
    status, said = run(others, others, FAIL)
    assert status == [1, 1, 1]
    reason = f"error: rank 2 on {socket.gethostname()}: picture.png is empty\n"
    assert said == [reason, reason, ""]


def test_a_killed_rank_ends_all():
    status, said = run(MEET + WORK, MEET + DIE, MEET + FOLLOWS)
    assert status == [1, -9, 1]
    for text in (said[0], said[2]):
        assert text.startswith(f"error: rank 1 on {socket.gethostname()} ended without a word")


@pytest.mark.parametrize(
    ("deed", "said"), [(FAIL, "rank 0: picture.png is empty"), (MEET + DIE, "rank 0 ended without a word")]
)
def test_the_main_rank_ends_all(deed, said):
    status, errors = run(deed, MEET + WORK, MEET + WORK)
    assert status[1:] == [1, 1]
    assert errors[0] == ""
    assert all(error.startswith(f"error: {said}") for error in errors[1:])


def test_a_rank_that_is_done_leaves_the_others_alone():
    status, said = run("time.sleep(1);" + DONE, DONE, "time.sleep(2);" + DONE)
    assert status == [0, 0, 0]
    assert said == ["", "", ""]


def test_ranks_meet_however_late_one_is():
    late = "time.sleep(6);" + MEET + DONE  # longer than they may take to start
    status, said = run(MEET + DONE, MEET + DONE, late)
    assert status == [0, 0, 0]
    assert said == ["", "", ""]


@pytest.mark.parametrize(
    ("deeds", "said"),
    [
        ((MEET, MEET, None), "rank 2 has not started within 4 s"),
        ((None, MEET, MEET), "rank 1 has not reached rank 0 at 127.0.0.1:"),
    ],
)
def test_a_rank_that_never_starts_ends_all(deeds, said):
    status, errors = run(*deeds)
    assert status == [1, 1]
    assert any(error.startswith(f"error: {said}") for error in errors)


def test_ranks_end_with_their_launcher():
    """Killed launchers leave their processes behind; those of the other machines follow."""
    port = free_port()
    rank = [sys.executable, "-c", PROGRAM, "1", "2", str(port), WORK]
    launcher = f"import subprocess; subprocess.run({rank!r})"
    main = start(0, 2, port, MEET + WORK)
    other = subprocess.Popen([sys.executable, "-c", launcher], cwd=ROOT, stderr=subprocess.DEVNULL)
    time.sleep(2)
    os.kill(other.pid, 9)
    other.wait()
    said = main.communicate(timeout=30)[1]
    assert main.returncode == 1
    assert said == f"error: rank 1 on {socket.gethostname()}: the launcher that started rank 1 is gone\n"


def test_a_stranger_is_not_listened_to():
    port = free_port()
    main = start(0, 2, port, DONE)
    while True:
        try:
            stranger = socket.create_connection(("127.0.0.1", port))
            break
        except OSError:
            time.sleep(0.05)
    with stranger:
        stranger.sendall(bytes(84) + b"\x01\0\0\0F")
        other = start(1, 2, port, DONE)
        assert other.communicate(timeout=30)[1] == main.communicate(timeout=30)[1] == ""
    assert main.returncode == other.returncode == 0
