# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM as a request that long work ends in order."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Optional

from hmsa.errors import Terminated

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TERMINATIONS = (signal.SIGTERM, signal.SIGHUP)


def end_in_order() -> None:
    """From now on SIGTERM and SIGHUP end this process as Ctrl-C does, so that nothing half-written is left.

    To be called once Paddle is loaded, which otherwise ends it at once, with lines about its C++. In one of several
    processes it does nothing: those that wait for each other in C++ would not hear the launcher.
    """
    if "PADDLE_TRAINER_ID" in os.environ:
        return
    for number in _TERMINATIONS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _end)


@contextlib.contextmanager
def terminations_wait() -> Iterator[None]:
    """While entered, SIGTERM and SIGHUP wait for handlers that are set by its end, also in processes that are started.

    Those that Paddle sets when it is loaded write a report from within the signal, and may then hang for ever.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINATIONS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERMINATIONS)


def _end(number: int, _: Optional[FrameType]) -> None:
    raise Terminated(number)


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets `number`; a second one ends the process at once.

    The launcher of `paddle.distributed` repeats its SIGTERM within half a second: there, only a later one is a second.

    Args:
        message: told at the first; "" for nothing.
    """

    number: Optional[int] = None

    def __init__(self, message: str = "ending after this iteration; again to quit at once") -> None:
        self._message = f"\n{message}\n".encode() if message else b""

    def __enter__(self) -> StopRequest:
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._first) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.number is not None

    def _first(self, number: int, _: Optional[FrameType]) -> None:
        self.number = number
        self._time = time.monotonic()
        os.write(2, self._message)  # print could be what was interrupted
        launched = "PADDLE_TRAINER_ID" in os.environ
        for each in _SIGNALS:
            signal.signal(each, self._later if launched else signal.SIG_DFL)

    def _later(self, number: int, _: Optional[FrameType]) -> None:
        if time.monotonic() - self._time > 2:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
