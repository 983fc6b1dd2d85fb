# SPDX-License-Identifier: Apache-2.0
"""The toy world as files in the tree of Cityscapes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import name2label
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from PIL import Image, ImageDraw

from hmsa.errors import DataError, UsageError
from hmsa.system.files import write_atomically
from hmsa.toy.street import street

CITIES = {
    "train": ("arbordale", "brickton", "cloverfield"),
    "train_extra": ("dockside", "elmbridge", "fernhill"),
    "val": ("glimmerton", "harbourview"),
    "test": ("ivygate", "juniper"),
}
MARKER = "toy_cityscapes.json"
"""The file at the root that says how a toy set was made."""


def label_ids(objects: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Label ids, uint8 [height, width], drawn as cityscapesscripts draws polygons."""
    image = Image.new("L", (width, height), name2label["unlabeled"].id)
    drawer = ImageDraw.Draw(image)
    for thing in objects:
        drawer.polygon([(x, y) for x, y in thing["polygon"]], fill=name2label[thing["label"]].id)
    return np.array(image)


def instance_ids(polygons: str) -> np.ndarray:
    """What tells instances apart, uint16 [height, width], as cityscapesscripts draws it: 1000 times the label id plus
    the number of the instance, or of classes that have no instances the label id."""
    annotation = Annotation()
    annotation.fromJsonText(polygons)
    return np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16)


def auto_labels(rng: np.random.Generator, objects: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Label ids, uint8 [height, width], as a network might have made them: two in five of the small objects (up to
    a tenth of the image's height) are overlooked, and both sides of every border are unlabeled."""

    def is_seen(thing: dict[str, Any]) -> bool:
        return np.ptp(thing["polygon"], axis=0).max() > 0.1 * height or rng.random() < 0.6

    ids = label_ids([thing for thing in objects if is_seen(thing)], height, width)
    neighbours = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    border = cv2.morphologyEx(ids, cv2.MORPH_GRADIENT, neighbours) > 0
    return np.where(border, np.uint8(name2label["unlabeled"].id), ids)


def write_toy_cityscapes(
    root: str | Path,
    *,
    size: tuple[int, int] = (128, 256),
    train: int = 48,
    coarse: int = 48,
    val: int = 16,
    test: int = 4,
    seed: int = 42,
) -> None:
    """Write the data set under `root`; `size` is (height, width), the others count images.

    The same arguments give the same bytes, and an image depends on the seed, its split and its index only. The
    labels of the test split are withheld: they hold no object. Raises UsageError for sizes below 64 pixels or
    counts below 0, DataError where `root` holds anything else than this very toy set.
    """
    root, counts = Path(root), {"train": train, "train_extra": coarse, "val": val, "test": test}
    if min(size) < 64 or min(counts.values()) < 0 or seed < 0:
        raise UsageError(
            f"size {size[1]} {size[0]}, counts {list(counts.values())} and seed {seed} should be at least 64 pixels, "
            "0 and 0: give larger ones"
        )
    options = json.dumps({"size": list(size), "seed": seed, **counts}) + "\n"
    _check_target(root, options)
    write_atomically(root / MARKER, options.encode())
    for number, (split, count) in enumerate(counts.items()):
        for index in range(count):
            _write_street(root, split, index, size, np.random.default_rng((seed, number, index)))


def _check_target(root: Path, options: str) -> None:
    marker = root / MARKER
    is_same = marker.is_file() and marker.read_text(encoding="utf-8") == options
    if root.is_dir() and any(root.iterdir()) and not is_same:
        raise DataError(
            f"{root} should be an empty folder, or a toy set made with the same options (see {MARKER}), but it holds "
            "other files: choose another folder"
        )


def _write_street(root: Path, split: str, index: int, size: tuple[int, int], rng: np.random.Generator) -> None:
    cities = CITIES[split]
    city = cities[index % len(cities)]
    name = f"{city}/{city}_{index // len(cities):06d}_000000"
    objects, image = street(rng, *size)
    if split == "train_extra":
        _write_png(root / f"leftImg8bit_trainextra/leftImg8bit/{split}/{name}_leftImg8bit.png", image)
        _write_png(root / f"refinement_final/{split}/{name}_leftImg8bit.png", auto_labels(rng, objects, *size))
        return
    if split == "test":
        objects = []
    annotation = {"imgHeight": size[0], "imgWidth": size[1], "objects": objects}
    _write_png(root / f"leftImg8bit/{split}/{name}_leftImg8bit.png", image)
    polygons = json.dumps(annotation)
    _write_png(root / f"gtFine/{split}/{name}_gtFine_labelIds.png", label_ids(objects, *size))
    _write_png(root / f"gtFine/{split}/{name}_gtFine_instanceIds.png", instance_ids(polygons))
    write_atomically(root / f"gtFine/{split}/{name}_gtFine_polygons.json", polygons.encode())


def _write_png(path: Path, pixels: np.ndarray) -> None:
    write_atomically(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))
