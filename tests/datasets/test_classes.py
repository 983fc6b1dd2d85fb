# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np

from hmsa.datasets import cityscapes
from hmsa.datasets.classes import Classes
from hmsa.visualize import DISTINCT_COLORS


def test_classes_of_which_nothing_is_known():
    classes = Classes.numbered(3, ignore_index=7)
    assert classes.names == ("class 0", "class 1", "class 2")
    assert classes.colors == DISTINCT_COLORS[:3]
    assert (len(classes), classes.ignore_index, classes.raw_values) == (3, 7, None)
    assert len(Classes.numbered(256)) == 256


def test_backgrounds_are_known_by_their_names():
    classes = replace(Classes.numbered(4), names=("_background_", "back", "Background", "tree"))
    assert classes.background == (0, 2)


def test_the_classes_of_cityscapes_by_hand():
    classes = cityscapes.CLASSES
    assert classes.names[:3] == ("road", "sidewalk", "building")
    assert classes.names[-1] == "bicycle"
    assert classes.colors[0] == (128, 64, 128)
    assert (len(classes), classes.ignore_index) == (19, 255)
    assert (classes.categories[0], classes.categories[11], len(set(classes.categories))) == ("flat", "human", 7)
    assert 255 in cityscapes.LABEL_IDS and 77 not in cityscapes.LABEL_IDS


def test_label_ids_of_cityscapes_by_hand():
    by_label_id = {7: 0, 8: 1, 11: 2, 17: 5, 23: 10, 24: 11, 26: 13, 31: 16, 33: 18}
    for label_id, train_id in by_label_id.items():
        assert cityscapes.LABEL_ID_TO_TRAIN_ID[label_id] == train_id
        assert cityscapes.CLASSES.raw_values[train_id] == label_id
    # Void labels, labels that are not scored, licence plates (-1, as a byte 255) and what does not exist.
    for label_id in (0, 3, 9, 14, 29, 34, 200, 255):
        assert cityscapes.LABEL_ID_TO_TRAIN_ID[label_id] == 255
    assert (cityscapes.LABEL_ID_TO_TRAIN_ID != 255).sum() == 19
    assert cityscapes.LABEL_ID_TO_TRAIN_ID.dtype == np.uint8
