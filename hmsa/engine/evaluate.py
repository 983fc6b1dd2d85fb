# SPDX-License-Identifier: Apache-2.0
"""Scores of a model on a data set: what metrics count, summed over all ranks at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import numpy as np
from paddle import Tensor

from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.loader import batches
from hmsa.distributed import ranks
from hmsa.errors import DataError
from hmsa.inference.averaging import (
    InferenceOptions,
    best_classes,
    class_scores,
    confidences,
    logits_of,
    undo_transforms,
)
from hmsa.inference.insight import look_into
from hmsa.inference.network import FusedNetwork
from hmsa.metrics import Metric, build_metrics
from hmsa.models.hierarchical import Network
from hmsa.report.console import watched
from hmsa.report.notes import Answer
from hmsa.report.result import Evaluation
from hmsa.system.device import as_tensor
from hmsa.system.memory import peak_memory_bytes


def evaluate(
    network: Network,
    dataset: SegmentationDataset,
    options: InferenceOptions,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    max_images: int | None = None,
    num_workers: int = 0,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
    seen: Callable[[Answer], object] | None = None,
    looked_into: Collection[int] = (),
) -> Evaluation:
    """Predict every image of a data set and compare with its label.

    Every rank takes the images rank, rank + world size, ...; all ranks must call this, and all get the sum.

    Args:
        network: images [N, C, H, W] -> logits [N, K, H, W].
        dataset: in "val" mode: labels at the images' own sizes.
        loss: (logits [1, K, H, W] float32, labels [1, H, W] int64) -> scalar; its mean is measured too.
        max_images: evaluate only so many images, the first ones.
        num_workers: threads that load images ahead.
        progress: whether rank 0 shows a bar.
        stop: asked before every image whether to leave off.
        seen: called with the answer to every image.
        looked_into: numbers of the images for which an answer has the shares of the scales too, where `seen` wants
            them; the network is a `FusedNetwork` then.

    Raises:
        DataError: a prediction and its label differ in size.
        InterruptedError: `stop` said so on any rank; raised on all of them.
    """
    start = time.perf_counter()
    metrics = build_metrics(len(dataset.classes), dataset.classes.ignore_index, loss)
    mine = range(ranks.rank(), min(len(dataset), max_images or len(dataset)), ranks.world_size())

    images = 0
    with contextlib.closing(batches(dataset, [[index] for index in mine], num_workers)) as loaded:
        shown = watched(loaded, "image", len(mine), shown=progress and ranks.is_main())
        for index, batch in zip(mine, shown):
            if stop():
                break
            answer = _answer(index, batch, network, options, metrics, look=index in looked_into)
            _count(answer, metrics)
            if seen is not None:
                seen(answer)
            del answer  # its scores, before the next image's are made
            images += 1
    return summed(metrics, dataset.classes, start, images, left_out=len(mine) - images)


def summed(metrics: Sequence[Metric], classes: Classes, start: float, images: int, left_out: int = 0) -> Evaluation:
    """What all ranks have counted together, each over `images` since `start`; all must call this.

    Raises:
        InterruptedError: any of them has left out images.
    """
    parts = [*(metric.state for metric in metrics), np.array([images, left_out])]
    total = ranks.all_reduce_sum(np.concatenate([part.ravel() for part in parts]))
    *states, (images, left_out) = np.split(total, np.cumsum([part.size for part in parts])[:-1])
    if left_out:
        raise InterruptedError
    for metric, state in zip(metrics, states):
        metric.state = state.reshape(metric.state.shape)

    return Evaluation(
        metrics=metrics,
        class_names=classes.names,
        images=int(images),
        seconds=time.perf_counter() - start,
        peak_memory_bytes=peak_memory_bytes(),
        categories=classes.categories,
    )


def _answer(
    index: int,
    batch: dict[str, Any],
    network: Network,
    options: InferenceOptions,
    metrics: Sequence[Metric],
    *,
    look: bool,
) -> Answer:
    """Predict the one image of a batch."""
    image_path = batch["image_path"][0]
    if "label" not in batch:
        raise DataError(f"{image_path} has no label to compare with: set val_dataset to a labelled split")

    label = batch["label"][0].astype(np.uint8)  # the data set lets nothing else pass
    image, trans_info, decided = as_tensor(batch["img"]), batch["trans_info"][0], {}
    try:
        if look:
            found = look_into(cast(FusedNetwork, network), image, options, trans_info=trans_info, size=label.shape)
            scores, decided = found.scores, found.decided
        else:
            scores = class_scores(network, image, options)  # [1, K, h, w]
            scores = undo_transforms(scores, trans_info, label.shape)  # [1, K, H, W]
    except DataError as error:
        raise DataError(f"{image_path}: {error}") from error

    confidence = confidences(scores, options) if any(metric.needs_confidence for metric in metrics) else None
    return Answer(index, image_path, label, best_classes(scores), scores, options, confidence, decided)


def _count(answer: Answer, metrics: Sequence[Metric]) -> None:
    """Show an answer to all metrics."""
    if any(metric.needs_logits for metric in metrics):
        logits = logits_of(answer.scores, answer.options)
        for metric in metrics:
            metric.update_logits(logits, answer.label)
        del logits
    for metric in metrics:
        metric.update(answer.prediction, answer.label, answer.confidence)
