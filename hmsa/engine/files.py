# SPDX-License-Identifier: Apache-2.0
"""Predictions as files: written by an evaluation, or by any other tool, and scored like a network's."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
from PIL import Image

from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.find import search
from hmsa.datasets.images import read_label
from hmsa.datasets.lists import listed
from hmsa.distributed import ranks
from hmsa.engine.evaluate import summed
from hmsa.engine.predict import raw_table
from hmsa.errors import DataError
from hmsa.metrics import NO_CLASS, build_metrics
from hmsa.report.console import watched
from hmsa.report.result import Evaluation
from hmsa.system.files import write_atomically

Values = Literal["ids", "train_ids"]
"""What the pixels of a prediction are: what the data set's own label files hold, or class numbers."""

_IMAGE_ENDING = "_leftImg8bit"  # of Cityscapes' images, which results need not have


def names(images: Sequence[str]) -> list[PurePath]:
    """Names of the predictions of images, which start where their paths begin to differ: a.png, or ulm/a.png.

    Raises:
        DataError: two are the same.
    """
    paths = [Path(os.path.abspath(image)) for image in images]  # noqa: PTH100 (links stay as they are)
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    found: list[PurePath] = [path.relative_to(folder).with_suffix(".png") for path in paths]
    twice = [str(name) for name, count in Counter(found).items() if count > 1]
    if twice:
        raise DataError(
            f"{folder}: expected images whose names differ before their endings, as their predictions are PNGs, found "
            f"two of one name: {listed(twice)}; rename one of each"
        )
    return found


class PredictionWriter:
    """Writes predictions to a folder, as grey PNGs of what the data set's own label files hold.

    Attributes:
        paths: of an image -> where its prediction goes.
    """

    def __init__(self, folder: Path, dataset: SegmentationDataset) -> None:
        images = [image for image, _ in dataset.pairs]
        self.paths = {image: folder / name for image, name in zip(images, names(images))}
        self._table = raw_table(dataset.classes.raw_values or range(len(dataset.classes)))

    def __call__(self, image: str, prediction: np.ndarray) -> None:
        """Write the prediction of an image: class numbers, uint8 [H, W]."""
        made = Image.fromarray(self._table[prediction])
        write_atomically(self.paths[image], partial(made.save, format="PNG"))


def find_predictions(folder: Path, images: Sequence[str]) -> list[Path]:
    """The predictions of images: PNGs below a folder, called as `names` says or, wherever they lie, by the image's
    stem; that of X_leftImg8bit.png may also be X.png or X_anything.png.

    Raises:
        DataError: some have none, or several.
    """
    files = [path for path in search(folder, "**") if path.suffix.lower() == ".png"] if folder.is_dir() else []
    by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_stem[file.stem].append(file)

    found, problems = [], []
    for name in names(images):
        exact = folder / name
        own = [exact] if exact in by_stem[exact.stem] else by_stem[exact.stem] or _of_cityscapes(exact.stem, by_stem)
        found += own[:1]
        if not own:
            problems.append(f"{name}")
        elif len(own) > 1:
            problems.append(f"{name} ({len(own)} files: {own[0]}, {own[1]})")
    if problems:
        raise DataError(
            f"{folder}: expected one PNG for each of {len(images)} images, called by its stem, found {len(files)}, "
            f"and none or several for {len(problems)} images: {listed(problems)}; add them, or leave one of each"
        )
    return found


def _of_cityscapes(stem: str, by_stem: dict[str, list[Path]]) -> list[Path]:
    """The files of an image X_leftImg8bit that start with X, as cityscapesscripts finds them."""
    core = stem.removesuffix(_IMAGE_ENDING)
    if core == stem:
        return []
    starts = (other for other in by_stem if other == core or other.startswith(f"{core}_"))
    return [file for other in starts for file in by_stem[other]]


def score(
    dataset: SegmentationDataset, predictions: Sequence[Path], values: Values, *, progress: bool = True
) -> Evaluation:
    """Compare predictions that are files, one for each image of a data set, with its labels; no network is needed.

    All that labels alone can tell is measured. Every rank takes a part, as in `evaluate`. A value that stands for no
    class is a wrong answer everywhere.

    Raises:
        DataError: a file cannot be read, or differs from its label in size.
    """
    start = time.perf_counter()
    classes = dataset.classes
    metrics = build_metrics(len(classes), classes.ignore_index)
    metrics = [metric for metric in metrics if not (metric.needs_confidence or metric.needs_logits)]
    table = class_table(classes, values)
    mine = range(ranks.rank(), len(predictions), ranks.world_size())

    for index in watched(mine, "image", len(mine), shown=progress and ranks.is_main()):
        image, label_path = dataset.pairs[index]
        assert label_path is not None
        label = dataset.read_label(label_path).astype(np.uint8, copy=False)
        found = read_label(predictions[index], dataset.max_image_pixels)
        if found.shape != label.shape:
            raise DataError(
                f"{predictions[index]} should be as large as the label of {image}, {label.shape[1]}x{label.shape[0]}, "
                f"but it is {found.shape[1]}x{found.shape[0]}: make it anew at the image's size"
            )
        prediction = table[np.minimum(found, 256)]
        for metric in metrics:
            metric.update(prediction, label)
    return summed(metrics, classes, start, len(mine))


def class_table(classes: Classes, values: Values) -> np.ndarray:
    """Value of a prediction's pixel, from 256 on as 256 -> class number or `NO_CLASS`, uint8 [257]."""
    table = np.full(257, NO_CLASS, np.uint8)
    own = [(number,) for number in range(len(classes))]
    if values == "ids" and classes.raw_values:
        own = [(value,) for value in classes.raw_values]
    if values == "ids" and classes.values and not classes.in_colors:
        own = classes.values
    for number, of_class in enumerate(own):
        table[[value for value in of_class if isinstance(value, int) and value < 256]] = number
    return table
