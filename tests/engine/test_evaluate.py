# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import paddle
import pytest
from numpy.testing import assert_array_equal

from hmsa.components import METRICS
from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.distributed import ranks
from hmsa.engine.evaluate import evaluate
from hmsa.errors import DataError
from hmsa.inference.averaging import InferenceOptions
from hmsa.metrics import Metric, build_metrics
from hmsa.metrics.confusion import confusion_matrix
from hmsa.report import records
from hmsa.report.result import Evaluation

CLASSES = replace(Classes.numbered(3), names=("road", "tree", "sky"))
SIZES = [(12, 16), (9, 7), (10, 10), (5, 20), (8, 8)]


def red_channel(image):
    """A network that says class r where the red channel is r, of three classes."""
    return paddle.concat([-paddle.abs(image[:, :1] - k) for k in range(3)], axis=1)


@pytest.fixture
def pictures(tmp_path):
    """Images whose red channel is a guess of the label; (guesses, labels, pairs of paths)."""
    rng = np.random.default_rng(0)
    guesses, labels, pairs = [], [], []
    for index, size in enumerate(SIZES):
        label = rng.choice([0, 1, 255], size).astype(np.uint8)
        guess = rng.integers(0, 3, size).astype(np.uint8)
        image = np.dstack([np.zeros_like(guess), np.zeros_like(guess), guess])  # BGR
        paths = str(tmp_path / f"{index}.png"), str(tmp_path / f"{index}_label.png")
        cv2.imwrite(paths[0], image)
        cv2.imwrite(paths[1], label)
        guesses.append(guess)
        labels.append(label)
        pairs.append(paths)
    return guesses, labels, pairs


def make_dataset(pairs, transforms=()):
    return SegmentationDataset(
        pairs=pairs,
        transforms=transforms,
        training=False,
        classes=CLASSES,
    )


def expected_confusion(guesses, labels):
    return sum(confusion_matrix(guess, label, 3) for guess, label in zip(guesses, labels))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluate_counts_every_pixel_once(pictures, num_workers):
    guesses, labels, pairs = pictures
    result = evaluate(red_channel, make_dataset(pairs), InferenceOptions(), num_workers=num_workers, progress=False)
    assert_array_equal(result.scores["confusion_matrix"], expected_confusion(guesses, labels))
    assert result.scores["confusion_matrix"].dtype == np.int64
    assert result.images == len(pairs)
    assert result.seconds > 0
    assert result.peak_memory_bytes > 2**20


def test_only_the_first_pictures(pictures):
    guesses, labels, pairs = pictures
    result = evaluate(red_channel, make_dataset(pairs), InferenceOptions(), max_images=2, progress=False)
    assert result.images == 2
    assert_array_equal(result.scores["confusion_matrix"], expected_confusion(guesses[:2], labels[:2]))


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_share_the_pictures_and_find_the_bits_of_one(pictures, monkeypatch, world_size):
    _, _, pairs = pictures
    options = {"dataset": make_dataset(pairs), "options": InferenceOptions(), "progress": False}
    alone = evaluate(red_channel, **options)
    counts = []
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "world_size", lambda: world_size)
        patch.setattr(ranks, "all_reduce_sum", lambda mine: counts.append(mine) or mine)
        for rank in range(world_size):
            patch.setattr(ranks, "rank", lambda rank=rank: rank)
            evaluate(red_channel, **options)
        patch.setattr(ranks, "all_reduce_sum", lambda mine: sum(counts))
        together = evaluate(red_channel, **options)
    assert len(counts) == world_size, "one sum over the ranks for all metrics"
    assert {part.dtype for part in counts} == {np.dtype(np.int64)}
    assert together.images == alone.images == len(pairs)
    assert_identical(together.scores, alone.scores)


