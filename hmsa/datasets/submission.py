# SPDX-License-Identifier: Apache-2.0
"""What Cityscapes' test server takes: an archive of a prediction for each image of the test split."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import labels
from tqdm import tqdm

from hmsa.datasets.cityscapes import CLASSES, fine_pairs
from hmsa.datasets.images import read_label, strange_values
from hmsa.datasets.lists import listed
from hmsa.errors import DataError
from hmsa.system.files import write_atomically

COUNT = 1525
"""Images of the test split."""

SIZE = (2048, 1024)
"""Their width and height."""

IDS = frozenset(label.id for label in labels if label.id >= 0)
"""What a prediction may hold."""


def test_images(root: Path) -> list[str]:
    """The images of the test split below `leftImg8bit/test`.

    Raises:
        DataError: they are not all there.
    """
    images = [image for image, _ in fine_pairs(root, "test")]
    if len(images) != COUNT:
        raise DataError(
            f"{root}: expected the {COUNT} images of Cityscapes' test split, found {len(images)}: unpack "
            "leftImg8bit_trainvaltest.zip again"
        )
    return images


def write_archive(path: Path, images: Sequence[str], predictions: Sequence[Path]) -> None:
    """Write the archive, in which the prediction of X_leftImg8bit.png is X_gtFine_labelIds.png; whole or not at all.

    Args:
        images: see `test_images`.
        predictions: that of each, as label ids.

    Raises:
        DataError: naming predictions of another size or with values that are no label ids.
    """
    used = np.zeros(256, np.int64)
    problems = []
    for file in tqdm(predictions, unit="image", disable=None):
        label = read_label(file)
        if label.shape[::-1] != SIZE:
            problems.append(f"{file} is {label.shape[1]}x{label.shape[0]}")
        strange = strange_values(label, IDS)
        if strange:
            problems.append(f"{file} holds {strange}")
        elif label.size:
            used += cv2.calcHist([label.astype(np.uint8)], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    if problems:
        raise DataError(
            f"expected predictions of {SIZE[0]}x{SIZE[1]} that hold label ids, 0 to {max(IDS)}, found {len(problems)} "
            f"others: {listed(problems)}; make them anew, without resizing and as label ids"
        )
    if not used[len(CLASSES) :].any():
        raise DataError(
            f"expected label ids, found no value above {len(CLASSES) - 1} in {len(predictions)} predictions, which are "
            "rather train ids: write label ids"
        )

    def write(target: IO[bytes]) -> None:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:  # PNGs are packed
            for image, file in zip(images, predictions):
                archive.writestr(
                    f"{Path(image).name.removesuffix('_leftImg8bit.png')}_gtFine_labelIds.png", _grey(file)
                )

    write_atomically(path, write)


def _grey(file: Path) -> bytes:
    """The file's content; of a PNG with a palette, or of other depths, the numbers in it as a grey one of 8 bits."""
    content = file.read_bytes()
    if content[24:26] == b"\x08\x00":  # depth and kind
        return content
    return cv2.imencode(".png", read_label(file).astype(np.uint8))[1].tobytes()
