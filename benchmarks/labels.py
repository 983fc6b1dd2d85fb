# SPDX-License-Identifier: Apache-2.0
"""Label ids of one 2048x1024 picture to train ids, and the confusion matrix of a prediction of that size."""

from hmsa.environment import prepare

prepare()
import numpy as np  # noqa: E402
from cityscapesscripts.helpers.labels import labels as cityscapes_labels  # noqa: E402
from timing import compare  # noqa: E402

from hmsa.datasets.labels import LABEL_ID_TO_TRAIN_ID  # noqa: E402
from hmsa.metrics import confusion_matrix  # noqa: E402


def main() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 34, (1024, 2048)).astype(np.uint8)

    def value_by_value() -> np.ndarray:
        train_ids = ids.copy()
        for label in cityscapes_labels:
            if label.id >= 0:
                train_ids[ids == label.id] = label.trainId & 255
        return train_ids

    assert (value_by_value() == LABEL_ID_TO_TRAIN_ID[ids]).all()
    compare(
        "label ids to train ids, 2048x1024",
        ours=lambda: LABEL_ID_TO_TRAIN_ID[ids],
        theirs=value_by_value,
        their_name="value by value",
    )
    truth, prediction = (rng.integers(0, 19, (1024, 2048)).astype(np.uint8) for _ in range(2))
    compare(
        "confusion matrix, 2048x1024, 19 classes",
        ours=lambda: confusion_matrix(prediction, truth, 19),
        theirs=lambda: np.histogram2d(truth.ravel(), prediction.ravel(), bins=19, range=[[0, 19], [0, 19]]),
        their_name="numpy.histogram2d",
    )


if __name__ == "__main__":
    main()
