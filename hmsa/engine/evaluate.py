# SPDX-License-Identifier: Apache-2.0
"""Scores of a model on a data set: one confusion matrix, summed over all ranks at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.loader import batches
from hmsa.distributed import ranks
from hmsa.errors import DataError
from hmsa.inference.averaging import InferenceOptions, class_scores, undo_transforms
from hmsa.metrics.confusion import confusion_matrix
from hmsa.models.hierarchical import Network
from hmsa.report.result import Evaluation
from hmsa.system.device import as_tensor
from hmsa.system.memory import peak_memory_bytes


def evaluate(
    network: Network,
    dataset: SegmentationDataset,
    options: InferenceOptions,
    *,
    max_images: int | None = None,
    num_workers: int = 0,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Predict every image of a data set and compare with its label.

    Every rank takes the images rank, rank + world size, ...; all ranks must call this, and all get the sum.

    Args:
        network: images [N, 3, H, W] -> logits [N, K, H, W].
        dataset: in "val" mode: labels at the images' own sizes.
        max_images: evaluate only so many images, the first ones.
        num_workers: threads that load images ahead.
        progress: whether rank 0 shows a bar.
        stop: asked before every image whether to leave off.

    Raises:
        DataError: a prediction and its label differ in size.
        InterruptedError: `stop` said so on any rank; raised on all of them.
    """
    start = time.perf_counter()
    K = dataset.num_classes
    mine = range(ranks.rank(), min(len(dataset), max_images or len(dataset)), ranks.world_size())
    confusion = np.zeros((K, K), np.int64)
    images = 0
    with contextlib.closing(batches(dataset, [[index] for index in mine], num_workers)) as loaded:
        for batch in tqdm(loaded, total=len(mine), unit="image", disable=not (progress and ranks.is_main())):
            if stop():
                break
            image_path = batch["image_path"][0]
            if "label" not in batch:
                raise DataError(f"{image_path} has no label to compare with: set val_dataset to a labelled split")
            try:
                logits = class_scores(network, as_tensor(batch["img"]), options)
            except DataError as error:
                raise DataError(f"{image_path}: {error}") from error
            prediction = undo_transforms(logits, batch["trans_info"][0])
            del logits
            label = batch["label"][0]
            if prediction.shape != label.shape:
                raise DataError(
                    f"{image_path}: the prediction is {_size(prediction)}, its label {_size(label)}"
                    "; the transforms of val_dataset may resize and pad, but not cut"
                )
            confusion += confusion_matrix(prediction, label, K, dataset.ignore_index)
            images += 1
    counts = ranks.all_reduce_sum(np.append(confusion.ravel(), [images, len(mine) - images]))  # [K * K + 2]
    if counts[-1]:
        raise InterruptedError
    return Evaluation(
        confusion=counts[:-2].reshape(K, K),
        class_names=dataset.class_names,
        images=int(counts[-2]),
        seconds=time.perf_counter() - start,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
