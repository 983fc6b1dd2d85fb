# SPDX-License-Identifier: Apache-2.0
"""Auto-labels of one 2048x1024 image from label ids to train ids, in memory, on one core.

The other side is the usual loop over Cityscapes' table: a mask of the image for every label.
"""

from __future__ import annotations

from typing import Any

from timing import Run, measure, row, times

REPETITIONS = 20


def ours() -> Run:
    from hmsa.system.environment import prepare

    prepare()
    import cv2

    from hmsa.datasets.cityscapes import LABEL_ID_TO_TRAIN_ID

    ids = picture()

    def run() -> None:
        for _ in range(REPETITIONS):
            cv2.LUT(ids, LABEL_ID_TO_TRAIN_ID)  # as hmsa.datasets.convert does

    return run


def value_by_value() -> Run:
    from cityscapesscripts.helpers.labels import labels

    ids = picture()

    def run() -> None:
        for _ in range(REPETITIONS):
            train_ids = ids.copy()
            for label in labels:
                if label.id >= 0:
                    train_ids[ids == label.id] = label.trainId % 256

    return run


def picture() -> Any:
    """Label ids of a drawn street, uint8 [1024, 2048]."""
    import numpy as np

    from hmsa.toy.cityscapes import label_ids
    from hmsa.toy.street import street

    objects, _ = street(np.random.default_rng(0), 1024, 2048)
    return label_ids(objects, 1024, 2048)


def main() -> None:
    measured = measure({"theirs": value_by_value, "ours": ours})
    row(f"label ids to train ids, {REPETITIONS} images 2048x1024, one core", "value by value", *times(measured))


if __name__ == "__main__":
    main()
