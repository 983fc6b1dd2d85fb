# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found: a table for people, JSON for programs."""

from __future__ import annotations

import io
import platform
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import distributions
from typing import Any, Optional

import hmsa.system.prepared  # noqa: F401

import numpy as np
from paddle.version import full_version as PADDLE_VERSION
from rich.console import Console
from rich.table import Column, Table

from hmsa.errors import printable
from hmsa.metrics import Metric
from hmsa.metrics.confusion import Confusion, category_iou
from hmsa.system.version import VERSION
from hmsa.weights.loading import listed

_CLASS, _WIDTH = 17, 9
"""Most characters of the columns of class names and of scores, so that a table fits a terminal of 80: longer names take
several lines."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    metrics: Sequence[Metric]  # with the counts of all ranks
    class_names: Sequence[str]
    images: int
    seconds: float
    peak_memory_bytes: int  # of this process: the device's memory on a GPU, the resident set elsewhere
    categories: Sequence[str] = ()  # of the classes, where they are grouped

    @cached_property
    def scores(self) -> dict[str, Any]:
        """The scores of all metrics by name, see `Metric.scores`."""
        return {name: value for metric in self.metrics for name, value in metric.scores().items()}

    @cached_property
    def category_iou(self) -> dict[str, float]:
        """IoU of every category, see `hmsa.metrics.confusion.category_iou`; empty where there are none."""
        confusion = next((metric for metric in self.metrics if isinstance(metric, Confusion)), None)
        return category_iou(confusion.state, self.categories) if confusion and self.categories else {}

    def overall(self) -> list[tuple[str, str, float]]:
        """The scores of the whole: name, what a person reads for it, value."""
        scores = self.scores.items()
        return [(name, self._title(name), value) for name, value in scores if isinstance(value, float)]

    @property
    def per_class(self) -> dict[str, np.ndarray]:
        """The scores of every class, [K] each."""
        return {name: value for name, value in self.scores.items() if np.ndim(value) == 1}

    def _title(self, score: str) -> str:
        """What a person reads for the name of a score."""
        titles = {name: title for metric in self.metrics for name, title in metric.titles.items()}
        return titles.get(score, score.replace("_", " ")).format(num_classes=len(self.class_names), **self.scores)

    @property
    def remarks(self) -> list[str]:
        """What a reader of the scores should know of the labels, a sentence each."""
        counts = self.scores.get("confusion_matrix")
        if counts is None:
            return []
        true, nowhere = ~np.isnan(self.scores["recall"]), np.isnan(self.scores["iou"])
        remarks = []
        without = self.scores.get("pixels_without_class", 0)
        if without:
            share = without / (counts.sum() + without)
            remarks.append(f"{without} labelled pixels ({percent(share)} %) were given no class, which counts as wrong")
        absent = [name for name, is_absent in zip(self.class_names, nowhere) if is_absent]
        if absent:
            remarks.append(
                f"neither in the labels nor predicted: {listed(absent)}; in a mean over all classes this counts as 0"
            )
        labelled = [name for name, there in zip(self.class_names, true) if there]
        if len(labelled) < 2:
            only = f"{labelled[0]} alone" if labelled else "ignored pixels alone"
            remarks.append(f"the labels hold {only}, so that these scores say nothing: hmsa check-data finds out why")
        return remarks

    def table(self) -> str:
        """Per-class and overall scores for a person to read, in percent."""
        columns = self.per_class
        titles = ["\n".join(textwrap.wrap(self._title(name), _WIDTH)) for name in columns]
        numbers = (Column(title, justify="right", no_wrap=True) for title in titles)
        table = Table(Column("class", max_width=_CLASS), *numbers)
        for name, *values in zip(self.class_names, *columns.values()):
            table.add_row(name, *map(percent, values))

        summary = Table.grid("score", Column("percent", justify="right"), padding=(0, 2))
        for _, title, value in self.overall():
            summary.add_row(title, percent(value))
        for name, value in self.category_iou.items():
            summary.add_row(f"IoU of the category {name}", percent(value))

        text = io.StringIO()
        Console(file=text, width=1000, markup=False, emoji=False).print(table, summary)
        remarks = "".join(f"{remark}\n" for remark in map(printable, self.remarks))
        cost = f"{self.seconds:.1f} s, peak memory {self.peak_memory_bytes / 2**30:.2f} GiB"
        return f"{text.getvalue()}{remarks}{self.images} images in {cost}"

    def to_json(self, *, config: dict[str, Any], weights_sha256: Optional[str]) -> dict[str, Any]:
        """Everything for a program to read; scores are fractions, null where nothing can be said.

        Args:
            config: the resolved YAML.
            weights_sha256: hash of the weight file; None where predictions were read.
        """
        categories = {"category_iou": plain(self.category_iou)} if self.category_iou else {}
        per_class = {name: dict(zip(self.class_names, plain(values))) for name, values in self.per_class.items()}
        return {
            "pictures": self.images,
            **{name: plain(value) for name, value in self.scores.items()},
            **per_class,
            **categories,
            "class_names": list(self.class_names),
            "remarks": self.remarks,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "weights_sha256": weights_sha256,
            "config": config,
            "versions": versions(),
        }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages a result depends on; None for one that is not installed."""
    packages = ("paddleseg", "numpy", "opencv-python")
    installed = {name: next((found.version for found in distributions(name=name)), None) for name in packages}
    return {"python": platform.python_version(), "hmsa": VERSION, "paddle": PADDLE_VERSION, **installed}


def percent(fraction: float) -> str:
    """A fraction as a person reads it, "-" for NaN."""
    return "-" if np.isnan(fraction) else f"{100 * fraction:.2f}"


def plain(value: Any) -> Any:
    """A number, an array, or a dictionary of these, as numbers, or lists of them, with None for NaN."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return np.where(np.isnan(value), np.array(None), value).tolist()