def assert_identical(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert np.asarray(value).tobytes() == np.asarray(theirs[name]).tobytes(), name


def test_asked_to_stop_on_one_rank_it_stops_on_all(pictures, monkeypatch):
    _, _, pairs = pictures
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    for stops in (True, False):
        monkeypatch.setattr(
            ranks,
            "all_reduce_sum",
            lambda counts: counts + np.eye(1, len(counts), len(counts) - 1, dtype=np.int64)[0],
        )
        with pytest.raises(InterruptedError):
            evaluate(red_channel, make_dataset(pairs), InferenceOptions(), progress=False, stop=lambda s=stops: s)


def test_transforms_are_undone(pictures):
    _, labels, pairs = pictures

    def double(sample, rng):
        sample["trans_info"].append(("resize", sample["img"].shape[:2]))
        sample["img"] = cv2.resize(sample["img"], None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        sample["trans_info"].append(("padding", sample["img"].shape[:2]))
        sample["img"] = np.pad(sample["img"], ((0, 3), (0, 5), (0, 0)))
        return sample

    result = evaluate(red_channel, make_dataset(pairs, [double]), InferenceOptions(), progress=False)
    plain = evaluate(red_channel, make_dataset(pairs), InferenceOptions(), progress=False)
    assert_array_equal(result.scores["confusion_matrix"], plain.scores["confusion_matrix"])
    assert result.scores["confusion_matrix"].sum() == sum((label != 255).sum() for label in labels)


def test_a_size_that_cannot_be_undone_names_the_picture(pictures):
    def cut(sample, rng):
        sample["img"] = sample["img"][:4, :5]
        return sample

    with pytest.raises(DataError, match=r"0\.png: the prediction is 5x4, the image 16x12"):
        evaluate(red_channel, make_dataset(pictures[2], [cut]), InferenceOptions(), progress=False)


def test_what_is_wrong_with_an_image_names_it(pictures):
    def network(image):
        raise DataError("expected a larger image")

    with pytest.raises(DataError, match=r"0\.png: expected a larger image"):
        evaluate(network, make_dataset(pictures[2]), InferenceOptions(), progress=False)


def test_pictures_without_labels_are_refused(pictures):
    dataset = make_dataset([(image, None) for image, _ in pictures[2]])
    with pytest.raises(DataError, match=r"0\.png has no label"):
        evaluate(red_channel, dataset, InferenceOptions(), progress=False)


@pytest.fixture
def evaluation():
    metrics = {type(metric).__name__: metric for metric in build_metrics(3, 255)}
    metrics["Confusion"].state = np.array([[6, 2, 0], [0, 8, 0], [0, 0, 0]])
    metrics["BoundaryIoU"].state = np.array([[1, 3, 0], [2, 4, 0], [3, 3, 0]])
    metrics["Calibration"].state[:, 14] = (4, 3, 4 * 62259)  # 62259 / 2^16 is nearly 0.95
    return Evaluation(list(metrics.values()), CLASSES.names, 4, 12.34, 3 * 2**30)


def test_table_has_every_class_and_both_means(evaluation):
    lines = [line.replace("│", " ").split() for line in evaluation.table().splitlines()]
    rows = [line[:6] for line in lines]
    titles = " ".join(line.replace("┃", " ") for line in evaluation.table().splitlines()[:4]).split()
    assert set(titles) >= {"class", "IoU", "dice", "precision", "recall", "boundary", "image"}
    assert ["road", "75.00", "85.71", "100.00", "75.00", "25.00"] in rows
    assert ["tree", "80.00", "88.89", "80.00", "100.00", "75.00"] in rows
    assert ["sky", "-", "-", "-", "-", "-"] in rows
    ends = {" ".join(line[:-1]): line[-1] for line in lines if line}
    assert ends["mean IoU, all classes"] == "51.67"
    assert ends["mean IoU, the 2 of 3 classes present"] == "77.50"
    assert ends["pixel accuracy"] == "87.50"
    assert ends["mean boundary IoU, all classes"] == "33.33"
    assert ends["mean boundary IoU, classes present"] == "50.00"
    assert ends["expected calibration error"] == "20.00"
    assert evaluation.table().endswith("4 images in 12.3 s, peak memory 3.00 GiB")


def test_json_holds_everything_behind_the_table(evaluation):
    result = json.loads(json.dumps(evaluation.to_json(config={"iters": 7}, weights_sha256="ab" * 32)))
    assert result["confusion_matrix"] == [[6, 2, 0], [0, 8, 0], [0, 0, 0]]
    assert result["iou"] == {"road": 0.75, "tree": 0.8, "sky": None}
    assert result["mean_iou"] == pytest.approx(1.55 / 3)
    assert result["mean_iou_present"] == pytest.approx(0.775)
    assert result["classes_present"] == 2
    assert result["boundary_iou"] == {"road": 0.25, "tree": 0.75, "sky": None}
    assert result["mean_boundary_iou"] == pytest.approx(1 / 3)
    assert result["ece"] == pytest.approx(0.2, abs=1e-5)
    assert result["reliability"][0] == [None, None, 0] and result["reliability"][14][1:] == [0.75, 4]
    assert result["class_names"] == ["road", "tree", "sky"]
    assert result["pictures"] == 4
    assert result["config"] == {"iters": 7}
    assert result["weights_sha256"] == "ab" * 32
    assert result["versions"]["paddle"] == paddle.__version__
    assert set(result["versions"]) >= {"python", "hmsa", "paddleseg", "numpy", "opencv-python"}
    assert result["seconds"] == 12.34
    assert result["peak_memory_bytes"] == 3 * 2**30


def test_curves_keep_the_names_they_had(evaluation):
    curves = records.curves(records.of_evaluation(5, evaluation, {}))
    assert curves["eval/mIoU"] == pytest.approx(1.55 / 3)
    assert set(curves) >= {
        "eval/mIoU", "eval/mIoU_present", "eval/accuracy", "eval/mean_dice", "eval/kappa", "eval/mean_boundary_iou",
        "eval/mean_boundary_iou_present", "eval/ece",
    }  # fmt: skip


class Share(Metric):
    """What one test adds: how many pixels are given each class."""

    def __init__(self, num_classes, ignore_index):
        super().__init__(num_classes, ignore_index)
        self.state = np.zeros(num_classes, np.int64)

    def update(self, prediction, label, confidence=None):
        self.state += np.bincount(prediction.ravel(), minlength=self.num_classes)

    def scores(self):
        return {"share_predicted": self.state / self.state.sum(), "largest_share": self.state.max() / self.state.sum()}


def test_one_line_adds_a_metric_to_table_json_and_curves(pictures, monkeypatch):
    guesses, _, pairs = pictures
    monkeypatch.setitem(METRICS, "share", f"{__name__}:Share")
    result = evaluate(red_channel, make_dataset(pairs), InferenceOptions(), progress=False)
    counts = sum(np.bincount(guess.ravel(), minlength=3) for guess in guesses)
    shares = counts / counts.sum()
    assert "share" in result.table() and "predicted" in result.table()
    assert f"{'largest share':<50}"[:13] in result.table() and f"{100 * shares.max():.2f}" in result.table()
    written = result.to_json(config={}, weights_sha256="")
    assert written["share_predicted"] == dict(zip(CLASSES.names, shares.tolist()))
    assert (
        written["largest_share"]
        == records.curves(records.of_evaluation(5, result, {}))["eval/largest_share"]
        == shares.max()
    )


def test_a_network_that_answers_nan_has_scores(pictures):
    def nothing(image):
        return paddle.full([1, 3, *image.shape[2:]], float("nan"))

    result = evaluate(nothing, make_dataset(pictures[2]), InferenceOptions(), progress=False)
    assert 0 <= result.scores["ece"] <= 1
    json.dumps(result.to_json(config={}, weights_sha256=""), allow_nan=False)


def test_a_table_fits_a_terminal_of_80_columns():
    names = ("traffic light", "a class with a name that is longer than the column")
    table = Evaluation(build_metrics(2, 255), names, 1, 1.0, 1).table()
    assert max(len(line) for line in table.splitlines() if line[0] in "┏┃┡│└") <= 80
    assert "image ┃" in table and "longer than the" in table


def test_names_are_shown_as_they_are():
    """Rich would take some for its markup, and others for emoji."""
    names = ("[red]", ":smile:", "[/b]")
    assert all(name in Evaluation(build_metrics(3, 255), names, 1, 1.0, 1).table() for name in names)
