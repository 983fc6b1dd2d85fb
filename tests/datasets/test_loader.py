# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa.datasets import loader
from hmsa.datasets.loader import batches, training_indices
from hmsa.errors import DataError


class Numbers:
    """A data set whose sample i says i; what `trap` names fails, `loaded` records what was asked for."""

    def __init__(self, trap: int | None = None, labels: bool = True, delay: float = 0.0) -> None:
        self.trap, self.labels, self.delay = trap, labels, delay
        self.loaded: list[int] = []

    def __getitem__(self, index: int) -> dict:
        time.sleep(self.delay * (index % 3))  # finish out of order
        self.loaded.append(index)
        if index == self.trap:
            raise DataError(f"image {index} is unreadable")
        sample = {"img": np.full((3, 2, 2), index, np.float32), "trans_info": [], "image_path": f"{index}.png"}
        return sample | ({"label": np.full((2, 2), index, np.int64)} if self.labels else {})


def loader_threads() -> int:
    return sum(thread.name.startswith("loader") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_whole_and_in_order(workers):
    batch_list = list(batches(Numbers(delay=0.002), [range(i, i + 2) for i in range(0, 20, 2)], workers))
    assert [batch["image_path"] for batch in batch_list] == [[f"{i}.png", f"{i + 1}.png"] for i in range(0, 20, 2)]
    assert batch_list[3]["img"].shape == (2, 3, 2, 2) and batch_list[3]["label"].shape == (2, 2, 2)
    assert batch_list[3]["img"][:, 0, 0, 0].tolist() == batch_list[3]["label"][:, 0, 0].tolist() == [6, 7]
    assert loader_threads() == 0


def test_without_labels_there_is_no_label():
    (batch,) = batches(Numbers(labels=False), [[1]], 0)
    assert set(batch) == {"img", "trans_info", "image_path"}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_arrives_at_its_batch_and_ends_the_threads(workers):
    stream = batches(Numbers(trap=5), ([i] for i in itertools.count()), workers)
    assert [next(stream)["image_path"] for _ in range(5)] == [[f"{i}.png"] for i in range(5)]
    with pytest.raises(DataError, match="image 5 is unreadable"):
        next(stream)
    assert loader_threads() == 0


@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_whatever_is_raised_arrives(error):
    class Broken(Numbers):
        def __getitem__(self, index):
            raise error

    with pytest.raises(error):
        next(batches(Broken(), [[0]], 2))
    assert loader_threads() == 0


def test_an_error_does_not_wait_for_a_thread_that_hangs(monkeypatch):
    monkeypatch.setattr(loader, "PATIENCE", 0.2)
    storage = threading.Event()

    class Hanging(Numbers):
        def __getitem__(self, index):
            if index == 1:
                storage.wait()
            return super().__getitem__(index)

    stream = batches(Hanging(trap=3), ([i] for i in itertools.count()), 2)
    assert next(stream)["image_path"] == ["0.png"]
    start = time.monotonic()
    with pytest.raises(DataError, match="image 3 is unreadable"):
        next(stream)
    assert time.monotonic() - start < 2
    storage.set()


def test_a_thread_stops_between_two_samples():
    dataset = Numbers(delay=0.02)
    stream = batches(dataset, [[0], [1] * 500], 1)
    next(stream)
    stream.close()
    assert len(dataset.loaded) < 100 and loader_threads() == 0


SCRIPT = """
import signal, sys
from hmsa.datasets import loader
from hmsa.datasets.loader import batches
from hmsa.errors import DataError

class Storage:
    def __getitem__(self, index):
        if index == 0:
            open(sys.argv[1], "rb").read()  # a pipe nobody writes to
        raise DataError("sample 1 is bad")

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
loader.PATIENCE = 1.0
print("reading", flush=True)
next(batches(Storage(), [[0], [1]] if sys.argv[2] == "error" else [[0]], 2))
"""


@pytest.mark.parametrize(
    ("end", "status", "last"),
    [("error", 1, "DataError: sample 1 is bad"), ("interrupt", -signal.SIGINT, "KeyboardInterrupt")],
)
def test_a_process_ends_while_a_storage_is_silent(tmp_path, end, status, last):
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "pipe"), end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "reading\n"
        time.sleep(0.5)
        if end == "interrupt":
            process.send_signal(signal.SIGINT)
        start = time.monotonic()
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == status and errors.splitlines()[-1].endswith(last)
    assert time.monotonic() - start < 10


UNCLOSED = """
import cv2, numpy as np
from hmsa.datasets.loader import batches

class Busy:
    def __getitem__(self, index):
        image = cv2.blur(np.zeros((1000, 1000, 3), np.float32), (99, 99))
        for _ in range(10):
            image = cv2.blur(image, (99, 99))
        return {"img": image.transpose(2, 0, 1), "trans_info": [], "image_path": ""}

stream = batches(Busy(), [[0]] * 99, 2)
next(stream)
raise ValueError("while threads are busy")
"""


def test_busy_threads_do_not_crash_the_interpreter_at_its_end():
    result = subprocess.run([sys.executable, "-c", UNCLOSED], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and result.stderr.endswith("ValueError: while threads are busy\n")


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_an_endless_stream_is_read_at_most_two_batches_a_worker_ahead(workers):
    dataset = Numbers()
    stream = batches(dataset, ([i] for i in itertools.count()), workers)
    for _ in range(10):
        next(stream)
    time.sleep(0.05)
    assert max(dataset.loaded) <= 9 + 2 * workers
    stream.close()
    assert loader_threads() == 0


def test_sizes_that_differ_are_named():
    class Mixed(Numbers):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"img": np.zeros((3, 2, 4 + index), np.float32)}

    with pytest.raises(DataError, match=r"4x2, 5x2.*batch size of 1.*0\.png, 1\.png"):
        next(batches(Mixed(), [[0, 1]], 0))


def test_training_indices_by_hand():
    options = {"first_iteration": 1, "iterations": 3, "batch_size": 2, "world_size": 2, "accumulation": 2}
    # Iteration 1 starts at sample 2 * 2 * 2 = 8; micro-batches take 4 samples, two for each rank.
    assert [list(r) for r in training_indices(rank=0, **options)] == [[8, 9], [12, 13], [16, 17], [20, 21]]
    assert [list(r) for r in training_indices(rank=1, **options)] == [[10, 11], [14, 15], [18, 19], [22, 23]]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 4), st.integers(0, 4))
def test_ranks_cover_the_stream_once_wherever_a_run_resumes(batch, world, accumulation, start, more):
    seen = [
        index
        for rank in range(world)
        for micro_batch in training_indices(
            first_iteration=start,
            iterations=start + more,
            batch_size=batch,
            rank=rank,
            world_size=world,
            accumulation=accumulation,
        )
        for index in micro_batch
    ]
    size = batch * world * accumulation
    assert sorted(seen) == list(range(start * size, (start + more) * size))
