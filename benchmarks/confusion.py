# SPDX-License-Identifier: Apache-2.0
"""The confusion matrix of one image, 1024x2048, 19 classes, against Cityscapes' own evaluation.

As pip installs it, `cityscapesscripts` comes without its compiled counter and counts in NumPy; where the counter was
built, it is what is measured. Replaced on their side: the opening of files, as the images are in memory here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from timing import Run, measure, row, times

REPETITIONS = 10


def ours() -> Run:
    from hmsa.system.environment import prepare

    prepare()
    from hmsa.metrics.confusion import confusion_matrix

    prediction, truth = pictures()
    return lambda: [confusion_matrix(prediction, truth, 19) for _ in range(REPETITIONS)]


def cityscapes() -> Run:
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as evaluation
    from PIL import Image

    evaluation.Image = SimpleNamespace(open=lambda opened: opened)
    for name in ("evalInstLevelScore", "evalPixelAccuracy"):
        setattr(evaluation.args, name, False)
    prediction, truth = (Image.fromarray(array) for array in pictures())

    def run() -> None:
        for _ in range(REPETITIONS):
            counts = evaluation.generateMatrix(evaluation.args)
            evaluation.evaluatePair(prediction, truth, counts, {}, {}, evaluation.args)

    return run


def pictures() -> Any:
    """A prediction that is wrong at every tenth pixel, and its truth, uint8 [1024, 2048] with values 0..18."""
    import numpy as np

    from hmsa.toy.cityscapes import label_ids
    from hmsa.toy.street import street

    rng = np.random.default_rng(0)
    objects, _ = street(rng, 1024, 2048)
    truth = label_ids(objects, 1024, 2048) % 19
    prediction = np.where(rng.random(truth.shape) < 0.1, rng.integers(0, 19, truth.shape, np.uint8), truth)
    return prediction, truth


def main() -> None:
    measured = measure({"theirs": cityscapes, "ours": ours})
    what = f"confusion matrix, {REPETITIONS} images 2048x1024, 19 classes"
    row(what, "cityscapesscripts", *times(measured))


if __name__ == "__main__":
    main()
