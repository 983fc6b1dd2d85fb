# SPDX-License-Identifier: Apache-2.0
"""Programs that show a training: VisualDL, TensorBoard, MLflow. All get the same, made from the run's records.

The curves of a resumed run go on where its checkpoint stands, without doubled points.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

import numpy as np

from hmsa.errors import UsageError
from hmsa.report.records import Record, curves, is_before, of_curves
from hmsa.system.files import write_atomically

CURVES_FILE = "vdlrecords.hmsa.log"
"""One file for all parts of a run: VisualDL appends to it, so the curves of a resumed run continue."""

EVENTS_FOLDER = "tensorboard"

RUN_FILE = "mlflow_run.txt"
"""Holds the id of MLflow's run, which a resumed one goes on with."""

PICTURES = "eval/image"
"""Above the names of pictures, as those of an evaluation that is done again are dropped with its points."""


@dataclass(frozen=True)
class Start:
    """Where a run begins: in an empty folder, or after a checkpoint of its own."""

    folder: Path
    iteration: Optional[int] = None  # of the checkpoint; None is a new run
    evaluated: bool = True  # whether its evaluation has been done; else that will come again
    records: Sequence[Record] = ()  # up to there

    def lies_behind(self, step: int, tag: str) -> bool:
        """Whether a point of a curve lies before the beginning."""
        assert self.iteration is not None
        kind = "eval" if tag.startswith("eval/") else "train"
        return is_before({"iteration": step, "kind": kind}, self.iteration, self.evaluated)


class Logger:
    """What shows a training.

    Attributes:
        is_new: whether it has nothing of this run yet.
    """

    is_new = True

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Add a picture, uint8 [h, w, 3] RGB, to those of its name."""

    def text(self, name: str, text: str) -> None:
        """Show a text beside the curves."""

    def flush(self) -> None:
        """Write what is still in memory."""

    def close(self) -> None:
        """Nothing more will come."""
        self.flush()

    def _add_records(self, records: Sequence[Record]) -> None:
        for record in records:
            self.scalars(record["iteration"], curves(record))


class VisualDL(Logger):
    """One file, see `CURVES_FILE`; what lies behind the checkpoint is cut off it."""

    def __init__(self, start: Start) -> None:
        visualdl = import_visualdl()
        path = start.folder / CURVES_FILE
        self.is_new = start.iteration is None or not path.exists()
        if not self.is_new:
            write_atomically(path, _records_until(path, start), durable=True)
        with contextlib.redirect_stdout(None):  # it says that it appends
            self._writer: Any = visualdl.LogWriter(logdir=str(start.folder), file_name=CURVES_FILE)
        if self.is_new:
            self._add_records(start.records)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(tag=name, value=value, step=step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        self._writer.add_image(tag=f"{PICTURES}/{name}", img=picture, step=step)

    def text(self, name: str, text: str) -> None:
        self._writer.add_text(tag=name, text_string=text, step=0)

    def flush(self) -> None:
        self._writer.flush()


def _records_until(path: Path, start: Start) -> bytes:
    """The records of VisualDL's file up to the beginning of a run.

    A killed run wrote points after its last checkpoint, or those of an evaluation that the checkpoint does not know of.
    """
    kept = (raw for raw, values in _parsed(path) if all(start.lies_behind(value.id, value.tag) for value in values))
    return b"".join(kept)


def read_visualdl(path: Path) -> list[Record]:
    """The records that VisualDL's curves were made from, as far as they tell; in order.

    Raises:
        UsageError: see `import_visualdl`.
    """
    points: dict[tuple[int, str], dict[str, float]] = {}
    for _, values in _parsed(path):
        for value in values:
            kind, _, curve = value.tag.partition("/")
            if kind in ("train", "eval") and value.WhichOneof("one_value") == "value":
                points.setdefault((value.id, kind), {})[curve] = value.value  # of one written twice, the later counts
    return [of_curves(iteration, kind, points[iteration, kind]) for iteration, kind in sorted(points, key=_order)]


def _order(key: tuple[int, str]) -> tuple[int, bool]:
    iteration, kind = key
    return iteration, kind == "eval"


def _parsed(path: Path) -> Iterator[tuple[bytes, Any]]:
    """VisualDL's records as they stand in its file, and the values in them."""
    parse = import_visualdl("reading its curves").proto.record_pb2.Record.FromString
    data, place = path.read_bytes(), 0
    while place + 8 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 8], "little")
        if end > len(data):
            return  # cut off by a kill
        yield data[place:end], parse(data[place + 8 : end]).values
        place = end


