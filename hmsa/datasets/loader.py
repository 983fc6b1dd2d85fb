# SPDX-License-Identifier: Apache-2.0
"""Batches of samples, prepared ahead by threads."""

from __future__ import annotations

import atexit
import itertools
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, Optional

import numpy as np

from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.transforms import Sample
from hmsa.errors import DataError

Batch = dict[str, Any]
_Todo = SimpleQueue[Optional[tuple["Future[Batch]", Sequence[int]]]]  # None tells a thread to end

# Seconds to wait for threads that may never answer, before an error is raised or the process ends without them.
PATIENCE = 4.0


def batches(
    dataset: SegmentationDataset, indices: Iterable[Sequence[int]], num_workers: int
) -> Generator[Batch, None, None]:
    """The batch of each entry of `indices` (numbers of samples), in order.

    A batch is a dict of numpy arrays: `img` float32 [B, 3, H, W]; `label` int64 [B, H, W], where the data set
    has labels; and lists of B: `trans_info`, `image_path`. `num_workers` threads work at most two batches
    each ahead (decoding and OpenCV leave other threads running); 0 works in the calling thread. An error of a
    sample, whatever it is, is raised at its batch, or earlier when a batch before it is not there after `PATIENCE`.
    Closing the iterator ends the threads; those that wait for a storage are left behind and hold up nothing.
    """
    if num_workers <= 0:
        for batch in indices:
            yield _collate([dataset[index] for index in batch])
        return
    todo: _Todo = SimpleQueue()
    pending: deque[Future[Batch]] = deque()  # batches given to threads, in order
    stopping = threading.Event()
    threads: list[threading.Thread] = []

    def end() -> None:
        stopping.set()
        for _ in threads:
            todo.put(None)
        deadline = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))

    # A thread that hangs must not hold up the interpreter's end, hence daemons; those that work must be through before
    # it, as C++ code aborts the process where Python ends its thread. Not every generator is closed by then.
    atexit.register(end)
    try:
        for i in range(num_workers):
            thread = threading.Thread(target=_work, args=(dataset, todo, stopping), name=f"loader-{i}", daemon=True)
            thread.start()
            threads.append(thread)

        waiting = iter(indices)
        while True:
            for batch in itertools.islice(waiting, 2 * num_workers - len(pending)):
                pending.append(Future())
                todo.put((pending[-1], batch))
            if not pending:
                return
            _wait_for_first(pending)
            yield pending.popleft().result()
    finally:
        atexit.unregister(end)
        end()


def _wait_for_first(pending: Sequence[Future[Batch]]) -> None:
    """Until the first batch is done; an error of a later one is raised if that takes too long."""
    first, *others = pending
    while not wait([first], timeout=PATIENCE).done:
        for other in others:
            if other.done():
                other.result()


def _work(dataset: SegmentationDataset, todo: _Todo, stopping: threading.Event) -> None:
    """What a thread does: batches until it is told to stop, which it looks for before every sample."""
    for batch, indices in iter(todo.get, None):
        samples = []
        try:
            for index in indices:
                if stopping.is_set():
                    return
                samples.append(dataset[index])
            batch.set_result(_collate(samples))
        except BaseException as error:  # it is the main thread's to handle
            batch.set_exception(error)
        del batch, samples  # not kept through the wait for the next


def _collate(samples: Sequence[Sample]) -> Batch:
    batch: Batch = {key: [sample[key] for sample in samples] for key in ("trans_info", "image_path")}
    for key in (key for key in ("img", "label") if key in samples[0]):
        arrays = [sample[key] for sample in samples]
        sizes = {array.shape[-2:] for array in arrays}
        if len(sizes) > 1:
            raise DataError(
                "images of one batch should have one size, but they have "
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
