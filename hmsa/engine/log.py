# SPDX-License-Identifier: Apache-2.0
"""What a run tells the person who started it: console lines and VisualDL curves.

Ranks other than the main one get a log that does nothing, so that no caller has to ask which rank it is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Optional, Union

from hmsa.distributed import ranks
from hmsa.errors import UsageError
from hmsa.system.files import write_atomically

CURVES_FILE = "vdlrecords.hmsa.log"
"""One file for all parts of a run: VisualDL appends to it, so the curves of a resumed run continue."""


def import_visualdl(what: str = "recording curves") -> ModuleType:
    """VisualDL, which `what` needs.

    Raises:
        UsageError: it is not installed, or does not fit what it stands on.
    """
    try:
        import visualdl
        import visualdl.proto.record_pb2
    except Exception as error:  # a NumPy, protobuf or home folder that it does not fit raises anything
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise UsageError(
            f"{what} needs VisualDL, which cannot be imported ({type(error).__name__}: {reason}): put it right, as "
            "with pip install visualdl and pip check, or do without"
        ) from error
    return visualdl


class SilentLog:
    """A log that says nothing."""

    def line(self, text: str) -> None:
        """Print a line with the time of day."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""

    def flush(self) -> None:
        """Write what is still in memory."""


class ConsoleLog(SilentLog):
    """Prints, and records curves if it has a writer of VisualDL's."""

    def __init__(self, writer: Optional[Any] = None) -> None:
        self._writer = writer

    def line(self, text: str) -> None:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(tag=name, value=value, step=step)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()


def open_log(
    curves: Union[str, Path, None] = None, iteration: Optional[int] = None, *, evaluated: bool = True
) -> SilentLog:
    """The log of this rank.

    Args:
        curves: the folder for VisualDL.
        iteration: a resumed run goes on after this one; None is a new run.
        evaluated: whether the evaluation of `iteration` has been done; else its points will come again.
    """
    if not ranks.is_main():
        return SilentLog()
    if curves is None:
        return ConsoleLog()

    visualdl = import_visualdl()
    path = Path(curves) / CURVES_FILE
    if path.exists() and iteration is not None:
        write_atomically(path, _records_until(path, iteration, evaluated), durable=True)
    elif path.exists():
        earlier = path.rename(path.with_name(f"earlier_curves.{path.stat().st_mtime_ns}.log"))
        ConsoleLog().line(f"the curves of an earlier run are kept as {earlier}")
    with contextlib.redirect_stdout(None):  # it says that it appends
        return ConsoleLog(visualdl.LogWriter(logdir=str(curves), file_name=CURVES_FILE))


def _records_until(path: Path, iteration: int, evaluated: bool) -> bytes:
    """The records of a curves file up to `iteration`, and to its evaluation if that is `evaluated`.

    A killed run wrote points after its last checkpoint, or those of an evaluation that the checkpoint does not know of.
    """
    parse = import_visualdl().proto.record_pb2.Record.FromString
    data, kept, start = path.read_bytes(), [], 0
    while start + 8 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 8], "little")
        if end > len(data):
            break  # cut off by the kill
        record = data[start:end]
        points = [(value.id, value.tag) for value in parse(record[8:]).values]
        if all(step < iteration + (evaluated or not tag.startswith("eval/")) for step, tag in points):
            kept.append(record)
        start = end
    return b"".join(kept)
