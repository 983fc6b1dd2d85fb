# SPDX-License-Identifier: Apache-2.0
"""Cityscapes' own evaluation, as far as it is ours to call it; that both agree is in tests/engine/test_files.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa.errors import DataError, UsageError
from hmsa.report.official import official, official_labels, table


@pytest.fixture
def labels(toy_root, tmp_path):
    """Labels of an own copy: of train ids, ids, and instances."""
    shutil.copytree(toy_root / "gtFine/val", tmp_path / "labels")
    return [str(path) for path in sorted((tmp_path / "labels").glob("*/*_labelTrainIds.png"))]


def test_the_truth_scores_everything_right(labels):
    paths = official_labels(labels)
    found = official(paths, paths)
    assert found["averageScoreClasses"] == found["averageScoreCategories"] == 1
    assert found["averageScoreInstClasses"] == 1 and found["classInstScores"]["car"] == 1
    assert "average of categories │ 100.00 │ 100.00" in table(found)
    assert official(paths, paths)["confMatrix"] == found["confMatrix"]  # its settings are as they were


def test_without_images_of_instances_there_is_no_score_of_them(labels):
    next(Path(labels[0]).parent.glob("*_instanceIds.png")).unlink()
    paths = official_labels(labels)
    found = official(paths, paths)
    assert np.isnan(found["averageScoreInstClasses"]) and found["averageScoreClasses"] == 1


def test_what_cannot_be_evaluated(labels, tmp_path):
    with pytest.raises(UsageError, match="expected labels of Cityscapes"):
        official_labels(["a.png"])
    paths = official_labels(labels)
    wrong = tmp_path / "wrong.png"
    Image.fromarray(np.full((64, 128), 255, np.uint8)).save(wrong)
    with pytest.raises(DataError, match=r"wrong\.png should hold label ids, 0 to 33, but it holds 255"):
        official([wrong, *paths[1:]], paths)
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(wrong)
    with pytest.raises(DataError, match=r"but it says: ERROR: Image widths of .* are not equal"):
        official([wrong, *paths[1:]], paths)
    paths[0].unlink()
    with pytest.raises(
        DataError, match="expected images of label ids beside those of train ids, found none for 1 of 3"
    ):
        official_labels(labels)
