# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from hmsa.engine.watch import EarlyStopping, Watched, advice_on_one_answer, only_answer
from hmsa.errors import UsageError
from hmsa.metrics import build_metrics

NAN = float("nan")


def stopping(metric="mean_iou", patience=2):
    return EarlyStopping.on(metric, patience, build_metrics(3, 255, lambda logits, labels: logits.sum()))


def ended_after(values, metric="mean_iou", patience=2):
    """After how many of these values the run ends, and what is said; None if it goes on."""
    early, watched = stopping(metric, patience), None
    for index, value in enumerate(values):
        watched = early.watch(watched, {metric: value}, 10 * (index + 1))
        if early.reason(watched):
            return index + 1, early.reason(watched)
    return None


@pytest.mark.parametrize(
    ("metric", "lower"),
    [("mean_iou", False), ("kappa", False), ("mean_boundary_iou_present", False), ("loss", True), ("ece", True)],
)
def test_every_score_of_the_whole_has_a_direction(metric, lower):
    assert stopping(metric) == EarlyStopping(metric, 2, lower)


@pytest.mark.parametrize("metric", ["mean_iuo", "iou", "classes_present", "confusion_matrix", "images"])
def test_what_is_no_score_of_the_whole_is_refused(metric):
    with pytest.raises(UsageError, match=f"expected a score that evaluations give, found '{metric}': ") as e:
        stopping(metric)
    assert metric != "mean_iuo" or "did you mean mean_iou?" in str(e.value)


@pytest.mark.parametrize(
    ("values", "end"),
    [
        ([0.1, 0.2, 0.3, 0.4], None),
        ([0.5, 0.4, 0.6, 0.5, 0.5], 5),
        ([0.5, 0.5, 0.5], 3),  # as good as before is no gain
        ([0.5, NAN, 0.6], None),
        ([0.5, NAN, NAN], 3),
    ],
)
def test_patience_counts_evaluations_without_a_gain(values, end):
    found = ended_after(values)
    assert (found and found[0]) == end
    found = ended_after([-value for value in values], "loss")
    assert (found and found[0]) == end


def test_the_reason_names_the_best_and_where_it_was():
    assert ended_after([0.25, 0.5, 0.4, 0.3])[1] == (
        "mean_iou has not risen above 0.5000, which it was at iteration 20, in 2 evaluations in a row "
        "(early_stopping.patience is 2)"
    )
    assert (
        "loss has not fallen below 0.3000, which it was at iteration 10, in 3 " in ended_after([0.3] * 4, "loss", 3)[1]
    )
    assert ended_after([NAN, NAN])[1].startswith("mean_iou was no number in 2 evaluations")


def test_another_metric_or_patience_than_before_goes_on():
    watched = Watched("mean_iou", 0.5, 10, without_gain=2)
    assert stopping().reason(watched)
    assert not stopping(patience=3).reason(watched)
    assert not stopping("loss").reason(watched)
    assert not stopping().reason(None)
    assert stopping("loss").watch(watched, {"loss": 1.0}, 20) == Watched("loss", 1.0, 20, 0)


def test_one_answer_everywhere_is_seen_and_advised():
    answers_1 = np.array([[0, 90, 0], [0, 10, 0], [0, 0, 0]])
    assert only_answer(answers_1) == 1
    assert only_answer(answers_1 + np.eye(3, dtype=int)) is None
    assert only_answer(np.zeros((3, 3), int)) is None
    told = advice_on_one_answer("road", answers_1)
    assert "the network answers road everywhere, in 3 evaluations in a row" in told
    assert "90 % of the labelled pixels are of the most frequent class" in told
    assert all(key in told for key in ("model.pretrained", "class_weights: auto", "lr_scheduler.learning_rate"))
    assert "the labels of val_dataset hold no other class" in advice_on_one_answer("road", np.diag([0, 9, 0]))
