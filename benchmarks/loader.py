# SPDX-License-Identifier: Apache-2.0
"""2048x1024 pairs of image and label from their files through the recipe's training transforms, on one core.

Ours are batches of one, as training takes them from one worker; theirs come straight from the transforms.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

from timing import Run, measure, row

RECIPE = Path(__file__).parents[1] / "configs/mscale_ocr_cityscapes_autolabel_mapillary.yml"
PICTURES = 10


def ours() -> Run:
    folder, image, label, transforms = prepared()
    from hmsa import builder
    from hmsa.datasets.classes import Classes
    from hmsa.datasets.dataset import SegmentationDataset
    from hmsa.datasets.loader import batches

    dataset = SegmentationDataset(
        pairs=[(image, label)],
        classes=Classes.numbered(19),
        training=True,
        transforms=builder.build_transforms(transforms),
    )
    numbers = itertools.count()

    def run() -> None:
        assert Path(folder.name).is_dir()  # which keeps it
        indices = [[next(numbers)] for _ in range(PICTURES)]
        for _ in batches(dataset, indices, num_workers=1):
            pass

    return run


def paddleseg() -> Run:
    folder, image, label, transforms = prepared()
    from paddleseg import transforms as theirs

    from hmsa.config.fields import arguments

    pipeline = theirs.Compose([getattr(theirs, spec.type)(**arguments(spec)) for spec in transforms])

    def run() -> None:
        assert Path(folder.name).is_dir()
        for _ in range(PICTURES):
            pipeline({"img": image, "label": label, "gt_fields": ["label"]})

    return run


def prepared() -> tuple[tempfile.TemporaryDirectory[str], str, str, Any]:
    """A folder, to be kept as long as its files, the files of a drawn street, and the recipe's transforms."""
    from hmsa.system.environment import prepare

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    prepare()
    import cv2
    import numpy as np

    from hmsa import load_config
    from hmsa.toy.cityscapes import label_ids
    from hmsa.toy.street import street

    folder = tempfile.TemporaryDirectory()
    image, label = f"{folder.name}/image.png", f"{folder.name}/label.png"
    objects, picture = street(np.random.default_rng(0), 1024, 2048)
    cv2.imwrite(image, picture[..., ::-1])
    cv2.imwrite(label, label_ids(objects, 1024, 2048) % 19)
    dataset = load_config(RECIPE).train_dataset
    assert dataset is not None
    return folder, image, label, dataset.transforms


def main() -> None:
    measured = measure({"theirs": paddleseg, "ours": ours})
    theirs, ours_ = (PICTURES / measured[name].median for name in ("theirs", "ours"))
    what = "loading 2048x1024 pairs with the recipe's transforms, one core"
    row(what, "paddleseg 2.8.0", f"{theirs:.1f} a second", f"{ours_:.1f} a second", f"{ours_ / theirs:.1f}x faster")


if __name__ == "__main__":
    main()
