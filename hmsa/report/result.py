# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found: a table for people, JSON for programs."""

from __future__ import annotations

import io
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import hmsa.system.prepared  # noqa: F401

import numpy as np
from paddle.version import full_version as PADDLE_VERSION
from rich.console import Console
from rich.table import Table

from hmsa.metrics.confusion import Scores, scores
from hmsa.system.version import VERSION


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    confusion: np.ndarray  # int64 [K, K], rows are the truth
    class_names: Sequence[str]
    images: int
    seconds: float
    peak_memory_bytes: int  # of this process: the device's memory on a GPU, the resident set elsewhere

    @cached_property
    def scores(self) -> Scores:
        return scores(self.confusion)

    def table(self) -> str:
        """Per-class and overall scores for a person to read, in percent."""
        found = self.scores
        columns = {"IoU": found.iou, "precision": found.precision, "recall": found.recall}
        table = Table("class", *columns)
        for column in table.columns[1:]:
            column.justify = "right"
        for name, *values in zip(self.class_names, *columns.values()):
            table.add_row(name, *map(_percent, values))
        text = io.StringIO()
        Console(file=text, width=80).print(table)
        present = f"{int(found.present.sum())} of {len(found.present)}"
        lines = (
            ("mean IoU, all classes", _percent(found.mean_iou)),
            (f"mean IoU, the {present} classes present", _percent(found.mean_iou_present)),
            ("mean dice, all classes", _percent(found.mean_dice)),
            ("pixel accuracy", _percent(found.pixel_accuracy)),
            ("kappa", _percent(found.kappa)),
        )
        width = max(len(name) for name, _ in lines)
        summary = "\n".join(f"{name:<{width}}  {value:>6}" for name, value in lines)
        cost = f"{self.seconds:.1f} s, peak memory {self.peak_memory_bytes / 2**30:.2f} GiB"
        return f"{text.getvalue()}{summary}\n{self.images} images in {cost}"

    def to_json(self, *, config: dict[str, Any], weights_sha256: str) -> dict[str, Any]:
        """Everything for a program to read; scores are fractions, null where nothing can be said.

        Args:
            config: the resolved YAML.
            weights_sha256: hash of the weight file.
        """
        found = self.scores
        per_class = {
            name: dict(zip(self.class_names, map(_number, getattr(found, name))))
            for name in ("iou", "dice", "precision", "recall")
        }
        overall = ("mean_iou", "mean_iou_present", "mean_dice", "pixel_accuracy", "kappa")
        return {
            "pictures": self.images,
            **{name: _number(getattr(found, name)) for name in overall},
            "classes_present": int(found.present.sum()),
            **per_class,
            "class_names": list(self.class_names),
            "confusion_matrix": self.confusion.tolist(),
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "weights_sha256": weights_sha256,
            "config": config,
            "versions": versions(),
        }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages a result depends on; None for one that is not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "hmsa": VERSION,
        "paddle": PADDLE_VERSION,
    }
    for package in ("paddleseg", "numpy", "opencv-python"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _percent(fraction: float) -> str:
    return "-" if np.isnan(fraction) else f"{100 * fraction:.2f}"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
