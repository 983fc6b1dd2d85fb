# SPDX-License-Identifier: Apache-2.0
"""What a training tells of itself to programs: a JSON object a line. Curves, console and plots are made from it.

A line of `kind` "train" has means since the last one; one of `kind` "eval" has what an evaluation found. Scores are
fractions, null where nothing can be said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from hmsa.report.result import Evaluation, plain
from hmsa.system.files import disk_errors, write_atomically

RECORDS_FILE = "metrics.jsonl"

Record = dict[str, Any]

MOST_CLASSES = 64
"""Of a confusion matrix that is recorded: one of 255 classes would take a quarter of a megabyte an evaluation."""

_ADVICE = "earlier checkpoints are intact, make room and resume"

_NAMES = {"pixel_accuracy": "accuracy", "ece": "calibration_error"}
"""What scores are called in records, where it is not their own name."""

_CURVES = {
    "mean_iou": "mIoU",
    "mean_iou_present": "mIoU_present",
    "calibration_error": "ece",
    "learning_rate": "lr",
    "gradient_norm": "grad_norm",
}
"""What the curves of some numbers are called since before there were records."""

_NO_CURVES = ("iteration", "epoch", "images", "best", "seconds", "dice", "precision", "recall", "image_iou")
"""What is no curve, or would be one for each class beside those of `iou` and `boundary_iou`."""


def of_training(
    iteration: int, epoch: float, rate: float, terms: Mapping[str, float], times: Sequence[float], memory: int
) -> Record:
    """The record of a report.

    Args:
        terms: losses by "name/output", `loss` and `grad_norm`; empty if all iterations were skipped.
        times: mean seconds an iteration, for data and in all.
        memory: peak of this process, in bytes.
    """
    losses = {name: value for name, value in terms.items() if name not in ("loss", "grad_norm")}
    data_seconds, step_seconds = times
    return {
        "iteration": iteration,
        "kind": "train",
        "epoch": epoch,
        "loss": terms.get("loss"),
        "losses": losses,
        "learning_rate": rate,
        "gradient_norm": terms.get("grad_norm"),
        "data_seconds": data_seconds,
        "step_seconds": step_seconds,
        "memory_bytes": memory,
    }


def of_evaluation(iteration: int, found: Evaluation, attention: Mapping[str, Mapping[str, float]]) -> Record:
    """The record of an evaluation.

    Args:
        attention: scale -> class -> mean share of the answer that the scale decides where the class is true.
    """
    per_class = {name: dict(zip(found.class_names, plain(values))) for name, values in found.per_class.items()}
    record = {
        "iteration": iteration,
        "kind": "eval",
        "images": found.images,
        "seconds": found.seconds,
        "memory_bytes": found.peak_memory_bytes,
        **{_NAMES.get(name, name): value for name, _, value in found.overall()},
        **per_class,
        **({"attention": attention} if attention else {}),
    }
    if len(found.class_names) <= MOST_CLASSES and "confusion_matrix" in found.scores:
        record["confusion_matrix"] = plain(found.scores["confusion_matrix"])
    return record


def curves(record: Record) -> dict[str, float]:
    """The numbers of a record by the names of their curves: train/loss, eval/mIoU, eval/iou/road, ..."""

    def numbers(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, float]]:
        for name, value in tree.items():
            if isinstance(value, Mapping):
                yield from numbers(value, above if name == "losses" else f"{above}/{name}")
            elif isinstance(value, (int, float)) and math.isfinite(value):
                yield f"{above}/{_CURVES.get(name, name)}", float(value)

    return dict(numbers({k: v for k, v in record.items() if k not in _NO_CURVES}, record["kind"]))


def of_curves(iteration: int, kind: str, values: Mapping[str, float]) -> Record:
    """The record that these points belong to, from the names of their curves without "train/" or "eval/"."""
    own = {curve: name for name, curve in _CURVES.items()}
    record: Record = {"iteration": iteration, "kind": kind}
    for curve, value in values.items():
        first, _, rest = curve.partition("/")
        if not rest:
            record[own.get(curve, curve)] = value
        elif kind == "train":
            record.setdefault("losses", {})[curve] = value
        elif first != "attention":
            record.setdefault(first, {})[rest] = value
    return record


# --- Their file. ---


def append(path: Path, record: Record) -> None:
    """Add a line at once, so that a kill leaves whole ones; NaN and infinity become null.

    Raises:
        DataError: it cannot be written.
    """
    line = json.dumps(_finite(record), allow_nan=False, ensure_ascii=False) + "\n"
    with disk_errors(path, _ADVICE), path.open("ab") as file:
        file.write(line.encode())


def read(path: Path) -> list[Record]:
    """The records of a file; what is no whole line, as after a kill, is passed over. Empty if there is no file."""
    return [record for _, record in _lines(path)]


def cut(path: Path, iteration: int, evaluated: bool) -> list[Record]:
    """Take back a file to `iteration`, and to the evaluation of that if it is `evaluated`; what is kept."""
    kept = [(line, record) for line, record in _lines(path) if is_before(record, iteration, evaluated)]
    if path.exists():
        write_atomically(path, b"".join(line for line, _ in kept), durable=True)
    return [record for _, record in kept]


def is_before(record: Record, iteration: int, evaluated: bool) -> bool:
    """Whether a run that goes on after `iteration` has this record behind it."""
    return record["iteration"] < iteration + (evaluated or record["kind"] != "eval")


def _lines(path: Path) -> Iterator[tuple[bytes, Record]]:
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        record = _record(line)
        if record is not None:
            yield line, record


def _record(line: bytes) -> Optional[Record]:
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if not isinstance(found, dict) or type(found.get("iteration")) is not int:
        return None
    whole = found.get("kind") in ("train", "eval") and all(_numbers(found[name]) for name in found if name != "kind")
    return found if whole else None


def _numbers(value: Any) -> bool:
    """Whether this is a number or null, or lists and mappings of them."""
    if isinstance(value, (dict, list)):
        return all(map(_numbers, value.values() if isinstance(value, dict) else value))
    return value is None or type(value) in (int, float)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