class TensorBoard(Logger):
    """A folder of files, one for each part of a run; a new part tells TensorBoard to purge what lies behind it."""

    def __init__(self, start: Start) -> None:
        writer = import_package("tensorboard", "TensorBoard's writer")
        logging.getLogger("tensorboardX").setLevel(logging.ERROR)
        logging.getLogger("tensorboardX.summary").setLevel(logging.ERROR)  # of blanks in the names of classes
        folder = start.folder / EVENTS_FOLDER
        self.is_new = start.iteration is None or not list(folder.glob("events.*"))
        purge = None if self.is_new else (start.iteration or 0) + start.evaluated
        suffix = f".{time.time_ns()}"  # else a part of the same second would replace the one before
        self._writer: Any = writer.SummaryWriter(logdir=str(folder), purge_step=purge, filename_suffix=suffix)
        # What is purged of the checkpoint's own iteration, but will not come again.
        self._add_records([record for record in start.records if purge is None or record["iteration"] >= purge])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        self._writer.add_image(f"{PICTURES}/{name}", picture, step, dataformats="HWC")

    def text(self, name: str, text: str) -> None:
        self._writer.add_text(name, f"```\n{text}\n```", 0)  # Markdown

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflow(Logger):
    """A run of MLflow, where MLFLOW_TRACKING_URI says or in the folder `mlruns` of the save folder.

    MLflow never forgets a point: those that a resumed run computes again, which are the same, are left out.
    """

    def __init__(self, start: Start) -> None:
        mlflow = import_package("mlflow", "MLflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            uri = f"file:{(start.folder / 'mlruns').absolute()}"
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which its small package alone can do
        self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
        self._point: Any = mlflow.entities.Metric
        self._points: list[Any] = []
        note = start.folder / RUN_FILE
        self.is_new = start.iteration is None or not note.exists()
        self._seen = {"train": 0, "eval": 0}
        if self.is_new:
            self._run = self._client.create_run("0", run_name=start.folder.absolute().name).info.run_id
            write_atomically(note, f"{self._run}\n".encode())
            self._add_records(start.records)
        else:
            self._run = note.read_text(encoding="utf-8").strip()
            for kind, curve in (("train", "train/lr"), ("eval", "eval/mIoU")):
                steps = [point.step for point in self._client.get_metric_history(self._run, curve)]
                self._seen[kind] = max(steps, default=0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        for name, value in values.items():
            if step > self._seen[name.partition("/")[0]]:
                self._points.append(self._point(name, value, now, step))

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        if step > self._seen["eval"]:
            self._client.log_image(self._run, picture, f"{PICTURES}/{name}/iter_{step}.png")

    def text(self, name: str, text: str) -> None:
        self._client.log_text(self._run, text, f"{name}.txt")

    def flush(self) -> None:
        while self._points:
            self._client.log_batch(self._run, metrics=self._points[:1000])  # as many as it takes at once
            del self._points[:1000]

    def close(self) -> None:
        self.flush()
        self._client.set_terminated(self._run)


LOGGERS = {"visualdl": VisualDL, "tensorboard": TensorBoard, "mlflow": MLflow}
"""By what a recipe calls them in `loggers`."""

LEFT = {"visualdl": CURVES_FILE, "tensorboard": EVENTS_FOLDER, "mlflow": RUN_FILE}
"""What a run leaves of each in its folder."""


_PACKAGES = {
    "visualdl": ("visualdl.proto.record_pb2", "VisualDL", "visualdl"),
    "tensorboard": ("tensorboardX", "tensorboardX", "tensorboardX"),
    "mlflow": ("mlflow", "MLflow", "mlflow-skinny"),
}
"""Of each: the module that is imported first, what a person calls it, what pip installs."""


def check_loggers(names: Sequence[str], visualdl: str = "") -> None:
    """A UsageError if one of these cannot be imported; `visualdl` is what asks for that, if it is not the recipe."""
    for name in names:
        import_package(name, (name == "visualdl" and visualdl) or f"loggers: {name}")


def import_visualdl(what: str = "recording curves") -> ModuleType:
    """VisualDL, see `import_package`."""
    import_package("visualdl", what)
    return importlib.import_module("visualdl")


def import_package(name: str, what: str) -> ModuleType:
    """The module of a logger, which `what` needs.

    Raises:
        UsageError: it is not installed, or does not fit what it stands on.
    """
    module, title, wheel = _PACKAGES[name]
    if name == "mlflow":
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
    try:
        return importlib.import_module(module)
    except Exception as error:  # a NumPy, protobuf or home folder that it does not fit raises anything
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise UsageError(
            f"{what} needs {title}, which cannot be imported ({type(error).__name__}: {reason}): put it right, as with "
            f"pip install {wheel} and pip check, or do without"
        ) from error
