# SPDX-License-Identifier: Apache-2.0
"""What a run tells the person who started it: console lines and VisualDL curves.

Ranks other than the main one get a log that does nothing, so that no caller has to ask which rank it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Union

from hmsa import distributed

CURVES_FILE = "vdlrecords.hmsa.log"
"""One file for all parts of a run: VisualDL appends to it, so the curves of a resumed run continue."""


class SilentLog:
    """A log that says nothing."""

    def line(self, text: str) -> None:
        """Print a line with the time of day."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""

    def close(self) -> None:
        """Write what is still in memory."""


class ConsoleLog(SilentLog):
    """Prints, and with a folder also records curves for VisualDL."""

    def __init__(self, curves: Union[str, Path, None] = None) -> None:
        self._writer = None
        if curves is not None:
            from visualdl import LogWriter

            self._writer = LogWriter(logdir=str(curves), file_name=CURVES_FILE)

    def line(self, text: str) -> None:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(tag=name, value=value, step=step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def open_log(curves: Union[str, Path, None] = None) -> SilentLog:
    """The log of this rank; `curves` is the folder for VisualDL."""
    return ConsoleLog(curves) if distributed.is_main() else SilentLog()
