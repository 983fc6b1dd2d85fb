# SPDX-License-Identifier: Apache-2.0
"""Cityscapes' classes, the tables between its label ids and train ids, and the palette of label pictures.

A *label id* numbers all of Cityscapes' labels (0..33, and -1, which a byte holds as 255); a *train id*
numbers the 19 classes that are learnt and scored (0..18), and 255 stands for every other label. The one
source of the numbers is the `cityscapesscripts` package.
"""

from __future__ import annotations

import numpy as np
from cityscapesscripts.helpers.labels import labels as _labels

IGNORE_INDEX = 255

_classes = sorted((label for label in _labels if 0 <= label.trainId < 255), key=lambda label: label.trainId)

CLASS_NAMES: tuple[str, ...] = tuple(label.name for label in _classes)
"""Names of the 19 classes, by train id."""

CLASS_COLORS: tuple[tuple[int, int, int], ...] = tuple(label.color for label in _classes)
"""Cityscapes' own RGB colours of the 19 classes, by train id."""

LABEL_IDS: frozenset[int] = frozenset(label.id % 256 for label in _labels)
"""Every value a label-id picture may hold."""

LABEL_ID_TO_TRAIN_ID = np.full(256, IGNORE_INDEX, np.uint8)
"""uint8 [256]: label id -> train id; 255 where the label is no class."""

TRAIN_ID_TO_LABEL_ID = np.zeros(256, np.uint8)
"""uint8 [256]: train id -> label id; 0 ("unlabeled") where there is no such class."""

for _train_id, _label in enumerate(_classes):
    LABEL_ID_TO_TRAIN_ID[_label.id] = _train_id
    TRAIN_ID_TO_LABEL_ID[_train_id] = _label.id


def palette(n: int) -> list[int]:
    """PaddleSeg's palette: `n` colours as a flat list [r0, g0, b0, r1, ...] of values 0..255, n <= 256.

    The bits of index + 1 are dealt out to red, green and blue in turn, each channel filled from its highest
    bit down, so that neighbours differ most.
    """
    return [
        sum((number >> (3 * place + channel) & 1) << (7 - place) for place in range(3))
        for number in range(1, n + 1)
        for channel in range(3)
    ]
