# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import time

import pytest

from hmsa.system.signals import StopRequest

PROGRAM = """
import time
from hmsa.system.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop:
        time.sleep(0.01)
    print("asked by", stop.number, flush=True)
    time.sleep({seconds})
print("ended in order", flush=True)
"""


def start(seconds, **environment):
    command = [sys.executable, "-c", PROGRAM.format(seconds=seconds)]
    clean = {name: value for name, value in os.environ.items() if name != "PADDLE_TRAINER_ID"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**clean, **environment}
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks(number):
    process = start(0)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert out == f"asked by {int(number)}\nended in order\n"
    assert "again to quit at once" in err
    assert process.returncode == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_ends_at_once(second):
    process = start(60)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked by 15\n"
    process.send_signal(second)
    assert process.wait(timeout=10) == -second


@pytest.mark.slow
def test_the_launcher_repeats_itself_within_a_second():
    process = start(1.5, PADDLE_TRAINER_ID="0")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert process.wait(timeout=10) == 0
    process = start(60, PADDLE_TRAINER_ID="0")
    process.send_signal(signal.SIGTERM)
    time.sleep(2.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
        assert not stop
    assert signal.getsignal(signal.SIGTERM) == before
