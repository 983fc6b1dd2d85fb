# SPDX-License-Identifier: Apache-2.0
"""Predictions as files, of this project or of any other tool."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from hmsa.datasets.cityscapes import CityscapesAutolabeling
from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.distributed import ranks
from hmsa.engine.evaluate import evaluate
from hmsa.engine.files import PredictionWriter, class_table, find_predictions, names, score
from hmsa.errors import DataError
from hmsa.inference.averaging import InferenceOptions
from hmsa.metrics.confusion import category_iou
from hmsa.report import official


@pytest.fixture(scope="module")
def cities(toy_root):
    return CityscapesAutolabeling(dataset_root=toy_root, mode="val", transforms=[])


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def random_maps(folder: Path, dataset: SegmentationDataset, low: int, high: int, ending: str = "") -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for image, label in dataset.pairs:
        shape = np.asarray(Image.open(label)).shape
        paths.append(write(folder / f"{Path(image).stem}{ending}.png", rng.integers(low, high, shape)))
    return paths


def test_a_random_map_scores_the_same_as_by_cityscapesscripts(cities, tmp_path):
    """Over all 34 label ids, of which 15 are no class: 19 classes and seven categories, to the last bit."""
    paths = random_maps(tmp_path, cities, 0, 34, "_pred")
    images, labels = zip(*cities.pairs)
    assert find_predictions(tmp_path, images) == paths
    ours = score(cities, paths, "ids", progress=False)
    theirs = official.official(paths, official.official_labels(labels))
    assert official.differences(ours, theirs) == []
    assert len(ours.category_iou) == 7 and len(ours.scores["iou"]) == 19
    assert 0 < max(ours.category_iou.values()) < 0.5
    without = ours.scores["pixels_without_class"]
    assert without / (without + ours.scores["confusion_matrix"].sum()) == pytest.approx(15 / 34, 0.02)
    assert "were given no class, which counts as wrong" in ours.table() and "IoU of the category flat" in ours.table()

    spoilt = {**theirs, "classScores": {**theirs["classScores"], "sky": 0.5}}
    (line,) = official.differences(ours, spoilt)
    assert line.startswith("sky ")


def test_train_ids_score_what_their_label_ids_do(cities, tmp_path):
    of_ids = random_maps(tmp_path / "ids", cities, 0, 34)
    of_train_ids = []
    for path in of_ids:
        label = class_table(cities.classes, "ids")[np.asarray(Image.open(path))]
        of_train_ids.append(write(tmp_path / "train_ids" / path.name, label))
    ours, theirs = (
        score(cities, of_ids, "ids", progress=False),
        score(cities, of_train_ids, "train_ids", progress=False),
    )
    assert ours.to_json(config={}, weights_sha256=None)["iou"] == theirs.to_json(config={}, weights_sha256=None)["iou"]
    assert_array_equal(ours.scores["confusion_matrix"], theirs.scores["confusion_matrix"])
    assert not {"ece", "reliability", "loss"} & ours.scores.keys()  # which labels alone cannot tell
    assert {"boundary_iou", "image_iou"} <= ours.scores.keys()


def test_what_an_evaluation_writes_scores_the_same(cities, tmp_path):
    def network(image):
        return paddle.concat([paddle.sin((k + 1) * image[:, :1] / 40) for k in range(19)], axis=1)

    write = PredictionWriter(tmp_path, cities)
    evaluated = evaluate(
        network,
        cities,
        InferenceOptions(),
        progress=False,
        seen=lambda found: write(found.image_path, found.prediction),
    )
    paths = find_predictions(tmp_path, [image for image, _ in cities.pairs])
    assert paths == list(write.paths.values())
    assert [path.relative_to(tmp_path).parts[0] for path in paths] == [
        Path(image).parent.name for image, _ in cities.pairs
    ]
    assert set(np.unique(np.asarray(Image.open(paths[0])))) <= {*cities.classes.raw_values}
    scored = score(cities, paths, "ids", progress=False)
    for name in ("confusion_matrix", "iou", "boundary_iou", "image_iou"):
        assert_array_equal(scored.scores[name], evaluated.scores[name])
    assert scored.category_iou == evaluated.category_iou and scored.images == 3


def test_ranks_share_the_files(cities, tmp_path, monkeypatch):
    paths = random_maps(tmp_path, cities, 0, 34)
    alone = score(cities, paths, "ids", progress=False)
    counts = []
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "all_reduce_sum", lambda mine: counts.append(mine) or mine)
    for rank in range(2):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        score(cities, paths, "ids", progress=False)
    monkeypatch.setattr(ranks, "all_reduce_sum", lambda mine: sum(counts))
    together = score(cities, paths, "ids", progress=False)
    assert together.images == 3
    assert_array_equal(together.scores["confusion_matrix"], alone.scores["confusion_matrix"])


def test_own_values_and_merged_ones(tmp_path):
    classes = replace(Classes.numbered(2), values=((0, 50), (200,)), raw_values=(0, 200))
    pair = str(tmp_path / "a.png"), str(write(tmp_path / "a_mask.png", np.array([[0, 50, 200, 200]])))
    dataset = SegmentationDataset(pairs=[pair], classes=classes, training=False)
    files = [write(tmp_path / "found" / "a.png", np.array([[50, 0, 200, 7]]))]
    assert score(dataset, files, "ids", progress=False).scores["confusion_matrix"].tolist() == [[2, 0], [0, 1]]
    files = [write(tmp_path / "found" / "a.png", np.array([[0, 0, 1, 255]]))]
    result = score(dataset, files, "train_ids", progress=False)
    assert result.scores["iou"].tolist() == [1, 0.5] and result.scores["pixels_without_class"] == 1


def test_what_is_wrong_with_files_is_told(cities, tmp_path):
    images = [image for image, _ in cities.pairs]
    with pytest.raises(
        DataError, match=r"expected one PNG for each of 3 images, called by its stem, found 0, and none"
    ):
        find_predictions(tmp_path / "missing", images)
    paths = random_maps(tmp_path, cities, 0, 19)
    second = write(tmp_path / "other" / paths[0].name, np.zeros((64, 128)))
    with pytest.raises(DataError, match=r"for 1 images: .*\(2 files: "):
        find_predictions(tmp_path, images)
    second.unlink()
    write(paths[1], np.zeros((9, 7)))
    with pytest.raises(DataError, match=r"should be as large as the label of .*, 128x64, but it is 7x9"):
        score(cities, find_predictions(tmp_path, images), "ids", progress=False)
    cv2.imwrite(str(paths[1]), np.zeros((64, 128, 3), np.uint8))
    with pytest.raises(DataError, match="it has colours"):
        score(cities, paths, "ids", progress=False)


def test_names_start_where_paths_begin_to_differ():
    assert list(map(str, names(["x/a/1.jpg", "x/b/1.png"]))) == ["a/1.png", "b/1.png"]
    assert list(map(str, names(["x/a/1.jpg"]))) == ["1.png"]
    with pytest.raises(DataError, match=r"found two of one name: 1\.png; rename one"):
        names(["x/1.jpg", "x/1.png"])


def test_categories_by_hand():
    """Two of the four classes are one category; a column more counts what was given no class."""
    matrix = np.array([[3, 1, 0, 2, 1], [2, 4, 1, 0, 0], [0, 0, 5, 0, 0], [0, 0, 0, 0, 0]])
    found = category_iou(matrix, ["a", "a", "b", "c"])
    assert found == {"a": 10 / 14, "b": 5 / 6, "c": 0}
    assert np.isnan(category_iou(np.zeros((1, 1)), ["a"])["a"])


def test_predictions_without_a_class_say_nothing_of_the_labels(cities, tmp_path):
    ours = score(cities, random_maps(tmp_path, cities, 77, 78, ""), "train_ids", progress=False)
    assert ours.scores["classes_present"] > 1
    assert ours.remarks[0].endswith("(100.00 %) were given no class, which counts as wrong")
    assert not any("the labels hold" in remark for remark in ours.remarks)
    absent = [name for name, iou in zip(ours.class_names, ours.scores["iou"]) if np.isnan(iou)]
    assert len(ours.remarks) == 1 + bool(absent)
