# SPDX-License-Identifier: Apache-2.0
"""Ranks as plain processes, without Paddle."""

import contextlib
import itertools
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hmsa.distributed import lifeline

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys, time
from hmsa.distributed import lifeline

lifeline.START_SECONDS, lifeline._LINGER_SECONDS = int(os.environ.get("TEST_START_SECONDS", 4)), 0
rank, world_size, port, then = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
secret = os.environ.get("TEST_SECRET", "job")
line = lifeline.Lifeline(rank=rank, world_size=world_size, address=("127.0.0.1", port), secret=secret)
exec(then)
"""
MEET = "line.barrier(); line.barrier();"
WORK = "time.sleep(60)"
FAIL = "line.fail('image.png is empty', certain=True); sys.exit(1)"
FOLLOWS = "line.fail('connection reset', certain=False); sys.exit(1)"
DIE = "os.kill(os.getpid(), 9)"
DONE = "line.done()"
GREETING = struct.pack("!i", 32) + b"x"  # not all of it
BABBLE = [b"", b"G", random.Random(0).randbytes(1000), b"\x1b]0;owned\x07" * 20, GREETING]
SEND = "line._all_started.wait(); os.write(line._peers[0].fileno(), {!r});"


def message(data):
    return struct.pack("!i", len(data)) + data


NONCE = message(bytes(16))
DIGEST = message(bytes(32))


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def own_address():
    """Where other machines reach this one; a loopback address if none does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
        asking.connect(("203.0.113.7", 9))  # sends nothing
        return asking.getsockname()[0]
    return "127.0.0.3"


OWN = own_address()
EVERYWHERE = {"127.0.0.1", "127.0.0.2", OWN}


def call(port):
    """A connection to a rank that may not listen yet."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=2)
        except ConnectionRefusedError:
            time.sleep(0.05)


@pytest.fixture
def many_files():
    """More of them may be open at a time than systems allow unasked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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
    reason = f"error: rank 2 on {socket.gethostname()}: image.png is empty\n"
    assert said == [reason, reason, ""]


def test_a_killed_rank_ends_all():
    status, said = run(MEET + WORK, MEET + DIE, MEET + FOLLOWS)
    assert status == [1, -9, 1]
    for text in (said[0], said[2]):
        assert text.startswith(f"error: rank 1 on {socket.gethostname()} ended without a word")


@pytest.mark.parametrize(
    ("deed", "said"), [(FAIL, "rank 0: image.png is empty"), (MEET + DIE, "rank 0 ended without a word")]
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


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\0\0\0\x20F", "rank 2 on {host}: image.png is empty"),  # no more of it ever comes
        (b"\x7f\xff\xff\xff", "rank 1 on {host} ended without a word; was it killed, or out of memory or of reach?"),
    ],
    ids=["half", "huge"],
)
def test_a_peer_with_half_a_message_or_a_huge_one_holds_up_nobody(message, reason):
    status, said = run(WORK, SEND.format(message) + WORK, "time.sleep(1);" + FAIL)
    assert status == [1, 1, 1]
    assert said[0] == f"error: {reason}\n".format(host=socket.gethostname())


def test_a_reason_is_printed_as_text():
    odd = "line.fail('\\x1b]0;owned\\x07\\u202e in \\udcff.png\\nerror: ' + 10**5 * 'x', certain=True); sys.exit(1)"
    status, said = run(WORK, odd)
    assert status == [1, 1]
    first, second = said[0].splitlines()
    assert first == rf"error: rank 1 on {socket.gethostname()}: \x1b]0;owned\x07\u202e in \udcff.png"
    assert 10**4 < len(second) < 10**5


def test_a_thousand_strangers_cost_nothing(many_files, monkeypatch):
    """Silent, babbling, hanging up at once, or with the beginning of a greeting; before and while the ranks start."""
    monkeypatch.setenv("TEST_START_SECONDS", "30")
    port, over = free_port(), threading.Event()
    main, begun = start(0, 3, port, MEET + DONE), time.monotonic()
    strangers = [call(port) for _ in range(1000)]
    for stranger, babble in zip(strangers, itertools.cycle(BABBLE)):
        with contextlib.suppress(OSError):  # hung up, to make room for others
            stranger.sendall(babble)

    def keep_coming():
        while not over.is_set():
            with contextlib.suppress(OSError):  # nobody listens any more
                strangers.append(socket.create_connection(("127.0.0.1", port), timeout=1))

    coming = threading.Thread(target=keep_coming)
    coming.start()
    try:
        others = [start(rank, 3, port, MEET + DONE) for rank in (1, 2)]
        said = [process.communicate(timeout=30)[1] for process in (main, *others)]
    finally:
        over.set()
        coming.join()
        for stranger in strangers:
            stranger.close()
    assert said == ["", "", ""]
    assert [process.returncode for process in (main, *others)] == [0, 0, 0]
    assert time.monotonic() - begun < 15
    assert len(strangers) > 1000


