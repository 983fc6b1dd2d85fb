# SPDX-License-Identifier: Apache-2.0
"""Batches of samples, prepared ahead by threads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from hmsa.datasets.dataset import SegmentationDataset
from hmsa.errors import DataError


def batches(
    dataset: SegmentationDataset, indices: Iterable[Sequence[int]], num_workers: int
) -> Generator[dict[str, Any], None, None]:
    """The batch of each entry of `indices` (numbers of samples), in order.

    A batch is a dict of numpy arrays: `img` float32 [B, 3, H, W]; `label` int64 [B, H, W], where the data set
    has labels; and lists of B: `trans_info`, `image_path`. `num_workers` threads work at most two batches
    each ahead (decoding and OpenCV leave other threads running); 0 works in the calling thread. An error of a
    sample is raised at its batch. Closing the iterator ends the threads.
    """
    if num_workers <= 0:
        for batch in indices:
            yield _load_batch(dataset, batch)
        return
    waiting: deque[Future[dict[str, Any]]] = deque()
    executor = ThreadPoolExecutor(num_workers, thread_name_prefix="loader")
    try:
        remaining = iter(indices)
        while True:
            for batch in itertools.islice(remaining, 2 * num_workers - len(waiting)):
                waiting.append(executor.submit(_load_batch, dataset, batch))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _load_batch(dataset: SegmentationDataset, indices: Sequence[int]) -> dict[str, Any]:
    samples = [dataset[index] for index in indices]
    batch: dict[str, Any] = {key: [sample[key] for sample in samples] for key in ("trans_info", "image_path")}
    for key in ("img", "label"):
        if key not in samples[0]:
            continue
        arrays = [sample[key] for sample in samples]
        sizes = {array.shape[-2:] for array in arrays}
        if len(sizes) > 1:
            raise DataError(
                "pictures of one batch should have one size, but they have "
                f"{', '.join(f'{w}x{h}' for h, w in sorted(sizes))} (width x height): use a batch size of 1 "
                f"or a transform that fixes the size, for {', '.join(batch['image_path'])}"
            )
        # [B, 3, H, W] or [B, H, W]; a sample alone is not copied.
        batch[key] = np.stack(arrays) if len(arrays) > 1 else arrays[0][None]
    return batch


def training_indices(
    *,
    first_iteration: int,
    iterations: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
) -> Iterator[range]:
    """Samples of this rank's micro-batches in iterations first_iteration..iterations - 1 (counted from 0).

    Iteration i takes the next accumulation * world_size * batch_size samples of the stream, rank after rank
    within a micro-batch, so what is trained on does not depend on where a run was stopped.
    """
    for micro_batch in range(first_iteration * accumulation, iterations * accumulation):
        start = (micro_batch * world_size + rank) * batch_size
        yield range(start, start + batch_size)
