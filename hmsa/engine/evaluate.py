# SPDX-License-Identifier: Apache-2.0
"""Scores of a model on a data set: one confusion matrix, summed over all ranks at the end."""

from __future__ import annotations

import contextlib
import io
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from paddle.version import full_version as PADDLE_VERSION
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import hmsa
from hmsa import distributed
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.loader import batches
from hmsa.engine.inference import InferenceOptions, Network, class_scores, restore
from hmsa.errors import DataError
from hmsa.memory import as_tensor, peak_memory_bytes
from hmsa.metrics import Scores, confusion_matrix, scores


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    confusion: np.ndarray  # int64 [K, K], rows are the truth
    class_names: Sequence[str]
    pictures: int
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
        return f"{text.getvalue()}{summary}\n{self.pictures} pictures in {cost}"

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
            "pictures": self.pictures,
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


def evaluate(
    network: Network,
    dataset: SegmentationDataset,
    options: InferenceOptions,
    *,
    most: int | None = None,
    num_workers: int = 0,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Predict every picture of a data set and compare with its label.

    Every rank takes the pictures rank, rank + world size, ...; all ranks must call this, and all get the sum.

    Args:
        network: pictures [N, 3, H, W] -> logits [N, K, H, W].
        dataset: in "val" mode: labels at the pictures' own sizes.
        most: evaluate only so many pictures, the first ones.
        num_workers: threads that load pictures ahead.
        progress: whether rank 0 shows a bar.
        stop: asked before every picture whether to leave off.

    Raises:
        DataError: a prediction and its label differ in size.
        InterruptedError: `stop` said so on any rank; raised on all of them.
    """
    start = time.perf_counter()
    K = dataset.num_classes
    mine = range(distributed.rank(), min(len(dataset), most or len(dataset)), distributed.world_size())
    confusion = np.zeros((K, K), np.int64)
    pictures = 0
    with contextlib.closing(batches(dataset, [[index] for index in mine], num_workers)) as loaded:
        for batch in tqdm(loaded, total=len(mine), unit="picture", disable=not (progress and distributed.is_main())):
            if stop():
                break
            image_path = batch["image_path"][0]
            if "label" not in batch:
                raise DataError(f"{image_path} has no label to compare with: set val_dataset to a labelled split")
            try:
                logits = class_scores(network, as_tensor(batch["img"]), options)
            except DataError as error:
                raise DataError(f"{image_path}: {error}") from error
            prediction = restore(logits, batch["trans_info"][0])
            del logits
            label = batch["label"][0]
            if prediction.shape != label.shape:
                raise DataError(
                    f"{image_path}: the prediction is {_size(prediction)}, its label {_size(label)}"
                    "; the transforms of val_dataset may resize and pad, but not cut"
                )
            confusion += confusion_matrix(prediction, label, K, dataset.ignore_index)
            pictures += 1
    counts = distributed.all_reduce_sum(np.append(confusion.ravel(), [pictures, len(mine) - pictures]))  # [K * K + 2]
    if counts[-1]:
        raise InterruptedError
    return Evaluation(
        confusion=counts[:-2].reshape(K, K),
        class_names=dataset.class_names,
        pictures=int(counts[-2]),
        seconds=time.perf_counter() - start,
        peak_memory_bytes=peak_memory_bytes(),
    )


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages a result depends on; None for one that is not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "hmsa": hmsa.__version__,
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


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
