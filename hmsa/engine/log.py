# SPDX-License-Identifier: Apache-2.0
"""What a run tells the person who started it: the console, its records, and what else shows them.

Ranks other than the main one get a log that does nothing, so that no caller has to ask which rank it is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from hmsa.distributed import ranks
from hmsa.engine.loggers import CURVES_FILE, LEFT, LOGGERS, Logger, Start, read_visualdl
from hmsa.errors import UsageError
from hmsa.report import records
from hmsa.report.console import Lines, Live, is_live
from hmsa.report.records import RECORDS_FILE, Record
from hmsa.system.files import flush_to_disk, writable_folder


class SilentLog:
    """A log that says nothing.

    Attributes:
        shows_pictures: whether there is somebody to look at them.
    """

    shows_pictures = False

    def line(self, text: str) -> None:
        """Print a line with the time of day."""

    def record(self, record: Record) -> None:
        """Keep a record, see `hmsa.report.records`, and show what it says."""

    def iteration(self, done: int) -> None:
        """So many iterations are done."""

    def counting(self, total: int) -> Callable[[], None]:
        """What to call before each image of an evaluation of `total`."""
        return lambda: None

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Show a picture, uint8 [h, w, 3] RGB, among those of its name."""

    def texts(self, texts: Mapping[str, str]) -> None:
        """Show texts by their names, once in a run."""

    def flush(self) -> None:
        """Write what is still in memory."""

    def close(self) -> None:
        """Nothing but lines will come."""


class RunLog(SilentLog):
    """The log of a run.

    Args:
        console: where lines go.
        path: of the records; None keeps none.
        loggers: what else shows them.
    """

    def __init__(self, console: Lines, path: Optional[Path] = None, loggers: Sequence[Logger] = ()) -> None:
        self._console = console
        self._path = path
        self._loggers = tuple(loggers)

    @property
    def shows_pictures(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return bool(self._loggers)

    def line(self, text: str) -> None:
        self._console.line(text)

    def record(self, record: Record) -> None:
        if self._path is not None:
            records.append(self._path, record)
        for logger in self._loggers:
            logger.scalars(record["iteration"], records.curves(record))
        self._console.show(record)

    def iteration(self, done: int) -> None:
        self._console.iteration(done)

    def counting(self, total: int) -> Callable[[], None]:
        return self._console.counting(total)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        for logger in self._loggers:
            logger.picture(step, name, picture)

    def texts(self, texts: Mapping[str, str]) -> None:
        for logger in self._loggers:
            if logger.is_new:
                for name, text in texts.items():
                    logger.text(name, text)

    def flush(self) -> None:
        if self._path is not None and self._path.exists():
            flush_to_disk(self._path)
        for logger in self._loggers:
            logger.flush()

    def close(self) -> None:
        self._console.close()
        for logger in self._loggers:
            logger.close()
        self._loggers = ()


def open_log(
    folder: Optional[Path] = None,
    iteration: Optional[int] = None,
    *,
    evaluated: bool = True,
    iterations: int = 0,
    loggers: Sequence[str] = (),
) -> SilentLog:
    """The log of this rank.

    Args:
        folder: of the run; None keeps nothing.
        iteration: a resumed run goes on after this one; None is a new run.
        evaluated: whether the evaluation of `iteration` has been done; else its record will come again.
        iterations: how many there are in all.
        loggers: what shows the run beside the console, see `hmsa.engine.loggers.LOGGERS`.
    """
    if not ranks.is_main():
        return SilentLog()
    console = Live(iterations) if folder is not None and is_live() else Lines(iterations)
    if folder is None:
        return RunLog(console)

    path = writable_folder(folder) / RECORDS_FILE
    if iteration is None:
        for left in (path, *(folder / name for name in LEFT.values())):
            _set_aside(left, console)
        return RunLog(console, path, [LOGGERS[name](Start(folder)) for name in loggers])
    if not path.exists() and (folder / CURVES_FILE).is_file():  # of a run from before there were records
        with contextlib.suppress(UsageError):
            for record in read_visualdl(folder / CURVES_FILE):
                records.append(path, record)
    kept = records.cut(path, iteration, evaluated)
    start = Start(folder, iteration, evaluated, kept)
    return RunLog(console, path, [LOGGERS[name](start) for name in loggers])


def _set_aside(left: Path, console: Lines) -> None:
    """Keep the curves of an earlier run, which left no checkpoint."""
    if left.exists():
        earlier = left.rename(left.with_name(f"earlier_curves.{time.time_ns()}{left.suffix}"))
        console.line(f"the curves of an earlier run are kept as {earlier}")
