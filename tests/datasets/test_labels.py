# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from hmsa.datasets import cityscapes
from hmsa.visualize import palette


def test_the_tables_by_hand():
    by_label_id = {7: 0, 8: 1, 11: 2, 17: 5, 23: 10, 24: 11, 26: 13, 31: 16, 33: 18}
    for label_id, train_id in by_label_id.items():
        assert cityscapes.LABEL_ID_TO_TRAIN_ID[label_id] == train_id
        assert cityscapes.TRAIN_ID_TO_LABEL_ID[train_id] == label_id
    # Void labels, labels that are not scored, licence plates (-1, as a byte 255) and what does not exist.
    for label_id in (0, 3, 9, 14, 29, 34, 200, 255):
        assert cityscapes.LABEL_ID_TO_TRAIN_ID[label_id] == 255


def test_the_tables_invert_each_other():
    classes = np.arange(19)
    assert (cityscapes.LABEL_ID_TO_TRAIN_ID[cityscapes.TRAIN_ID_TO_LABEL_ID[classes]] == classes).all()
    assert (cityscapes.TRAIN_ID_TO_LABEL_ID[19:] == 0).all()
    assert cityscapes.LABEL_ID_TO_TRAIN_ID.dtype == cityscapes.TRAIN_ID_TO_LABEL_ID.dtype == np.uint8


def test_names_and_colours():
    assert cityscapes.CLASS_NAMES[:3] == ("road", "sidewalk", "building")
    assert cityscapes.CLASS_NAMES[-1] == "bicycle"
    assert len(cityscapes.CLASS_NAMES) == len(cityscapes.CLASS_COLORS) == 19
    assert cityscapes.CLASS_COLORS[0] == (128, 64, 128)
    assert 255 in cityscapes.LABEL_IDS and 77 not in cityscapes.LABEL_IDS


@pytest.mark.parametrize("n", [1, 19, 256])
def test_the_palette_is_paddlesegs(n):
    from paddleseg.utils.visualize import get_color_map_list

    assert palette(n) == get_color_map_list(n)
    assert palette(2) == [128, 0, 0, 0, 128, 0]
