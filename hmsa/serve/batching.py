# SPDX-License-Identifier: Apache-2.0
"""Requests of one size, run by the engine together."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

Answers = dict[str, np.ndarray]
"""Name of an output -> the array, along whose first axis lie the images."""


@dataclass(eq=False)
class _Work:
    images: np.ndarray
    answers: Future[Answers] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> tuple[object, ...]:
        """Works of one kind can be run together."""
        return self.images.shape[1:], self.images.dtype


class Batcher:
    """The engine's own thread, and what waits for it.

    The work that came first always runs next, and with it all others of its kind that are there or come within
    `max_wait`, up to `max_batch` images of `max_size` numbers in all.

    Args:
        run: images [N, ...] -> answers; called from one thread.
        max_wait: seconds.
        max_size: numbers in the images of a run; what one submits alone may have more.
        ran: told after each run of how many images it was, and of its seconds; its failures are logged.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], Answers],
        *,
        max_batch: int,
        max_wait: float,
        max_size: int = sys.maxsize,
        ran: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self._run, self._ran = run, ran
        self._max_batch, self._max_wait, self._max_size = max_batch, max_wait, max_size
        self._waiting: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, images: np.ndarray) -> Future[Answers]:
        """Queue up to `max_batch` images, an array [N, ...]. What is cancelled while it waits is not run."""
        assert 1 <= len(images) <= self._max_batch and not self._is_closed
        work = _Work(images)
        with self._changed:
            self._waiting.append(work)
            self._changed.notify_all()
        return work.answers

    @property
    def is_running(self) -> bool:
        """Whether what is submitted will be run."""
        return self._thread.is_alive() and not self._is_closed

    def __len__(self) -> int:
        """Works that wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while works := self._next():
            self._answer(works)

    def _next(self) -> list[_Work]:
        """What is to be run together; nothing when all is done."""
        while True:
            with self._changed:
                while not self._waiting:
                    if self._is_closed:
                        return []
                    self._changed.wait()

                first = self._waiting[0]
                ends = first.arrived + self._max_wait
                while self._alike(first) < self._room(first) and not self._is_closed:
                    left = ends - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
                taken = self._take(first)
            if taken:
                return taken

    def _room(self, first: _Work) -> int:
        """Images of its size that are run together."""
        return min(self._max_batch, max(len(first.images), self._max_size // first.images[0].size))

    def _alike(self, first: _Work) -> int:
        """Images that could be run with it, its own among them."""
        return sum(len(work.images) for work in self._waiting if work.kind == first.kind)

    def _take(self, first: _Work) -> list[_Work]:
        """Out of the queue: it, and what runs with it; without what was cancelled."""
        taken, left, room = [], deque(), self._room(first)
        for work in self._waiting:
            if work.answers.cancelled():
                continue
            if work.kind == first.kind and len(work.images) <= room:
                if work.answers.set_running_or_notify_cancel():
                    taken.append(work)
                    room -= len(work.images)
            else:
                left.append(work)
        self._waiting = left
        return taken

    def _answer(self, works: list[_Work]) -> None:
        try:
            images = works[0].images if len(works) == 1 else np.concatenate([work.images for work in works])
            started = time.monotonic()
            answers = self._run(images)
        except Exception as error:
            if len(works) > 1:  # whose fault it is shows alone
                for work in works:
                    self._answer([work])
            else:
                works[0].answers.set_exception(error)
            return
        try:
            self._ran(len(images), time.monotonic() - started)
        except Exception:
            logging.getLogger(__name__).exception("a run of the engine could not be counted")

        start = 0
        for work in works:
            end = start + len(work.images)
            work.answers.set_result({name: answer[start:end] for name, answer in answers.items()})
            start = end
