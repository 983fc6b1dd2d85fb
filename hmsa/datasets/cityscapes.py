# SPDX-License-Identifier: Apache-2.0
"""Cityscapes with finely labelled images and, for training, auto-labelled coarse ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from cityscapesscripts.helpers.labels import labels as _labels

from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import Pair, SegmentationDataset
from hmsa.datasets.find import search
from hmsa.errors import DataError

_classes = sorted((label for label in _labels if 0 <= label.trainId < 255), key=lambda label: label.trainId)

CLASSES = Classes(
    names=tuple(label.name for label in _classes),
    colors=tuple(label.color for label in _classes),
    ignore_index=255,
    raw_values=tuple(label.id for label in _classes),
    categories=tuple(label.category for label in _classes),
)
"""The 19 classes, by train id; their raw values are label ids, their categories seven."""

LABEL_IDS: frozenset[int] = frozenset(label.id % 256 for label in _labels)
"""Every value a label-id image may hold."""

COLORS: frozenset[tuple[int, int, int]] = frozenset(label.color for label in _labels)
"""Every colour of an image in colours."""

LABEL_ID_TO_TRAIN_ID = np.full(256, CLASSES.ignore_index, np.uint8)
"""uint8 [256]: label id -> train id; 255 where the label is no class."""

LABEL_ID_TO_TRAIN_ID[list(CLASSES.raw_values or ())] = np.arange(len(CLASSES))

IMAGE_ENDING = "_leftImg8bit.png"
LABEL_ENDING = "_gtFine_labelTrainIds.png"
COARSE_IMAGES = Path("leftImg8bit_trainextra/leftImg8bit/train_extra")
COARSE_LABELS = Path("convert_autolabelled")


class CityscapesAutolabeling(SegmentationDataset):
    """Cityscapes' images under `dataset_root`, paired with their labels by city and name:

        leftImg8bit/<mode>/<city>/X_leftImg8bit.png    gtFine/<mode>/<city>/X_gtFine_labelTrainIds.png
        leftImg8bit_trainextra/leftImg8bit/train_extra/<city>/X_leftImg8bit.png
                                                       convert_autolabelled/<city>/X_leftImg8bit.png

    In mode "train" an epoch holds every fine image (with `add_val` those of val too) and `coarse_multiple`
    times as many coarse ones, whose folders are not needed at 0. Modes "val" and "test" keep the images'
    order and the labels' size; "test" has no labels. DataError lists every image or label without its
    partner.

    Args:
        common: what every data set takes, see `SegmentationDataset`.
    """

    classes = CLASSES

    def __init__(
        self,
        *,
        dataset_root: str | Path,
        mode: Literal["train", "val", "test"],
        coarse_multiple: float = 1.0,
        add_val: bool = False,
        **common: Any,
    ) -> None:
        root, training = Path(dataset_root), mode == "train"
        pairs = fine_pairs(root, mode)
        if training and add_val:
            pairs += fine_pairs(root, "val")
        if training and coarse_multiple:
            common = {"coarse_pairs": coarse_pairs(root), "coarse_multiple": coarse_multiple, **common}
        super().__init__(pairs=pairs, training=training, **{"classes": CLASSES, **common})


def fine_pairs(root: Path, split: str) -> list[Pair]:
    """Pairs of leftImg8bit/<split> and gtFine/<split>, by city and name; the split "test" has no labels."""
    images = _find(root / "leftImg8bit" / split, IMAGE_ENDING)
    if split == "test":
        return [(str(path), None) for path in images.values()]
    folder = root / "gtFine" / split
    labels = _find(folder, LABEL_ENDING, required=False)
    if not labels and search(folder, "*/*_gtFine_labelIds.png"):
        raise DataError(
            f"{folder} should hold labels *{LABEL_ENDING}, but it holds only those of label ids: run "
            f"python tools/convert_cityscapes.py --cityscapes_path {root}"
        )
    return _pair(images, labels)


def coarse_pairs(root: Path) -> list[Pair]:
    """Pairs of the coarse images and their converted auto-labels, sorted by city and name."""
    images = _find(root / COARSE_IMAGES, IMAGE_ENDING)
    folder = root / COARSE_LABELS
    labels = _find(folder, IMAGE_ENDING, required=False)
    if not labels:
        raise DataError(
            f"{folder} should hold the converted auto-labels, but it holds none: run python "
            f"tools/convert_cityscapes_autolabeling.py --dataset_root {root}, or set coarse_multiple to 0"
        )
    return _pair(images, labels)


def _find(folder: Path, ending: str, *, required: bool = True) -> dict[str, Path]:
    """Files <city>/<name><ending> in the folder, by "<city>/<name>" and in that order."""
    files = search(folder, f"*/*{ending}") if folder.is_dir() else []
    if required and not files:
        found = "holds none" if folder.is_dir() else "does not exist"
        raise DataError(
            f"{folder} should hold images <city>/*{ending}, but it {found}: set dataset_root to the folder of the "
            "data set (data/README.md shows what goes where)"
        )
    return {f"{path.parent.name}/{path.name[: -len(ending)]}": path for path in files}


def _pair(images: dict[str, Path], labels: dict[str, Path]) -> list[Pair]:
    """Partners by their common key; DataError lists all that have none."""
    lonely = [str(images[key]) for key in images.keys() - labels.keys()]
    lonely += [str(labels[key]) for key in labels.keys() - images.keys()]
    if lonely:
        raise DataError(
            "every image should have a label of its name and the reverse; add the missing ones or remove "
            f"the {len(lonely)} without a partner: " + ", ".join(sorted(lonely))
        )
    return [(str(path), str(labels[key])) for key, path in images.items()]
