# SPDX-License-Identifier: Apache-2.0
"""What an evaluation says beside its scores."""

import numpy as np
import pytest

from hmsa.metrics.confusion import Confusion
from hmsa.report.result import Evaluation


def evaluation(confusion: list) -> Evaluation:
    metric = Confusion(len(confusion), 255)
    metric.state = np.array(confusion, np.int64)
    names = [f"no. {index}" for index in range(len(confusion))]
    return Evaluation(metrics=[metric], class_names=names, images=1, seconds=1.0, peak_memory_bytes=1)


@pytest.mark.parametrize(
    ("confusion", "remarks"),
    [
        ([[5, 1], [0, 3]], []),
        ([[5, 1, 0], [0, 3, 0], [0, 0, 0]], ["neither in the labels nor predicted: no. 2; in a mean over all classes"]),
        ([[5, 1, 0], [0, 3, 2], [0, 0, 0]], []),  # predicted
        (
            [[9, 0], [0, 0]],  # masks of 0 and 255, of which 255 was ignored
            [
                "neither in the labels nor predicted: no. 1;",
                "the labels hold no. 0 alone, so that these scores say nothing",
            ],
        ),
        (
            [[0, 0], [0, 0]],
            ["neither in the labels nor predicted: no. 0, no. 1;", "the labels hold ignored pixels alone"],
        ),
    ],
)
def test_classes_that_are_nowhere_are_named(confusion, remarks):
    found = evaluation(confusion)
    assert len(found.remarks) == len(remarks)
    for remark, expected in zip(found.remarks, remarks):
        assert remark.startswith(expected)
        assert remark in found.table()
    assert found.to_json(config={}, weights_sha256="")["remarks"] == found.remarks
