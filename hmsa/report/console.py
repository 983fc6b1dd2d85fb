# SPDX-License-Identifier: Apache-2.0
"""What long work shows the person who started it: lines in files and pipes, a live display on a terminal."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Optional, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tqdm import tqdm

from hmsa.report.records import Record

WIDTH = 120
"""Most characters of a regular line, with the time before it."""

DETAILS_EVERY = 10
"""Of lines on training, so many have the terms of the loss below them."""

QUIET_SECONDS = 60
"""In files and pipes, long work says how far it is every so many seconds."""

T = TypeVar("T")


# --- Lines. ---


def training_line(record: Record, iterations: int) -> str:
    """The line of a report; `iterations` is how many there are in all."""
    left = (iterations - record["iteration"]) * record["step_seconds"]
    parts = [
        f"[TRAIN] iter {record['iteration']}/{iterations}",
        f"loss {number(record['loss'])}",
        f"lr {record['learning_rate']:.6f}",
        f"step {record['step_seconds']:.3f} s",
        *([f"skipped {record['skipped']}"] if record.get("skipped") else []),
        f"ETA {tqdm.format_interval(left)}",
    ]
    return ", ".join(parts)


def detail_lines(record: Record) -> Iterator[str]:
    """What else a report has: gradient, waiting for data, memory; and a line for each loss with its outputs."""
    costs = f"data {record['data_seconds']:.3f} s, memory {record['memory_bytes'] / 2**30:.2f} GiB"
    yield f"[TERMS] epoch {record['epoch']:.2f}, grad norm {number(record['gradient_norm'])}, {costs}"

    by_loss: dict[str, list[str]] = {}
    for name, value in record["losses"].items():
        loss, _, output = name.rpartition("/")
        by_loss.setdefault(loss, []).append(f"{output} {number(value)}")
    for loss, outputs in by_loss.items():
        yield f"[TERMS] {loss}: {', '.join(outputs)}"


def evaluation_lines(record: Record) -> Iterator[str]:
    """Two lines: mean IoU and the best up to now; the other scores of the whole."""
    best = record["best"]
    yield (
        f"[EVAL] iter {record['iteration']}, mIoU {number(record['mean_iou'])}, "
        f"over classes present {number(record['mean_iou_present'])}, "
        f"best mIoU {number(best['mean_iou'])} at iter {best['iteration']}"
    )
    yield (
        f"[SCORES] accuracy {number(record['accuracy'])}, loss {number(record['loss'])}, "
        f"boundary IoU {number(record['mean_boundary_iou'])}, "
        f"ECE {number(record['calibration_error'])}, "
        f"{record['images']} images, {record['seconds']:.1f} s"
    )


def number(value: Optional[float]) -> str:
    """Four digits after the point of a small number, five in all of a large one."""
    if value is None or value != value:
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.5g}"


def folded(text: str, width: int) -> list[str]:
    """A line of parts between commas as lines of at most `width` characters, where the parts allow it."""
    lines = [""]
    for part in re.split(r"(?<=,) ", text):
        if lines[-1] and len(lines[-1]) + 1 + len(part) > width:
            lines.append(f"  {part}")
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return lines


# --- Where they go. ---


class Lines:
    """A console that is a file or a pipe: plain lines, each with the time."""

    def __init__(self, iterations: int = 0) -> None:
        self._iterations = iterations
        self._reports = 0

    def line(self, text: str) -> None:
        """Print a line."""
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)

    def show(self, record: Record) -> None:
        """Print what a record says."""
        if record["kind"] == "eval":
            self._regular(*evaluation_lines(record))
            return
        details = detail_lines(record) if self._reports % DETAILS_EVERY == 0 else ()
        self._reports += 1
        self._regular(training_line(record, self._iterations), *details)

    def _regular(self, *lines: str) -> None:
        for text in lines:
            for part in folded(text, WIDTH - len("2000-01-01 00:00:00 ")):
                self.line(part)

    def iteration(self, done: int) -> None:
        """An iteration is done."""

    def counting(self, total: int) -> Callable[[], None]:
        """What to call before each image of an evaluation of `total`."""
        return _counter(lambda far: self.line(f"evaluated {far}"), "image", total)

    def close(self) -> None:
        """Nothing more is to be shown but lines."""


class Live(Lines):
    """A console that is a terminal: one line that changes below those that stay, which are few."""

    def __init__(self, iterations: int = 0) -> None:
        super().__init__(iterations)
        shown = "{task.description}", "{task.fields[loss]}", "{task.fields[best]}", "{task.fields[left]}"
        first, *rest = (TextColumn(text, markup=False) for text in shown)
        self._progress = Progress(
            first,
            BarColumn(bar_width=None),
            *rest,
            console=Console(file=sys.stdout, markup=False, highlight=False, emoji=False),
            expand=True,
            transient=True,
            refresh_per_second=4,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._task: Any = None

    def line(self, text: str) -> None:
        print(time.strftime("%H:%M:%S"), text, flush=True)

    def iteration(self, done: int) -> None:
        self._change(completed=done, description=f"iter {done}/{self._iterations}")

    def show(self, record: Record) -> None:
        if record["kind"] == "eval":
            self._change(best=f"best mIoU {number(record['best']['mean_iou'])}")
            self._regular(*evaluation_lines(record))
            return
        left = (self._iterations - record["iteration"]) * record["step_seconds"]
        self._change(loss=f"loss {number(record['loss'])}", left=f"ETA {tqdm.format_interval(left)}")
        if self._reports % DETAILS_EVERY == 0 or record.get("skipped"):
            self._regular(training_line(record, self._iterations), *detail_lines(record))
        self._reports += 1

    def _regular(self, *lines: str) -> None:
        for text in lines:
            for part in folded(text, max(40, self._progress.console.width - len("00:00:00 "))):
                self.line(part)

    def counting(self, total: int) -> Callable[[], None]:
        start, done = time.monotonic(), -1

        def another() -> None:
            nonlocal done
            done += 1
            self._change(description=f"evaluating {done + 1}/{total}")
            if done:
                self._change(left=f"ETA {tqdm.format_interval((time.monotonic() - start) / done * (total - done))}")

        return another

    def _change(self, **fields: Any) -> None:
        if self._task is None:
            empty: dict[str, Any] = {"loss": "", "best": "", "left": ""}
            self._task = self._progress.add_task(f"iter 0/{self._iterations}", total=self._iterations, **empty)
            self._progress.start()
        self._progress.update(self._task, **fields)

    def close(self) -> None:
        self._progress.stop()


def watched(items: Iterable[T], unit: str, total: Optional[int] = None, *, shown: bool = True) -> Iterator[T]:
    """Hand items on, and show on stderr how far that is: a bar on a terminal, elsewhere a line every `QUIET_SECONDS`.

    Args:
        unit: what one of them is.
        total: how many there are, if that is known.
    """
    if not shown:
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, unit=unit)
        return
    another = _counter(partial(print, file=sys.stderr, flush=True), unit, total)
    for item in items:
        another()
        yield item


def _counter(say: Callable[[str], object], unit: str, total: Optional[int]) -> Callable[[], None]:
    """What to call before each of so many; every `QUIET_SECONDS` it says how many are done."""
    start = said = time.monotonic()
    done = -1

    def another() -> None:
        nonlocal said, done
        now, done = time.monotonic(), done + 1
        if done and now - said >= QUIET_SECONDS:
            said = now
            left = tqdm.format_interval((now - start) / done * ((total or done) - done))
            say(f"{done} of {total} {unit}s, ETA {left}" if total else f"{done} {unit}s")

    return another


def is_live() -> bool:
    """Whether stdout is a terminal on which a line can change."""
    console = Console(file=sys.stdout)
    return console.is_terminal and not console.is_dumb_terminal