def test_no_stranger_outlives_the_start():
    port = free_port()
    processes = [start(0, 2, port, MEET + "time.sleep(3);" + DONE)]
    with call(port) as stranger:
        processes.append(start(1, 2, port, MEET + "time.sleep(3);" + DONE))
        stranger.settimeout(10)
        assert len(stranger.recv(100)) == len(NONCE)
        assert stranger.recv(100) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    assert [process.communicate(timeout=30)[1] for process in processes] == ["", ""]


def test_ranks_with_another_secret_are_strangers(monkeypatch):
    monkeypatch.setenv("TEST_START_SECONDS", "2")
    port = free_port()
    main = start(0, 2, port, MEET)
    monkeypatch.setenv("TEST_SECRET", "guessed")
    other = start(1, 2, port, FAIL)
    assert main.communicate(timeout=30)[1].startswith("error: rank 1 has not started within 2 s")
    said = other.communicate(timeout=30)[1]
    assert "(it was not let in, or what listens there is not rank 0 of this job); did it start, with the same H" in said
    assert "image.png" not in said


def test_what_does_not_know_the_secret_is_no_main_rank(monkeypatch):
    """It is not followed, whatever it says."""
    monkeypatch.setenv("TEST_START_SECONDS", "2")
    with socket.create_server(("127.0.0.1", 0)) as server:
        rank = start(1, 2, server.getsockname()[1], MEET)
        impostor, _ = server.accept()
        with impostor:
            impostor.sendall(NONCE)
            impostor.recv(200)
            impostor.sendall(message(bytes(32)) + message(b"welcome") + message(b"Fbad"))
            said = rank.communicate(timeout=30)[1]
    assert said.startswith("error: rank 1 has not reached rank 0 at 127.0.0.1:")
    assert "what listens there is not rank 0 of this job)" in said
    assert "bad" not in said


def test_the_main_rank_proves_nothing_to_a_stranger():
    """It would help whoever passes for it elsewhere."""
    port = free_port()
    main = start(0, 2, port, MEET)
    with call(port) as stranger:
        stranger.settimeout(10)
        stranger.recv(100)
        stranger.sendall(message(bytes(32)) + NONCE)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
    main.kill()
    main.communicate()


def test_a_greeting_that_was_overheard_is_of_no_use():
    """What a rank sent once is sent again by another, to the main rank of the same job started anew."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        rank = start(1, 2, port, WORK)
        impostor, _ = server.accept()
        with impostor:
            impostor.sendall(NONCE)
            greeting = impostor.recv(len(DIGEST), socket.MSG_WAITALL)  # with more, the main rank would reset
    rank.kill()
    rank.communicate()
    main = start(0, 2, port, MEET)
    with call(port) as stranger:
        stranger.sendall(greeting)
        stranger.settimeout(10)
        assert len(stranger.recv(100)) == len(NONCE)
        assert stranger.recv(100) == b""
    assert main.communicate(timeout=30)[1].startswith("error: rank 1 has not started within 4 s")


@pytest.mark.parametrize(
    ("host", "resolved", "reached"),
    [
        ("127.0.0.1", None, {"127.0.0.1"}),
        ("localhost", None, {"127.0.0.1"}),
        ("0.0.0.0", None, EVERYWHERE),
        ("203.0.113.7", None, EVERYWHERE),  # of what stands in front of this machine
        ("not-known.invalid", None, EVERYWHERE),
        ("service", ["203.0.113.7"], EVERYWHERE),
        ("node1", ["127.0.1.1"], EVERYWHERE),  # the hosts file of this machine says so, that of others does not
        ("node1", ["203.0.113.7", "127.0.0.2"], EVERYWHERE),
        ("node1", ["203.0.113.7", OWN], {OWN}),
    ],
)
def test_it_listens_where_the_others_look_for_it(monkeypatch, host, resolved, reached):
    port = free_port()
    if resolved:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in resolved]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    servers = lifeline._listen(host, port)
    monkeypatch.undo()
    try:
        for address in EVERYWHERE:
            with socket.socket() as caller:
                assert (caller.connect_ex((address, port)) == 0) == (address in reached), address
    finally:
        for server in servers:
            server.close()


def test_a_port_in_use_is_said():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = start(0, 2, port, MEET).communicate(timeout=30)[1]
    assert said.startswith(f"error: rank 0 cannot listen on port {port} (")
